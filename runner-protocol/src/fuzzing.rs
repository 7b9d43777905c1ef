//! What the fuzz targets run: both directions of the contract, fed with anything, and the promises that
//! hold whatever comes.
//!
//! Compiled for tests, which run the kept corpora, and for fuzzing, which searches.

use crate::{DocumentReader, Line, MAX_MESSAGE_BYTES, Malformed, MessageReader, Request};

/// Reads `data` as stdin: a document, then messages. The first byte says how it is cut into pieces.
///
/// # Panics
///
/// If the cutting makes a difference, or if what is accepted is not as the contract has it.
pub fn stdin(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    let pieces = read(stream, usize::from(*piece).max(1));
    assert_eq!(whole, pieces, "the cutting of stdin makes a difference");
}

/// Reads `data` as lines of stdout.
///
/// # Panics
///
/// If a line that was read is not printed as one line and read as the same again.
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

/// What became of a stream: the document's fate and that of each message behind it, as text.
fn read(stream: &[u8], size: usize) -> (Result<String, Malformed>, Vec<String>) {
    let mut document = DocumentReader::new();
    let mut messages = MessageReader::new();
    let mut told = Vec::new();
    let mut pieces = stream.chunks(size);
    let fate = loop {
        let Some(piece) = pieces.next() else { break Err(document.end()) };
        match document.push(piece) {
            Ok(None) => (),
            Ok(Some(framed)) => {
                told.extend(tell(messages.push(framed.rest)));
                break Ok(judge(&framed.document));
            }
            Err(malformed) => break Err(malformed),
        }
    };
    if fate.is_ok() {
        for piece in pieces {
            told.extend(tell(messages.push(piece)));
        }
    }
    (fate, told)
}

/// Reads a document; what is accepted keeps the rules that others rely on.
fn judge(document: &str) -> String {
    match Request::from_json(document) {
        Ok(request) => {
            assert!(request.target.port > 0, "no port");
            assert!((1..=16).contains(&request.tunnel.sessions), "sessions");
            assert!((256..=65_536).contains(&request.tunnel.message_bytes), "message_bytes");
            assert!((1..=128).contains(&request.name.chars().count()), "name");
            format!("{request:?}")
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "a mistake is one line: {text:?}");
            assert!(!error.hint().is_empty(), "no hint for: {text:?}");
            text
        }
    }
}

fn tell(
    messages: Vec<Result<crate::Message, crate::MessageError>>,
) -> impl Iterator<Item = String> {
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
mod tests {
    use std::{fs, path::Path};

    /// Inputs that a fuzzer found to reach something new, or to break something once.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&corpus).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", corpus.display());
    }

    #[test]
    fn kept_inputs_hold_on_stdin() {
        replay("stdin", super::stdin);
    }

    #[test]
    fn kept_inputs_hold_on_stdout() {
        replay("stdout", super::stdout);
    }
}
