//! Messages of the official plugin, read and written byte for byte (docs/ssm-protocol.md, section 4.3).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a broken vector fails its test")]

use bytes::{Bytes, BytesMut};
use data_channel::{
    Flag, Message, MessageType, PayloadType,
    message::Envelope,
    payload::{self, HandshakeRequest, RequestedAction},
};
use serde::Deserialize;
use uuid::Uuid;

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Clone, Deserialize)]
struct Vector {
    name: String,
    direction: String,
    header_length: u32,
    message_type: String,
    schema_version: u32,
    created_date_ms: u64,
    sequence_number: i64,
    flags: u64,
    message_id: String,
    payload_digest_hex: String,
    payload_type: u32,
    payload_length: u32,
    payload_hex: String,
    payload_text: Option<String>,
    wire_hex: String,
}

impl Vector {
    fn envelope(&self) -> Envelope {
        Envelope {
            message_type: MessageType::ALL
                .into_iter()
                .find(|known| known.name() == self.message_type)
                .unwrap(),
            created_date_ms: self.created_date_ms,
            sequence_number: self.sequence_number,
            flags: self.flags,
            message_id: self.id(),
            payload_type: self.payload_type,
        }
    }

    fn id(&self) -> Uuid {
        self.message_id.parse().unwrap()
    }

    fn payload(&self) -> Vec<u8> {
        bytes(&self.payload_hex)
    }
}

fn vectors() -> Vec<Vector> {
    let json = include_str!("vectors/ssm-vectors.json");
    serde_json::from_str::<Vectors>(json).unwrap().vectors
}

fn vector(name: &str) -> Vector {
    vectors().into_iter().find(|vector| vector.name == name).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    let digits: Vec<u8> =
        hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn the_file_is_complete() {
    assert_eq!(vectors().len(), 19);
}

#[test]
fn encoding_the_fields_gives_the_official_bytes() {
    for vector in vectors() {
        assert_eq!((vector.header_length, vector.schema_version), (116, 1), "{}", vector.name);
        let mut frame = BytesMut::new();
        vector.envelope().encode(&vector.payload(), &mut frame);
        assert_eq!(frame, bytes(&vector.wire_hex), "{}", vector.name);
    }
}

#[test]
fn decoding_the_official_bytes_gives_the_fields() {
    for vector in vectors() {
        let wire = Bytes::from(bytes(&vector.wire_hex));
        let expected = Message {
            message_type: vector.envelope().message_type,
            schema_version: vector.schema_version,
            created_date_ms: vector.created_date_ms,
            sequence_number: vector.sequence_number,
            flags: vector.flags,
            message_id: vector.id(),
            payload_digest: bytes(&vector.payload_digest_hex).try_into().unwrap(),
            payload_type: vector.payload_type,
            payload_length: vector.payload_length,
            payload: vector.payload().into(),
        };
        let message = Message::decode(&wire).unwrap();
        assert_eq!(message, expected, "{}", vector.name);
        assert!(message.is_intact(), "{}", vector.name);
        if let Some(text) = vector.payload_text {
            assert_eq!(message.payload, text, "{}", vector.name);
        }
    }
}

#[test]
fn every_damaged_byte_of_a_payload_is_noticed() {
    let wire = bytes(&vector("input_stream_data_output").wire_hex);
    for position in 120..wire.len() {
        let mut damaged = wire.clone();
        damaged[position] ^= 0x20;
        assert!(!Message::decode(&damaged.into()).unwrap().is_intact(), "byte {position}");
    }
}

#[test]
fn every_cut_frame_is_refused_or_not_intact() {
    let wire = Bytes::from(bytes(&vector("input_stream_data_output").wire_hex));
    for length in 0..wire.len() {
        let intact = Message::decode(&wire.slice(..length)).map(|message| message.is_intact());
        assert!(matches!(intact, Err(_) | Ok(false)), "{length} bytes: {intact:?}");
    }
}

#[test]
fn acknowledgements_are_written_as_the_official_ones() {
    for (name, acknowledged) in [
        ("acknowledge_of_output", MessageType::OutputStreamData),
        ("acknowledge_of_input", MessageType::InputStreamData),
    ] {
        let vector = vector(name);
        let official: serde_json::Value = serde_json::from_slice(&vector.payload()).unwrap();
        let id = official["AcknowledgedMessageId"].as_str().unwrap().parse().unwrap();
        let number = official["AcknowledgedMessageSequenceNumber"].as_i64().unwrap();
        let mut written = Vec::new();
        payload::write_acknowledgement(acknowledged, id, number, &mut written);
        assert_eq!(written, vector.payload(), "{name}");
        assert_eq!(payload::parse_acknowledgement(&written), Ok(number), "{name}");
    }
}

#[test]
fn the_handshake_is_read_and_the_response_written_as_the_official_one() {
    let request = payload::parse_handshake_request(&vector("handshake_request_ssh").payload());
    let port = RequestedAction::SessionType { session_type: "Port".into(), forwarding: None };
    let actions = vec![port.clone()];
    assert_eq!(request, Ok(HandshakeRequest { agent_version: "3.3.0.0".into(), actions }));

    let response = payload::handshake_response("1.2.764.0", &[(port, None)]);
    assert_eq!(response, vector("handshake_response_success").payload());

    let complete = payload::parse_handshake_complete(&vector("handshake_complete").payload());
    assert_eq!(complete, Ok(String::new()));
}

#[test]
fn flags_and_the_close_are_read() {
    for (name, flag) in [
        ("flag_disconnect_to_port", Flag::DisconnectToPort),
        ("flag_terminate_session", Flag::TerminateSession),
        ("flag_connect_to_port_error", Flag::ConnectToPortError),
    ] {
        let vector = vector(name);
        assert_eq!(PayloadType::from_wire(vector.payload_type), Some(PayloadType::Flag), "{name}");
        assert_eq!(Flag::from_payload(&vector.payload()), Some(flag), "{name}");
        assert_eq!(flag.to_wire().to_be_bytes(), vector.payload()[..], "{name}");
    }
    let reason = |name| payload::parse_channel_closed(&vector(name).payload());
    assert_eq!(reason("channel_closed_empty_output"), "");
    assert_eq!(
        reason("channel_closed_with_output"),
        "Encountered error while initiating handshake. Handshake timed out. Please ensure that you \
         have the latest version of the session manager plugin."
    );
}

#[test]
fn directions_agree_with_the_types() {
    for vector in vectors() {
        let allowed = match vector.envelope().message_type {
            MessageType::InputStreamData => &["client_to_agent"][..],
            MessageType::Acknowledge => &["client_to_agent", "agent_to_client"],
            _ => &["agent_to_client"],
        };
        assert!(allowed.contains(&vector.direction.as_str()), "{}", vector.name);
    }
}
