//! The first lane. An sshd that is there and refuses for the moment is asked again while there is time: it boots, is full,
//! or waits for a service of its own.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, error::Elapsed, sleep, timeout_at};
use tracing::{info, warn};

use super::{
    config::LaneConfig, error::LaneError, event::LaneObserver, hang_up::Retry, lane::Lane,
};
use crate::runtime::backoff::Backoff;

/// Opens a lane until `deadline`, with further attempts, each in a new session, where sshd refuses for the moment.
///
/// Cancel-safe as [`Lane::open`] is.
///
/// # Errors
///
/// [`LaneError`] of the last attempt that ended; [`Elapsed`] if none has.
pub(crate) async fn open_first(
    config: &Arc<LaneConfig>,
    observer: &LaneObserver,
    deadline: Instant,
) -> Result<Result<Lane, LaneError>, Elapsed> {
    let mut delays = Backoff::new(FIRST_DELAY);
    let mut refusal = None;
    let mut refusals = 0_u32;
    loop {
        let error = match timeout_at(deadline, Lane::open(config, observer)).await {
            Ok(Ok(lane)) => return Ok(Ok(lane)),
            Ok(Err(error)) => error,
            // What sshd has said explains more than that the time is over.
            Err(elapsed) => return refusal.map(Err).ok_or(elapsed),
        };
        refusals += 1;
        let again = match error.retry() {
            Retry::Never => false,
            Retry::Few => refusals < FEW,
            Retry::WhileThereIsTime => true,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let longest = left.saturating_sub(LAST_CHANCE);
        if !again || longest.is_zero() {
            return Ok(Err(error));
        }
        let delay = delays.next_delay().min(longest);
        warn!(%error, "refused for the moment");
        refusal = Some(error);
        sleep(delay).await;
        info!(waited_ms = delay.as_millis(), "trying again");
    }
}

/// Before the second attempt. Later ones wait longer: sshd's penalties (`PerSourcePenalties`) last for seconds, and hit
/// everybody at 127.0.0.1.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// What an attempt takes at most where all is well. With less than that left none is begun.
const LAST_CHANCE: Duration = Duration::from_secs(3);

/// Attempts in all where the cause hardly passes.
const FEW: u32 = 3;

#[cfg(test)]
mod tests;
