//! What all other rooms use: time, tasks, stopping, failures, protections of the process, logs.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod event;
pub(crate) mod executor;
pub(crate) mod failure;
pub(crate) mod hardening;
pub(crate) mod memory;
pub(crate) mod panics;
pub(crate) mod phase;
pub(crate) mod resources;
pub(crate) mod shared;
pub(crate) mod shutdown;
pub(crate) mod stop;
pub(crate) mod telemetry;
pub(crate) mod terminal;
pub(crate) mod wakers;
