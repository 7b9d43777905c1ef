//! The incoming stream: restores order, removes duplicates, bounds memory (docs/ssm-protocol.md, section 7).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::sequence::SequenceNumber;

/// Result of [`Incoming::accept`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accepted {
    /// Stored; the next in order.
    InOrder,
    /// Stored until those before it have arrived.
    Early,
    /// Stored already.
    Duplicate,
    /// Not stored. Must not be acknowledged, so that it comes again.
    NoRoom,
}

/// A stored message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Stored {
    pub(crate) payload_type: u32,
    pub(crate) payload: Bytes,
    /// Bytes of memory that the payload keeps alive: its whole frame.
    pub(crate) frame_bytes: usize,
}

/// Reorder buffer, and the bytes that are in order but not read yet.
///
/// A stored message is never dropped, since it is acknowledged and its sender forgets it. The bounds apply to
/// each of the two parts, so both together hold at most twice as much.
#[derive(Debug)]
pub(crate) struct Incoming {
    limit_bytes: usize,
    limit_messages: usize,
    /// Number of the first slot; `None` once the numbers are used up.
    expected: Option<SequenceNumber>,
    early: VecDeque<Option<Stored>>,
    early_bytes: usize,
    readable: VecDeque<(Bytes, usize)>,
    readable_bytes: usize,
}

