//! The format of every message: a header of fixed fields, all big-endian, then the payload
//! (docs/ssm-protocol.md, section 4).
//!
//! ```text
//!   0  u32       HeaderLength, 116: the offset of PayloadLength; the payload starts at HeaderLength + 4
//!   4  32 bytes  MessageType, padded with spaces
//!  36  u32       SchemaVersion, 1
//!  40  u64       CreatedDate, ms since the Unix epoch
//!  48  i64       SequenceNumber
//!  56  u64       Flags, bit 0 SYN, bit 1 FIN
//!  64  16 bytes  MessageId, its last 8 bytes first
//!  80  32 bytes  SHA-256 of the payload
//! 112  u32       PayloadType, 0 where unused
//! 116  u32       PayloadLength
//! 120            Payload, to the end of the frame
//! ```
//!
//! The official programs have it in `src/message` of `aws/session-manager-plugin` and
//! `agent/session/contracts` of `aws/amazon-ssm-agent`.

use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A received message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Type of the message.
    pub message_type: MessageType,
    /// Version of the format; 1 is written, anything is read.
    pub schema_version: u32,
    /// When the sender created the message, in ms since the Unix epoch.
    pub created_date_ms: u64,
    /// The raw field; see [`crate::SequenceNumber`].
    pub sequence_number: i64,
    /// Bit 0 SYN, bit 1 FIN; read by neither side.
    pub flags: u64,
    /// Id that the sender gave the message.
    pub message_id: Uuid,
    /// SHA-256 of the payload according to the sender.
    pub payload_digest: [u8; 32],
    /// Payload type of a stream message, 0 elsewhere; see [`crate::PayloadType`].
    pub payload_type: u32,
    /// Length of the payload according to the sender, in bytes. The payload itself extends to the end of the frame.
    pub payload_length: u32,
    /// A slice of the frame: shares its memory.
    pub payload: Bytes,
}

impl Message {
    /// Decodes one WebSocket frame. The digest is not checked here, see [`Message::is_intact`].
    ///
    /// # Errors
    ///
    /// [`DecodeError::UnknownType`] if the type is none of [`MessageType`], otherwise the error of the first
    /// check that fails.
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let actual = frame.len();
        let mut fields = Fields(frame);
        let mut read = || -> Option<_> {
            Some((
                fields.u32()?,
                fields.take::<32>()?,
                fields.u32()?,
                fields.u64()?,
                fields.take::<8>()?,
                fields.u64()?,
                fields.take::<16>()?,
                fields.take::<32>()?,
                fields.u32()?,
                fields.u32()?,
            ))
        };
        let (
            header_length,
            name,
            schema_version,
            created_date_ms,
            number,
            flags,
            id,
            digest,
            payload_type,
            length,
        ) = read().ok_or(DecodeError::Truncated { required: PAYLOAD_OFFSET, actual })?;

        if header_length < HEADER_LENGTH {
            return Err(DecodeError::HeaderLength(header_length));
        }
        let start = usize::try_from(header_length).unwrap_or(usize::MAX).saturating_add(4);
        if start > actual {
            return Err(DecodeError::Truncated { required: start, actual });
        }
        let message_type = MessageType::from_field(&name)?;
        // The plugin validates nothing in the two publication messages (docs/ssm-protocol.md, section 4.2).
        if created_date_ms == 0 && !message_type.is_publication() {
            return Err(DecodeError::NoCreatedDate);
        }
        Ok(Self {
            message_type,
            schema_version,
            created_date_ms,
            sequence_number: i64::from_be_bytes(number),
            flags,
            message_id: Uuid::from_u128(u128::from_be_bytes(id).rotate_left(64)),
            payload_digest: digest,
            payload_type,
            payload_length: length,
            payload: frame.slice(start..),
        })
    }

    /// Whether the payload matches the digest in the header.
    ///
    /// With a `PayloadLength` of 0 the digest is not checked, as in the plugin (docs/ssm-protocol.md,
    /// section 4.2).
    pub fn is_intact(&self) -> bool {
        self.payload_length == 0 || digest(&self.payload) == self.payload_digest
    }
}

/// Type of a message (docs/ssm-protocol.md, section 5.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MessageType {
    /// Stream message from the client to the agent.
    InputStreamData,
    /// Stream message from the agent to the client.
    OutputStreamData,
    /// Confirms that one stream message has been stored.
    Acknowledge,
    /// The service has ended the session.
    ChannelClosed,
    /// The service asks to send stream messages again.
    StartPublication,
    /// The service asks to hold stream messages (docs/ssm-protocol.md, section 9.1).
    PausePublication,
}

