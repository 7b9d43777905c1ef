//! WebSocket framing on the server's side (RFC 6455), strict towards the client.
//!
//! Implemented here, because the emulator must break connections in every way and see every frame
//! unchanged.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A message from the client.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Incoming {
    Text(Bytes),
    Binary(Bytes),
    Ping(Bytes),
    Pong,
    Close(Option<u16>),
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The client violated the protocol.
    #[error("{0}")]
    Violation(&'static str),
    /// The connection ended without a close frame.
    #[error("the connection ended without a close frame")]
    Ended,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Reads frames and joins fragments into messages.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    inner: R,
    buffer: BytesMut,
    fragments: Option<(u8, BytesMut)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// `buffer` holds what was read beyond the upgrade request.
    pub(crate) fn new(inner: R, buffer: BytesMut) -> Self {
        Self { inner, buffer, fragments: None }
    }

    /// Reads the next message. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Incoming, ReadError> {
        loop {
            while let Some((first, payload)) = self.frame()? {
                if let Some(incoming) = self.take(first, payload)? {
                    return Ok(incoming);
                }
            }
            self.buffer.reserve(READ);
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadError::Ended);
            }
        }
    }

    /// The first byte and the payload of the next frame, if it is complete.
    fn frame(&mut self) -> Result<Option<(u8, BytesMut)>, ReadError> {
        let [first, second, rest @ ..] = self.buffer.as_ref() else { return Ok(None) };
        let (first, second) = (*first, *second);
        if first & 0x70 != 0 {
            return Err(ReadError::Violation(
                "a reserved bit is set: compression was not agreed on",
            ));
        }
        if second & 0x80 == 0 {
            return Err(ReadError::Violation("a frame of a client is not masked"));
        }
        let (length, extended) = match second & 0x7f {
            126 => match rest.first_chunk() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            length => (u64::from(length), 0),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(ReadError::Violation("a frame of more than 16 MiB"));
        }
        if first & 0x08 != 0 && (length > 125 || first & 0x80 == 0) {
            return Err(ReadError::Violation("a control frame that is too long or in fragments"));
        }
        let header = 2 + extended + 4;
        if self.buffer.len() < header + length {
            return Ok(None);
        }
        let header = self.buffer.split_to(header);
        let mask = header.last_chunk().copied().unwrap_or_default();
        let mut payload = self.buffer.split_to(length);
        unmask(&mut payload, mask);
        Ok(Some((first, payload)))
    }

    fn take(&mut self, first: u8, payload: BytesMut) -> Result<Option<Incoming>, ReadError> {
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        let (kind, message) = match (opcode, self.fragments.take()) {
            (PING | PONG | CLOSE, fragments) => {
                self.fragments = fragments;
                return control(opcode, payload.freeze()).map(Some);
            }
            (CONTINUATION, Some((kind, mut message))) => {
                message.extend_from_slice(&payload);
                (kind, message)
            }
            (TEXT | BINARY, None) => (opcode, payload),
            (CONTINUATION, None) => {
                return Err(ReadError::Violation("a continuation of nothing"));
            }
            (TEXT | BINARY, Some(_)) => {
                return Err(ReadError::Violation("a message within another one's fragments"));
            }
            _ => return Err(ReadError::Violation("an unknown opcode")),
        };
        if !last {
            self.fragments = Some((kind, message));
            return Ok(None);
        }
        if kind == TEXT && std::str::from_utf8(&message).is_err() {
            return Err(ReadError::Violation("a text frame that is no UTF-8"));
        }
        let message = message.freeze();
        Ok(Some(if kind == TEXT { Incoming::Text(message) } else { Incoming::Binary(message) }))
    }
}

fn control(opcode: u8, payload: Bytes) -> Result<Incoming, ReadError> {
    Ok(match opcode {
        PING => Incoming::Ping(payload),
        PONG => Incoming::Pong,
        _ => match payload.as_ref() {
            [] => Incoming::Close(None),
            [high, low, ..] => Incoming::Close(Some(u16::from_be_bytes([*high, *low]))),
            [_] => return Err(ReadError::Violation("a close frame with half a status")),
        },
    })
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    // The remainder is shorter than 8 bytes, but may be longer than the mask.
    for (byte, mask) in rest.iter_mut().skip(4).zip(mask) {
        *byte ^= mask;
    }
}

/// Appends a frame, unmasked as from a server.
pub(crate) fn put(out: &mut BytesMut, opcode: u8, payload: &[u8]) {
    out.put_u8(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => out.put_u8(u8::try_from(length).unwrap_or(0)),
        length @ 126..0x1_0000 => {
            out.put_u8(126);
            out.put_u16(u16::try_from(length).unwrap_or(0));
        }
        length => {
            out.put_u8(127);
            out.put_u64(u64::try_from(length).unwrap_or(0));
        }
    }
    out.put_slice(payload);
}

/// Appends a close frame.
pub(crate) fn put_close(out: &mut BytesMut, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    put(out, CLOSE, &payload);
}

/// `Sec-WebSocket-Accept` for a key.
pub(crate) fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

pub(crate) const BINARY: u8 = 2;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// Bytes reserved for one read.
const READ: usize = 64 * 1024;

/// Largest message, in bytes. The official parts have no limit; this one protects against a defect that
/// would exhaust memory.
const LONGEST: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 1, 2, 3, 4];
        frame.extend(
            payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask),
        );
        frame
    }

    async fn read(wire: &[u8]) -> Result<Incoming, ReadError> {
        Reader::new(wire, BytesMut::new()).next().await
    }

    #[tokio::test]
    async fn frames_are_read_whole_and_joined() {
        let message = b"0123456789abcdefg";
        let mut fragments = masked(BINARY, &message[..7]);
        fragments.extend(masked(0x80 | PING, b"keepalive"));
        fragments.extend(masked(0, &message[7..9]));
        fragments.extend(masked(0x80, &message[9..]));
        let mut reader = Reader::new(fragments.as_slice(), BytesMut::new());
        assert_eq!(reader.next().await.unwrap(), Incoming::Ping(Bytes::from_static(b"keepalive")));
        assert_eq!(reader.next().await.unwrap(), Incoming::Binary(Bytes::from_static(message)));
        assert!(matches!(reader.next().await, Err(ReadError::Ended)));
        let text = read(&masked(0x80 | TEXT, b"{}")).await.unwrap();
        assert_eq!(text, Incoming::Text(Bytes::from_static(b"{}")));
        assert_eq!(read(&masked(0x88, &[3, 232])).await.unwrap(), Incoming::Close(Some(1000)));
    }

    #[tokio::test]
    async fn what_a_client_may_not_send_is_a_violation() {
        let mut within = masked(BINARY, b"a");
        within.extend(masked(0x80 | BINARY, b"b"));
        let cases: [(&str, Vec<u8>); 7] = [
            ("unmasked", vec![0x82, 1, b'a']),
            ("compressed", masked(0xc0 | BINARY, b"a")),
            ("unknown opcode", masked(0x83, b"a")),
            ("continuation of nothing", masked(0x80, b"a")),
            ("message within fragments", within),
            ("no UTF-8", masked(0x80 | TEXT, &[0xff])),
            ("control frame in fragments", masked(PING, b"")),
        ];
        for (name, wire) in cases {
            let read = read(&wire).await;
            assert!(matches!(read, Err(ReadError::Violation(_))), "{name}: {read:?}");
        }
    }

    /// RFC 6455, section 1.3.
    #[test]
    fn accepts_keys_as_the_standard_does() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
