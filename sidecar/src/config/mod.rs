//! From the runner's [`Request`] to what each part of the sidecar needs.
//!
//! The request holds what the contract allows already. What is left is to decode: the private key, which takes
//! CPU time when it has a passphrase, the host keys and the URLs.

mod decode_errors;

use std::sync::Arc;

use http::Uri;
use runner_protocol::{
    EndpointUrl, ErrorCode, Failure, Mistake, Mistakes, RequestError,
    request::{self, Request},
};
use ssh_client::{HostKeyPin, KeyError, PrivateKey};

use crate::runtime::hardening;

pub use runner_protocol::request::{AssumeRole, Hardening, Identity, Target, Timeouts};

/// What one sidecar does, from start to end.
#[derive(Debug)]
pub struct Config {
    /// Label of the connection.
    pub name: String,
    /// The runner's own id of the transfer.
    pub job_id: Option<String>,
    /// Who calls AWS, and where.
    pub aws: Aws,
    /// The instance to go through.
    pub bastion: Bastion,
    /// The database, as the bastion sees it.
    pub target: Target,
    /// User ids that may connect, where not everybody may.
    pub allowed_uids: Option<Vec<u32>>,
    /// How bytes are carried.
    pub tunnel: Tunnel,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Whether the runner wants more lines than `ready` and `failed`.
    pub events: bool,
}

impl Config {
    /// Decodes what `request` holds. Blocks: an encrypted private key is slow to open by design, up to some
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Key`] if the private key cannot be used, [`ConfigError::Mistakes`] if host keys or URLs
    /// are wrong; then a wrong private key is among the mistakes.
    pub fn from_request(request: Request) -> Result<Self, ConfigError> {
        let Request { name, memo: _, job_id, aws, bastion, target, listen, .. } = request;
        let mut mistakes = Vec::new();
        let aws = Aws::decode(aws, &mut mistakes);
        let bastion = Bastion::decode(bastion, &mut mistakes);
        if let Some(mut mistakes) = Mistakes::new(mistakes) {
            if let Err(error) = &bastion {
                mistakes.push(decode_errors::of_key(error));
            }
            return Err(mistakes.into());
        }
        Ok(Self {
            name,
            job_id,
            aws,
            bastion: bastion?,
            target,
            allowed_uids: listen.allowed_uids,
            tunnel: request.tunnel.into(),
            timeouts: request.timeouts,
            events: request.events,
        })
    }
}

/// Who calls AWS, and where.
#[derive(Debug)]
pub struct Aws {
    /// The identity of every call.
    pub identity: Identity,
    /// A role to assume first, with that identity.
    pub assume_role: Option<AssumeRole>,
    /// Such as `ap-northeast-1`.
    pub region: String,
    /// SSM endpoint in place of the region's public one; `http` only at loopback.
    pub endpoint_url: Option<Uri>,
    /// Host in place of the `StreamUrl`'s; `ws` only at loopback.
    pub stream_endpoint_url: Option<Uri>,
    /// Whether `endpoint_url` is at loopback, so that a `StreamUrl` may be so, too.
    pub is_loopback: bool,
}

impl Aws {
    /// Decodes it alone, for whoever calls AWS and has no use for the rest.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Mistakes`] if URLs are wrong.
    pub fn from_request(aws: request::Aws) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let aws = Self::decode(aws, &mut mistakes);
        Mistakes::new(mistakes).map_or(Ok(aws), |mistakes| Err(mistakes.into()))
    }

    fn decode(aws: request::Aws, mistakes: &mut Vec<Mistake>) -> Self {
        let is_loopback = aws.endpoint_url.as_ref().is_some_and(EndpointUrl::is_loopback);
        Self {
            identity: aws.identity,
            assume_role: aws.assume_role,
            region: aws.region,
            endpoint_url: uri("aws.endpoint_url", aws.endpoint_url, mistakes),
            stream_endpoint_url: uri("aws.stream_endpoint_url", aws.stream_endpoint_url, mistakes),
            is_loopback,
        }
    }
}