impl MessageType {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::InputStreamData,
        Self::OutputStreamData,
        Self::Acknowledge,
        Self::ChannelClosed,
        Self::StartPublication,
        Self::PausePublication,
    ];

    /// Returns the name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InputStreamData => "input_stream_data",
            Self::OutputStreamData => "output_stream_data",
            Self::Acknowledge => "acknowledge",
            Self::ChannelClosed => "channel_closed",
            Self::StartPublication => "start_publication",
            Self::PausePublication => "pause_publication",
        }
    }

    const fn is_publication(self) -> bool {
        matches!(self, Self::StartPublication | Self::PausePublication)
    }

    /// Reads the padded field: NULs are trimmed at both ends, then white space.
    fn from_field(field: &[u8; 32]) -> Result<Self, DecodeError> {
        let mut name: &[u8] = field;
        while let [0, rest @ ..] | [rest @ .., 0] = name {
            name = rest;
        }
        let name = name.trim_ascii();
        if name.is_empty() {
            return Err(DecodeError::NoType);
        }
        let known = Self::ALL.into_iter().find(|known| known.name().as_bytes() == name);
        known.ok_or_else(|| DecodeError::UnknownType(name.escape_ascii().to_string()))
    }
}

/// The header of an outgoing message; digest and length are computed from the payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Envelope {
    /// Type of the message.
    pub message_type: MessageType,
    /// When the message is created, in ms since the Unix epoch, not 0.
    pub created_date_ms: u64,
    /// The raw field; see [`crate::SequenceNumber`].
    pub sequence_number: i64,
    /// 0 in stream messages, [`ACKNOWLEDGE_FLAGS`] in acknowledgements.
    pub flags: u64,
    /// Id of the message.
    pub message_id: Uuid,
    /// Payload type of a stream message, 0 elsewhere.
    pub payload_type: u32,
}

impl Envelope {
    /// Appends the whole message to `frame`: [`PAYLOAD_OFFSET`] bytes of header and `payload`.
    pub fn encode(&self, payload: &[u8], frame: &mut BytesMut) {
        let name = self.message_type.name();
        frame.reserve(PAYLOAD_OFFSET + payload.len());
        frame.put_u32(HEADER_LENGTH);
        frame.put_slice(name.as_bytes());
        frame.put_bytes(b' ', TYPE_LENGTH.saturating_sub(name.len()));
        frame.put_u32(SCHEMA_VERSION);
        frame.put_u64(self.created_date_ms);
        frame.put_i64(self.sequence_number);
        frame.put_u64(self.flags);
        frame.put_u128(self.message_id.as_u128().rotate_left(64));
        frame.put_slice(&digest(payload));
        frame.put_u32(self.payload_type);
        // Outgoing payloads are at most 64 KiB, and readers do not cut by this field.
        frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        frame.put_slice(payload);
    }
}

/// Why a frame was not accepted. None of these ends a channel by itself.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The frame ends before its header does.
    #[error("frame has {actual} bytes, its header needs {required}")]
    Truncated {
        /// Bytes that header and header length require.
        required: usize,
        /// Bytes in the frame.
        actual: usize,
    },
    /// The payload would start inside the header.
    #[error("header length is {0}, expected at least 116")]
    HeaderLength(u32),
    /// The type is blank.
    #[error("message type is empty")]
    NoType,
    /// The type is unknown; both official programs drop such messages (docs/ssm-protocol.md, section 5.1).
    #[error("message type is `{0}`")]
    UnknownType(String),
    /// The date is 0, which both official programs refuse.
    #[error("creation date is zero")]
    NoCreatedDate,
    /// The payload does not match its digest.
    #[error("payload does not match its digest")]
    Digest,
    /// A stream message or an acknowledgement has a negative number.
    #[error("sequence number is {0}")]
    SequenceNumber(i64),
    /// The payload is not valid JSON of its type.
    #[error("payload is not the JSON of an `{0}` message")]
    Json(&'static str),
}