impl Incoming {
    pub(crate) fn new(limit_bytes: usize, limit_messages: usize) -> Self {
        Self {
            limit_bytes,
            limit_messages: limit_messages.max(1),
            expected: Some(SequenceNumber::FIRST),
            early: VecDeque::new(),
            early_bytes: 0,
            readable: VecDeque::new(),
            readable_bytes: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, expected: SequenceNumber) {
        assert!(self.early.is_empty());
        self.expected = Some(expected);
    }

    /// Stores a message if it is new and there is room.
    pub(crate) fn accept(&mut self, number: SequenceNumber, message: Stored) -> Accepted {
        let Some(offset) = self.expected.and_then(|expected| number.offset_from(expected)) else {
            return Accepted::Duplicate;
        };
        if let Some(Some(_)) = self.early.get(offset) {
            return Accepted::Duplicate;
        }
        // The next message in order releases the early ones, so they must not exclude it.
        let waiting = if offset == 0 { 0 } else { self.early_bytes };
        let bytes = self.readable_bytes.saturating_add(waiting).saturating_add(message.frame_bytes);
        let nothing_stored = self.readable_bytes == 0 && waiting == 0;
        if offset >= self.limit_messages
            || self.readable.len() >= self.limit_messages
            || bytes > self.limit_bytes && !nothing_stored
        {
            return Accepted::NoRoom;
        }
        if self.early.len() <= offset {
            self.early.resize(offset + 1, None);
        }
        self.early_bytes += message.frame_bytes;
        if let Some(slot) = self.early.get_mut(offset) {
            *slot = Some(message);
        }
        if offset == 0 { Accepted::InOrder } else { Accepted::Early }
    }

    /// Takes the next message in order, if it has arrived.
    pub(crate) fn next_in_order(&mut self) -> Option<Stored> {
        let message = self.early.front_mut()?.take()?;
        self.early.pop_front();
        self.early_bytes -= message.frame_bytes;
        self.expected = self.expected.and_then(SequenceNumber::next);
        Some(message)
    }

    /// Queues the payload of a message for `read`.
    pub(crate) fn deliver(&mut self, message: Stored) {
        if message.payload.is_empty() {
            return;
        }
        self.readable_bytes += message.frame_bytes;
        self.readable.push_back((message.payload, message.frame_bytes));
    }

    /// Takes the next bytes of the stream, never empty.
    pub(crate) fn read(&mut self) -> Option<Bytes> {
        let (payload, frame_bytes) = self.readable.pop_front()?;
        self.readable_bytes -= frame_bytes;
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn number(raw: i64) -> SequenceNumber {
        SequenceNumber::from_wire(raw).unwrap()
    }

    fn message(raw: i64, frame_bytes: usize) -> Stored {
        let payload = Bytes::copy_from_slice(&raw.to_be_bytes());
        Stored { payload_type: 1, payload, frame_bytes }
    }

    fn accept(incoming: &mut Incoming, raw: i64) -> Accepted {
        incoming.accept(number(raw), message(raw, 100))
    }

    fn drain(incoming: &mut Incoming) -> Vec<i64> {
        while let Some(message) = incoming.next_in_order() {
            incoming.deliver(message);
        }
        std::iter::from_fn(|| incoming.read())
            .map(|payload| i64::from_be_bytes(payload[..].try_into().unwrap()))
            .collect()
    }

    #[test]
    fn early_messages_wait_for_those_before_them() {
        let mut incoming = Incoming::new(10_000, 100);
        assert_eq!(accept(&mut incoming, 2), Accepted::Early);
        assert_eq!(accept(&mut incoming, 1), Accepted::Early);
        assert_eq!(drain(&mut incoming), Vec::<i64>::new());
        assert_eq!(accept(&mut incoming, 0), Accepted::InOrder);
        assert_eq!(drain(&mut incoming), [0, 1, 2]);
    }

    #[test]
    fn duplicates_are_seen_early_and_late() {
        let mut incoming = Incoming::new(10_000, 100);
        accept(&mut incoming, 2);
        assert_eq!(accept(&mut incoming, 2), Accepted::Duplicate);
        accept(&mut incoming, 0);
        assert_eq!(accept(&mut incoming, 0), Accepted::Duplicate);
        assert_eq!(drain(&mut incoming), [0]);
        assert_eq!(accept(&mut incoming, 0), Accepted::Duplicate);
        assert_eq!(accept(&mut incoming, 1), Accepted::InOrder);
        assert_eq!(drain(&mut incoming), [1, 2]);
    }

    #[test]
    fn room_ends_at_the_bytes_but_never_for_the_next_message() {
        let mut incoming = Incoming::new(250, 100);
        assert_eq!(
            [1, 2, 3].map(|raw| accept(&mut incoming, raw)),
            [Accepted::Early, Accepted::Early, Accepted::NoRoom]
        );
        assert_eq!(accept(&mut incoming, 0), Accepted::InOrder);
        assert_eq!(drain(&mut incoming), [0, 1, 2]);
        assert_eq!(accept(&mut incoming, 3), Accepted::InOrder);
    }

    #[test]
    fn room_ends_at_the_messages() {
        let mut incoming = Incoming::new(usize::MAX, 3);
        assert_eq!(
            [2, 3, i64::MAX].map(|raw| accept(&mut incoming, raw)),
            [Accepted::Early, Accepted::NoRoom, Accepted::NoRoom]
        );
    }

    #[test]
    fn unread_bytes_take_room_too() {
        for mut incoming in [Incoming::new(250, 100), Incoming::new(10_000, 2)] {
            for raw in [0, 1] {
                assert_eq!(accept(&mut incoming, raw), Accepted::InOrder);
                let message = incoming.next_in_order().unwrap();
                incoming.deliver(message);
            }
            assert_eq!(accept(&mut incoming, 2), Accepted::NoRoom);
            assert!(incoming.read().is_some());
            assert_eq!(accept(&mut incoming, 2), Accepted::InOrder);
        }
    }

    #[test]
    fn a_message_larger_than_the_bound_is_taken_by_itself() {
        let mut incoming = Incoming::new(50, 100);
        assert_eq!(accept(&mut incoming, 0), Accepted::InOrder);
        assert_eq!(drain(&mut incoming), [0]);
    }

    #[test]
    fn numbers_are_used_to_the_end_of_the_wire_field() {
        let mut incoming = Incoming::new(10_000, 100);
        incoming.expected = Some(number(i64::MAX - 1));
        assert_eq!(accept(&mut incoming, i64::MAX), Accepted::Early);
        assert_eq!(accept(&mut incoming, i64::MAX - 1), Accepted::InOrder);
        assert_eq!(drain(&mut incoming), [i64::MAX - 1, i64::MAX]);
        assert_eq!(accept(&mut incoming, i64::MAX), Accepted::Duplicate);
        assert_eq!(accept(&mut incoming, 0), Accepted::Duplicate);
    }

    proptest! {
        /// For any arrivals the bytes read are the sequence without gaps, and nothing stored is lost.
        #[test]
        fn the_order_is_restored(
            arrivals in vec((0_i64..60, 1_usize..300), 0..300),
            limit_bytes in 0_usize..5_000,
            limit_messages in 1_usize..50,
        ) {
            let mut incoming = Incoming::new(limit_bytes, limit_messages);
            let mut stored = std::collections::BTreeSet::new();
            let mut read = Vec::new();
            for (raw, frame_bytes) in arrivals {
                match incoming.accept(number(raw), message(raw, frame_bytes)) {
                    Accepted::InOrder | Accepted::Early => prop_assert!(stored.insert(raw)),
                    Accepted::Duplicate => prop_assert!(stored.contains(&raw)),
                    Accepted::NoRoom => prop_assert!(!stored.contains(&raw)),
                }
                prop_assert!(incoming.early_bytes <= limit_bytes.max(300) + 300);
                read.extend(drain(&mut incoming));
            }
            let expected: Vec<i64> = (0..60).take_while(|raw| stored.contains(raw)).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
