//! Where the document on stdin ends: at its closing brace, not at the end of input.

use zeroize::Zeroizing;

use crate::{ErrorCode, Failure};

/// Finds the first JSON object in a stream of bytes, however the stream is cut into pieces.
///
/// Only as much is checked as is needed to find the end; [`Request::from_json`](crate::Request::from_json)
/// checks the rest. Whatever can no longer become an object is refused at once, without waiting for more input.
/// White space and a byte order mark ahead of the object are skipped.
#[derive(Debug, Default)]
pub struct DocumentReader {
    text: Zeroizing<Vec<u8>>,
    scan: Scan,
}

/// A document that is complete.
#[derive(Debug)]
pub struct Framed<'b> {
    /// From the opening to the closing brace, with the white space ahead; wiped when dropped.
    pub document: Zeroizing<String>,
    /// What stood behind the closing brace in the same piece: the beginning of the messages.
    pub rest: &'b [u8],
}

impl DocumentReader {
    /// Begins with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of the stream; `None` until the closing brace has arrived. To be called no
    /// more after a document or an error.
    ///
    /// # Errors
    ///
    /// [`Malformed`], as soon as what has arrived cannot become a document.
    pub fn push<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<Framed<'b>>, Malformed> {
        let room = MAX_DOCUMENT_BYTES - self.text.len();
        for (index, byte) in bytes.iter().take(room).enumerate() {
            if self.scan.step(*byte)? {
                let (last, rest) = bytes.split_at(index + 1);
                self.keep(last);
                return Ok(Some(Framed { document: self.take_text()?, rest }));
            }
        }
        if bytes.len() > room {
            return Err(Malformed::TooLong);
        }
        self.keep(bytes);
        Ok(None)
    }

    /// Says what is wrong with a stream that has ended before the closing brace.
    #[must_use]
    pub fn end(&self) -> Malformed {
        match self.scan.state {
            State::Ahead | State::Mark(_) => Malformed::Missing,
            State::Between | State::Text | State::Escape => Malformed::Incomplete,
        }
    }

    /// Appends by hand what a growing vector would leave behind in memory.
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

/// Why bytes are no document; never quotes any of them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// There is nothing but white space.
    #[error("no document was given")]
    Missing,
    /// It begins with something else than `{`.
    #[error("document is not a JSON object")]
    NotObject,
    /// The input ended ahead of the closing brace.
    #[error("document ends before its closing brace")]
    Incomplete,
    /// It is not JSON from here on.
    #[error("document is not JSON: {what} at line {line} column {column}")]
    Syntax {
        /// What is wrong there.
        what: String,
        /// Counted from 1.
        line: usize,
        /// Counted in bytes from 1; 0 is the line's beginning.
        column: usize,
    },
    /// It is not UTF-8.
    #[error("document is not UTF-8")]
    NotUtf8,
    /// It is longer than [`MAX_DOCUMENT_BYTES`].
    #[error("document is longer than 1 MiB")]
    TooLong,
    /// Arrays and objects in it stand within each other more than [`MAX_DEPTH`] times.
    #[error("document is nested deeper than 32 levels")]
    TooDeep,
    /// A file goes on behind the object.
    #[error("document goes on after its closing brace")]
    Trailing,
}

impl Malformed {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Missing | Self::NotObject => "send one JSON object, beginning with `{`",
            Self::Incomplete => "send the whole document, and keep stdin open after it",
            Self::Syntax { .. } => "write the document with a JSON library, or check it with one",
            Self::NotUtf8 => "encode the document as UTF-8",
            Self::TooLong => "shorten the document; `memo` is the only field that may be long",
            Self::TooDeep => "leave out every field that `ssm-sidecar schema` does not name",
            Self::Trailing => "leave nothing but one JSON object in the file",
        }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::new(ErrorCode::ConfigInvalid, malformed.to_string(), malformed.hint(), "config")
    }
}

/// Longest document, in bytes, with all white space.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// How deep arrays and objects may stand within each other; the contract needs 3.
pub const MAX_DEPTH: usize = 32;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Follows strings, escapes and brackets byte by byte.
#[derive(Debug)]
struct Scan {
    state: State,
    /// The brackets that must close what is open.
    closers: Vec<u8>,
    line: usize,
    column: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Ahead of the opening brace.
    Ahead,
    /// In the byte order mark, of which so many bytes have come.
    Mark(usize),
    /// In the object, outside strings.
    Between,
    /// In a string.
    Text,
    /// Behind a backslash in a string.
    Escape,
}

impl Default for Scan {
    fn default() -> Self {
        Self { state: State::Ahead, closers: Vec::new(), line: 1, column: 0 }
    }
}

