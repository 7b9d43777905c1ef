//! A peer that violates the protocol.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Config, Event, MessageType, PayloadType, ProtocolError, message::Envelope};

fn frame(message_type: MessageType, sequence_number: i64, kind: u32, payload: &[u8]) -> Bytes {
    let (created_date_ms, flags, message_id, payload_type) = (1, 0, Uuid::from_u128(1), kind);
    let mut frame = BytesMut::new();
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    frame.freeze()
}

fn stream(number: i64, kind: PayloadType, payload: &[u8]) -> Bytes {
    frame(MessageType::OutputStreamData, number, kind.to_wire(), payload)
}

fn output(number: i64) -> Bytes {
    stream(number, PayloadType::Output, &[7; 100])
}

fn acknowledgement(number: i64) -> Bytes {
    let payload = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
    frame(MessageType::Acknowledge, 0, 0, payload.as_bytes())
}

fn open() -> Pair {
    let pair = Pair::open(Behaviour::default(), Faults::default());
    assert_eq!(pair.client.unacknowledged(), 0);
    pair
}

impl Pair {
    fn receive(&mut self, frame: Bytes) -> Result<(), ProtocolError> {
        self.client.handle_message(self.now, frame)
    }

    fn sends(&mut self) -> usize {
        std::iter::from_fn(|| self.client.poll_transmit(self.now)).count()
    }
}

#[test]
fn single_bad_frames_are_dropped_and_counted() {
    let mut pair = open();
    for length in [0, 1, 50, 119] {
        pair.receive(output(2).slice(..length)).unwrap();
    }
    pair.receive(output(-1)).unwrap();
    pair.receive(acknowledgement(-1)).unwrap();
    pair.receive(frame(MessageType::Acknowledge, 0, 0, b"no JSON")).unwrap();
    assert_eq!(pair.client.statistics().dropped_damaged, 7);
    assert_eq!(pair.sends(), 0, "none is acknowledged");
    pair.receive(output(2)).unwrap();
    assert_eq!(pair.client.read().as_deref(), Some(&[7; 100][..]));
}

#[test]
fn sixty_four_bad_frames_in_a_row_end_the_channel() {
    let mut pair = open();
    for _ in 0..3 {
        for _ in 0..63 {
            pair.receive(Bytes::from_static(b"?")).unwrap();
        }
        pair.receive(output(2)).unwrap();
    }
    for _ in 0..63 {
        pair.receive(Bytes::from_static(b"?")).unwrap();
    }
    let error = pair.receive(Bytes::from_static(b"?")).unwrap_err();
    assert!(matches!(error, ProtocolError::Damaged { frames: 64, .. }), "{error}");
    assert_eq!(pair.receive(output(3)), Err(error), "the error stays");
}

#[test]
fn unknown_types_are_dropped_and_counted() {
    let mut pair = open();
    let mut unknown = output(2).to_vec();
    unknown[4..36].copy_from_slice(b"data_channel_ready              ");
    for _ in 0..1_000 {
        pair.receive(unknown.clone().into()).unwrap();
    }
    pair.receive(frame(MessageType::InputStreamData, 2, 1, b"x")).unwrap();
    assert_eq!(pair.client.statistics().dropped_unknown, 1_001);
    assert_eq!((pair.sends(), pair.client.read()), (0, None));
}

#[test]
fn acknowledgements_of_messages_that_were_never_sent_are_ignored() {
    let mut pair = open();
    pair.client.write(b"x");
    for number in [2, 1_000, i64::MAX, 0] {
        pair.receive(acknowledgement(number)).unwrap();
    }
    assert_eq!(pair.client.statistics().ignored_acknowledgements, 4);
    pair.receive(acknowledgement(1)).unwrap();
    assert_eq!(pair.client.statistics().ignored_acknowledgements, 5, "not sent yet");
    assert_eq!(pair.sends(), 1);
    pair.receive(acknowledgement(1)).unwrap();
    assert_eq!((pair.client.unacknowledged(), pair.client.poll_timeout()), (0, None));
}

#[test]
fn the_reorder_buffer_is_bounded_in_bytes_and_messages() {
    let whole = output(0).len();
    for (config, room) in [
        (Config { incoming_bytes: 10 * whole, ..Config::default() }, 10),
        (Config { incoming_messages: 6, ..Config::default() }, 5),
    ] {
        let mut pair = Pair::with(config, Behaviour::default(), Faults::default(), 1);
        pair.run_until(|pair| pair.client.is_open());
        for number in 3..100 {
            pair.receive(output(number)).unwrap();
        }
        pair.receive(output(i64::MAX)).unwrap();
        assert_eq!(pair.sends(), room, "over the limit nothing is acknowledged");
        assert_eq!(pair.client.statistics().dropped_no_room, 98 - room as u64);
        pair.receive(output(2)).unwrap();
        assert_eq!(
            std::iter::from_fn(|| pair.client.read()).count(),
            room + 1,
            "all that was acknowledged"
        );
    }
}

#[test]
fn unread_bytes_are_bounded() {
    let config = Config { incoming_bytes: 10 * output(0).len(), ..Config::default() };
    let mut pair = Pair::with(config, Behaviour::default(), Faults::default(), 1);
    pair.run_until(|pair| pair.client.is_open());
    for number in 2..100 {
        pair.receive(output(number)).unwrap();
    }
    assert_eq!(pair.sends(), 10);
    assert_eq!(std::iter::from_fn(|| pair.client.read()).count(), 10);
    pair.receive(output(12)).unwrap();
    assert!(pair.client.read().is_some());
}

