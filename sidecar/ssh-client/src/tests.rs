//! The client against a test server in memory that can violate the protocol.

mod exchange;
mod hostile;
mod server;
