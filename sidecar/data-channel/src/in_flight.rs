//! Messages that were sent and are not acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::sequence::SequenceNumber;

/// A message that may have to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// The whole message, shared with the sender; repeated unchanged, with the same id and date.
    pub(crate) frame: Bytes,
    pub(crate) payload_bytes: usize,
    /// When it was last sent.
    pub(crate) at: Instant,
    /// When it is overdue; `None` while it is queued to be sent again.
    pub(crate) due: Option<Instant>,
    /// Number of time-outs on this path.
    pub(crate) timeouts: u32,
    /// How often it was marked missing before its time-out, on this path.
    pub(crate) times_missing: u32,
    /// Whether the time to its acknowledgement is a valid sample of the round trip.
    pub(crate) timed: bool,
}

impl Sent {
    /// Marks it missing; false if it is queued already, or was marked the maximum number of times.
    pub(crate) fn mark_missing(&mut self) -> bool {
        if self.due.is_none() || self.times_missing >= MAXIMUM_TIMES_MISSING {
            return false;
        }
        self.times_missing += 1;
        self.due = None;
        self.timed = false;
        true
    }
}

/// Ring of messages in flight, keyed by sequence number, and the few that are set aside.
///
/// A message is *set aside* when it has probably arrived but will never be acknowledged: agents before
/// 3.2.1041.0 do not acknowledge duplicates (docs/ssm-protocol.md, section 7). It is still sent at long
/// intervals, but does not count in the window.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Number of the first slot. That slot is never empty, see `take_counted`.
    first: SequenceNumber,
    slots: VecDeque<Option<Sent>>,
    counted: usize,
    counted_bytes: usize,
    aside: BTreeMap<SequenceNumber, Sent>,
    aside_bytes: usize,
    aside_limit_bytes: usize,
}

impl InFlight {
    /// `aside_limit_bytes` bounds the payload bytes that are set aside.
    pub(crate) fn new(aside_limit_bytes: usize) -> Self {
        Self {
            first: SequenceNumber::FIRST,
            slots: VecDeque::new(),
            counted: 0,
            counted_bytes: 0,
            aside: BTreeMap::new(),
            aside_bytes: 0,
            aside_limit_bytes,
        }
    }

    /// Adds the next message. Numbers are consecutive.
    pub(crate) fn push(&mut self, number: SequenceNumber, sent: Sent) {
        if self.slots.is_empty() {
            self.first = number;
        }
        debug_assert_eq!(
            self.first.advanced_by(self.slots.len()),
            number,
            "numbers are consecutive"
        );
        self.counted += 1;
        self.counted_bytes += sent.payload_bytes;
        self.slots.push_back(Some(sent));
    }

    /// Removes a message; `None` if it is not in flight.
    pub(crate) fn remove(&mut self, number: SequenceNumber) -> Option<Sent> {
        let Some(sent) = self.take_counted(number) else {
            let sent = self.aside.remove(&number)?;
            self.aside_bytes -= sent.payload_bytes;
            return Some(sent);
        };
        Some(sent)
    }

    /// Returns a message, and whether it counts in the window.
    pub(crate) fn get_mut(&mut self, number: SequenceNumber) -> Option<(bool, &mut Sent)> {
        let index = number.offset_from(self.first);
        match index.and_then(|index| self.slots.get_mut(index)) {
            Some(Some(sent)) => Some((true, sent)),
            _ => self.aside.get_mut(&number).map(|sent| (false, sent)),
        }
    }

    /// Sets a message aside; false if the bounds for such messages are reached.
    pub(crate) fn set_aside(&mut self, number: SequenceNumber) -> bool {
        let Some((true, sent)) = self.get_mut(number) else { return false };
        let bytes = sent.payload_bytes;
        let room = self.aside_limit_bytes.saturating_sub(self.aside_bytes);
        if self.aside.len() >= ASIDE_MESSAGES || bytes > room {
            return false;
        }
        let Some(sent) = self.take_counted(number) else { return false };
        self.aside_bytes += sent.payload_bytes;
        self.aside.insert(number, sent);
        true
    }

