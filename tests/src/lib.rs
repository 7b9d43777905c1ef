//! The world outside the sidecar, and the promises kept in it.

pub mod fixtures;
