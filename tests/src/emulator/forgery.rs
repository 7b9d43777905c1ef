//! Frames that no gateway and no agent would send, for [`Control::inject`](super::Control::inject).

use bytes::{BufMut as _, Bytes, BytesMut};
use uuid::Uuid;

use super::codec::Message;

/// The header of a WebSocket frame that claims `length` bytes of payload. `first` is the byte with flags
/// and opcode.
pub fn frame_header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..126), _) => header.push(length),
        (_, Ok(length)) => {
            header.push(126);
            header.put_u16(length);
        }
        _ => {
            header.push(127);
            header.put_u64(length);
        }
    }
    header
}

/// A complete WebSocket frame.
pub fn frame(first: u8, payload: &[u8]) -> Bytes {
    let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    [&*frame_header(first, length), payload].concat().into()
}

/// A data channel message with a correct digest, such as an `output_stream_data`, in its WebSocket frame.
pub fn message(kind: &str, sequence: i64, payload_type: u32, payload: &[u8]) -> Bytes {
    frame(BINARY, &encoded(kind, sequence, payload_type, payload))
}

/// The same with a wrong digest.
pub fn damaged(kind: &str, sequence: i64, payload_type: u32, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::from(&*encoded(kind, sequence, payload_type, payload));
    if let Some(byte) = message.get_mut(DIGEST) {
        *byte ^= 1;
    }
    frame(BINARY, &message)
}

fn encoded(kind: &str, sequence: i64, payload_type: u32, payload: &[u8]) -> Bytes {
    let mut message = Message::new(kind, sequence, payload_type, Bytes::copy_from_slice(payload));
    message.id = Uuid::new_v4();
    message.encode()
}

/// First byte of an unfragmented binary frame.
pub const BINARY: u8 = 0x82;

/// First byte of an unfragmented text frame.
pub const TEXT: u8 = 0x81;

/// First byte of a ping.
pub const PING: u8 = 0x89;

/// Offset of the first byte of a message's digest.
const DIGEST: usize = 80;
