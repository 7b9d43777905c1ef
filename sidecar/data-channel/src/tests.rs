//! Two endpoints on a virtual clock, and what the channel promises of them.

mod agent;
mod ending;
mod handshake;
mod hostile;
mod link;
mod loss;
mod pair;
mod pause;
mod resume;
mod statistics;
mod window;
