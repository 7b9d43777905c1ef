//! The clock of the process, for the state machines that are told the time.

use std::time::Instant;

/// The time as tokio's timers have it, which tests may hold.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
