//! `zlib@openssh.com` compression: one zlib stream for each direction, flushed at the end of every packet
//! (RFC 4253 section 6.2; OpenSSH's PROTOCOL section 1.2).

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use crate::error::Error;

/// Compresses outgoing payloads; data that does not shrink is stored uncompressed.
///
/// The stream consists of raw deflate segments that end on byte boundaries: output of the compressor, and stored
/// blocks (RFC 1951 section 3.2.4) while compression saves too little. The compressor does not see stored
/// data, so it is reset after it and does not refer back to earlier data.
#[derive(Debug)]
pub(crate) struct Deflater {
    stream: Compress,
    /// The compressed payload. The buffer is reused for each packet.
    out: Vec<u8>,
    /// The zlib header was written.
    begun: bool,
    /// Bytes of input and of output of the compressor since its ratio was last checked.
    sample: (usize, usize),
    /// Bytes to store uncompressed before compression is tried again.
    to_store: usize,
}

impl Deflater {
    pub(crate) fn new() -> Self {
        let stream = Compress::new(flate2::Compression::default(), false);
        Self { stream, out: Vec::new(), begun: false, sample: (0, 0), to_store: 0 }
    }

    /// Compresses the payload `head` + `body`.
    pub(crate) fn deflate(&mut self, head: &[u8], body: &[u8]) -> Result<&[u8], Error> {
        self.out.clear();
        if !std::mem::replace(&mut self.begun, true) {
            self.out.extend_from_slice(&ZLIB_HEADER);
        }
        let length = head.len() + body.len();
        if self.to_store > 0 {
            self.store(head);
            self.store(body);
            self.to_store = self.to_store.saturating_sub(length);
            if self.to_store == 0 {
                self.stream.reset();
            }
        } else {
            self.run(head, FlushCompress::None)?;
            self.run(body, FlushCompress::Sync)?;
            self.check_ratio(length);
        }
        Ok(&self.out)
    }

    fn store(&mut self, data: &[u8]) {
        for block in data.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
            self.out.push(STORED);
            self.out.extend_from_slice(&length.to_le_bytes());
            self.out.extend_from_slice(&(!length).to_le_bytes());
            self.out.extend_from_slice(block);
        }
    }

    /// Suspends compression for a while if it saves less than 5 %.
    fn check_ratio(&mut self, length: usize) {
        self.sample = (self.sample.0 + length, self.sample.1 + self.out.len());
        let (given, made) = self.sample;
        if given >= SAMPLE {
            if made > given - given / 20 {
                self.to_store = STORE;
            }
            self.sample = (0, 0);
        }
    }

    fn run(&mut self, mut input: &[u8], flush: FlushCompress) -> Result<(), Error> {
        loop {
            self.out.reserve(input.len() / 2 + ROOM);
            let before = self.stream.total_in();
            self.stream.compress_vec(input, &mut self.out, flush).map_err(|_| FAILED)?;
            let taken = usize::try_from(self.stream.total_in() - before).map_err(|_| FAILED)?;
            input = input.get(taken..).unwrap_or_default();
            // Space is left in the output, so the compressor holds nothing back for lack of it.
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
    /// [`Error::Protocol`] if it is not valid zlib data or inflates to more than [`LIMIT`].
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
                return Err(Error::protocol("compressed stream has ended"));
            }
            let taken = usize::try_from(self.stream.total_in() - before).map_err(|_| FAILED)?;
            input = input.get(taken..).unwrap_or_default();
            // Stops only when no more output comes: even with all input taken and space left, the inflater
            // may hold output back when its own window of 32 KiB wraps at that moment.
            if taken == 0 && self.out.len() == written {
                let damaged = Error::protocol("compressed packet is damaged");
                return if input.is_empty() { Ok(&self.out) } else { Err(damaged) };
            }
        }
    }
}

/// Most bytes that one packet may inflate to: a small packet must not cause a large allocation. A limit of ours,
/// as large as OpenSSH's for packets (`PACKET_MAX_SIZE` in packet.c).
pub(crate) const LIMIT: usize = 256 * 1024;

/// Least space reserved for output, in bytes: more than the flush marker needs.
const ROOM: usize = 4 * 1024;

/// Header of a zlib stream (RFC 1950 section 2.2): deflate, a window of 32 KiB, default level.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x9c];

/// Header of a stored block that begins on a byte boundary and is not the last (RFC 1951 section 3.2.3).
const STORED: u8 = 0;

/// Input after which the compression ratio is checked, in bytes.
const SAMPLE: usize = 64 * 1024;

/// Input that is stored before compression is tried again, in bytes. Compressing data that does not shrink takes
/// 25 ms of processor time per megabyte; trying it on [`SAMPLE`] in so much takes a fifteenth of that.
const STORE: usize = 1024 * 1024;

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

    #[test]
    fn what_does_not_get_smaller_is_stored_and_what_follows_is_compressed_again() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).unwrap()
        };
        let mut send = |payload: &[u8]| {
            let (head, body) = payload.split_at(payload.len().min(9));
            let packed = deflater.deflate(head, body).unwrap().to_vec();
            assert_eq!(inflater.inflate(&packed).unwrap(), payload);
            packed.len()
        };
        let rows: Vec<u8> =
            (0..1_000).flat_map(|row| format!("{row}|shipped|").into_bytes()).collect();
        assert!(send(&rows) < rows.len() / 2);
        for _ in 0..8 {
            let noise: Vec<u8> = (0..16_384).map(|_| noise()).collect();
            send(&noise);
        }
        let noise: Vec<u8> = (0..100_000).map(|_| noise()).collect();
        assert_eq!(send(&noise), noise.len() + 3 * 5, "stored: a head for each block");
        let mut stored = 0;
        while send(&rows) > rows.len() {
            stored += rows.len();
        }
        assert!(stored <= STORE, "{stored} bytes");
        assert!(send(&rows) < rows.len() / 2, "compressed again");
    }

    /// Compresses as OpenSSH does: a packet ends with a partial flush of ten bits, which the inflater may
    /// have read together with the last data.
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
        assert!(packed.len() < LIMIT, "it fits into one packet");
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
