//! The data types of RFC 4251 section 5, message numbers, and escaping of text from the server.

use bytes::{BufMut, BytesMut};

use crate::error::Error;

/// Reads the fields of a payload in order; every length is checked.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `payload`; `message` is its name in errors.
    pub(crate) fn new(payload: &'a [u8], message: &'static str) -> Self {
        Self { rest: payload, message }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Error> {
        self.u8().map(|byte| byte != 0)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a `string`: a length and that many bytes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Error> {
        let length = usize::try_from(self.u32()?).map_err(|_| self.truncated())?;
        let (string, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(string)
    }

    /// Reads a `name-list`: names separated by commas, in printable ASCII.
    pub(crate) fn name_list(&mut self) -> Result<&'a str, Error> {
        let list = self.string()?;
        match std::str::from_utf8(list) {
            Ok(names) if names.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(names),
            _ => {
                Err(Error::protocol(format!("{} has a name list that is not ASCII", self.message)))
            }
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(*array)
    }

    /// Checks that no bytes are left.
    pub(crate) fn end(&self) -> Result<(), Error> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::protocol(format!("{} has {} bytes too many", self.message, self.rest.len())))
    }

    fn truncated(&self) -> Error {
        Error::protocol(format!("{} ends too early", self.message))
    }
}

/// Writes the fields of RFC 4251 section 5.
///
/// No length exceeds `u32`: the input of every caller is bounded far below.
pub(crate) trait Put: BufMut {
    fn put_string(&mut self, string: &[u8]) {
        self.put_u32(u32::try_from(string.len()).unwrap_or(u32::MAX));
        self.put_slice(string);
    }

    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// Writes an unsigned big-endian number as `mpint`: without leading zeros, except the one that keeps it
    /// positive.
    fn put_mpint(&mut self, number: &[u8]) {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
        let number = number.get(start..).unwrap_or_default();
        let sign = number.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = number.len() + usize::from(sign);
        self.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        if sign {
            self.put_u8(0);
        }
        self.put_slice(number);
    }
}

impl Put for BytesMut {}
impl Put for Vec<u8> {}

/// Message numbers (RFC 4250 section 4.1.2, RFC 5656 section 7.1, RFC 8308 section 2.3).
pub(crate) mod message {
    pub(crate) const DISCONNECT: u8 = 1;
    pub(crate) const IGNORE: u8 = 2;
    pub(crate) const UNIMPLEMENTED: u8 = 3;
    pub(crate) const DEBUG: u8 = 4;
    pub(crate) const SERVICE_REQUEST: u8 = 5;
    pub(crate) const SERVICE_ACCEPT: u8 = 6;
    pub(crate) const EXT_INFO: u8 = 7;
    pub(crate) const KEXINIT: u8 = 20;
    pub(crate) const NEWKEYS: u8 = 21;
    pub(crate) const KEX_ECDH_INIT: u8 = 30;
    pub(crate) const KEX_ECDH_REPLY: u8 = 31;
    pub(crate) const USERAUTH_REQUEST: u8 = 50;
    pub(crate) const USERAUTH_FAILURE: u8 = 51;
    pub(crate) const USERAUTH_SUCCESS: u8 = 52;
    pub(crate) const USERAUTH_BANNER: u8 = 53;
    pub(crate) const GLOBAL_REQUEST: u8 = 80;
    pub(crate) const REQUEST_SUCCESS: u8 = 81;
    pub(crate) const REQUEST_FAILURE: u8 = 82;
    pub(crate) const CHANNEL_OPEN: u8 = 90;
    pub(crate) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
    pub(crate) const CHANNEL_OPEN_FAILURE: u8 = 92;
    pub(crate) const CHANNEL_WINDOW_ADJUST: u8 = 93;
    pub(crate) const CHANNEL_DATA: u8 = 94;
    pub(crate) const CHANNEL_EXTENDED_DATA: u8 = 95;
    pub(crate) const CHANNEL_EOF: u8 = 96;
    pub(crate) const CHANNEL_CLOSE: u8 = 97;
    pub(crate) const CHANNEL_REQUEST: u8 = 98;
    pub(crate) const CHANNEL_FAILURE: u8 = 100;
}

