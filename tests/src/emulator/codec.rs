//! The message layout of the data channel (section 3 of the specification), written for this emulator
//! alone: it shares no code with the client under test.

use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// One message of the data channel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) kind: String,
    pub(crate) schema_version: u32,
    /// Milliseconds since the epoch.
    pub(crate) created: u64,
    pub(crate) sequence: i64,
    pub(crate) flags: u64,
    pub(crate) id: Uuid,
    pub(crate) digest: [u8; 32],
    pub(crate) payload_type: u32,
    pub(crate) payload: Bytes,
}

impl Message {
    /// Creates a message, with the digest of its payload.
    pub(crate) fn new(kind: &str, sequence: i64, payload_type: u32, payload: Bytes) -> Self {
        Self {
            kind: kind.to_owned(),
            schema_version: 1,
            created: super::clock::millis(),
            sequence,
            flags: 0,
            id: Uuid::nil(),
            digest: Sha256::digest(&payload).into(),
            payload_type,
            payload,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut frame = BytesMut::with_capacity(PAYLOAD + self.payload.len());
        frame.put_u32(LENGTH_OFFSET);
        let mut kind = [b' '; KIND];
        for (to, from) in kind.iter_mut().zip(self.kind.bytes()) {
            *to = from;
        }
        frame.put_slice(&kind);
        frame.put_u32(self.schema_version);
        frame.put_u64(self.created);
        frame.put_i64(self.sequence);
        frame.put_u64(self.flags);
        // The two halves of the id are transmitted in reverse order.
        let (high, low) = self.id.as_u64_pair();
        frame.put_u64(low);
        frame.put_u64(high);
        frame.put_slice(&self.digest);
        frame.put_u32(self.payload_type);
        frame.put_u32(u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        frame.put_slice(&self.payload);
        frame.freeze()
    }

    /// Decodes a message as the agent does: the payload extends from `HeaderLength` + 4 to the end of the
    /// frame; its stated length and its digest are not checked.
    pub(crate) fn decode(frame: &Bytes) -> Result<Self, Malformed> {
        let mut header = Header { rest: frame };
        let header_length = header.u32()?;
        let kind: [u8; KIND] = header.take()?;
        let schema_version = header.u32()?;
        let created = header.u64()?;
        let sequence = header.u64()?.cast_signed();
        let flags = header.u64()?;
        let (low, high) = (header.u64()?, header.u64()?);
        let digest = header.take()?;
        let payload_type = header.u32()?;
        header.u32()?;
        let start = usize::try_from(header_length).map_err(|_| Malformed::HeaderLength)?;
        let start = start.checked_add(4).ok_or(Malformed::HeaderLength)?;
        if header_length == 0 || start > frame.len() {
            return Err(Malformed::HeaderLength);
        }
        let kind = std::str::from_utf8(&kind).map_err(|_| Malformed::Kind)?;
        let kind = kind.trim_matches('\0').trim();
        if kind.is_empty() {
            return Err(Malformed::Kind);
        }
        if created == 0 {
            return Err(Malformed::CreatedDate);
        }
        Ok(Self {
            kind: kind.to_owned(),
            schema_version,
            created,
            sequence,
            flags,
            id: Uuid::from_u64_pair(high, low),
            digest,
            payload_type,
            payload: frame.slice(start..),
        })
    }

    /// Whether the digest is that of the payload.
    pub(crate) fn is_intact(&self) -> bool {
        Sha256::digest(&self.payload).as_slice() == self.digest
    }
}

/// Errors of a reader that checks its bounds; the real agent panics in the first two cases.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the frame is shorter than a header")]
    Truncated,
    #[error("HeaderLength does not fit the frame")]
    HeaderLength,
    #[error("MessageType is no text")]
    Kind,
    #[error("CreatedDate is 0")]
    CreatedDate,
}

/// The payload length stated in a frame.
pub(crate) fn stated_length(frame: &[u8]) -> Option<u32> {
    frame.get(PAYLOAD - 4..)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// Sequence number, id and payload type of a stream message to the client; `None` for other messages.
pub(crate) fn output(frame: &[u8]) -> Option<(u64, Uuid, u32)> {
    if frame.get(4..4 + OUTPUT.len())? != OUTPUT.as_bytes() {
        return None;
    }
    let mut fields = Header { rest: frame.get(48..)? };
    let sequence = fields.u64().ok()?;
    fields.u64().ok()?;
    let (low, high) = (fields.u64().ok()?, fields.u64().ok()?);
    let mut fields = Header { rest: frame.get(112..)? };
    Some((sequence, Uuid::from_u64_pair(high, low), fields.u32().ok()?))
}

/// Sequence number and payload length of a stream message of the client; `None` for other messages.
pub(crate) fn input(frame: &[u8]) -> Option<(u64, usize)> {
    if frame.get(4..4 + KIND)?.trim_ascii_end() != INPUT.as_bytes() {
        return None;
    }
    let sequence = Header { rest: frame.get(48..)? }.u64().ok()?;
    Some((sequence, frame.len().saturating_sub(PAYLOAD)))
}

struct Header<'a> {
    rest: &'a [u8],
}

impl Header<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }
}