#[test]
fn unsent_acknowledgements_are_bounded() {
    let mut pair = open();
    let frame = stream(0, PayloadType::Output, b"");
    for _ in 0..70_000 {
        pair.receive(frame.clone()).unwrap();
    }
    pair.receive(output(2)).unwrap();
    assert_eq!(pair.client.read(), None, "not stored, since it could not be acknowledged");
    assert_eq!(pair.sends(), 65_536);
    pair.receive(output(2)).unwrap();
    assert!(pair.client.read().is_some());
}

#[test]
fn other_payload_types_never_get_into_the_stream() {
    let mut pair = open();
    let kinds = [
        PayloadType::Error,
        PayloadType::StdErr,
        PayloadType::ExitCode,
        PayloadType::Flag,
        PayloadType::Size,
        PayloadType::Parameter,
    ];
    for (number, kind) in (2..).zip(kinds) {
        pair.receive(stream(number, kind, b"oops")).unwrap();
    }
    pair.receive(frame(MessageType::OutputStreamData, 8, 99, b"oops")).unwrap();
    pair.receive(stream(9, PayloadType::Flag, &[0, 0, 0, 3])).unwrap();
    pair.receive(stream(10, PayloadType::StdErr, &[0, 0, 0, 2])).unwrap();
    pair.receive(stream(11, PayloadType::Output, b"")).unwrap();
    pair.receive(stream(12, PayloadType::Output, b"bytes")).unwrap();
    assert_eq!(pair.sends(), 11, "all are acknowledged");
    assert_eq!(pair.client.read().as_deref(), Some(&b"bytes"[..]));
    assert_eq!(pair.client.read(), None);
    let notice = |payload_type, text: &str| Event::Notice { payload_type, text: text.into() };
    let events: Vec<_> = std::iter::from_fn(|| pair.client.poll_event()).collect();
    assert_eq!(
        events,
        [
            notice(PayloadType::Error, "oops"),
            notice(PayloadType::StdErr, "oops"),
            notice(PayloadType::ExitCode, "oops"),
            notice(PayloadType::Flag, "oops"),
            notice(PayloadType::Flag, "ConnectToPortError"),
            notice(PayloadType::StdErr, "    "),
        ]
    );
    assert_eq!(pair.client.statistics().ignored_payloads, 3);
}

#[test]
fn unpolled_events_are_bounded() {
    let mut pair = open();
    for number in 2..500 {
        pair.receive(stream(number, PayloadType::StdErr, &[b'x'; 3_000])).unwrap();
        pair.receive(frame(MessageType::PausePublication, 0, 0, b"")).unwrap();
        assert!(pair.sends() > 0);
    }
    let events: Vec<_> = std::iter::from_fn(|| pair.client.poll_event()).collect();
    assert!(events.len() <= 64, "{}", events.len());
    let longest = events.iter().map(|event| format!("{event:?}").len()).max();
    assert!(longest < Some(2_000), "{longest:?}");
}

#[test]
fn a_second_handshake_is_an_error() {
    for (kind, name) in [
        (PayloadType::HandshakeRequest, "handshake request"),
        (PayloadType::HandshakeComplete, "handshake completion"),
    ] {
        let mut pair = open();
        let error = pair.receive(stream(2, kind, b"{}")).unwrap_err();
        assert!(matches!(error, ProtocolError::Unexpected { message, .. } if message == name));
    }
    let mut pair = open();
    let error = pair.receive(stream(2, PayloadType::EncryptionChallengeRequest, b"{}"));
    assert!(matches!(error, Err(ProtocolError::Unsupported { .. })));
}

#[test]
fn a_malformed_handshake_is_an_error() {
    let mut pair = Pair::new();
    let request = stream(0, PayloadType::HandshakeRequest, b"{\"RequestedClientActions\":7}");
    let error = pair.receive(request).unwrap_err();
    assert!(matches!(error, ProtocolError::Handshake(_)), "{error}");
    assert_eq!(pair.sends(), 1, "acknowledged, since it was stored");
}

/// An agent that acknowledges nothing: memory and traffic stay bounded.
#[test]
fn a_silent_agent_costs_bounded_memory_and_traffic() {
    let mut pair = open();
    pair.set_faults(Faults { loss: 1_000, ..Faults::default() });
    pair.unwritten = vec![1; 4 << 20];
    pair.run_for(Duration::from_mins(1));
    let first_minute = pair.sent.len();
    assert!(pair.client.unacknowledged() < 200, "{}", pair.client.unacknowledged());
    assert_eq!(pair.unwritten.len(), (4 << 20) - (128 << 10), "the bound holds");
    pair.run_for(Duration::from_mins(9));
    let later = (pair.sent.len() - first_minute) / 9;
    assert!(first_minute < 2_500 && later < 6_000, "{first_minute} then {later} messages a minute");
}

#[test]
fn time_that_stands_still_or_runs_back_does_no_harm() {
    let mut pair = open();
    pair.client.write(&[1; 10_000]);
    let past = pair.start.checked_sub(Duration::from_secs(1)).unwrap();
    assert_eq!(pair.sends(), 10);
    for number in 1..=10 {
        pair.client.handle_message(past, acknowledgement(number)).unwrap();
    }
    pair.client.handle_timeout(past);
    assert_eq!(pair.client.unacknowledged(), 0);
    let later: Instant = pair.now + Duration::from_hours(24 * 365);
    pair.client.write(b"x");
    assert!(pair.client.poll_transmit(later).is_some());
    pair.client.handle_timeout(pair.now);
}
