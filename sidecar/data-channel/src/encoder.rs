//! Encodes outgoing messages, with ids and dates.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::{
    identifiers::Identifiers,
    message::{ACKNOWLEDGE_FLAGS, Envelope, MessageType, PAYLOAD_OFFSET},
    payload,
    sequence::SequenceNumber,
};

/// Creates frames; each gets a new id and the date of the moment.
#[derive(Debug)]
pub(crate) struct Encoder {
    identifiers: Identifiers,
    clock: Clock,
    /// Shared buffer: acknowledgements are split off its front and keep it alive together, until they are
    /// sent. Stream messages may be kept long, so each has memory of its own.
    acknowledgements: BytesMut,
    json: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(seed: u128, now: Instant, unix_ms: u64) -> Self {
        Self {
            identifiers: Identifiers::new(seed),
            clock: Clock { start: now, unix_ms },
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
        let mut frame = BytesMut::with_capacity(PAYLOAD_OFFSET + payload.len());
        envelope.encode(payload, &mut frame);
        frame.freeze()
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
        if self.acknowledgements.capacity() < PAYLOAD_OFFSET + self.json.len() {
            // A new buffer, not a larger one: frames share the old one.
            self.acknowledgements = BytesMut::with_capacity(ACKNOWLEDGEMENT_BUFFER_BYTES);
        }
        envelope.encode(&self.json, &mut self.acknowledgements);
        self.acknowledgements.split().freeze()
    }
}

/// The same moment on both clocks; dates are `unix_ms` plus the time since `start`.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    unix_ms: u64,
}

impl Clock {
    /// Returns the date of `now` in ms since the Unix epoch, never 0: that is refused (docs/ssm-protocol.md,
    /// section 4.2).
    fn unix_ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_millis();
        self.unix_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)).max(1)
    }
}

/// Room for about a hundred acknowledgements, of about 296 bytes each.
const ACKNOWLEDGEMENT_BUFFER_BYTES: usize = 32 << 10;

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
    fn acknowledgements_stay_as_they_are_while_more_are_made() {
        let now = Instant::now();
        let mut encoder = Encoder::new(1, now, 1);
        let numbers = || (0..1_000).map(|raw| SequenceNumber::from_wire(raw * raw * raw).unwrap());
        let frames: Vec<Bytes> = numbers()
            .map(|number| encoder.acknowledgement(Uuid::from_u128(5), number, now))
            .collect();
        for (frame, number) in frames.iter().zip(numbers()) {
            let message = Message::decode(frame).unwrap();
            assert!(message.is_intact());
            let acknowledged = payload::parse_acknowledgement(&message.payload);
            assert_eq!(acknowledged, Ok(number.to_wire()));
        }
    }
}
