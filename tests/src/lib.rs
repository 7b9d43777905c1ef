//! The world outside the sidecar, and the promises kept in it.

pub mod emulator;
pub mod fixtures;
pub mod soak;
