//! The age at which the service closes a data channel: a first guess, then what earlier closes have shown, and channels
//! that were not closed. No IO and no clock.

use std::time::{Duration, Instant};

use tracing::info;

/// The expected lives of data channels whose opening was signed, and of those whose was not.
#[derive(Debug, Default)]
pub(super) struct ChannelLives {
    signed: ChannelLife,
    unsigned: ChannelLife,
}

impl ChannelLives {
    pub(super) fn of(&self, signed: bool) -> &ChannelLife {
        if signed { &self.signed } else { &self.unsigned }
    }

    pub(super) fn of_mut(&mut self, signed: bool) -> &mut ChannelLife {
        if signed { &mut self.signed } else { &mut self.unsigned }
    }
}

/// The expected life of a data channel.
#[derive(Debug)]
pub(super) struct ChannelLife {
    expected: Duration,
    last: Option<Close>,
}

/// A channel that the service has closed.
#[derive(Clone, Copy, Debug)]
struct Close {
    at: Instant,
    age: Duration,
}

impl Default for ChannelLife {
    /// Begins with [`FIRST_GUESS`].
    fn default() -> Self {
        Self { expected: FIRST_GUESS, last: None }
    }
}

impl ChannelLife {
    /// For how long the service is expected to leave a data channel open.
    pub(super) fn expected(&self) -> Duration {
        self.expected
    }

    /// The service has closed a channel of this `age` in order.
    ///
    /// A single close proves nothing: gateways are restarted. So the expectation changes only when two closes in a row
    /// agree, within a tenth of the longer age. The shorter one is expected then, be it less than before or more.
    pub(super) fn on_closed(&mut self, now: Instant, age: Duration) {
        let close = Close { at: now, age };
        if age < SHORTEST || self.last.is_some_and(|last| last.is_same_event(close)) {
            return;
        }
        let Some(last) = self.last.replace(close) else { return };
        let (shorter, longer) = (last.age.min(age), last.age.max(age));
        if last.age.abs_diff(age) <= longer / TOLERANCE && shorter != self.expected {
            self.expected = shorter;
            info!(
                seconds = shorter.as_secs(),
                "data channels are expected to be closed at this age"
            );
        }
    }

    /// A channel has lived longer than expected, by more than [`TOLERANCE`]: twice the time is expected from now on.
    pub(super) fn on_outlived(&mut self) {
        self.expected *= 2;
        info!(seconds = self.expected.as_secs(), "data channels live longer than expected");
    }
}

impl Close {
    /// Whether both closes may have one cause. Channels that were opened together are closed together at the end of
    /// their life, but also by one restart of a gateway, and agree in both cases.
    fn is_same_event(self, later: Self) -> bool {
        later.at.duration_since(self.at) < later.age / TOLERANCE
    }
}

/// Observed at the live service: see section 14 of `data-channel/docs/ssm-protocol.md`, with its sources.
const FIRST_GUESS: Duration = Duration::from_hours(1);

/// A younger channel teaches nothing when it is closed. A service in trouble closes channels soon after their opening;
/// if that were expected of all channels, new sessions would be started every few seconds, also when the trouble is
/// over. As long as a lane must last to end an outage; far below any life seen, and long enough to open a lane in a
/// sixth of it.
const SHORTEST: Duration = super::STABLE_AFTER;

/// Ages agree if they differ by at most the longer one divided by this.
const TOLERANCE: u32 = 10;
