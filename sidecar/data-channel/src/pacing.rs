//! Spreads what is sent again, so that a path that has just lost messages is not flooded.

use std::time::{Duration, Instant};

/// Bursts of a part of the window with a pause behind each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pacing {
    /// So many go at once: all that was in flight when a new path began.
    exempt: usize,
    /// What is left of the current burst, and when the next one may start.
    burst: Option<(usize, Instant)>,
}

impl Pacing {
    /// Whether one more message may be sent again now; counts it if so.
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

    /// Lets the next `messages` go at once.
    pub(crate) fn exempt(&mut self, messages: usize) {
        self.exempt = messages;
    }

    /// Takes back what was not used of it.
    pub(crate) fn end_exemption(&mut self) {
        self.exempt = 0;
    }

    /// Forgets a burst whose time is over, so that its end is no deadline any more.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.burst.take_if(|(_, next)| *next <= now);
    }

    /// When the next message may be sent, `None` if it may at once.
    pub(crate) fn next_burst(&self) -> Option<Instant> {
        let (_, next) = self.burst.filter(|(left, _)| *left == 0 && self.exempt == 0)?;
        Some(next)
    }
}

/// Overdue messages go in bursts of this part of the window.
const BURST_FRACTION: usize = 8;

/// Never fewer at once.
const MINIMUM_BURST: usize = 16;

const BURST_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(pacing: &mut Pacing, window: usize, now: Instant) -> usize {
        (0..10_000).take_while(|_| pacing.admits(window, now)).count()
    }

    #[test]
    fn bursts_are_a_part_of_the_window_every_ten_milliseconds() {
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
    fn what_is_exempt_goes_at_once() {
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
