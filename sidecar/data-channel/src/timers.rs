//! All deadlines of a channel, in one table.

use std::time::Instant;

/// Name of a deadline.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Timer {
    /// The first message in flight may be overdue.
    Retransmission,
    /// The next burst of overdue messages may be sent.
    Pacing,
    /// The pause ends although `start_publication` has not arrived.
    Pause,
}

/// The running deadlines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    retransmission: Option<Instant>,
    pacing: Option<Instant>,
    pause: Option<Instant>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, deadline: Option<Instant>) {
        *self.slot(timer) = deadline;
    }

    /// Lets `timer`, which is running, expire at `deadline` if that is earlier.
    pub(crate) fn bring_forward(&mut self, timer: Timer, deadline: Instant) {
        if let Some(current) = self.slot(timer) {
            *current = deadline.min(*current);
        }
    }

    /// Returns true if `timer` has expired, and stops it.
    pub(crate) fn take_expired(&mut self, timer: Timer, now: Instant) -> bool {
        self.slot(timer).take_if(|deadline| *deadline <= now).is_some()
    }

    pub(crate) fn stop_all(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        [self.retransmission, self.pacing, self.pause].into_iter().flatten().min()
    }

    fn slot(&mut self, timer: Timer) -> &mut Option<Instant> {
        match timer {
            Timer::Retransmission => &mut self.retransmission,
            Timer::Pacing => &mut self.pacing,
            Timer::Pause => &mut self.pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_deadline_is_next_and_expires_once() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        timers.set(Timer::Pause, Some(later));
        timers.set(Timer::Pacing, Some(now));
        assert_eq!(timers.next(), Some(now));
        assert!(!timers.take_expired(Timer::Pause, now));
        assert!(timers.take_expired(Timer::Pacing, now));
        assert!(!timers.take_expired(Timer::Pacing, now));
        assert_eq!(timers.next(), Some(later));
        timers.stop_all();
        assert_eq!(timers.next(), None);
    }
}
