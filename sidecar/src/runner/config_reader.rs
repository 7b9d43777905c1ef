//! The document, from stdin or from a file, and the runner's messages after it.

use std::{fs::File, io::Read as _, path::Path};

use runner_protocol::{
    DocumentReader, MAX_DOCUMENT_BYTES, Message, MessageReader, Request, RequestError,
};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    aws::{ControlPlane, settings},
    commands::error::Error,
    config::ConfigError,
    runner::stdin::Stdin,
};

/// Reads the bytes of `--config`'s file, as far as a document may be long and one further.
pub(crate) fn read_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Never grown, so that no copy is left behind.
    let mut document = Zeroizing::new(Vec::with_capacity(MAX_DOCUMENT_BYTES + 1));
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut document));
    read.map_err(|cause| Error::File { path: path.display().to_string(), cause })?;
    Ok(document)
}

/// Reads the document of `--config`.
pub(crate) fn read_file(path: &Path) -> Result<Request, Error> {
    let bytes = read_bytes(path)?;
    Ok(Request::from_slice(&bytes).map_err(|error| ConfigError::of_document(error, &bytes))?)
}

/// Reads a document from a file, or from stdin up to its closing brace, for commands that have no lease. Blocks.
pub(crate) fn read_whole(file: Option<&Path>) -> Result<Request, Error> {
    if let Some(path) = file {
        return read_file(path);
    }
    let mut pieces = Pieces::new();
    loop {
        let read = std::io::stdin().read(&mut pieces.buffer).map_err(Error::Stdin)?;
        if let Some((request, _)) = pieces.take(read)? {
            return Ok(request);
        }
    }
}

/// Reads up to the closing brace; what came behind it is returned for the lease.
pub(crate) async fn read(stdin: &mut Stdin) -> Result<Whole, Error> {
    let mut pieces = Pieces::new();
    loop {
        let read = stdin.read(&mut pieces.buffer).await.map_err(Error::Stdin)?;
        if let Some(whole) = pieces.take(read)? {
            return Ok(whole);
        }
    }
}

/// A document, and what came behind it.
type Whole = (Request, Zeroizing<Vec<u8>>);

/// A document that arrives piece by piece.
struct Pieces {
    reader: DocumentReader,
    /// For the next piece.
    buffer: Zeroizing<Vec<u8>>,
}

impl Pieces {
    fn new() -> Self {
        Self { reader: DocumentReader::new(), buffer: Zeroizing::new(vec![0; READ_BYTES]) }
    }

    /// Takes the first `read` bytes of the buffer, none at the end of input; returns the document once it is whole,
    /// and what came behind it.
    fn take(&mut self, read: usize) -> Result<Option<Whole>, Error> {
        let malformed = |error| ConfigError::from(RequestError::from(error));
        if read == 0 {
            return Err(malformed(self.reader.end()).into());
        }
        let piece = self.buffer.get(..read).unwrap_or_default();
        let Some(framed) = self.reader.push(piece).map_err(malformed)? else { return Ok(None) };
        let request = Request::from_json(&framed.document)
            .map_err(|error| ConfigError::of_document(error, framed.document.as_bytes()))?;
        Ok(Some((request, Zeroizing::new(framed.rest.to_vec()))))
    }
}

/// Takes the runner's messages; completes when stdin closes, never where there is no lease.
pub(crate) async fn watch(lease: Option<(Stdin, Zeroizing<Vec<u8>>)>, plane: &ControlPlane) {
    let Some((mut stdin, rest)) = lease else { return std::future::pending().await };
    let mut messages = MessageReader::new();
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    take_messages(&mut messages, &rest, plane);
    drop(rest);
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => return,
            Ok(read) => take_messages(&mut messages, buffer.get(..read).unwrap_or_default(), plane),
            Err(error) => {
                warn!(%error, "stdin cannot be read, which ends the lease");
                return;
            }
        }
    }
}

fn take_messages(messages: &mut MessageReader, bytes: &[u8], plane: &ControlPlane) {
    for message in messages.push(bytes) {
        match message {
            Ok(Message::Credentials(keys)) => {
                info!("credentials renewed");
                plane.replace_credentials(&settings::keys(keys));
            }
            Err(error) => warn!(%error, "a line on stdin is ignored"),
        }
    }
}

/// Read from stdin at once.
const READ_BYTES: usize = 16 * 1024;
