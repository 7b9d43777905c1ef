//! The process's clock, for state machines that take the time as an argument.

use std::time::Instant;

/// The time of tokio's timers, which tests can pause.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