    /// Every message, and whether it counts: those set aside, then the others, each oldest first.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SequenceNumber, bool, &mut Sent)> {
        let first = self.first;
        let counted = self.slots.iter_mut().enumerate().filter_map(move |(index, slot)| {
            slot.as_mut().map(|sent| (first.advanced_by(index), true, sent))
        });
        self.aside.iter_mut().map(|(number, sent)| (*number, false, sent)).chain(counted)
    }

    /// Number of the oldest message that counts in the window.
    pub(crate) fn oldest_counted(&self) -> Option<SequenceNumber> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    /// Distance from the oldest counted message to the newest, in messages: the peer may have to buffer as many.
    pub(crate) fn span(&self) -> usize {
        self.slots.len()
    }

    pub(crate) const fn counted(&self) -> usize {
        self.counted
    }

    pub(crate) const fn counted_bytes(&self) -> usize {
        self.counted_bytes
    }

    pub(crate) fn aside(&self) -> usize {
        self.aside.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.counted == 0 && self.aside.is_empty()
    }

    /// Extends the deadlines by the time that the clocks stood still, `stopped`, or since the message was sent
    /// if that is shorter. Returns the earliest deadline.
    pub(crate) fn prolong(&mut self, stopped: Duration, now: Instant) -> Option<Instant> {
        let prolonged = self.iter_mut().filter_map(|(_, _, sent)| {
            let lost = stopped.min(now.saturating_duration_since(sent.at));
            sent.due = sent.due.map(|due| due + lost);
            sent.due
        });
        prolonged.min()
    }

    fn take_counted(&mut self, number: SequenceNumber) -> Option<Sent> {
        let index = number.offset_from(self.first)?;
        let sent = self.slots.get_mut(index)?.take()?;
        self.counted -= 1;
        self.counted_bytes -= sent.payload_bytes;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first = self.first.advanced_by(1);
        }
        Some(sent)
    }
}

/// After three marks a message waits for its time-out: an agent before 3.2.1041.0 may have it and never
/// acknowledge it.
const MAXIMUM_TIMES_MISSING: u32 = 3;

/// Maximum number of messages set aside. Our choice: twice the maximum window of 4,096, so that one lost
/// WebSocket never blocks the next one.
const ASIDE_MESSAGES: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;

    fn number(raw: i64) -> SequenceNumber {
        SequenceNumber::from_wire(raw).unwrap()
    }

    fn sent(payload_bytes: usize) -> Sent {
        let at = Instant::now();
        let (frame, due, timeouts, times_missing) = (Bytes::new(), Some(at), 0, 0);
        Sent { frame, payload_bytes, at, due, timeouts, times_missing, timed: true }
    }

    fn filled(from: i64, to: i64) -> InFlight {
        let mut in_flight = InFlight::new(usize::MAX);
        (from..to).for_each(|raw| in_flight.push(number(raw), sent(10)));
        in_flight
    }

    #[test]
    fn messages_leave_in_any_order_and_once() {
        let mut in_flight = filled(5, 10);
        for (raw, span, oldest) in [(7, 5, 5), (5, 4, 6), (6, 2, 8), (9, 2, 8)] {
            assert!(in_flight.remove(number(raw)).is_some(), "{raw}");
            assert!(in_flight.remove(number(raw)).is_none(), "{raw} again");
            assert_eq!(
                (in_flight.span(), in_flight.oldest_counted()),
                (span, Some(number(oldest)))
            );
        }
        assert!(in_flight.remove(number(8)).is_some());
        assert!(in_flight.is_empty());
        assert_eq!((in_flight.span(), in_flight.counted_bytes()), (0, 0));
        in_flight.push(number(10), sent(1));
        assert_eq!(in_flight.oldest_counted(), Some(number(10)));
    }

    #[test]
    fn numbers_not_in_flight_are_not_found() {
        let mut in_flight = filled(5, 7);
        for raw in [0, 4, 7, i64::MAX] {
            assert!(in_flight.remove(number(raw)).is_none(), "{raw}");
            assert!(in_flight.get_mut(number(raw)).is_none(), "{raw}");
        }
    }

    #[test]
    fn messages_set_aside_are_kept_but_not_counted() {
        let mut in_flight = filled(0, 3);
        assert!(in_flight.set_aside(number(0)));
        assert!(!in_flight.set_aside(number(0)));
        assert_eq!((in_flight.counted(), in_flight.counted_bytes(), in_flight.span()), (2, 20, 2));
        assert_eq!(in_flight.aside(), 1);
        let order: Vec<_> = in_flight.iter_mut().map(|(number, _, _)| number.to_wire()).collect();
        assert_eq!(order, [0, 1, 2]);
        assert!(in_flight.get_mut(number(0)).is_some());
        assert!(in_flight.remove(number(0)).is_some());
        assert_eq!(in_flight.aside(), 0);
    }

    #[test]
    fn messages_set_aside_are_bounded() {
        let limit = i64::try_from(ASIDE_MESSAGES).unwrap();
        let mut in_flight = filled(0, limit + 1);
        assert!((0..limit).all(|raw| in_flight.set_aside(number(raw))));
        assert!(!in_flight.set_aside(number(limit)));
        assert_eq!(in_flight.counted(), 1);
    }

    #[test]
    fn bytes_set_aside_are_bounded() {
        let mut in_flight = InFlight::new(25);
        (0..4).for_each(|raw| in_flight.push(number(raw), sent(10)));
        let taken: Vec<_> = (0..3).map(|raw| in_flight.set_aside(number(raw))).collect();
        assert_eq!(taken, [true, true, false]);
        in_flight.remove(number(0));
        assert!(in_flight.set_aside(number(2)), "there is room again");
    }
}
