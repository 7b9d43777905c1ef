//! What every room stands on: time, tasks, panics, protections, logs.

pub mod backoff;
pub mod clock;
pub mod hardening;
pub mod memory;
pub mod panics;
pub mod phase;
pub mod shutdown;
pub mod telemetry;
pub mod terminal;
pub mod wakers;
