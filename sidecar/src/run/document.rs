//! The document, from stdin or from a file, and the runner's messages after it.

use std::{fs::File, io::Read as _, path::Path};

use runner_protocol::{
    DocumentReader, MAX_DOCUMENT_BYTES, Message, MessageReader, Request, RequestError,
};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::identity;
use crate::{aws::ControlPlane, config::ConfigError, error::Error, lease::Stdin};

/// Reads the document of `--config`.
pub(super) fn read_file(path: &Path) -> Result<Request, Error> {
    let refused = |cause| Error::File { path: path.display().to_string(), cause };
    let file = File::open(path).map_err(refused)?;
    let mut document = Zeroizing::new(Vec::with_capacity(MAX_DOCUMENT_BYTES + 1));
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut document).map_err(refused)?;
    Ok(Request::from_slice(&document).map_err(ConfigError::from)?)
}

/// Reads a document from a file, or from stdin up to its closing brace, for commands that have no lease. Blocks.
pub(super) fn read_whole(file: Option<&Path>) -> Result<Request, Error> {
    let Some(path) = file else {
        let malformed = |error| Error::from(ConfigError::from(RequestError::from(error)));
        let mut reader = DocumentReader::new();
        let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
        loop {
            let read = std::io::stdin().read(&mut buffer);
            let read = read.map_err(|cause| Error::File { path: "stdin".to_owned(), cause })?;
            if read == 0 {
                return Err(malformed(reader.end()));
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            if let Some(framed) = reader.push(bytes).map_err(malformed)? {
                return Ok(Request::from_json(&framed.document).map_err(ConfigError::from)?);
            }
        }
    };
    read_file(path)
}

/// Reads up to the closing brace; what came behind it is returned for the lease.
pub(super) async fn read(stdin: &mut Stdin) -> Result<(Request, Zeroizing<Vec<u8>>), Error> {
    let mut reader = DocumentReader::new();
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    let malformed = |error| Error::from(ConfigError::from(RequestError::from(error)));
    loop {
        let read = match stdin.read(&mut buffer).await {
            Ok(read) => read,
            Err(error) => return Err(Error::Internal(format!("stdin: {error}"))),
        };
        if read == 0 {
            return Err(malformed(reader.end()));
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        if let Some(framed) = reader.push(bytes).map_err(malformed)? {
            let request = Request::from_json(&framed.document).map_err(ConfigError::from)?;
            return Ok((request, Zeroizing::new(framed.rest.to_vec())));
        }
    }
}

/// Takes the runner's messages; completes when stdin closes, never where there is no lease.
pub(super) async fn watch(lease: Option<(Stdin, Zeroizing<Vec<u8>>)>, plane: &ControlPlane) {
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
                plane.replace_credentials(&identity::keys(keys));
            }
            Err(error) => warn!(%error, "a line on stdin is ignored"),
        }
    }
}

/// Read from stdin at once.
const READ_BYTES: usize = 16 * 1024;
