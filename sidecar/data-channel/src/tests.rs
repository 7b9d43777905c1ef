//! Two endpoints on a virtual clock, and what the channel promises of them.

mod agent;
mod ending;
mod faulty_path;
mod handshake;
mod hostile;
mod link;
mod loss;
mod pair;
mod pause;
mod resume;
mod seeds;
mod statistics;
mod window;
