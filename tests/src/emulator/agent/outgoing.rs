//! The agent's unacknowledged messages, and its estimate of the round-trip time.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

/// Messages from the oldest unacknowledged one to the newest.
pub(super) struct Outgoing {
    /// Sequence number of the first entry.
    first: i64,
    entries: VecDeque<Option<InFlight>>,
    in_flight: usize,
    rtt: Rtt,
    paused: bool,
}

struct InFlight {
    frame: Bytes,
    sent: Instant,
}

/// The round-trip estimate, with the constants and formulas of section 5.
struct Rtt {
    smoothed: Duration,
    variation: Duration,
    timeout: Duration,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        let rtt = Rtt {
            smoothed: Duration::from_millis(100),
            variation: Duration::ZERO,
            timeout: Duration::from_millis(200),
        };
        Self { first: 0, entries: VecDeque::new(), in_flight: 0, rtt, paused: false }
    }

    /// Encodes the next message and keeps it for retransmission. When the list is full, the message is sent
    /// once and never again.
    pub(super) fn add(&mut self, now: Instant, encode: impl FnOnce(i64) -> Bytes) -> Bytes {
        let sequence = self.first + i64::try_from(self.entries.len()).unwrap_or(i64::MAX);
        let frame = encode(sequence);
        if self.in_flight < LIMIT {
            self.in_flight += 1;
            self.entries.push_back(Some(InFlight { frame: frame.clone(), sent: now }));
        } else {
            self.entries.push_back(None);
        }
        frame
    }

    /// Removes a message; as in the real agent, only the sequence number is compared. Unknown numbers are
    /// ignored.
    pub(super) fn acknowledged(&mut self, sequence: i64, now: Instant) {
        let index = sequence.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let entry = index.and_then(|index| self.entries.get_mut(index)).and_then(Option::take);
        if let Some(InFlight { sent, .. }) = entry {
            self.in_flight -= 1;
            self.rtt.measured(now - sent);
        }
        while matches!(self.entries.front(), Some(None)) {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// Time since a message was sent, if it is still in flight.
    pub(super) fn age(&self, sequence: i64, now: Instant) -> Option<Duration> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get(index)?.as_ref().map(|entry| now - entry.sent)
    }

    /// Returns the oldest message if its retransmission is due, and restarts its timer.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Bytes> {
        if self.paused {
            return None;
        }
        let oldest = self.entries.iter_mut().find_map(Option::as_mut)?;
        if now - oldest.sent <= self.rtt.timeout {
            return None;
        }
        oldest.sent = now;
        Some(oldest.frame.clone())
    }

    /// Drops all messages: nothing is retransmitted any more.
    pub(super) fn forget(&mut self) {
        self.first += i64::try_from(self.entries.len()).unwrap_or(i64::MAX);
        self.entries.clear();
        self.in_flight = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Returns whether the value changed.
    pub(super) fn set_paused(&mut self, paused: bool) -> bool {
        std::mem::replace(&mut self.paused, paused) != paused
    }
}

impl Rtt {
    fn measured(&mut self, time: Duration) {
        self.variation = self.variation * 3 / 4 + self.smoothed.abs_diff(time) / 4;
        self.smoothed = self.smoothed * 7 / 8 + time / 8;
        let slack = (self.variation * 4).max(Duration::from_millis(10));
        self.timeout = (self.smoothed + slack).min(Duration::from_secs(1));
    }
}

/// Maximum number of messages kept (section 5).
const LIMIT: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn add(outgoing: &mut Outgoing, now: Instant) -> Bytes {
        outgoing.add(now, |sequence| Bytes::from(sequence.to_string()))
    }

    #[test]
    fn only_the_oldest_comes_again_and_only_when_overdue() {
        let mut outgoing = Outgoing::new();
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        for _ in 0..3 {
            add(&mut outgoing, start);
        }
        assert_eq!(outgoing.overdue(after(200)), None);
        assert_eq!(outgoing.overdue(after(201)), Some(Bytes::from_static(b"0")));
        assert_eq!(outgoing.overdue(after(300)), None, "it was sent a moment ago");
        outgoing.acknowledged(0, after(300));
        assert_eq!(outgoing.overdue(after(301)), Some(Bytes::from_static(b"1")));
        outgoing.set_paused(true);
        assert_eq!(outgoing.overdue(after(5_000)), None);
        outgoing.set_paused(false);
        for sequence in [2, 1, 1, 7, -1] {
            outgoing.acknowledged(sequence, after(5_000));
        }
        assert!(outgoing.is_empty());
        assert_eq!(add(&mut outgoing, after(5_000)), Bytes::from_static(b"3"));
    }

    #[test]
    fn timeout_follows_what_is_measured_up_to_a_second() {
        let mut outgoing = Outgoing::new();
        let rtt = &mut outgoing.rtt;
        rtt.measured(Duration::from_millis(100));
        assert_eq!(rtt.timeout, Duration::from_millis(110));
        rtt.measured(Duration::from_millis(180));
        assert_eq!(
            (rtt.smoothed, rtt.timeout),
            (Duration::from_millis(110), Duration::from_millis(190))
        );
        rtt.measured(Duration::from_secs(10));
        assert_eq!(rtt.timeout, Duration::from_secs(1));
    }

    #[test]
    fn what_exceeds_the_list_is_sent_once() {
        let mut outgoing = Outgoing::new();
        let start = Instant::now();
        for _ in 0..=LIMIT {
            add(&mut outgoing, start);
        }
        for sequence in 0..100_000 {
            outgoing.acknowledged(sequence, start);
        }
        assert!(outgoing.is_empty());
        assert_eq!(outgoing.overdue(start + Duration::from_secs(2)), None);
    }
}
