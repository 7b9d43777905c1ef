//! Entry points of the fuzz targets: an interpreter that reads bytes as calls of a channel and checks its
//! invariants after each.
//!
//! Compiled for tests, which run it on random bytes and on the kept corpora, and for the fuzzer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::{
    Config, DataChannel, Event, Flag, Message, MessageType, PayloadType, SequenceNumber,
    message::Envelope, payload,
};

/// Decodes any bytes. A frame that can be decoded is encoded to the same fields again.
///
/// # Panics
///
/// If that does not hold.
pub fn decode(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let Ok(message) = Message::decode(&frame) else { return };
    assert!(frame.ends_with(&message.payload), "the payload is the end of the frame");
    let envelope = Envelope {
        message_type: message.message_type,
        created_date_ms: message.created_date_ms.max(1),
        sequence_number: message.sequence_number,
        flags: message.flags,
        message_id: message.message_id,
        payload_type: message.payload_type,
    };
    let mut encoded = BytesMut::new();
    envelope.encode(&message.payload, &mut encoded);
    let again = Message::decode(&encoded.freeze());
    let expected = Message {
        schema_version: 1,
        created_date_ms: envelope.created_date_ms,
        payload_length: u32::try_from(message.payload.len()).unwrap_or(u32::MAX),
        payload_digest: again.as_ref().map_or([0; 32], |again| again.payload_digest),
        ..message
    };
    assert!(again.as_ref().is_ok_and(Message::is_intact), "{again:?}");
    assert_eq!(again, Ok(expected));
    // The readers of JSON get the same bytes.
    drop(payload::parse_acknowledgement(data));
    drop(payload::parse_handshake_complete(data));
    drop(payload::parse_channel_closed(data));
    if let Ok(request) = payload::parse_handshake_request(data) {
        let actions: Vec<_> = request.actions.into_iter().map(|action| (action, None)).collect();
        let response = payload::handshake_response("1.2.3.4", &actions);
        let valid = serde_json::from_slice::<serde_json::Value>(&response).is_ok();
        assert!(valid, "a response is JSON for any request");
    }
}

