//! Round-trip time and retransmission time-out (RFC 6298; docs/ssm-protocol.md, section 8.2).

use std::time::Duration;

/// Smoothed round-trip time, its variation, and the minimum of the path.
///
/// The caller omits messages that were sent more than once (Karn's algorithm).
#[derive(Clone, Debug)]
pub(crate) struct RoundTrip {
    estimate: Option<Estimate>,
    minimum: Option<Duration>,
    /// Time-out according to the estimate.
    timeout: Duration,
    /// The same, doubled for each loss since the last sample.
    backed_off: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    smoothed: Duration,
    variation: Duration,
}

impl Estimate {
    fn bound(self) -> Duration {
        self.smoothed + self.allowance()
    }

    fn allowance(self) -> Duration {
        (self.variation * 4).max(GRANULARITY)
    }
}

impl RoundTrip {
    pub(crate) const fn new() -> Self {
        let timeout = INITIAL_TIMEOUT;
        Self { estimate: None, minimum: None, timeout, backed_off: timeout }
    }

    /// Adds the time from the only sending of a message to its acknowledgement.
    pub(crate) fn on_sample(&mut self, sample: Duration) {
        let estimate = match self.estimate {
            None => Estimate { smoothed: sample, variation: sample / 2 },
            Some(Estimate { smoothed, variation }) => Estimate {
                variation: (variation * 3 + smoothed.abs_diff(sample)) / 4,
                smoothed: (smoothed * 7 + sample) / 8,
            },
        };
        self.estimate = Some(estimate);
        self.minimum = Some(self.minimum.map_or(sample, |minimum| minimum.min(sample)));
        self.timeout = estimate.bound().clamp(MINIMUM_TIMEOUT, MAXIMUM_TIMEOUT);
        self.backed_off = self.timeout;
    }

    /// Doubles the timeout until the next sample (RFC 6298, 5.5 and 5.7).
    ///
    /// Otherwise, on a path that has become slower than the time-out, every message would be sent twice and
    /// none would give a sample.
    pub(crate) fn on_timeout(&mut self) {
        self.backed_off = (self.backed_off * 2).min(MAXIMUM_TIMEOUT);
    }

    /// Resets what belongs to the old path: its minimum, and the doublings caused by its end.
    pub(crate) fn on_new_path(&mut self) {
        self.minimum = None;
        self.backed_off = self.timeout;
    }

    /// Time-out of a message that was overdue `timeouts` times.
    pub(crate) fn timeout_after(&self, timeouts: u32) -> Duration {
        self.timeout.saturating_mul(1 << timeouts.min(16)).max(self.backed_off).min(MAXIMUM_TIMEOUT)
    }

    /// Time-out of a new message.
    pub(crate) const fn retransmission_timeout(&self) -> Duration {
        self.backed_off
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.estimate.map(|estimate| estimate.smoothed)
    }

    pub(crate) fn minimum(&self) -> Option<Duration> {
        self.minimum
    }

    /// Difference between two round trips that few exceed.
    pub(crate) fn allowance(&self) -> Duration {
        self.estimate.map_or(self.timeout, Estimate::allowance)
    }

    /// Round-trip time that few exceed.
    pub(crate) fn bound(&self) -> Option<Duration> {
        self.estimate.map(Estimate::bound)
    }
}

/// Before the first sample (RFC 6298, 2.1).
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Our choice, above the jitter of a busy agent, so that it does not get everything twice. The official
/// programs begin with 200 ms, too (docs/ssm-protocol.md, section 8.1).
const MINIMUM_TIMEOUT: Duration = Duration::from_millis(200);

/// Our choice, so that a recovered path is noticed soon.
pub(crate) const MAXIMUM_TIMEOUT: Duration = Duration::from_secs(3);

/// Minimum allowance for variation, as in the official programs (docs/ssm-protocol.md, section 8.1).
const GRANULARITY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_first_sample_replaces_the_initial_timeout() {
        let mut rtt = RoundTrip::new();
        assert_eq!(rtt.retransmission_timeout(), ms(1_000));
        rtt.on_sample(ms(100));
        assert_eq!((rtt.smoothed(), rtt.retransmission_timeout()), (Some(ms(100)), ms(300)));
    }

    #[test]
    fn later_samples_are_smoothed() {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(100));
        rtt.on_sample(ms(180));
        // RTTVAR = 3/4 * 50 + 1/4 * 80 = 57.5, SRTT = 7/8 * 100 + 1/8 * 180 = 110
        assert_eq!((rtt.smoothed(), rtt.retransmission_timeout()), (Some(ms(110)), ms(340)));
        assert_eq!(rtt.bound(), Some(ms(340)));
        assert_eq!(rtt.minimum(), Some(ms(100)));
    }

    #[test]
    fn the_timeout_keeps_within_its_bounds() {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(1));
        assert_eq!(rtt.retransmission_timeout(), MINIMUM_TIMEOUT);
        rtt.on_sample(ms(60_000));
        assert_eq!(rtt.retransmission_timeout(), MAXIMUM_TIMEOUT);
    }

    #[test]
    fn each_message_doubles_its_own_wait() {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(1));
        let waits = [0, 1, 2, 3, 4, 40].map(|times| rtt.timeout_after(times));
        assert_eq!(waits, [200, 400, 800, 1_600, 3_000, 3_000].map(ms));
    }

    #[test]
    fn a_doubled_timeout_lasts_until_the_next_sample() {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(50));
        rtt.on_timeout();
        assert_eq!(rtt.retransmission_timeout(), ms(400));
        rtt.on_sample(ms(50));
        assert_eq!(rtt.retransmission_timeout(), ms(200));
    }

    #[test]
    fn a_new_path_has_its_own_minimum() {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(10));
        rtt.on_timeout();
        rtt.on_new_path();
        assert_eq!((rtt.minimum(), rtt.retransmission_timeout()), (None, ms(200)));
        rtt.on_sample(ms(90));
        assert_eq!(rtt.minimum(), Some(ms(90)));
    }
}
