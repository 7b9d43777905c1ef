//! Paces retransmissions, so that a path that has just lost messages is not overloaded.

use std::time::{Duration, Instant};

/// Bursts of a fraction of the window, with a pause after each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pacing {
    /// Number of messages that are not paced: all that were in flight when a new path began.
    exempt: usize,
    /// Messages left in the current burst, and when the next one may start.
    burst: Option<(usize, Instant)>,
}

impl Pacing {
    /// Whether one more message may be sent again now. Counts it if so.
    pub(crate) fn admits(&mut self, window: usize, now: Instant) -> bool {
        if self.exempt > 0 {
            self.exempt -= 1;
            return true;
        }
        let (left, next) = match self.burst {
            Some((left, next)) if now < next => (left, next),
            _ => ((window / BURST_FRACTION).max(MINIMUM_BURST), now + BURST_INTERVAL),
        };
        self.burst = Some((left.saturating_sub(1), next));
        left > 0
    }

    /// Exempts the next `messages` from pacing.
    pub(crate) fn exempt(&mut self, messages: usize) {
        self.exempt = messages;
    }

    /// Ends the exemption.
    pub(crate) fn end_exemption(&mut self) {
        self.exempt = 0;
    }

    /// Forgets a burst that is over, so that its end is not a deadline.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.burst.take_if(|(_, next)| *next <= now);
    }

    /// When the next message may be sent; `None` if at once.
    pub(crate) fn next_burst(&self) -> Option<Instant> {
        let (_, next) = self.burst.filter(|(left, _)| *left == 0 && self.exempt == 0)?;
        Some(next)
    }
}

/// A burst is this fraction of the window. Our choice.
const BURST_FRACTION: usize = 8;

/// Minimum burst in messages. Our choice: the minimum window.
const MINIMUM_BURST: usize = 16;

/// Time between bursts. Our choice.
const BURST_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(pacing: &mut Pacing, window: usize, now: Instant) -> usize {
        (0..10_000).take_while(|_| pacing.admits(window, now)).count()
    }

    #[test]
    fn bursts_are_a_fraction_of_the_window_every_ten_milliseconds() {
        let (mut pacing, start) = (Pacing::default(), Instant::now());
        for (window, burst) in [(16, 16), (64, 16), (128, 16), (136, 17), (4_096, 512)] {
            pacing.handle_timeout(start + Duration::from_hours(1));
            assert_eq!(pacing.next_burst(), None);
            assert_eq!(admitted(&mut pacing, window, start), burst);
            let next = start + Duration::from_millis(10);
            assert_eq!(pacing.next_burst(), Some(next));
            pacing.handle_timeout(start + Duration::from_micros(9_999));
            assert_eq!(pacing.next_burst(), Some(next));
            assert_eq!(admitted(&mut pacing, window, next), burst, "the next one");
        }
    }

    #[test]
    fn exempt_messages_are_sent_at_once() {
        let (mut pacing, now) = (Pacing::default(), Instant::now());
        assert_eq!(admitted(&mut pacing, 64, now), 16);
        pacing.exempt(1_000);
        assert_eq!(pacing.next_burst(), None);
        assert_eq!(admitted(&mut pacing, 64, now), 1_000);
        pacing.exempt(1_000);
        pacing.end_exemption();
        assert_eq!(admitted(&mut pacing, 64, now), 0);
    }
}