/// Runs a sequence of calls on one channel. The first byte selects, among others, whether the peer conforms to the
/// protocol; if so, the content of both streams is checked too.
///
/// # Panics
///
/// If an invariant of the channel does not hold.
pub fn operations(data: &[u8]) {
    let mut input = Input(data);
    let mut run = Run::new(&mut input);
    while let Some(operation) = input.next() {
        run.step(operation, &mut input);
        run.check();
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or_default()
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

#[expect(clippy::struct_excessive_bools, reason = "facts about a run, not states of one thing")]
struct Run {
    channel: DataChannel,
    conforming: bool,
    now: Instant,
    outgoing_bytes: usize,
    /// Numbers of the stream messages given to the channel.
    given: BTreeSet<i64>,
    /// Numbers that it has acknowledged.
    stored: BTreeSet<i64>,
    /// Number of the next message whose bytes will be read.
    reading: i64,
    written: Vec<u8>,
    /// Payload bytes sent so far.
    sent_bytes: usize,
    sent: BTreeMap<i64, Bytes>,
    open: bool,
    terminating: bool,
    /// Nothing is left to transmit.
    drained: bool,
}

impl Run {
    fn new(input: &mut Input<'_>) -> Self {
        let (flags, now) = (input.byte(), Instant::now());
        let small =
            |bit: u8, small: usize, large: usize| if flags & bit == 0 { large } else { small };
        let outgoing_bytes = small(8, 2_000, 1 << 20);
        let config = Config {
            incoming_bytes: small(2, 3_000, 1 << 20),
            incoming_messages: small(4, 5, 1_000),
            outgoing_bytes,
            message_bytes: small(16, 256, 1_024),
            ..Config::default()
        };
        Self {
            channel: DataChannel::new(config, now, 1, u128::from(flags)),
            conforming: flags & 1 == 0,
            now,
            outgoing_bytes,
            given: BTreeSet::new(),
            stored: BTreeSet::new(),
            reading: 2,
            written: Vec::new(),
            sent_bytes: 0,
            sent: BTreeMap::new(),
            open: false,
            terminating: false,
            drained: false,
        }
    }

    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        self.drained = false;
        match operation % 16 {
            0..=2 => {
                let mut missing = 0;
                while self.stored.contains(&missing) {
                    missing += 1;
                }
                self.give((missing + i64::from(input.byte() % 16) - 3).max(0));
            }
            3 | 4 => {
                let oldest = self.sent.keys().next().copied().unwrap_or_default();
                self.acknowledge(oldest.saturating_add(i64::from(input.byte())).saturating_sub(2));
            }
            5 => {
                let length = usize::from(input.byte());
                let frame = Bytes::copy_from_slice(input.take(length));
                self.receive(frame);
            }
            6 => {
                // The digest of an empty payload is not checked, so its message is accepted.
                let number = i64::from(input.byte());
                self.given.insert(number);
                let mut frame = stream_message(number).to_vec();
                let position = if self.conforming { 80 } else { usize::from(input.byte()) };
                if let Some(byte) = frame.get_mut(position) {
                    *byte ^= 1 << (input.byte() % 8);
                }
                self.receive(frame.into());
            }
            7 => {
                self.now += Duration::from_millis(1 << (input.byte() % 16));
                self.time_out();
            }
            8 => {
                if let Some(due) = self.channel.poll_timeout() {
                    self.now = self.now.max(due);
                }
                self.time_out();
            }
            9 => self.write(input),
            10 => {
                self.channel.on_disconnected(self.now);
                assert_eq!(self.channel.poll_timeout(), None, "no clock runs without a socket");
            }
            11 => self.channel.on_resumed(self.now),
            12 => match input.byte() {
                0..8 => self.terminating |= self.channel.terminate(),
                8..12 => self.receive(other(MessageType::ChannelClosed, b"{\"Output\":\"x\"}")),
                12..16 if !self.conforming => self.give(i64::MAX),
                byte if byte.is_multiple_of(2) => {
                    self.receive(other(MessageType::PausePublication, b""));
                }
                _ => self.receive(other(MessageType::StartPublication, b"")),
            },
            13 => self.transmit(usize::from(input.byte())),
            _ => self.transmit(usize::MAX),
        }
    }

    fn give(&mut self, number: i64) {
        self.given.insert(number);
        self.receive(stream_message(number));
    }

    fn acknowledge(&mut self, number: i64) {
        let mut json = Vec::new();
        let kind = MessageType::InputStreamData;
        payload::write_acknowledgement(kind, Uuid::nil(), number, &mut json);
        self.receive(other(MessageType::Acknowledge, &json));
    }

    fn receive(&mut self, frame: Bytes) {
        let outcome = self.channel.handle_message(self.now, frame.clone());
        let again = outcome.clone().err().map(|_| self.channel.handle_message(self.now, frame));
        assert_eq!(outcome.clone().err().map(|_| outcome), again, "an error stays the same");
    }

    fn time_out(&mut self) {
        self.channel.handle_timeout(self.now);
        self.transmit(usize::MAX);
        let due = self.channel.poll_timeout();
        assert!(due.is_none_or(|due| due > self.now), "a handled deadline is not due again");
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let length = usize::from(input.byte()) * 16;
        let data: Vec<u8> = (self.written.len()..).map(pattern).take(length).collect();
        let room = self.channel.writable();
        let taken = self.channel.write(&data);
        assert_eq!(taken, room.min(length));
        assert!(taken == 0 || self.open, "accepted before the handshake");
        self.written.extend(data.iter().take(taken));
    }

    fn transmit(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(frame) = self.channel.poll_transmit(self.now) else {
                self.drained = true;
                return;
            };
            self.on_frame(&frame);
        }
    }

    fn on_frame(&mut self, frame: &Bytes) {
        let Ok(message) = Message::decode(frame) else {
            unreachable!("cannot be decoded: {frame:?}")
        };
        assert!(message.is_intact());
        match message.message_type {
            MessageType::Acknowledge => {
                let Ok(number) = payload::parse_acknowledgement(&message.payload) else {
                    unreachable!("not an acknowledgement: {message:?}");
                };
                assert!(!self.conforming || self.given.contains(&number), "{number} never came");
                self.stored.insert(number);
            }
            MessageType::InputStreamData => {
                let number = message.sequence_number;
                let next = self.sent.keys().next_back().map_or(0, |last| last + 1);
                if let Some(earlier) = self.sent.get(&number) {
                    assert_eq!(earlier, frame, "sent again unchanged");
                    return;
                }
                assert_eq!(number, next, "numbers have no gap");
                assert!(!message.payload.is_empty());
                self.sent.insert(number, frame.clone());
                self.on_payload(&message);
            }
            other => unreachable!("a client does not send {other:?}"),
        }
    }

    fn on_payload(&mut self, message: &Message) {
        match PayloadType::from_wire(message.payload_type) {
            Some(PayloadType::HandshakeResponse) => assert_eq!(message.sequence_number, 0),
            Some(PayloadType::Output) => {
                assert!(self.open, "sent before the handshake");
                let unsent = self.written.get(self.sent_bytes..).unwrap_or_default();
                assert!(unsent.starts_with(&message.payload), "sent what was not written");
                self.sent_bytes += message.payload.len();
            }
            Some(PayloadType::Flag) => {
                assert!(self.terminating, "ended without a request");
                assert_eq!(Flag::from_payload(&message.payload), Some(Flag::TerminateSession));
            }
            other => unreachable!("a client does not send {other:?}"),
        }
    }

    fn check(&mut self) {
        while let Some(event) = self.channel.poll_event() {
            self.open |= matches!(event, Event::Open { .. });
        }
        while let Some(bytes) = self.channel.read() {
            assert!(!bytes.is_empty());
            if !self.conforming {
                continue;
            }
            let mut expected = stream_payload(self.reading);
            while expected.0 != PayloadType::Output || expected.1.is_empty() {
                self.reading += 1;
                expected = stream_payload(self.reading);
            }
            assert_eq!(bytes, expected.1, "number {}", self.reading);
            assert!(self.given.contains(&self.reading));
            self.reading += 1;
        }
        let statistics = self.channel.statistics();
        assert!(statistics.in_flight <= self.sent.len());
        assert!((16..=4_096).contains(&statistics.window));
        assert!(self.channel.writable() <= self.outgoing_bytes.max(1_024));
        if self.drained {
            assert_eq!(
                self.channel.poll_transmit(self.now),
                None,
                "nothing to send without a further call"
            );
        }
    }
}

