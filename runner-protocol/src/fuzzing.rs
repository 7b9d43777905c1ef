//! The bodies of the fuzz targets: both directions of the contract with arbitrary input, and the properties that
//! must hold for all of it.
//!
//! Compiled for tests, which replay the corpora, and for fuzzing.

use crate::{
    config::Config,
    framing::{ConfigReader, Malformed},
    line::Line,
    message::{MAX_MESSAGE_BYTES, Message, MessageError, MessageReader},
};

/// Reads `data` as stdin: a config, then messages. The first byte is the chunk size.
///
/// # Panics
///
/// If the chunk size makes a difference, or if an accepted config breaks a rule of the contract.
pub fn stdin(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    let chunked = read(stream, usize::from(*size).max(1));
    assert_eq!(whole, chunked, "the chunk size of stdin makes a difference");
}

/// Reads `data` as lines of stdout.
///
/// # Panics
///
/// If a parsed line is not printed as one line, or is not equal to itself when parsed again.
pub fn stdout(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        let Some(read) = Line::parse(line) else { continue };
        let printed = read.to_string();
        assert!(!printed.contains('\n'), "several lines: {printed:?}");
        // Control characters are not printed.
        if !line.contains(char::is_control) {
            assert_eq!(Line::parse(&printed), Some(read), "{printed:?}");
        }
    }
}

/// Reads `stream` in chunks of `size`; returns the result for the config and for each message after it, as text.
fn read(stream: &[u8], size: usize) -> (Result<String, Malformed>, Vec<String>) {
    let mut reader = ConfigReader::new();
    let mut messages = MessageReader::new();
    let mut results = Vec::new();
    let mut chunks = stream.chunks(size);
    let config = loop {
        let Some(chunk) = chunks.next() else { break Err(reader.end()) };
        match reader.push(chunk) {
            Ok(None) => (),
            Ok(Some(framed)) => {
                results.extend(describe(messages.push(framed.rest)));
                break Ok(check(&framed.text));
            }
            Err(malformed) => break Err(malformed),
        }
    };
    if config.is_ok() {
        for chunk in chunks {
            results.extend(describe(messages.push(chunk)));
        }
    }
    (config, results)
}

/// Parses a config and asserts the rules that other code relies on.
fn check(text: &str) -> String {
    match Config::from_json(text) {
        Ok(config) => {
            assert!(config.target.port > 0, "no port");
            assert!((1..=16).contains(&config.tunnel.sessions), "sessions");
            assert!((256..=65_536).contains(&config.tunnel.message_bytes), "message_bytes");
            assert!((1..=128).contains(&config.name.chars().count()), "name");
            format!("{config:?}")
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains('\n'), "a mistake is one line: {message:?}");
            assert!(!error.hint().is_empty(), "no hint for: {message:?}");
            message
        }
    }
}

fn describe(messages: Vec<Result<Message, MessageError>>) -> impl Iterator<Item = String> {
    messages.into_iter().map(|message| match message {
        Ok(message) => {
            let text = format!("{message:?}");
            assert!(text.len() <= MAX_MESSAGE_BYTES, "a message longer than its line");
            text
        }
        Err(error) => error.to_string(),
    })
}

#[cfg(test)]
#[path = "../../tests/corpus/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn corpus_holds_on_stdin() {
        replay("stdin", super::stdin);
    }

    #[test]
    fn corpus_holds_on_stdout() {
        replay("stdout", super::stdout);
    }
}
