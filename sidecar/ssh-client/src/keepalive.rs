//! Silence of the server: when to ask for a sign of life, when to give up.

use std::time::{Duration, Instant};

use crate::error::Error;

/// Watches for silence.
#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Duration,
    max: u32,
    received: Instant,
    due: Instant,
    unanswered: u32,
}

impl Keepalive {
    /// Starts watching at `now`; gives up once `max` questions have each stayed without any answer
    /// for `interval`.
    pub(crate) fn new(interval: Duration, max: u32, now: Instant) -> Self {
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Self { interval, max, received: now, due: now + interval, unanswered: 0 }
    }

    /// Notes that something has arrived; whatever it is, the server lives.
    pub(crate) fn on_received(&mut self, now: Instant) {
        self.received = now;
        self.due = now + self.interval;
        self.unanswered = 0;
    }

    /// Lets the clock begin anew without a sign of life: no question can have reached the server.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.due = now + self.interval;
        self.unanswered = 0;
    }

    /// Whether to ask the server now.
    ///
    /// # Errors
    ///
    /// [`Error::KeepaliveTimeout`] if it has been asked often enough.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<bool, Error> {
        if now < self.due {
            return Ok(false);
        }
        if self.unanswered >= self.max {
            return Err(Error::KeepaliveTimeout {
                silent: now.saturating_duration_since(self.received),
            });
        }
        self.unanswered += 1;
        self.due = now + self.interval;
        Ok(true)
    }

    /// When `handle_timeout` is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.due
    }
}

/// Least time between questions: with less, the questions would be all that is sent.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time between questions: sums with it stay within what an `Instant` can hold.
const MAX_INTERVAL: Duration = Duration::from_hours(24 * 365);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_after_silence_and_gives_up_after_the_last_question() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keepalive = Keepalive::new(Duration::from_secs(10), 2, start);
        assert_eq!(keepalive.handle_timeout(at(9)), Ok(false), "not yet");
        assert_eq!(keepalive.handle_timeout(at(10)), Ok(true), "first question");
        assert_eq!(keepalive.handle_timeout(at(11)), Ok(false), "once per interval");
        keepalive.on_received(at(15));
        assert_eq!(keepalive.poll_timeout(), at(25));
        assert_eq!(keepalive.handle_timeout(at(25)), Ok(true));
        assert_eq!(keepalive.handle_timeout(at(35)), Ok(true));
        let silent = Duration::from_secs(30);
        assert_eq!(keepalive.handle_timeout(at(45)), Err(Error::KeepaliveTimeout { silent }));
    }

    #[test]
    fn silence_that_is_excused_is_counted_from_its_excuse() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keepalive = Keepalive::new(Duration::from_secs(10), 1, start);
        assert_eq!(keepalive.handle_timeout(at(10)), Ok(true));
        keepalive.excuse(at(20));
        assert_eq!(keepalive.handle_timeout(at(20)), Ok(false));
        assert_eq!(keepalive.handle_timeout(at(30)), Ok(true));
        assert!(keepalive.handle_timeout(at(40)).is_err());
    }
}
