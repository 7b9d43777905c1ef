//! Tests of a channel and a model of the agent on a virtual clock.

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
mod service_limits;
mod statistics;
mod window;

use crate::testing as agent;
