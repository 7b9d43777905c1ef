//! Reads the config from stdin or from a file, and the runner's messages that follow it.

use std::{fs::File, io::Read as _, path::Path};

use runner_protocol::{
    Blame, Config, ConfigError, ConfigReader, ErrorCode, Keys, MAX_CONFIG_BYTES, Message,
    MessageReader,
};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::stdin::{Stdin, StdinKind};
use crate::{
    config::SettingsError,
    runtime::{failure::ToFailure, terminal},
};

/// Why no config was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The file of `--config` cannot be read.
    #[error("cannot read the config from `{path}`")]
    File {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("cannot read the config from stdin")]
    Stdin(#[source] std::io::Error),
    #[error("no config was given: stdin is closed, or `/dev/null`")]
    NoStdin,
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl ToFailure for ReadError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::File { .. } | Self::Stdin(_) | Self::NoStdin => ErrorCode::ConfigInvalid,
            Self::Settings(error) => error.code(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::File { .. } => {
                "give `--config` the path of a readable file with one JSON config".to_owned()
            }
            Self::Stdin(_) => {
                "let stdin be a pipe with one JSON config, or name a file with `--config`"
                    .to_owned()
            }
            Self::NoStdin => "give the process a stdin (`docker run -i`, Kubernetes `stdin: true`) and write the \
                              config to it, or name a file with `--config`"
                .to_owned(),
            Self::Settings(error) => error.hint(),
        }
    }

    fn blame(&self) -> Option<Blame> {
        match self {
            Self::NoStdin => Some(Blame::Operator),
            Self::File { .. } | Self::Stdin(_) | Self::Settings(_) => None,
        }
    }
}

/// Reads the file of `--config` without parsing it; at most one byte more than a config may have, so that the parser
/// finds a longer one too long. Blocks.
///
/// # Errors
///
/// [`ReadError::File`].
pub(crate) fn read_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    // Never grown, so that no copy is left behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_CONFIG_BYTES + 1));
    let limit = MAX_CONFIG_BYTES as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
    read.map_err(|cause| ReadError::File { path: path.display().to_string(), cause })?;
    Ok(text)
}

/// Reads the config of `--config`. Blocks.
///
/// # Errors
///
/// [`ReadError::File`] and [`ReadError::Settings`].
pub(crate) fn read_file(path: &Path) -> Result<Config, ReadError> {
    let bytes = read_bytes(path)?;
    Ok(Config::from_slice(&bytes).map_err(|error| SettingsError::of_config(error, &bytes))?)
}

/// Reads the config from `file`, or from stdin up to its closing brace, for commands without a lease. Blocks.
///
/// # Errors
///
/// [`ReadError`].
pub(crate) fn read_blocking(file: Option<&Path>) -> Result<Config, ReadError> {
    if let Some(path) = file {
        return read_file(path);
    }
    match StdinKind::of_process() {
        StdinKind::Nothing => return Err(ReadError::NoStdin),
        StdinKind::Terminal => terminal::print_line(&format!("ssm-sidecar: {WAITING}")),
        StdinKind::File | StdinKind::Stream => (),
    }
    let mut partial = Partial::new();
    loop {
        let read = std::io::stdin().read(&mut partial.buffer).map_err(ReadError::Stdin)?;
        if let Some((config, _)) = partial.push(read)? {
            return Ok(config);
        }
    }
}

/// Reads the config up to its closing brace; returns it with the bytes behind it, which are for [`watch_lease`].
///
/// # Errors
///
/// [`ReadError::Stdin`] and [`ReadError::Settings`].
pub(crate) async fn read(stdin: &mut Stdin, kind: StdinKind) -> Result<ConfigAndRest, ReadError> {
    match kind {
        StdinKind::Nothing => return Err(ReadError::NoStdin),
        StdinKind::Terminal => info!("{WAITING}"),
        StdinKind::File => warn!(
            "stdin is a file: the lease ends with it, right after the config; use `--config FILE`, or a pipe that stays open"
        ),
        StdinKind::Stream => (),
    }
    let mut partial = Partial::new();
    loop {
        let read = stdin.read(&mut partial.buffer).await.map_err(ReadError::Stdin)?;
        if let Some(complete) = partial.push(read)? {
            return Ok(complete);
        }
    }
}

/// Handles the runner's messages: those in `rest`, then those on stdin. Completes when stdin closes or cannot be read,
/// which ends the lease.
pub(crate) async fn watch_lease(
    mut stdin: Stdin,
    rest: Zeroizing<Vec<u8>>,
    mut on_credentials: impl FnMut(Keys),
) {
    let mut messages = MessageReader::new();
    let mut take = |bytes: &[u8]| {
        for message in messages.push(bytes) {
            match message {
                Ok(Message::Credentials(keys)) => {
                    info!("credentials replaced");
                    on_credentials(keys);
                }
                Err(error) => warn!(%error, "a line on stdin is ignored"),
            }
        }
    };
    take(&rest);
    drop(rest);
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => return,
            Ok(read) => take(buffer.get(..read).unwrap_or_default()),
            Err(error) => {
                warn!(%error, "stdin cannot be read, which ends the lease");
                return;
            }
        }
    }
}

/// A config, and the bytes that came behind it.
type ConfigAndRest = (Config, Zeroizing<Vec<u8>>);

/// A config that arrives in pieces.
struct Partial {
    reader: ConfigReader,
    /// For the next piece.
    buffer: Zeroizing<Vec<u8>>,
}

impl Partial {
    fn new() -> Self {
        Self { reader: ConfigReader::new(), buffer: Zeroizing::new(vec![0; READ_BYTES]) }
    }

    /// Takes the first `read` bytes of the buffer, 0 at the end of input; returns the config once it is complete.
    fn push(&mut self, read: usize) -> Result<Option<ConfigAndRest>, SettingsError> {
        let malformed = |error| SettingsError::from(ConfigError::from(error));
        if read == 0 {
            return Err(malformed(self.reader.end()));
        }
        let piece = self.buffer.get(..read).unwrap_or_default();
        let Some(framed) = self.reader.push(piece).map_err(malformed)? else { return Ok(None) };
        let config = Config::from_json(&framed.text)
            .map_err(|error| SettingsError::of_config(error, framed.text.as_bytes()))?;
        Ok(Some((config, Zeroizing::new(framed.rest.to_vec()))))
    }
}

/// Printed where stdin is a terminal.
const WAITING: &str = "waiting for a JSON config on stdin; `--config FILE` reads a file instead";

/// Read from stdin at once, in bytes.
const READ_BYTES: usize = 16 * 1024;