/// Byte at a position of the stream that is written.
fn pattern(position: usize) -> u8 {
    let [.., last] = (position * 31).to_be_bytes();
    last
}

/// The message that a conforming agent sends under this number.
fn stream_message(number: i64) -> Bytes {
    let (kind, payload) = stream_payload(number);
    encode(MessageType::OutputStreamData, number, kind.to_wire(), &payload)
}

fn stream_payload(number: i64) -> (PayloadType, Vec<u8>) {
    let position = usize::try_from(number % 1_000).unwrap_or_default();
    match number {
        0 => (PayloadType::HandshakeRequest, HANDSHAKE_REQUEST.to_vec()),
        1 => (PayloadType::HandshakeComplete, b"{}".to_vec()),
        _ if number % 17 == 5 => (PayloadType::StdErr, b"error".to_vec()),
        _ if number % 23 == 7 => (PayloadType::Flag, vec![0, 0, 0, 3]),
        _ if number % 11 == 3 => (PayloadType::Output, Vec::new()),
        _ => (PayloadType::Output, (position..position * 2).map(pattern).collect()),
    }
}

fn other(message_type: MessageType, payload: &[u8]) -> Bytes {
    encode(message_type, SequenceNumber::FIRST.to_wire(), 0, payload)
}

fn encode(message_type: MessageType, sequence_number: i64, kind: u32, payload: &[u8]) -> Bytes {
    let (created_date_ms, flags, message_id, payload_type) = (1, 0, Uuid::nil(), kind);
    let mut frame = BytesMut::new();
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    frame.freeze()
}

const HANDSHAKE_REQUEST: &[u8] = br#"{"AgentVersion":"3.3.0.0","RequestedClientActions":[
    {"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{}}}]}"#;

#[cfg(test)]
#[path = "../../../tests/corpus/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use std::{env, panic};

    use proptest::prelude::*;

    use super::{replay::replay, *};
    use crate::random::Random;

    /// `DATA_CHANNEL_SEEDS` sets the number of seeds; default 400.
    #[test]
    fn invariants_hold_for_any_sequence_of_calls() {
        let seeds = env::var("DATA_CHANNEL_SEEDS").map_or(400, |count| count.parse().unwrap());
        for seed in 0..seeds {
            let mut random = Random::new(seed);
            let length = usize::try_from(random.below(4_000)).unwrap();
            let mut data = random.bytes(length);
            if seed % 4 != 0 {
                // Most runs begin with a handshake of a conforming peer.
                data.splice(..0, [data.first().map_or(0, |first| first & !1), 0, 3, 15, 0, 3, 15]);
            }
            if let Err(cause) = panic::catch_unwind(|| operations(&data)) {
                println!("failing seed: {seed}");
                panic::resume_unwind(cause);
            }
        }
    }

    #[test]
    fn kept_frames_hold() {
        replay("decode", decode);
    }

    #[test]
    fn kept_sequences_of_calls_hold() {
        replay("operations", operations);
    }

    proptest! {
        #[test]
        fn any_frame_is_decoded_or_refused(data in prop::collection::vec(any::<u8>(), 0..400)) {
            decode(&data);
        }

        #[test]
        fn any_change_to_a_frame_is_decoded_or_refused(
            number in 0_i64..40,
            changes in prop::collection::vec((0_usize..200, any::<u8>()), 0..8),
            length in 0_usize..300,
        ) {
            let mut frame = stream_message(number).to_vec();
            for (position, value) in changes {
                if let Some(byte) = frame.get_mut(position) {
                    *byte = value;
                }
            }
            frame.truncate(length.max(100));
            decode(&frame);
        }

        #[test]
        fn what_is_encoded_is_decoded_to_the_same(
            kind in 0..MessageType::ALL.len(),
            created_date_ms in 1_u64..,
            sequence_number: i64,
            flags: u64,
            id: u128,
            payload_type: u32,
            payload in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let message_type = MessageType::ALL[kind];
            let message_id = Uuid::from_u128(id);
            let mut frame = BytesMut::new();
            Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
                .encode(&payload, &mut frame);
            let message = Message::decode(&frame.freeze()).unwrap();
            prop_assert!(message.is_intact());
            prop_assert_eq!(
                (message.message_type, message.created_date_ms, message.sequence_number),
                (message_type, created_date_ms, sequence_number)
            );
            prop_assert_eq!(
                (message.flags, message.message_id, message.payload_type, &message.payload[..]),
                (flags, message_id, payload_type, &payload[..])
            );
        }
    }
}