/// Makes text from the server safe for messages and logs: control characters and marks of text direction escaped,
/// backticks, which enclose it there, made apostrophes, cut to `limit` characters.
pub(crate) fn escaped(text: &[u8], limit: usize) -> String {
    // A character takes at most four bytes, so later bytes cannot be shown.
    let head = text.get(..limit.saturating_mul(4)).unwrap_or(text);
    let mut shown = String::new();
    for (count, character) in String::from_utf8_lossy(head).chars().enumerate() {
        if count >= limit {
            shown.push('…');
            return shown;
        }
        if character == '`' {
            shown.push('\'');
        } else if character.is_control() || is_direction_mark(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Makes text from the server safe for a message: its words on one line, the rest as in [`escaped`].
pub(crate) fn one_line(text: &[u8], limit: usize) -> String {
    let head = text.get(..limit.saturating_mul(8)).unwrap_or(text);
    let text = String::from_utf8_lossy(head);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    escaped(words.as_bytes(), limit)
}

/// Makes text from the server safe for an error message.
pub(crate) fn quoted(text: &[u8]) -> String {
    escaped(text, QUOTED_CHARACTERS)
}

/// Whether a character changes the direction of text (Unicode Standard Annex 9 section 2), which can make a
/// log line read as something else.
fn is_direction_mark(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Most characters of the server's text in an error. A limit of ours.
const QUOTED_CHARACTERS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpints_are_shortest_and_positive() {
        // Examples of RFC 4251 section 5.
        let cases: &[(&str, &[u8], &[u8])] = &[
            ("zero", &[], &[0, 0, 0, 0]),
            ("zeros", &[0, 0], &[0, 0, 0, 0]),
            (
                "rfc",
                &[0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
                &[0, 0, 0, 8, 0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
            ),
            ("high bit", &[0x80], &[0, 0, 0, 2, 0, 0x80]),
            ("leading zeros", &[0, 0, 0x7f], &[0, 0, 0, 1, 0x7f]),
        ];
        for (name, number, expected) in cases {
            let mut out = Vec::new();
            out.put_mpint(number);
            assert_eq!(&out, expected, "case: {name}");
        }
    }

    #[test]
    fn reads_fields_or_says_that_they_end_too_early() {
        let cases = [
            ("empty", &[][..], None),
            ("length cut", &[0, 0, 0], None),
            ("one byte short", &[0, 0, 0, 2, 7], None),
            ("huge length", &[0xff, 0xff, 0xff, 0xff, 1], None),
            ("exact", &[0, 0, 0, 1, 7], Some(&[7][..])),
            ("rest stays", &[0, 0, 0, 1, 7, 8], Some(&[7])),
        ];
        for (name, input, expected) in cases {
            assert_eq!(Reader::new(input, "test").string().ok(), expected, "case: {name}");
        }
    }

    #[test]
    fn name_lists_are_ascii() {
        let list = |names: &[u8]| {
            let mut field = Vec::new();
            field.put_string(names);
            Reader::new(&field, "test").name_list().map(str::to_owned).ok()
        };
        assert_eq!(list(b"a,b@c"), Some("a,b@c".to_owned()));
        assert_eq!(list(b""), Some(String::new()));
        assert_eq!(list(b"a b"), None);
        assert_eq!(list(b"a\n"), None);
        assert_eq!(list(b"\xff"), None);
    }

    #[test]
    fn peers_cannot_smuggle_control_characters_or_floods_into_messages() {
        assert_eq!(quoted(b"a\x1b[31m\r\n"), "a\\u{1b}[31m\\r\\n");
        assert_eq!(quoted("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        assert_eq!(quoted(&[b'a'; 10_000]).chars().count(), QUOTED_CHARACTERS + 1);
        assert_eq!(quoted(b"\xff"), "\u{fffd}");
        assert_eq!(quoted(b"x`, all is well: `y"), "x', all is well: 'y");
        assert_eq!(
            one_line(b" Going down.\r\n\n\tCome\x07 back.\n", 100),
            "Going down. Come\\u{7} back."
        );
    }
}
