//! The identification lines at the start of a connection (RFC 4253 section 4.2).

use bytes::{Buf, BytesMut};

use crate::{
    error::Error,
    wire::{one_line, quoted},
};

/// What a server has sent before its identification: a notice, or the reason why it hangs up.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    /// Bytes of whole lines.
    skipped: usize,
    /// The first of them.
    text: Vec<u8>,
}

impl Preamble {
    /// Adds a line that took `length` bytes with its end.
    fn skip(&mut self, line: &[u8], length: usize) {
        self.skipped += length;
        let room = PREAMBLE_KEPT.saturating_sub(self.text.len());
        self.text.extend_from_slice(line.get(..room).unwrap_or(line));
        self.text.push(b'\n');
    }

    /// Its words and those of `rest`, an unfinished line; `None` where there are none.
    pub(crate) fn words(&self, rest: &[u8]) -> Option<String> {
        let room = PREAMBLE_KEPT.saturating_sub(self.text.len());
        let text = [&self.text, rest.get(..room).unwrap_or(rest)].concat();
        let words = one_line(&text, PREAMBLE_CHARACTERS);
        (!words.is_empty()).then_some(words)
    }
}

/// Removes lines from `input` up to the server's identification and returns that without its line end;
/// `None` until all of it was received. The lines before it are added to `preamble`.
///
/// # Errors
///
/// [`Error::NotSsh`] if the server has another version of SSH, or if there is no identification within
/// [`PREAMBLE`] bytes; [`Error::Protocol`] if the line is too long or has control characters.
pub(crate) fn take(input: &mut BytesMut, preamble: &mut Preamble) -> Result<Option<String>, Error> {
    loop {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            let limit = if is_identification(input) { LINE } else { PREAMBLE };
            if input.len() >= limit {
                return Err(Error::NotSsh { received: quoted(input) });
            }
            return Ok(None);
        };
        let mut line = input.split_to(end);
        input.advance(1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if is_identification(&line) {
            return parse(&line).map(Some);
        }
        preamble.skip(&line, end + 1);
        if preamble.skipped > PREAMBLE {
            return Err(Error::NotSsh { received: quoted(&line) });
        }
    }
}

fn parse(line: &[u8]) -> Result<String, Error> {
    if line.len() + 2 > LINE {
        return Err(Error::protocol("identification is longer than 8,192 bytes"));
    }
    // RFC 4253 section 5.1: servers that also support SSH 1.x identify as 1.99.
    if !line.starts_with(b"SSH-2.0-") && !line.starts_with(b"SSH-1.99-") {
        return Err(Error::NotSsh { received: quoted(line) });
    }
    // The exchange hash covers the exact bytes, so the text must keep them all. OpenSSH allows any bytes;
    // control characters are refused here because they can only mislead readers of a log.
    match std::str::from_utf8(line) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(Error::protocol("identification has control characters")),
    }
}

fn is_identification(line: &[u8]) -> bool {
    line.starts_with(b"SSH-")
}

/// The client's identification, without the line end.
pub(crate) const OURS: &str = concat!("SSH-2.0-ssm-sidecar_", env!("CARGO_PKG_VERSION"));

/// Longest identification with its line end, in bytes. RFC 4253 section 4.2 allows 255; sshd's `VersionAddendum` leads
/// beyond that, and OpenSSH's client takes as much as this (`SSH_MAX_BANNER_LEN` in `kex.c`).
const LINE: usize = 8_192;

/// Most bytes before the identification. A limit of ours: legal notices have a few KiB at most.
const PREAMBLE: usize = 16 * 1024;

/// Most bytes before the identification that are kept for an error.
const PREAMBLE_KEPT: usize = 1024;

/// Most characters of them in an error.
const PREAMBLE_CHARACTERS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(input: &[u8]) -> Result<Option<String>, &'static str> {
        take(&mut BytesMut::from(input), &mut Preamble::default()).map_err(|error| match error {
            Error::NotSsh { .. } => "not ssh",
            Error::Protocol { .. } => "protocol",
            _ => "other",
        })
    }

    #[test]
    fn identification_is_found_behind_other_lines() {
        let found = |text: &str| Ok(Some(text.to_owned()));
        let cases = [
            ("plain", b"SSH-2.0-x\r\nrest".as_slice(), found("SSH-2.0-x")),
            ("without CR", b"SSH-2.0-x y\n", found("SSH-2.0-x y")),
            ("1.99", b"SSH-1.99-x\n", found("SSH-1.99-x")),
            ("behind a notice", b"hello\r\nSSH-\xc3\xa9\nSSH-2.0-x\n", Err("not ssh")),
            ("behind lines", b"hello\r\n\r\nSSH-2.0-x\n", found("SSH-2.0-x")),
            ("not yet", b"hello\r\nSSH-2.0", Ok(None)),
            ("old", b"SSH-1.5-x\n", Err("not ssh")),
            ("control characters", b"SSH-2.0-x\0y\n", Err("protocol")),
        ];
        for (name, input, expected) in cases {
            assert_eq!(taken(input), expected, "case: {name}");
        }
    }

    #[test]
    fn identification_may_be_as_long_as_openssh_takes_it() {
        // With `VersionAddendum`; 255 bytes are what RFC 4253 allows.
        for length in [255, 256, 300, LINE - 2] {
            let line = format!("SSH-2.0-OpenSSH_9.2 {}", "a".repeat(length - 20));
            let input = format!("{line}\r\n");
            assert_eq!(taken(input.as_bytes()), Ok(Some(line)), "{length} bytes");
        }
    }

    #[test]
    fn what_comes_before_the_identification_is_kept_in_words_and_bounded() {
        let heard = |input: &[u8]| {
            let (mut input, mut preamble) = (BytesMut::from(input), Preamble::default());
            let taken = take(&mut input, &mut preamble).unwrap_or_default();
            preamble.words(if taken.is_none() { &input } else { &[] })
        };
        let found = |text: &str| Some(text.to_owned());
        assert_eq!(heard(b"Exceeded MaxStartups\r\n"), found("Exceeded MaxStartups"));
        assert_eq!(heard(b"Not allowed at this time"), found("Not allowed at this time"));
        assert_eq!(heard(b"two\r\n lines\n\n"), found("two lines"));
        assert_eq!(heard(b"notice\r\nSSH-2.0-x\r\n"), found("notice"));
        for silent in [b"".as_slice(), b"\r\n", b"SSH-2.0-x\r\n"] {
            assert_eq!(heard(silent), None);
        }
        let many = heard(&b"x `\x1b[31m\r\n".repeat(1000)).unwrap();
        assert!(many.len() < 10 * PREAMBLE_CHARACTERS, "{many}");
        assert!(!many.contains(['`', '\x1b']), "{many}");
    }

    #[test]
    fn endless_lines_are_refused() {
        let long = [b"SSH-2.0-".as_slice(), &[b'a'; LINE]].concat();
        assert_eq!(taken(&long), Err("not ssh"), "without end");
        let ended = [&long, b"\n".as_slice()].concat();
        assert_eq!(taken(&ended), Err("protocol"), "with end");
        assert_eq!(taken(&vec![b'a'; PREAMBLE]), Err("not ssh"), "one long line");
        assert_eq!(taken(&b"HTTP/1.1 200 OK\r\n".repeat(1000)), Err("not ssh"), "many lines");
    }
}
