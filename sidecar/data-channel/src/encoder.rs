//! Makes frames, many in one piece of memory.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::{
    identifiers::Identifiers,
    message::{ACKNOWLEDGE_FLAGS, Envelope, MessageType, PAYLOAD_OFFSET},
    payload,
    sequence::SequenceNumber,
};
use uuid::Uuid;

/// Writes messages with ids and dates of their own.
#[derive(Debug)]
pub(crate) struct Encoder {
    identifiers: Identifiers,
    clock: Clock,
    /// Frames are split off its front; they keep the memory alive together. Those that wait for an
    /// acknowledgement and those that don't come from different pieces.
    stream: BytesMut,
    acknowledgements: BytesMut,
    json: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(seed: u128, now: Instant, unix_ms: u64) -> Self {
        Self {
            identifiers: Identifiers::new(seed),
            clock: Clock { start: now, unix_ms },
            stream: BytesMut::new(),
            acknowledgements: BytesMut::new(),
            json: Vec::new(),
        }
    }

    pub(crate) fn new_identifier(&mut self) -> Uuid {
        self.identifiers.next()
    }

    pub(crate) fn stream_message(
        &mut self,
        number: SequenceNumber,
        payload_type: u32,
        payload: &[u8],
        now: Instant,
    ) -> Bytes {
        let envelope = Envelope {
            message_type: MessageType::InputStreamData,
            created_date_ms: self.clock.unix_ms(now),
            sequence_number: number.to_wire(),
            flags: 0,
            message_id: self.identifiers.next(),
            payload_type,
        };
        write(&mut self.stream, &envelope, payload)
    }

    pub(crate) fn acknowledgement(
        &mut self,
        id: Uuid,
        number: SequenceNumber,
        now: Instant,
    ) -> Bytes {
        self.json.clear();
        let number = number.to_wire();
        payload::write_acknowledgement(MessageType::OutputStreamData, id, number, &mut self.json);
        let envelope = Envelope {
            message_type: MessageType::Acknowledge,
            created_date_ms: self.clock.unix_ms(now),
            sequence_number: 0,
            flags: ACKNOWLEDGE_FLAGS,
            message_id: self.identifiers.next(),
            payload_type: 0,
        };
        write(&mut self.acknowledgements, &envelope, &self.json)
    }
}

fn write(memory: &mut BytesMut, envelope: &Envelope, payload: &[u8]) -> Bytes {
    let needed = PAYLOAD_OFFSET + payload.len();
    if memory.capacity() < needed {
        // A fresh piece, not a larger one: those before it are owned by the frames in them.
        *memory = BytesMut::with_capacity(needed.max(PIECE_BYTES));
    }
    envelope.encode(payload, memory);
    memory.split().freeze()
}

/// Two readings of one moment; dates are the second plus what has passed since the first.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    unix_ms: u64,
}

impl Clock {
    /// Returns the date of `now`, never 0: that is refused.
    fn unix_ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_millis();
        self.unix_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)).max(1)
    }
}

/// Memory for a few dozen messages of the default size: few allocations, and little that one
/// unacknowledged message keeps.
const PIECE_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::Message;

    #[test]
    fn dates_follow_the_clock_and_are_never_zero() {
        let start = Instant::now();
        let date = |unix_ms, after| {
            let mut encoder = Encoder::new(1, start, unix_ms);
            let number = SequenceNumber::FIRST;
            let frame =
                encoder.stream_message(number, 1, b"x", start + Duration::from_millis(after));
            Message::decode(&frame).unwrap().created_date_ms
        };
        assert_eq!(date(1_767_225_600_000, 1_234), 1_767_225_601_234);
        assert_eq!(date(0, 0), 1);
        assert_eq!(date(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn frames_stay_as_they_are_while_more_are_made() {
        let now = Instant::now();
        let mut encoder = Encoder::new(1, now, 1);
        let payloads: Vec<Vec<u8>> =
            (0..200).map(|index: usize| vec![u8::try_from(index).unwrap(); index * 13]).collect();
        let frames: Vec<Bytes> = payloads
            .iter()
            .map(|payload| encoder.stream_message(SequenceNumber::FIRST, 1, payload, now))
            .collect();
        for (frame, payload) in frames.iter().zip(&payloads) {
            let message = Message::decode(frame).unwrap();
            assert!(message.payload == payload && message.is_intact());
        }
    }
}
