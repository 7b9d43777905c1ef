//! The binary packet protocol (RFC 4253 section 6): writes and reads packets with their padding, compression and
//! encryption.

use bytes::{Buf, BufMut, BytesMut};

use crate::{
    cipher::{LENGTH, Opener, Sealer},
    compression::{Deflater, Inflater},
    error::Error,
};

/// Writes outgoing packets.
#[derive(Debug)]
pub(crate) struct PacketWriter {
    sealer: Sealer,
    deflater: Option<Deflater>,
    sequence: u32,
    /// Since the last change of keys.
    used: Volume,
    total: Volume,
}

impl PacketWriter {
    pub(crate) fn new() -> Self {
        Self {
            sealer: Sealer::Plain,
            deflater: None,
            sequence: 0,
            used: Volume::default(),
            total: Volume::default(),
        }
    }

    /// Appends a packet with the payload `head` + `body` to `out`.
    ///
    /// # Errors
    ///
    /// [`Error::Crypto`] if compression or encryption fails; `out` is then unchanged.
    pub(crate) fn write(
        &mut self,
        out: &mut BytesMut,
        head: &[u8],
        body: &[u8],
    ) -> Result<(), Error> {
        let start = out.len();
        let result = self.append(out, head, body);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Changes to new keys, after NEWKEYS.
    pub(crate) fn switch(&mut self, sealer: Sealer, compressed: bool, reset_sequence: bool) {
        self.sealer = sealer;
        self.deflater = compressed.then(Deflater::new);
        self.used = Volume::default();
        if reset_sequence {
            self.sequence = 0;
        }
    }

    /// Starts compression, after the login.
    pub(crate) fn compress(&mut self) {
        self.deflater = Some(Deflater::new());
    }

    /// Volume since the last change of keys.
    pub(crate) fn used(&self) -> Volume {
        self.used
    }

    /// Volume since the start.
    pub(crate) fn total(&self) -> Volume {
        self.total
    }

    fn append(&mut self, out: &mut BytesMut, head: &[u8], body: &[u8]) -> Result<(), Error> {
        let start = out.len();
        let (head, body) = match &mut self.deflater {
            Some(deflater) => (deflater.deflate(head, body)?, &[][..]),
            None => (head, body),
        };
        let (block, with_length) = self.sealer.alignment();
        let payload = head.len() + body.len();
        let aligned = payload + 1 + if with_length { LENGTH } else { 0 };
        let mut padding = block - aligned % block;
        if padding < MIN_PADDING {
            padding += block;
        }
        let length = 1 + payload + padding;
        out.reserve(LENGTH + length + MAX_TAG);
        out.put_u32(u32::try_from(length).map_err(|_| FAILED)?);
        out.put_u8(u8::try_from(padding).map_err(|_| FAILED)?);
        out.put_slice(head);
        out.put_slice(body);
        let end = out.len();
        out.put_bytes(0, padding);
        let random = out.get_mut(end..).ok_or(FAILED)?;
        aws_lc_rs::rand::fill(random).map_err(|_| FAILED)?;
        self.sealer.seal(self.sequence, out, start)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.used.count(out.len() - start);
        self.total.count(out.len() - start);
        Ok(())
    }
}

/// Reads incoming packets.
#[derive(Debug)]
pub(crate) struct PacketReader {
    /// Received bytes that were not handled yet.
    pub(crate) input: BytesMut,
    opener: Opener,
    inflater: Option<Inflater>,
    inflated: BytesMut,
    sequence: u32,
    /// Length of the packet at the start of `input` with its tag, in bytes, once its length field was read.
    expected: Option<usize>,
    used: Volume,
    total: Volume,
}

impl PacketReader {
    pub(crate) fn new() -> Self {
        Self {
            input: BytesMut::new(),
            opener: Opener::Plain,
            inflater: None,
            inflated: BytesMut::new(),
            sequence: 0,
            expected: None,
            used: Volume::default(),
            total: Volume::default(),
        }
    }

    /// Removes the next packet from the input and returns its payload, which is not empty; `None` until a
    /// whole packet was received.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if its length, padding or compression is invalid, [`Error::Integrity`] if its tag is
    /// wrong.
    pub(crate) fn next(&mut self) -> Result<Option<BytesMut>, Error> {
        let size = if let Some(size) = self.expected {
            size
        } else {
            let head = self.opener.head();
            let Some(head) = self.input.get_mut(..head) else { return Ok(None) };
            let length = self.opener.length(self.sequence, head)?;
            let size = self.check(length)?;
            *self.expected.insert(size)
        };
        if self.input.len() < size {
            // Reserves all of it at once instead of growing step by step.
            self.input.reserve(size - self.input.len());
            return Ok(None);
        }
        self.expected = None;
        let mut packet = self.input.split_to(size);
        self.opener.open(self.sequence, &mut packet)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.used.count(size);
        self.total.count(size);

        packet.truncate(size - self.opener.tag_len());
        packet.advance(LENGTH);
        let padding = usize::from(packet.get_u8());
        let payload = packet.len().checked_sub(padding).filter(|_| padding >= MIN_PADDING);
        packet.truncate(payload.ok_or_else(|| Error::protocol("packet has invalid padding"))?);
        if let Some(inflater) = &mut self.inflater {
            self.inflated.extend_from_slice(inflater.inflate(&packet)?);
            packet = self.inflated.split();
        }
        if packet.is_empty() {
            return Err(Error::protocol("packet has an empty payload"));
        }
        Ok(Some(packet))
    }

    /// Changes to new keys, after NEWKEYS.
    pub(crate) fn switch(&mut self, opener: Opener, compressed: bool, reset_sequence: bool) {
        self.opener = opener;
        self.inflater = compressed.then(Inflater::new);
        self.used = Volume::default();
        if reset_sequence {
            self.sequence = 0;
        }
    }

    /// Starts decompression, after the login.
    pub(crate) fn decompress(&mut self) {
        self.inflater = Some(Inflater::new());
    }

    /// Volume since the last change of keys.
    pub(crate) fn used(&self) -> Volume {
        self.used
    }

    /// Volume since the start.
    pub(crate) fn total(&self) -> Volume {
        self.total
    }

    /// Sequence number of the packet that [`next`](Self::next) returned last.
    pub(crate) fn last_sequence(&self) -> u32 {
        self.sequence.wrapping_sub(1)
    }

    /// Checks the packet's length field and returns the length of the packet with its tag, in bytes.
    fn check(&self, length: u32) -> Result<usize, Error> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (block, with_length) = self.opener.alignment();
        let aligned = length.saturating_add(if with_length { LENGTH } else { 0 });
        if !(1 + MIN_PADDING..=MAX_LENGTH).contains(&length) || !aligned.is_multiple_of(block) {
            return Err(Error::protocol(format!("packet has a length of {length} bytes")));
        }
        Ok(LENGTH + length + self.opener.tag_len())
    }
}

/// An amount of traffic.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Volume {
    pub(crate) packets: u64,
    /// Bytes on the wire.
    pub(crate) bytes: u64,
}

impl Volume {
    fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
    }
}

/// Least padding, in bytes (RFC 4253 section 6).
const MIN_PADDING: usize = 4;

/// Largest value of the length field that is accepted, in bytes: OpenSSH's limit (`PACKET_MAX_SIZE` in packet.c).
/// RFC 4253 section 6.1 requires at least 35,000.
const MAX_LENGTH: usize = 256 * 1024;

/// Length of the longest tag, in bytes: HMAC-SHA-512 (RFC 6668 section 2).
const MAX_TAG: usize = 64;

const FAILED: Error = Error::Crypto { what: "packet" };