fn digest(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

/// Reads fields of fixed size from the front of the remaining bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// Bytes before the payload in every outgoing message.
pub const PAYLOAD_OFFSET: usize = 120;

/// SYN and FIN, as in acknowledgements of the official programs (docs/ssm-protocol.md, section 4.2).
pub const ACKNOWLEDGE_FLAGS: u64 = 3;

/// Offset of `PayloadLength` in bytes. With a smaller header length the payload would start inside the header.
const HEADER_LENGTH: u32 = 116;

const TYPE_LENGTH: usize = 32;

const SCHEMA_VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const ENVELOPE: Envelope = Envelope {
        message_type: MessageType::OutputStreamData,
        created_date_ms: 1,
        sequence_number: 5,
        flags: 0,
        message_id: Uuid::from_u128(0x0123_4567_89ab_4cde_8f01_2345_6789_abcd),
        payload_type: 1,
    };

    fn frame(change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut frame = BytesMut::new();
        ENVELOPE.encode(b"payload", &mut frame);
        let mut frame = frame.to_vec();
        change(&mut frame);
        frame.into()
    }

    fn typed(name: &[u8]) -> Bytes {
        frame(|frame| {
            frame[4..36].fill(b' ');
            frame[4..4 + name.len()].copy_from_slice(name);
        })
    }

    #[test]
    fn every_bound_of_the_header_is_checked() {
        type Expected = Result<&'static [u8], DecodeError>;
        let truncated = |required, actual| Err(DecodeError::Truncated { required, actual });
        let cases: [(&str, Bytes, Expected); 12] = [
            ("intact", frame(|_| ()), Ok(b"payload")),
            ("empty frame", Bytes::new(), truncated(120, 0)),
            ("one byte short of a header", frame(|f| f.truncate(119)), truncated(120, 119)),
            ("no payload at all", frame(|f| f.truncate(120)), Ok(b"")),
            ("header length 0", frame(|f| f[..4].fill(0)), Err(DecodeError::HeaderLength(0))),
            ("header length 115", frame(|f| f[3] = 115), Err(DecodeError::HeaderLength(115))),
            ("header length 120 moves the payload", frame(|f| f[3] = 120), Ok(b"oad")),
            ("header ends with the frame", frame(|f| f[3] = 123), Ok(b"")),
            ("header ends behind the frame", frame(|f| f[3] = 124), truncated(128, 127)),
            (
                "header length at its maximum",
                frame(|f| f[..4].fill(0xff)),
                truncated(0xffff_ffff + 4, 127),
            ),
            ("payload length is not used to cut", frame(|f| f[119] = 2), Ok(b"payload")),
            ("date 0", frame(|f| f[40..48].fill(0)), Err(DecodeError::NoCreatedDate)),
        ];
        for (name, frame, expected) in cases {
            let actual = Message::decode(&frame).map(|message| message.payload);
            assert_eq!(actual.as_deref(), expected.as_ref().copied(), "case: {name}");
        }
    }

    #[test]
    fn types_are_trimmed_as_the_official_readers_do() {
        let cases: [(&[u8], Result<MessageType, DecodeError>); 8] = [
            (b"acknowledge", Ok(MessageType::Acknowledge)),
            (
                b"acknowledge\0\0\0",
                Err(DecodeError::UnknownType("acknowledge\\x00\\x00\\x00".into())),
            ),
            (&with_nuls(b"\0\0 acknowledge "), Ok(MessageType::Acknowledge)),
            (b" \tacknowledge\r\n", Ok(MessageType::Acknowledge)),
            (b"", Err(DecodeError::NoType)),
            (&[0; 32], Err(DecodeError::NoType)),
            (b"Acknowledge", Err(DecodeError::UnknownType("Acknowledge".into()))),
            (b"data_channel_ready", Err(DecodeError::UnknownType("data_channel_ready".into()))),
        ];
        for (field, expected) in cases {
            let actual = Message::decode(&typed(field)).map(|message| message.message_type);
            assert_eq!(actual, expected, "field {:?}", field.escape_ascii().to_string());
        }
    }

    fn with_nuls(name: &[u8]) -> [u8; 32] {
        let mut field = [0; 32];
        field[..name.len()].copy_from_slice(name);
        field
    }

    #[test]
    fn publication_messages_may_be_made_of_zeros() {
        let pause = frame(|frame| {
            let name = MessageType::PausePublication.name();
            frame[4..36].copy_from_slice(&with_nuls(name.as_bytes()));
            frame[36..].fill(0);
        });
        let message = Message::decode(&pause).unwrap();
        assert_eq!(message.message_type, MessageType::PausePublication);
        assert!(message.is_intact());
    }

    #[test]
    fn digest_is_checked_unless_no_payload_is_claimed() {
        let cases = [
            ("intact", frame(|_| ()), true),
            ("payload damaged", frame(|f| f[126] ^= 1), false),
            ("digest damaged", frame(|f| f[80] ^= 1), false),
            ("payload length 0", frame(|f| f[80..].fill(0)), true),
        ];
        for (name, frame, intact) in cases {
            assert_eq!(Message::decode(&frame).unwrap().is_intact(), intact, "case: {name}");
        }
    }

    #[test]
    fn payload_shares_the_memory_of_the_frame() {
        let frame = frame(|_| ());
        let message = Message::decode(&frame).unwrap();
        assert_eq!(message.payload.as_ptr(), frame[120..].as_ptr());
    }
}
