//! Keepalive: when to send a request to a silent server, and when to fail.

use std::time::{Duration, Instant};

use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Duration,
    max: u32,
    /// When anything was last received.
    received: Instant,
    due: Instant,
    unanswered: u32,
    /// When the first of the unanswered requests was due.
    unanswered_since: Option<Instant>,
    /// Whether anything was sent since then.
    has_sent: bool,
}

impl Keepalive {
    /// Starts at `now`; fails after `max` requests without an answer within `interval` each.
    pub(crate) fn new(interval: Duration, max: u32, now: Instant) -> Self {
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Self {
            interval,
            max,
            received: now,
            due: now + interval,
            unanswered: 0,
            unanswered_since: None,
            has_sent: false,
        }
    }

    /// Notes that something was received. Any input shows that the server is alive.
    pub(crate) fn on_received(&mut self, now: Instant) {
        self.received = now;
        self.excuse(now);
        self.has_sent = false;
    }

    /// Notes that something was sent. A silent server is asked sooner after that: it may owe an answer.
    pub(crate) fn on_sent(&mut self, now: Instant) {
        if !self.has_sent {
            self.has_sent = true;
            self.due = self.due.min(now + self.interval / AFTER_SENDING);
        }
    }

    /// Since when a request is unanswered; `None` if none is.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    /// Restarts the interval without input: the path carries nothing, so no request can have reached the server.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.due = now + self.interval;
        self.unanswered = 0;
        self.unanswered_since = None;
    }

    /// Returns whether to send a request now.
    ///
    /// # Errors
    ///
    /// [`Error::KeepaliveTimeout`] if `max` requests were not answered.
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
        self.unanswered_since.get_or_insert(now);
        self.has_sent = true;
        self.due = now + self.interval;
        Ok(true)
    }

    /// When `handle_timeout` is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.due
    }
}

/// After something was sent, the first request follows the silence of the interval divided by this.
const AFTER_SENDING: u32 = 5;

/// Least time between requests: with less, nothing but requests would be sent.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time between requests: a year can be added to any `Instant`.
const MAX_INTERVAL: Duration = Duration::from_hours(24 * 365);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_requests_after_silence_and_fails_after_the_last_one() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keepalive = Keepalive::new(Duration::from_secs(10), 2, start);
        assert_eq!(keepalive.handle_timeout(at(9)), Ok(false), "not yet");
        assert_eq!(keepalive.handle_timeout(at(10)), Ok(true), "first request");
        assert_eq!(keepalive.handle_timeout(at(11)), Ok(false), "once per interval");
        keepalive.on_received(at(15));
        assert_eq!(keepalive.poll_timeout(), at(25));
        assert_eq!(keepalive.handle_timeout(at(25)), Ok(true));
        assert_eq!(keepalive.handle_timeout(at(35)), Ok(true));
        let silent = Duration::from_secs(30);
        assert_eq!(keepalive.handle_timeout(at(45)), Err(Error::KeepaliveTimeout { silent }));
    }

    #[test]
    fn excused_silence_is_counted_from_the_excuse() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keepalive = Keepalive::new(Duration::from_secs(10), 1, start);
        assert_eq!(keepalive.handle_timeout(at(10)), Ok(true));
        keepalive.excuse(at(20));
        assert_eq!(keepalive.handle_timeout(at(20)), Ok(false));
        assert_eq!(keepalive.handle_timeout(at(30)), Ok(true));
        assert!(keepalive.handle_timeout(at(40)).is_err());
    }

    #[test]
    fn silence_after_sending_is_noticed_in_a_fifth_of_the_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keepalive = Keepalive::new(Duration::from_secs(20), 3, start);
        keepalive.on_sent(at(1));
        keepalive.on_sent(at(3));
        assert_eq!((keepalive.poll_timeout(), keepalive.unanswered_since()), (at(5), None));
        assert!(keepalive.handle_timeout(at(5)).unwrap());
        assert_eq!(keepalive.unanswered_since(), Some(at(5)));
        // The request itself.
        keepalive.on_sent(at(5));
        assert_eq!(keepalive.poll_timeout(), at(25));
        assert!(keepalive.handle_timeout(at(25)).unwrap());
        assert_eq!(keepalive.unanswered_since(), Some(at(5)));
        keepalive.on_received(at(26));
        assert_eq!((keepalive.poll_timeout(), keepalive.unanswered_since()), (at(46), None));
    }
}
