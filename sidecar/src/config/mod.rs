//! The settings: the config, decoded.
//!
//! `runner-protocol` has checked the fields. Decoded here are the private key, which takes CPU time when it has a
//! passphrase, the host key pins and the URLs.

mod decode_errors;

use std::sync::Arc;

use http::Uri;
use runner_protocol::{
    ConfigError, EndpointUrl, ErrorCode, Mistake, Mistakes,
    config::{self, Config},
};
use ssh_client::{HostKeyPin, KeyError, PrivateKey};

use crate::runtime::{failure::ToFailure, hardening, telemetry::shortened_job_id};

pub(crate) use runner_protocol::config::{AssumeRole, Identity, Target, Timeouts};

/// The settings of one job.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    /// The runner's id of the transfer.
    pub(crate) job_id: Option<String>,
    pub(crate) aws: Aws,
    pub(crate) bastion: Bastion,
    /// Host and port; the bastion resolves the name.
    pub(crate) target: Target,
    /// User ids that may connect; `None`: all.
    pub(crate) allowed_uids: Option<Vec<u32>>,
    pub(crate) tunnel: Tunnel,
    pub(crate) timeouts: Timeouts,
}

impl Settings {
    /// Decodes `config`. Blocks: opening an encrypted private key takes up to some seconds, by design of its KDF.
    ///
    /// # Errors
    ///
    /// [`SettingsError::Key`] if the private key cannot be used; [`SettingsError::Mistakes`] if host keys or URLs are
    /// wrong, with a wrong private key among the mistakes.
    pub(crate) fn from_config(config: Config) -> Result<Self, SettingsError> {
        let Config { name, memo: _, job_id, aws, bastion, target, listen, .. } = config;
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
            job_id: job_id.as_deref().map(shortened_job_id),
            aws,
            bastion: bastion?,
            target,
            allowed_uids: listen.allowed_uids,
            tunnel: config.tunnel.into(),
            timeouts: config.timeouts,
        })
    }
}

/// The identity and the endpoints of calls to AWS.
#[derive(Debug)]
pub(crate) struct Aws {
    pub(crate) identity: Identity,
    /// Assumed with `identity` before other calls.
    pub(crate) assume_role: Option<AssumeRole>,
    /// Such as `ap-northeast-1`.
    pub(crate) region: String,
    /// SSM endpoint in place of the region's public one; `http` only at loopback.
    pub(crate) endpoint_url: Option<Uri>,
    /// Host in place of the `StreamUrl`'s; `ws` only at loopback.
    pub(crate) stream_endpoint_url: Option<Uri>,
    /// Whether `endpoint_url` is at loopback; then a `StreamUrl` may be, too.
    pub(crate) is_loopback: bool,
}

impl Aws {
    /// Decodes this section alone.
    ///
    /// # Errors
    ///
    /// [`SettingsError::Mistakes`] if URLs are wrong.
    pub(crate) fn from_config(aws: config::Aws) -> Result<Self, SettingsError> {
        let mut mistakes = Vec::new();
        let aws = Self::decode(aws, &mut mistakes);
        Mistakes::new(mistakes).map_or(Ok(aws), |mistakes| Err(mistakes.into()))
    }

    fn decode(aws: config::Aws, mistakes: &mut Vec<Mistake>) -> Self {
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

/// The bastion, and how to log in there.
#[derive(Debug)]
pub(crate) struct Bastion {
    /// `i-…` or `mi-…`.
    pub(crate) instance_id: String,
    /// Port of sshd on the instance's loopback.
    pub(crate) ssh_port: u16,
    pub(crate) ssh_user: String,
    pub(crate) key: Arc<PrivateKey>,
    /// Accepted host keys; empty: every host key is accepted.
    pub(crate) pins: Vec<HostKeyPin>,
}

impl Bastion {
    fn decode(bastion: config::Bastion, mistakes: &mut Vec<Mistake>) -> Result<Self, KeyError> {
        let written = bastion.ssh_host_key;
        let mut pins = Vec::new();
        for (index, text) in written.iter().enumerate() {
            match HostKeyPin::parse_lines(text) {
                Ok(lines) => pins.extend(lines),
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

/// Limits and form of the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tunnel {
    /// SSM sessions that may carry connections at once, 1–16.
    pub(crate) sessions: usize,
    pub(crate) compression: ssh_client::Compression,
    /// Payload of each message towards the agent, 256–65,536 bytes.
    pub(crate) message_bytes: usize,
    /// Client connections at once, 1–65,535.
    pub(crate) max_connections: usize,
}

impl From<config::Tunnel> for Tunnel {
    fn from(tunnel: config::Tunnel) -> Self {
        let config::Tunnel { sessions, compression, message_bytes, max_connections } = tunnel;
        let compression = match compression {
            config::Compression::Auto => ssh_client::Compression::Auto,
            config::Compression::On => ssh_client::Compression::On,
            config::Compression::Off => ssh_client::Compression::Off,
        };
        Self { sessions, compression, message_bytes, max_connections }
    }
}

/// Why the config is refused. The text quotes no value that could be secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The text is not a valid config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Host keys or URLs cannot be decoded.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// The private key cannot be used.
    #[error("bastion.ssh_private_key: {0}")]
    Key(#[from] KeyError),
}

impl SettingsError {
    /// Converts the error of the config `text`. To wrong fields it adds the mistakes that only decoding finds, so that
    /// all are reported at once.
    pub(crate) fn of_config(error: ConfigError, text: &[u8]) -> Self {
        match error {
            ConfigError::Mistakes(mistakes) => decode_errors::with_decoded(mistakes, text).into(),
            other => other.into(),
        }
    }
}

impl ToFailure for SettingsError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Config(error) => error.code(),
            Self::Mistakes(_) => ErrorCode::ConfigInvalid,
            Self::Key(KeyError::PassphraseRequired) => ErrorCode::ConfigPassphraseRequired,
            Self::Key(KeyError::PassphraseWrong) => ErrorCode::ConfigPassphraseWrong,
            Self::Key(KeyError::Costly | KeyError::Unreadable { .. } | KeyError::Putty { .. }) => {
                ErrorCode::ConfigKeyUnreadable
            }
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Config(error) => error.hint(),
            Self::Mistakes(mistakes) => mistakes.hint(),
            Self::Key(error) => decode_errors::key_hint(error).to_owned(),
        }
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
pub(crate) mod tests;
