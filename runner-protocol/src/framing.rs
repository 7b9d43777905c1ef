//! Finds the end of the config on stdin: its closing brace, not the end of input.

use zeroize::Zeroizing;

use crate::{
    failure::{ErrorCode, Failure},
    phase::Phase,
};

/// Finds the first JSON object in a stream of bytes that arrives in chunks of any size.
///
/// Only as much is checked as is needed to find the end; [`Config::from_json`](crate::Config::from_json)
/// checks the rest. Input that can no longer become an object is refused at once, without waiting for more.
/// White space and a byte order mark before the object are skipped.
#[derive(Debug, Default)]
pub struct ConfigReader {
    text: Zeroizing<Vec<u8>>,
    scanner: Scanner,
}

/// A complete config, not yet parsed.
#[derive(Debug)]
pub struct Framed<'b> {
    /// The input up to the closing brace, including white space before the object; wiped when dropped.
    pub text: Zeroizing<String>,
    /// The bytes after the closing brace in the same chunk: the start of the messages.
    pub rest: &'b [u8],
}

impl ConfigReader {
    /// Starts at the beginning of the stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream; `None` until the closing brace has arrived. Must not be called again
    /// after it has returned a config or an error.
    ///
    /// # Errors
    ///
    /// [`Malformed`], as soon as the input cannot become a config.
    pub fn push<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<Framed<'b>>, Malformed> {
        let room = MAX_CONFIG_BYTES - self.text.len();
        for (index, byte) in bytes.iter().take(room).enumerate() {
            if self.scanner.step(*byte)? {
                let (last, rest) = bytes.split_at(index + 1);
                self.keep(last);
                return Ok(Some(Framed { text: self.take_text()?, rest }));
            }
        }
        if bytes.len() > room {
            return Err(Malformed::TooLong);
        }
        self.keep(bytes);
        Ok(None)
    }

    /// The error for a stream that has ended before the closing brace.
    #[must_use]
    pub fn end(&self) -> Malformed {
        match self.scanner.state {
            State::BeforeObject | State::ByteOrderMark(_) => Malformed::Missing,
            State::MaybeUtf16(first) => not_utf_16(first),
            State::InObject | State::InString | State::InEscape => Malformed::Incomplete,
        }
    }

    /// Appends `bytes`. A `Vec` that grows by itself would leave copies in memory that are not wiped.
    fn keep(&mut self, bytes: &[u8]) {
        let needed = self.text.len() + bytes.len();
        if needed > self.text.capacity() {
            let capacity = needed.max(self.text.capacity() * 2);
            let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
            larger.extend_from_slice(&self.text);
            self.text = larger;
        }
        self.text.extend_from_slice(bytes);
    }

    fn take_text(&mut self) -> Result<Zeroizing<String>, Malformed> {
        if self.text.starts_with(BYTE_ORDER_MARK) {
            self.text.drain(..BYTE_ORDER_MARK.len());
        }
        match String::from_utf8(std::mem::take(&mut *self.text)) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(error) => {
                drop(Zeroizing::new(error.into_bytes()));
                Err(Malformed::NotUtf8)
            }
        }
    }
}

/// Why the input is not a config; quotes none of it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// There is only white space.
    #[error("no config was given")]
    Missing,
    /// It does not begin with `{`.
    #[error("config is not a JSON object")]
    NotObject,
    /// The input ended before the closing brace.
    #[error("config ends before its closing brace")]
    Incomplete,
    /// It is not JSON.
    #[error("config is not JSON: {what} at line {line} column {column}")]
    Syntax {
        /// What is wrong at this place.
        what: String,
        /// Counted from 1.
        line: usize,
        /// Counted in bytes from 1; 0 is the start of the line.
        column: usize,
    },
    /// It is not UTF-8.
    #[error("config is not UTF-8")]
    NotUtf8,
    /// It is UTF-16, with or without a byte order mark.
    #[error("config is encoded as UTF-16")]
    Utf16,
    /// It is longer than [`MAX_CONFIG_BYTES`].
    #[error("config is longer than 1 MiB")]
    TooLong,
    /// Arrays and objects are nested deeper than [`MAX_DEPTH`] levels.
    #[error("config is nested deeper than 32 levels")]
    TooDeep,
    /// A file has more than white space after the object.
    #[error("config goes on after its closing brace")]
    Trailing,
}

impl Malformed {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Missing | Self::NotObject => "send one JSON object, beginning with `{`",
            Self::Incomplete => "send the whole config, and keep stdin open after it",
            Self::Syntax { .. } => "write the config with a JSON library, or check it with one",
            Self::NotUtf8 => "encode the config as UTF-8",
            Self::Utf16 => {
                "encode the config as UTF-8; Windows PowerShell's `>` writes UTF-16, `Out-File -Encoding utf8` does not"
            }
            Self::TooLong => "shorten the config; `memo` is the only field that may be long",
            Self::TooDeep => "leave out every field that `ssm-sidecar schema` does not name",
            Self::Trailing => "leave nothing but one JSON object in the file",
        }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::new(ErrorCode::ConfigInvalid, malformed.to_string(), malformed.hint(), Phase::Config)
    }
}

