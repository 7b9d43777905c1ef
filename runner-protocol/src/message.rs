//! Messages that may follow the config on stdin: one JSON object per line.

use zeroize::Zeroizing;

use crate::{
    config::{Keys, read::keys},
    fields::{Fields, displayable_name},
    mistake::Mistakes,
    rules, unknown, value,
};

/// A message from the runner to its sidecar.
#[derive(Clone, Debug)]
pub enum Message {
    /// `credentials`: keys that replace the previous ones for all later calls.
    Credentials(Keys),
}

impl Message {
    fn from_json(line: &str) -> Result<Self, MessageError> {
        let entries = value::entries(line).map_err(|_| MessageError::NotObject)?;
        let mut fields = Fields::new(entries);
        let kind = fields.required("type", rules::text);
        let message = match kind.as_deref() {
            Some("credentials") => keys(&mut fields, HINT_KEYS).map(Self::Credentials),
            Some(other) => return Err(MessageError::UnknownType(displayable_name(other))),
            None => None,
        };
        let findings = fields.finish();
        // Without a type the set of known fields is not known.
        let unknown = findings.unknown.iter().filter(|_| kind.is_some());
        let unknown = unknown.map(|(path, name)| unknown::mistake(path, name, &findings.known));
        let mistakes = findings.mistakes.into_iter().chain(unknown).collect();
        match (message, Mistakes::new(mistakes)) {
            (Some(message), None) => Ok(message),
            (_, Some(mistakes)) => Err(mistakes.into()),
            (None, None) => Err(MessageError::NotObject),
        }
    }
}

/// Why a line is not a message. Never fatal: log it and continue. Quotes no value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MessageError {
    /// It is longer than [`MAX_MESSAGE_BYTES`].
    #[error("message is longer than 64 KiB")]
    TooLong,
    /// It is not a JSON object on one line.
    #[error("message is not a JSON object on one line")]
    NotObject,
    /// A type that version 1 does not know.
    #[error("type of message is not known: {0}")]
    UnknownType(String),
    /// Fields are wrong.
    #[error("message is wrong: {0}")]
    Mistakes(#[from] Mistakes),
}

/// Splits the input after the config into lines and parses them.
#[derive(Debug, Default)]
pub struct MessageReader {
    line: Zeroizing<Vec<u8>>,
    /// Whether the current line is too long and is being skipped.
    skipping: bool,
}

impl MessageReader {
    /// Starts after the closing brace of the config.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of stdin; returns the messages that ended in it. Empty lines are skipped.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Result<Message, MessageError>> {
        let mut messages = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            messages.extend(self.keep(line));
            messages.extend(self.take_line());
        }
        messages.extend(self.keep(bytes));
        messages
    }

    fn keep(&mut self, bytes: &[u8]) -> Option<Result<Message, MessageError>> {
        if self.skipping || bytes.is_empty() {
            return None;
        }
        if self.line.len() + bytes.len() > MAX_MESSAGE_BYTES {
            self.line = Zeroizing::default();
            self.skipping = true;
            return Some(Err(MessageError::TooLong));
        }
        // Full capacity at once: a growing vector would leave copies in memory that are not wiped.
        if self.line.capacity() == 0 {
            self.line = Zeroizing::new(Vec::with_capacity(MAX_MESSAGE_BYTES));
        }
        self.line.extend_from_slice(bytes);
        None
    }

    fn take_line(&mut self) -> Option<Result<Message, MessageError>> {
        self.skipping = false;
        let line = std::mem::take(&mut self.line);
        let Ok(text) = std::str::from_utf8(&line) else {
            return Some(Err(MessageError::NotObject));
        };
        // As before the config: a file with one may have been copied into stdin.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
        (!text.is_empty()).then(|| Message::from_json(text))
    }
}

/// Longest message, in bytes; a session token has one or two thousand.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

const HINT_KEYS: &str = "give `access_key_id` and `secret_access_key`";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const CREDENTIALS: &str = r#"{"type":"credentials","access_key_id":"AKIA","secret_access_key":"hunter2","session_token":"token"}"#;

    fn read(input: &str, size: usize) -> Vec<Result<Message, MessageError>> {
        let mut reader = MessageReader::new();
        input.as_bytes().chunks(size).flat_map(|chunk| reader.push(chunk)).collect()
    }

    #[test]
    fn credentials_are_read_for_any_chunk_size() {
        let input = format!("\n  \r\n{CREDENTIALS}\r\n\n");
        let marked = format!("\u{feff}{CREDENTIALS}\n");
        let sized = |input: &str| -> Vec<_> {
            (1..=input.len()).map(|size| (size, read(input, size))).collect()
        };
        for (size, messages) in sized(&input).into_iter().chain(sized(&marked)) {
            let [Ok(Message::Credentials(keys))] = messages.as_slice() else {
                panic!("by {size}: {messages:?}");
            };
            assert_eq!(keys.access_key_id.expose(), "AKIA");
            assert_eq!(keys.secret_access_key.expose(), "hunter2");
            assert_eq!(keys.session_token.as_ref().map(Secret::expose), Some("token"));
        }
    }

    #[test]
    fn broken_and_unknown_lines_do_not_stop_those_after_them() {
        let long = "x".repeat(MAX_MESSAGE_BYTES + 1);
        let cases = [
            ("hunter2", "message is not a JSON object on one line"),
            ("[\"hunter2\"]", "message is not a JSON object on one line"),
            ("{\"type\":\"hunter2", "message is not a JSON object on one line"),
            ("{\"type\":\"weather\"}", "type of message is not known: weather"),
            (
                "{\"type\":\"wJalrXUtnFEMI/hunter2\"}",
                "type of message is not known: <a name of 21 characters>",
            ),
            ("{}", "message is wrong: type: missing"),
            ("{\"type\":3,\"hunter2\":1}", "message is wrong: type: not a text"),
            (
                "{\"type\":\"credentials\",\"access_key_id\":\"hunter2\"}",
                "message is wrong: secret_access_key: missing",
            ),
            (
                "{\"type\":\"credentials\",\"access_key_id\":\"a\",\"secret_access_key\":\"b\",\"token\":\"hunter2\"}",
                "message is wrong: token: unknown field",
            ),
            (&long, "message is longer than 64 KiB"),
        ];
        for (line, expected) in cases {
            for size in [1, 7, 1 << 20] {
                let messages = read(&format!("{line}\n{CREDENTIALS}\n"), size);
                let [Err(error), Ok(Message::Credentials(_))] = messages.as_slice() else {
                    panic!("by {size}: {messages:?}");
                };
                assert_eq!(error.to_string(), expected, "by {size}");
            }
        }
    }

    #[test]
    fn line_without_an_end_is_not_yet_a_message() {
        assert!(read(CREDENTIALS, 10).is_empty());
    }

    #[test]
    fn debug_of_a_message_shows_no_secret() {
        let messages = format!("{:?}", read(&format!("{CREDENTIALS}\n"), 1000));
        assert!(!messages.contains("hunter2") && !messages.contains("AKIA"), "{messages}");
    }
}
