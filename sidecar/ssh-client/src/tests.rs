//! The client against a server of ours that can misbehave, all in memory.

mod exchange;
mod hostile;
mod server;