/// Longest config, in bytes, including white space before and in it.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// How many levels of arrays and objects may be nested; the contract needs 3.
pub const MAX_DEPTH: usize = 32;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Follows strings, escapes and brackets byte by byte.
#[derive(Debug)]
struct Scanner {
    state: State,
    /// The closing bracket of each open array and object, innermost last.
    closers: Vec<u8>,
    line: usize,
    column: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the opening brace.
    BeforeObject,
    /// In the byte order mark, of which so many bytes have arrived.
    ByteOrderMark(usize),
    /// After a first byte that UTF-16 may begin with, and UTF-8 may not.
    MaybeUtf16(u8),
    /// In the object, outside strings.
    InObject,
    /// In a string.
    InString,
    /// After a backslash in a string.
    InEscape,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::BeforeObject, closers: Vec::new(), line: 1, column: 0 }
    }
}

impl Scanner {
    /// Takes a byte; true for the brace that ends the config.
    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        let first = (self.line, self.column) == (1, 0);
        self.count(byte);
        match (self.state, byte) {
            (State::BeforeObject | State::InObject, b' ' | b'\t' | b'\r' | b'\n') => {}
            (State::BeforeObject | State::InObject, b'{') => self.open(b'}')?,
            (State::BeforeObject, 0xef) if first => self.state = State::ByteOrderMark(1),
            (State::BeforeObject, 0xff | 0xfe | 0) if first => self.state = State::MaybeUtf16(byte),
            (State::MaybeUtf16(first), _) => {
                return Err(match (first, byte) {
                    (0xff, 0xfe) | (0xfe, 0xff) | (0, b'{') => Malformed::Utf16,
                    _ => not_utf_16(first),
                });
            }
            // `{` of the little-endian form.
            (State::InObject, 0) if (self.line, self.column) == (1, 2) => {
                return Err(Malformed::Utf16);
            }
            (State::BeforeObject, 0x80..) => return Err(Malformed::NotUtf8),
            (State::BeforeObject, _) => return Err(Malformed::NotObject),
            (State::ByteOrderMark(seen), _) => {
                if BYTE_ORDER_MARK.get(seen) != Some(&byte) {
                    return Err(Malformed::NotUtf8);
                }
                let whole = seen + 1 == BYTE_ORDER_MARK.len();
                self.state =
                    if whole { State::BeforeObject } else { State::ByteOrderMark(seen + 1) };
            }
            (_, ..0x20) => return Err(self.syntax("a control character")),
            (State::InObject, b'"') | (State::InEscape, _) => self.state = State::InString,
            (State::InObject, b'[') => self.open(b']')?,
            (State::InObject, b'}' | b']') => {
                if self.closers.pop() != Some(byte) {
                    return Err(self.syntax("a bracket that closes nothing"));
                }
                return Ok(self.closers.is_empty());
            }
            (State::InString, b'"') => self.state = State::InObject,
            (State::InString, b'\\') => self.state = State::InEscape,
            (State::InObject | State::InString, _) => {}
        }
        Ok(false)
    }

    fn open(&mut self, closer: u8) -> Result<(), Malformed> {
        if self.closers.len() == MAX_DEPTH {
            return Err(Malformed::TooDeep);
        }
        self.closers.push(closer);
        self.state = State::InObject;
        Ok(())
    }

    fn count(&mut self, byte: u8) {
        if byte == b'\n' {
            (self.line, self.column) = (self.line + 1, 0);
        } else {
            self.column += 1;
        }
    }

    fn syntax(&self, what: &str) -> Malformed {
        Malformed::Syntax { what: what.to_owned(), line: self.line, column: self.column }
    }
}