impl Scan {
    /// Takes a byte; true for the brace that ends the document.
    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        let first = (self.line, self.column) == (1, 0);
        self.count(byte);
        match (self.state, byte) {
            (State::Ahead | State::Between, b' ' | b'\t' | b'\r' | b'\n') => {}
            (State::Ahead | State::Between, b'{') => self.open(b'}')?,
            (State::Ahead, 0xef) if first => self.state = State::Mark(1),
            (State::Ahead, 0x80..) => return Err(Malformed::NotUtf8),
            (State::Ahead, _) => return Err(Malformed::NotObject),
            (State::Mark(seen), _) => {
                if BYTE_ORDER_MARK.get(seen) != Some(&byte) {
                    return Err(Malformed::NotUtf8);
                }
                let whole = seen + 1 == BYTE_ORDER_MARK.len();
                self.state = if whole { State::Ahead } else { State::Mark(seen + 1) };
            }
            (_, ..0x20) => return Err(self.syntax("a control character")),
            (State::Between, b'"') | (State::Escape, _) => self.state = State::Text,
            (State::Between, b'[') => self.open(b']')?,
            (State::Between, b'}' | b']') => {
                if self.closers.pop() != Some(byte) {
                    return Err(self.syntax("a bracket that closes nothing"));
                }
                return Ok(self.closers.is_empty());
            }
            (State::Text, b'"') => self.state = State::Between,
            (State::Text, b'\\') => self.state = State::Escape,
            (State::Between | State::Text, _) => {}
        }
        Ok(false)
    }

    fn open(&mut self, closer: u8) -> Result<(), Malformed> {
        if self.closers.len() == MAX_DEPTH {
            return Err(Malformed::TooDeep);
        }
        self.closers.push(closer);
        self.state = State::Between;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Cuts `bytes` into pieces of `size` and returns the document and all that is behind it.
    fn read(bytes: &[u8], size: usize) -> Result<(String, Vec<u8>), Malformed> {
        let mut reader = DocumentReader::new();
        let mut behind = 0;
        for piece in bytes.chunks(size) {
            behind += piece.len();
            if let Some(framed) = reader.push(piece)? {
                let rest = [framed.rest, &bytes[behind..]].concat();
                return Ok((framed.document.to_string(), rest));
            }
        }
        Err(reader.end())
    }

    #[test]
    fn document_ends_at_its_closing_brace_however_it_is_cut() {
        let cases = [
            ("smallest", "{}", "{}", ""),
            ("message behind", "{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}", "\n{\"b\":2}\n"),
            ("pretty", "\r\n \t{\n  \"a\": [{}]\n}", "\r\n \t{\n  \"a\": [{}]\n}", ""),
            ("braces in texts", r#"{"}{":"]\"}"}}"#, r#"{"}{":"]\"}"}"#, "}"),
            ("backslashes", r#"{"a":"\\"}"#, r#"{"a":"\\"}"#, ""),
            ("byte order mark", "\u{feff}{}x", "{}", "x"),
            ("other scripts", "{\"名\":\"日本語\"}", "{\"名\":\"日本語\"}", ""),
        ];
        for (name, input, document, rest) in cases {
            for size in 1..=input.len() {
                let expected = Ok((document.to_owned(), rest.as_bytes().to_vec()));
                assert_eq!(read(input.as_bytes(), size), expected, "case: {name}, by {size}");
            }
        }
    }

    #[test]
    fn what_cannot_become_a_document_is_refused_at_once() {
        let syntax =
            |what: &str, line, column| Malformed::Syntax { what: what.to_owned(), line, column };
        let deep = format!("{{\"a\":{}", "[".repeat(MAX_DEPTH));
        let cases: [(&str, &[u8], Malformed); 14] = [
            ("array", b"[", Malformed::NotObject),
            ("text", b"\"", Malformed::NotObject),
            ("yaml", b"name: a", Malformed::NotObject),
            ("closing brace", b"}", Malformed::NotObject),
            ("NUL ahead", b"\0", Malformed::NotObject),
            ("UTF-16", b"\xff\xfe{", Malformed::NotUtf8),
            ("half a byte order mark", b"\xef\xbb{", Malformed::NotUtf8),
            ("mark behind a blank", b" \xef", Malformed::NotUtf8),
            ("Latin-1", b"{\"a\":\"\xe9\"}", Malformed::NotUtf8),
            ("wrong bracket", b"{\n[}", syntax("a bracket that closes nothing", 2, 2)),
            ("NUL", b"{\0", syntax("a control character", 1, 2)),
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
    fn end_of_input_ahead_of_the_brace_is_told_from_nothing() {
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
    fn a_document_may_have_1_mib_and_not_a_byte_more() {
        let document = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));
        for size in [1 << 10, 1000, 2 << 20] {
            let longest = document(MAX_DOCUMENT_BYTES);
            assert!(read(longest.as_bytes(), size).is_ok(), "by {size}");
            let longer = document(MAX_DOCUMENT_BYTES + 1);
            assert_eq!(read(longer.as_bytes(), size), Err(Malformed::TooLong), "by {size}");
            let blank = " ".repeat(MAX_DOCUMENT_BYTES + 1);
            assert_eq!(read(blank.as_bytes(), size), Err(Malformed::TooLong), "by {size}");
        }
    }

    #[test]
    fn messages_do_not_quote_the_document() {
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
            let document = serde_json::json!({ "texts": texts, "more": { "x": [1, { "y": null }] } });
            let document = document.to_string();
            let input = [document.as_bytes(), &rest].concat();
            prop_assert_eq!(read(&input, size), Ok((document, rest)));
        }

        #[test]
        fn any_bytes_are_taken_without_panic(
            input in prop::collection::vec(prop::sample::select(b"{}[]\"\\ \n\0a\xef\xbb\xbf".to_vec()), 0..40),
            size in 1_usize..5,
        ) {
            drop(read(&input, size));
        }
    }
}
