//! `zlib@openssh.com`: one zlib stream for each direction, flushed at the end of every packet
//! (RFC 4253 section 6.2; OpenSSH's PROTOCOL section 1.2).

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use crate::error::Error;

/// Compresses outgoing payloads.
#[derive(Debug)]
pub(crate) struct Deflater {
    stream: Compress,
    /// The payload under compression, reused from packet to packet.
    out: Vec<u8>,
}

impl Deflater {
    pub(crate) fn new() -> Self {
        Self { stream: Compress::new(flate2::Compression::default(), true), out: Vec::new() }
    }

    /// Compresses a payload given in two parts; what it returns inflates to exactly them.
    pub(crate) fn deflate(&mut self, head: &[u8], body: &[u8]) -> Result<&[u8], Error> {
        self.out.clear();
        self.run(head, FlushCompress::None)?;
        self.run(body, FlushCompress::Sync)?;
        Ok(&self.out)
    }

    fn run(&mut self, mut input: &[u8], flush: FlushCompress) -> Result<(), Error> {
        loop {
            self.out.reserve(input.len() / 2 + ROOM);
            let before = self.stream.total_in();
            self.stream.compress_vec(input, &mut self.out, flush).map_err(|_| FAILED)?;
            let taken = usize::try_from(self.stream.total_in() - before).map_err(|_| FAILED)?;
            input = input.get(taken..).unwrap_or_default();
            // Room that was left says that nothing is held back for want of it.
            if input.is_empty() && self.out.len() < self.out.capacity() {
                return Ok(());
            }
        }
    }
}

/// Inflates incoming payloads.
#[derive(Debug)]
pub(crate) struct Inflater {
    stream: Decompress,
    out: Vec<u8>,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self { stream: Decompress::new(true), out: Vec::new() }
    }

    /// Inflates one payload.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if it is not zlib's format or inflates to more than [`LIMIT`].
    pub(crate) fn inflate(&mut self, mut input: &[u8]) -> Result<&[u8], Error> {
        self.out.clear();
        loop {
            if self.out.len() == self.out.capacity() {
                self.out.reserve(ROOM.max(self.out.len()).min(LIMIT + 1));
            }
            let (before, written) = (self.stream.total_in(), self.out.len());
            let status = self
                .stream
                .decompress_vec(input, &mut self.out, FlushDecompress::Sync)
                .map_err(|_| Error::protocol("compressed packet is damaged"))?;
            if self.out.len() > LIMIT {
                return Err(Error::protocol("compressed packet inflates beyond 256 KiB"));
            }
            if matches!(status, Status::StreamEnd) {
                return Err(Error::protocol("compressed stream ends"));
            }
            let taken = usize::try_from(self.stream.total_in() - before).map_err(|_| FAILED)?;
            input = input.get(taken..).unwrap_or_default();
            // Until nothing more comes: the inflater may have taken all input and still hold back output
            // though there is room, when its own window of 32 KiB wraps at that moment.
            if taken == 0 && self.out.len() == written {
                let damaged = Error::protocol("compressed packet is damaged");
                return if input.is_empty() { Ok(&self.out) } else { Err(damaged) };
            }
        }
    }
}

/// Most bytes that one packet may inflate to. A limit of ours, as large as OpenSSH's for packets:
/// a peer must not turn a small packet into a large allocation.
pub(crate) const LIMIT: usize = 256 * 1024;
/// First room for output, in bytes; more than the flush marker takes.
const ROOM: usize = 4 * 1024;
const FAILED: Error = Error::Crypto { what: "compression" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_back_one_by_one() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let (large, full) = (vec![7; 100_000], vec![0x5a; 32_768]);
        let payloads: &[&[u8]] = &[b"a", &large, b"", &full, b"select 1", b"select 1"];
        for payload in payloads {
            let (head, body) = payload.split_at(payload.len() / 3);
            let packed = deflater.deflate(head, body).unwrap().to_vec();
            assert_eq!(&inflater.inflate(&packed).unwrap(), payload);
        }
    }

    /// As OpenSSH does: what ends a packet is ten bits, which the inflater may have read ahead with the
    /// last of the data.
    #[test]
    fn payloads_end_where_they_end_wherever_the_window_wraps() {
        let mut compress = Compress::new(flate2::Compression::default(), true);
        let mut inflater = Inflater::new();
        for length in (1..16_384).step_by(7).chain(32_700..32_800) {
            let mut packed = Vec::with_capacity(length + ROOM);
            let payload = vec![b'-'; length];
            compress.compress_vec(&payload, &mut packed, FlushCompress::Partial).unwrap();
            assert_eq!(inflater.inflate(&packed).unwrap().len(), length);
        }
    }

    #[test]
    fn bombs_are_refused_before_they_grow() {
        let packed = Deflater::new().deflate(&[], &vec![0; 64 * LIMIT]).unwrap().to_vec();
        assert!(packed.len() < LIMIT, "the bomb fits into one packet");
        let mut inflater = Inflater::new();
        assert!(matches!(inflater.inflate(&packed), Err(Error::Protocol { .. })));
        assert!(inflater.out.capacity() <= 4 * LIMIT, "{}", inflater.out.capacity());
    }

    #[test]
    fn damaged_streams_are_refused() {
        for damaged in [&b"\x78\x9c\xff\xff\xff"[..], b"\x00\x00", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]]
        {
            assert!(matches!(Inflater::new().inflate(damaged), Err(Error::Protocol { .. })));
        }
    }
}