/// The error for a first byte that turns out not to be the beginning of UTF-16.
const fn not_utf_16(first: u8) -> Malformed {
    if first == 0 { Malformed::NotObject } else { Malformed::NotUtf8 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `bytes` in chunks of `size`; returns the config and the bytes after it.
    fn read(bytes: &[u8], size: usize) -> Result<(String, Vec<u8>), Malformed> {
        let mut reader = ConfigReader::new();
        let mut taken = 0;
        for chunk in bytes.chunks(size) {
            taken += chunk.len();
            if let Some(framed) = reader.push(chunk)? {
                let rest = [framed.rest, &bytes[taken..]].concat();
                return Ok((framed.text.to_string(), rest));
            }
        }
        Err(reader.end())
    }

    #[test]
    fn config_ends_at_its_closing_brace_for_any_chunk_size() {
        let cases = [
            ("smallest", "{}", "{}", ""),
            ("message after it", "{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}", "\n{\"b\":2}\n"),
            ("pretty", "\r\n \t{\n  \"a\": [{}]\n}", "\r\n \t{\n  \"a\": [{}]\n}", ""),
            ("braces in texts", r#"{"}{":"]\"}"}}"#, r#"{"}{":"]\"}"}"#, "}"),
            ("backslashes", r#"{"a":"\\"}"#, r#"{"a":"\\"}"#, ""),
            ("byte order mark", "\u{feff}{}x", "{}", "x"),
            ("other scripts", "{\"名\":\"日本語\"}", "{\"名\":\"日本語\"}", ""),
        ];
        for (name, input, config, rest) in cases {
            for size in 1..=input.len() {
                let expected = Ok((config.to_owned(), rest.as_bytes().to_vec()));
                assert_eq!(read(input.as_bytes(), size), expected, "case: {name}, by {size}");
            }
        }
    }

    #[test]
    fn input_that_cannot_become_a_config_is_refused_at_once() {
        let syntax =
            |what: &str, line, column| Malformed::Syntax { what: what.to_owned(), line, column };
        let deep = format!("{{\"a\":{}", "[".repeat(MAX_DEPTH));
        let cases: [(&str, &[u8], Malformed); 19] = [
            ("array", b"[", Malformed::NotObject),
            ("text", b"\"", Malformed::NotObject),
            ("yaml", b"name: a", Malformed::NotObject),
            ("closing brace", b"}", Malformed::NotObject),
            ("NUL before the object", b"\0", Malformed::NotObject),
            ("NUL before NUL", b"\0\0", Malformed::NotObject),
            ("UTF-16, little-endian", b"\xff\xfe{\0", Malformed::Utf16),
            ("UTF-16, big-endian", b"\xfe\xff\0{", Malformed::Utf16),
            ("UTF-16 without a mark, little-endian", b"{\0\"\0", Malformed::Utf16),
            ("UTF-16 without a mark, big-endian", b"\0{\0\"", Malformed::Utf16),
            ("half a mark of UTF-16", b"\xff{", Malformed::NotUtf8),
            ("half a byte order mark", b"\xef\xbb{", Malformed::NotUtf8),
            ("byte order mark after a space", b" \xef", Malformed::NotUtf8),
            ("Latin-1", b"{\"a\":\"\xe9\"}", Malformed::NotUtf8),
            ("wrong bracket", b"{\n[}", syntax("a bracket that closes nothing", 2, 2)),
            ("NUL", b"{ \0", syntax("a control character", 1, 3)),
            ("NUL in a text", b"{\"\0", syntax("a control character", 1, 3)),
            ("line feed in a text", b"{\"a\n", syntax("a control character", 2, 0)),
            ("deep", deep.as_bytes(), Malformed::TooDeep),
        ];
        for (name, input, expected) in cases {
            for size in 1..=input.len() {
                assert_eq!(read(input, size), Err(expected.clone()), "case: {name}, by {size}");
            }
        }
    }

    #[test]
    fn end_of_input_before_the_brace_differs_from_no_input() {
        let cases = [
            ("", Malformed::Missing),
            (" \n", Malformed::Missing),
            ("{", Malformed::Incomplete),
            ("{\"a\":\"}", Malformed::Incomplete),
            ("{\"a\":\"\\\"}", Malformed::Incomplete),
        ];
        for (input, expected) in cases {
            assert_eq!(read(input.as_bytes(), 1), Err(expected), "{input:?}");
        }
    }

    #[test]
    fn a_config_may_have_1_mib_and_not_a_byte_more() {
        let config = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));
        for size in [1 << 10, 1000, 2 << 20] {
            let longest = config(MAX_CONFIG_BYTES);
            assert!(read(longest.as_bytes(), size).is_ok(), "by {size}");
            let longer = config(MAX_CONFIG_BYTES + 1);
            assert_eq!(read(longer.as_bytes(), size), Err(Malformed::TooLong), "by {size}");
            let blank = " ".repeat(MAX_CONFIG_BYTES + 1);
            assert_eq!(read(blank.as_bytes(), size), Err(Malformed::TooLong), "by {size}");
        }
    }

    #[test]
    fn messages_do_not_quote_the_config() {
        for input in ["hunter2", "{\"hunter2\0", "{\"a\":[hunter2}"] {
            let error = read(input.as_bytes(), 3).unwrap_err();
            assert!(!Failure::from(error).message.contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn any_object_is_framed_whole(
            texts in prop::collection::vec(any::<String>(), 0..5),
            rest in any::<Vec<u8>>(),
            size in 1_usize..50,
        ) {
            let config = serde_json::json!({ "texts": texts, "more": { "x": [1, { "y": null }] } });
            let config = config.to_string();
            let input = [config.as_bytes(), &rest].concat();
            prop_assert_eq!(read(&input, size), Ok((config, rest)));
        }

        #[test]
        fn any_bytes_are_taken_without_panic(
            input in prop::collection::vec(prop::sample::select(b"{}[]\"\\ \n\0a\xef\xbb\xbf\xff\xfe".to_vec()), 0..40),
            size in 1_usize..5,
        ) {
            drop(read(&input, size));
        }
    }
}
