//! The config of one connection, as types with the defaults filled in.
//!
//! A [`Config`] holds only values that the contract allows, so the code that uses one does not check them again.
//! Not checked here is whether keys can be decoded and names resolve.

pub(crate) mod read;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    endpoint::EndpointUrl,
    failure::{ErrorCode, Failure},
    framing::Malformed,
    mistake::Mistakes,
    phase::Phase,
    secret::Secret,
};

/// The config of one connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// Label of the connection, 1–128 characters.
    pub name: String,
    /// Free text for the runner's own use; ignored.
    pub memo: Option<String>,
    /// The runner's own id of the transfer.
    pub job_id: Option<String>,
    /// Identity and endpoints of the AWS calls.
    pub aws: Aws,
    /// The instance to go through.
    pub bastion: Bastion,
    /// The database.
    pub target: Target,
    /// Where clients connect to.
    pub listen: Listen,
    /// What to do if the host does not support every protection.
    pub hardening: Hardening,
    /// How connections are carried.
    pub tunnel: Tunnel,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Whether to write more lines than `ready` and `failed`; false by default.
    pub events: bool,
    /// The HTTP endpoint for probes.
    pub health: Health,
}

/// `aws`: identity and endpoints of the AWS calls.
#[derive(Clone, Debug)]
pub struct Aws {
    /// The identity of every call, unless a role is assumed.
    pub identity: Identity,
    /// A role to assume with that identity, for all other calls.
    pub assume_role: Option<AssumeRole>,
    /// `ap-northeast-1` by default.
    pub region: String,
    /// SSM endpoint instead of the region's public one; `https`, or `http` for loopback.
    pub endpoint_url: Option<EndpointUrl>,
    /// Host instead of the one in the `StreamUrl`; `wss`, or `ws` for loopback; without a path.
    pub stream_endpoint_url: Option<EndpointUrl>,
}

/// The AWS identity.
#[derive(Clone, Debug)]
pub enum Identity {
    /// `aws.access_key_id` and the fields that belong to it. There is no fallback if AWS refuses them.
    Static(Keys),
    /// `"aws.credentials": "environment"`: the SDK's default chain. Never used unless the config asks for it.
    Environment,
}

/// An AWS access key. The id is not a secret, but is treated as one, since the two are easily mixed up.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The key's id, such as `AKIA…`.
    pub access_key_id: Secret,
    /// The key that signs requests.
    pub secret_access_key: Secret,
    /// Only with temporary keys.
    pub session_token: Option<Secret>,
}

/// `aws.assume_role`: a role to assume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AssumeRole {
    /// `arn:aws:iam::123456789012:role/name`.
    pub role_arn: String,
    /// The external id that the role's trust policy requires, if any; 2–1,224 characters.
    pub external_id: Option<String>,
    /// Appears in the customer's `CloudTrail`; 2–64 characters.
    pub session_name: Option<String>,
}

/// `bastion`: the instance to go through.
#[derive(Clone, Debug)]
pub struct Bastion {
    /// `i-` or `mi-` and 8 or 17 hexadecimal digits.
    pub instance_id: String,
    /// Port of sshd on the instance's loopback interface, 1–65535; 22 by default.
    pub ssh_port: u16,
    /// User to log in as; `ec2-user` by default.
    pub ssh_user: String,
    /// The text of the key file.
    pub ssh_private_key: Secret,
    /// The passphrase of that key.
    pub ssh_private_key_passphrase: Option<Secret>,
    /// Accepted host keys, as written; if empty, every key is accepted.
    pub ssh_host_key: Vec<String>,
}

/// `target`: the database, as the bastion sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The kind of database, if given.
    pub engine: Option<Engine>,
    /// Name or address, as the bastion resolves it.
    pub host: String,
    /// 1–65535; the engine's default port if not given.
    pub port: u16,
}

/// A kind of database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// `"mysql"`: MySQL and compatible databases.
    MySql,
    /// `"postgresql"`: PostgreSQL and compatible databases.
    PostgreSql,
}

impl Engine {
    /// The word in the config.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MySql => "mysql",
            Self::PostgreSql => "postgresql",
        }
    }

    /// The default port of such databases.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::MySql => 3306,
            Self::PostgreSql => 5432,
        }
    }
}

/// `listen`: where clients connect to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    /// 127.0.0.1 by default. Addresses other than loopback need [`Self::allow_non_loopback`].
    pub address: IpAddr,
    /// False by default.
    pub allow_non_loopback: bool,
    /// 0, the default, lets the kernel choose.
    pub port: u16,
    /// Number of an inherited, already listening socket; at least 3, since 0 to 2 are the standard streams.
    pub fd: Option<i32>,
    /// Path of a network namespace to listen in; never given together with `fd`.
    pub netns: Option<PathBuf>,
    /// User ids that may connect, not empty; `None` allows all.
    pub allowed_uids: Option<Vec<u32>>,
}

/// `hardening`: what to do if the host does not support every protection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Hardening {
    /// `"best_effort"`: continue without the missing ones.
    #[default]
    BestEffort,
    /// `"required"`: fail.
    Required,
}

/// `tunnel`: how connections are carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// SSM sessions that may carry connections at once, 1–16; 1 by default.
    pub sessions: usize,
    /// SSH compression.
    pub compression: Compression,
    /// Payload of each message to the agent, 256–65,536 bytes; 1,024 by default.
    pub message_bytes: usize,
    /// Concurrent connections, 1–65,535; 64 by default. Further ones wait in the listen queue.
    pub max_connections: usize,
}

/// `tunnel.compression`: SSH compression.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// `"auto"`.
    #[default]
    Auto,
    /// `"on"`.
    On,
    /// `"off"`.
    Off,
}

/// `timeouts`: time limits; whole seconds in the config.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From the start to `ready`, 1–600 s; 60 s by default.
    pub ready: Duration,
    /// Each connection to the target, 1 s to a day; 10 s by default.
    pub connect: Duration,
    /// How long a broken path may take to recover before the tunnel fails, 1 s to a day; 60 s by default.
    pub reconnect: Duration,
}

/// `health`: the HTTP endpoint for probes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// Address and port; no endpoint by default.
    pub listen: Option<SocketAddr>,
}

/// Why a config is refused; the message quotes no value that could be a secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It is not a JSON object.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It has another version; nothing else was checked.
    #[error("version of the config is not known: {0}")]
    Version(String),
    /// Fields are wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl ConfigError {
    /// The code of the `failed` line.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) | Self::Mistakes(_) => ErrorCode::ConfigInvalid,
            Self::Version(_) => ErrorCode::ConfigVersion,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Malformed(malformed) => malformed.hint().to_owned(),
            Self::Version(_) => {
                "set `version` to 1, or use a sidecar that is as new as the config".to_owned()
            }
            Self::Mistakes(mistakes) => mistakes.hint(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.code(), error.to_string(), error.hint(), Phase::Config)
    }
}

/// The version of the contract that this crate implements.
pub const VERSION: u32 = 1;