/// The instance to go through, and how to log in there.
#[derive(Debug)]
pub struct Bastion {
    /// `i-…` or `mi-…`.
    pub instance_id: String,
    /// Port of sshd at the instance's loopback.
    pub ssh_port: u16,
    /// User to log in as.
    pub ssh_user: String,
    /// Key to log in with.
    pub key: Arc<PrivateKey>,
    /// Host keys that are accepted; none: every key is.
    pub pins: Vec<HostKeyPin>,
}

impl Bastion {
    fn decode(bastion: request::Bastion, mistakes: &mut Vec<Mistake>) -> Result<Self, KeyError> {
        let written = bastion.ssh_host_key;
        let mut pins = Vec::new();
        for (index, text) in written.iter().enumerate() {
            match text.parse() {
                Ok(pin) => pins.push(pin),
                Err(error) => mistakes.push(decode_errors::of_pin(index, written.len(), &error)),
            }
        }
        let passphrase = bastion.ssh_private_key_passphrase.as_ref();
        let key = ssh_client::load_private_key(
            bastion.ssh_private_key.expose(),
            passphrase.map(runner_protocol::Secret::expose),
        )?;
        let key = Arc::new(key);
        hardening::keep_from_swap(ssh_client::secret_parts(&key));
        Ok(Self {
            instance_id: bastion.instance_id,
            ssh_port: bastion.ssh_port,
            ssh_user: bastion.ssh_user,
            key,
            pins,
        })
    }
}

/// How bytes are carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// SSM sessions that may carry connections at once, 1–16.
    pub sessions: usize,
    /// SSH compression.
    pub compression: ssh_client::Compression,
    /// Payload of each message towards the agent, 256–65,536 bytes.
    pub message_bytes: usize,
    /// Connections at once, 1–65,535.
    pub max_connections: usize,
}

impl From<request::Tunnel> for Tunnel {
    fn from(tunnel: request::Tunnel) -> Self {
        let request::Tunnel { sessions, compression, message_bytes, max_connections } = tunnel;
        let compression = match compression {
            request::Compression::Auto => ssh_client::Compression::Auto,
            request::Compression::On => ssh_client::Compression::On,
            request::Compression::Off => ssh_client::Compression::Off,
        };
        Self { sessions, compression, message_bytes, max_connections }
    }
}

/// Why there is no configuration; its text quotes no value that could be secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The document is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Fields cannot be decoded.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// The private key cannot be used.
    #[error("bastion.ssh_private_key: {0}")]
    Key(#[from] KeyError),
}

impl ConfigError {
    /// For a document, `text`, in which fields are wrong: with what else is wrong that only decoding finds, so that
    /// nobody hears of it after another try.
    pub fn of_document(error: RequestError, text: &[u8]) -> Self {
        match error {
            RequestError::Mistakes(mistakes) => decode_errors::with_decoded(mistakes, text).into(),
            other => other.into(),
        }
    }

    /// The code of the `failed` line.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Request(error) => error.code(),
            Self::Mistakes(_) => ErrorCode::ConfigInvalid,
            Self::Key(KeyError::PassphraseRequired) => ErrorCode::ConfigPassphraseRequired,
            Self::Key(KeyError::PassphraseWrong) => ErrorCode::ConfigPassphraseWrong,
            Self::Key(KeyError::Costly | KeyError::Unreadable { .. }) => {
                ErrorCode::ConfigKeyUnreadable
            }
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Request(error) => error.hint(),
            Self::Mistakes(mistakes) => mistakes.hint(),
            Self::Key(error) => decode_errors::key_hint(error).to_owned(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.code(), error.to_string(), error.hint(), "config")
    }
}

fn uri(path: &str, url: Option<EndpointUrl>, mistakes: &mut Vec<Mistake>) -> Option<Uri> {
    let parsed = url?.as_str().parse().ok();
    if parsed.is_none() {
        mistakes.push(Mistake {
            path: path.to_owned(),
            what: "not a URL".to_owned(),
            hint: format!("set `{path}` to a URL such as `https://host`"),
        });
    }
    parsed
}

#[cfg(test)]
mod tests;