pub(crate) const INPUT: &str = "input_stream_data";
pub(crate) const OUTPUT: &str = "output_stream_data";
pub(crate) const ACKNOWLEDGE: &str = "acknowledge";
pub(crate) const CHANNEL_CLOSED: &str = "channel_closed";
pub(crate) const START_PUBLICATION: &str = "start_publication";
pub(crate) const PAUSE_PUBLICATION: &str = "pause_publication";

/// Payload types of stream messages (section 4).
pub(crate) mod payload_type {
    pub(crate) const OUTPUT: u32 = 1;
    pub(crate) const HANDSHAKE_REQUEST: u32 = 5;
    pub(crate) const HANDSHAKE_RESPONSE: u32 = 6;
    pub(crate) const HANDSHAKE_COMPLETE: u32 = 7;
    pub(crate) const FLAG: u32 = 10;
}

/// Flags of the header.
pub(crate) const SYN: u64 = 1;
pub(crate) const SYN_FIN: u64 = 3;

/// Offset of `PayloadLength`, which is the value of `HeaderLength`.
pub(crate) const LENGTH_OFFSET: u32 = 116;

/// Offset of the payload.
pub(crate) const PAYLOAD: usize = 120;

/// Length of `MessageType`.
pub(crate) const KIND: usize = 32;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn messages_of_the_official_code_are_written_and_read_alike() {
        let file: Value = serde_json::from_str(include_str!(
            "../../../sidecar/data-channel/tests/vectors/ssm-vectors.json"
        ))
        .unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 19);
        for vector in vectors {
            let name = vector["name"].as_str().unwrap();
            let payload = hex(vector["payload_hex"].as_str().unwrap());
            let message = Message {
                kind: vector["message_type"].as_str().unwrap().to_owned(),
                schema_version: u32::try_from(vector["schema_version"].as_u64().unwrap()).unwrap(),
                created: vector["created_date_ms"].as_u64().unwrap(),
                sequence: vector["sequence_number"].as_i64().unwrap(),
                flags: vector["flags"].as_u64().unwrap(),
                id: vector["message_id"].as_str().unwrap().parse().unwrap(),
                digest: hex(vector["payload_digest_hex"].as_str().unwrap()).try_into().unwrap(),
                payload_type: u32::try_from(vector["payload_type"].as_u64().unwrap()).unwrap(),
                payload: payload.into(),
            };
            let wire = Bytes::from(hex(vector["wire_hex"].as_str().unwrap()));
            assert_eq!(message.encode(), wire, "encoding {name}");
            assert_eq!(Message::decode(&wire), Ok(message.clone()), "decoding {name}");
            assert!(message.is_intact(), "digest of {name}");
        }
    }

    #[test]
    fn frames_that_would_panic_the_agent_are_distinguished() {
        let message = Message::new(INPUT, 0, 1, Bytes::from_static(b"x"));
        let frame = message.encode();
        let with = |offset: usize, bytes: &[u8]| {
            let mut changed = frame.to_vec();
            changed[offset..offset + bytes.len()].copy_from_slice(bytes);
            Bytes::from(changed)
        };
        let cases = [
            ("empty", Bytes::new(), Malformed::Truncated),
            ("a byte short of a header", frame.slice(..119), Malformed::Truncated),
            ("no header length", with(0, &[0; 4]), Malformed::HeaderLength),
            ("header past the end", with(0, &[0, 0, 0, 118]), Malformed::HeaderLength),
            ("greatest header", with(0, &[0xff; 4]), Malformed::HeaderLength),
            ("no type", with(4, &[b' '; KIND]), Malformed::Kind),
            ("type of NULs", with(4, &[0; KIND]), Malformed::Kind),
            ("type that is no text", with(4, &[0xff]), Malformed::Kind),
            ("no date", with(40, &[0; 8]), Malformed::CreatedDate),
        ];
        for (name, frame, expected) in cases {
            assert_eq!(Message::decode(&frame), Err(expected), "case: {name}");
        }
    }
}
