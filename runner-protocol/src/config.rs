//! The JSON document, as written and within its rules, defaults filled in.
//!
//! A [`Request`] can only hold what the contract allows, so whoever has one need not check it again. What takes
//! a key's format or a DNS server to judge is not checked here.

mod read;

pub(crate) use read::keys;
#[cfg(test)]
pub(crate) use read::known_fields;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    EndpointUrl, ErrorCode, Failure, Secret,
    framing::{DocumentReader, Malformed},
    mistake::Mistakes,
};

/// The document of one connection.
#[derive(Clone, Debug)]
pub struct Request {
    /// Label of the connection, 1–128 characters.
    pub name: String,
    /// Free text of the runner's own.
    pub memo: Option<String>,
    /// The runner's own id of the transfer.
    pub job_id: Option<String>,
    /// Who calls AWS, and where.
    pub aws: Aws,
    /// The instance to go through.
    pub bastion: Bastion,
    /// The database.
    pub target: Target,
    /// Where clients connect to.
    pub listen: Listen,
    /// What to do where the host cannot give every protection.
    pub hardening: Hardening,
    /// How bytes are carried.
    pub tunnel: Tunnel,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Whether the runner wants more lines than `ready` and `failed`; false by default.
    pub events: bool,
    /// The HTTP endpoint for probes.
    pub health: Health,
}

impl Request {
    /// Reads a whole document, from its opening to its closing brace; only white space may stand around it.
    ///
    /// # Errors
    ///
    /// [`RequestError`], with every mistake of the document at once.
    pub fn from_json(document: &str) -> Result<Self, RequestError> {
        Self::from_slice(document.as_bytes())
    }

    /// Reads the bytes of a whole document, such as those of a file.
    ///
    /// # Errors
    ///
    /// [`RequestError`], with every mistake of the document at once.
    pub fn from_slice(document: &[u8]) -> Result<Self, RequestError> {
        let mut reader = DocumentReader::new();
        let framed = reader.push(document)?.ok_or_else(|| reader.end())?;
        if !framed.rest.trim_ascii().is_empty() {
            return Err(Malformed::Trailing.into());
        }
        read::request(&framed.document)
    }
}

/// `aws`: who calls AWS, and where.
#[derive(Clone, Debug)]
pub struct Aws {
    /// The identity of every call.
    pub identity: Identity,
    /// A role to assume first, with that identity.
    pub assume_role: Option<AssumeRole>,
    /// `ap-northeast-1` by default.
    pub region: String,
    /// SSM endpoint in place of the region's public one; `https`, or `http` at loopback.
    pub endpoint_url: Option<EndpointUrl>,
    /// Host in place of the `StreamUrl`'s; `wss`, or `ws` at loopback; without a path.
    pub stream_endpoint_url: Option<EndpointUrl>,
}

/// Who calls AWS.
#[derive(Clone, Debug)]
pub enum Identity {
    /// `aws.access_key_id` and its companions; nothing else, should they be refused.
    Static(Keys),
    /// `"aws.credentials": "environment"`: the SDK's default chain, only ever on the document's word.
    Environment,
}

/// An AWS access key. The id, no secret, is treated as one: the two are easily mixed up.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Names the key.
    pub access_key_id: Secret,
    /// Signs.
    pub secret_access_key: Secret,
    /// With temporary keys.
    pub session_token: Option<Secret>,
}

/// `aws.assume_role`: a role to assume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AssumeRole {
    /// `arn:aws:iam::123456789012:role/name`.
    pub role_arn: String,
    /// What the role's trust policy asks for, if it does; 2–1,224 characters.
    pub external_id: Option<String>,
    /// Shown in the customer's trail; 2–64 characters.
    pub session_name: Option<String>,
}

/// `bastion`: the instance to go through.
#[derive(Clone, Debug)]
pub struct Bastion {
    /// `i-` or `mi-` and 8 or 17 hexadecimal digits.
    pub instance_id: String,
    /// Port of sshd at the instance's loopback, 1–65535; 22 by default.
    pub ssh_port: u16,
    /// User to log in as; `ec2-user` by default.
    pub ssh_user: String,
    /// The key file's text.
    pub ssh_private_key: Secret,
    /// What opens that key.
    pub ssh_private_key_passphrase: Option<Secret>,
    /// Host keys that are accepted, as written; none: every key is.
    pub ssh_host_key: Vec<String>,
}

/// `target`: the database, as the bastion sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// What sort of database, if said.
    pub engine: Option<Engine>,
    /// Name or address, as the bastion resolves it.
    pub host: String,
    /// 1–65535; the engine's own by default.
    pub port: u16,
}

/// A sort of database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// `"mysql"`: MySQL and what speaks its protocol.
    MySql,
    /// `"postgresql"`: PostgreSQL and what speaks its protocol.
    PostgreSql,
}

impl Engine {
    /// The word in the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MySql => "mysql",
            Self::PostgreSql => "postgresql",
        }
    }

    /// The port that such databases listen on unless told otherwise.
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
    /// 127.0.0.1 by default; not loopback only with [`Self::allow_non_loopback`].
    pub address: IpAddr,
    /// False by default.
    pub allow_non_loopback: bool,
    /// 0, the default: the kernel chooses.
    pub port: u16,
    /// Number of an inherited, already listening socket, from 3: the first three are taken.
    pub fd: Option<i32>,
    /// Path of a network namespace to listen in; never together with `fd`.
    pub netns: Option<PathBuf>,
    /// User ids that may connect, not empty; `None`: everybody may.
    pub allowed_uids: Option<Vec<u32>>,
}

/// `hardening`: what to do where the host cannot give every protection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Hardening {
    /// `"best_effort"`: go on with those that there are.
    #[default]
    BestEffort,
    /// `"required"`: fail.
    Required,
}

/// `tunnel`: how bytes are carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// SSM sessions that may carry connections at once, 1–16; 1 by default.
    pub sessions: usize,
    /// SSH compression.
    pub compression: Compression,
    /// Payload of each message towards the agent, 256–65,536 bytes; 1,024 by default.
    pub message_bytes: usize,
    /// Connections at once, 1–65,535; 64 by default. Further ones wait in the listen queue.
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

/// `timeouts`: how long things may take; whole seconds in the document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From start to `ready`, 1–600 s; 60 s by default.
    pub ready: Duration,
    /// Each connection to the target, 1 s to a day; 10 s by default.
    pub connect: Duration,
    /// For a broken path to come back before the tunnel is given up, 1 s to a day; 60 s by default.
    pub reconnect: Duration,
}

/// `health`: the HTTP endpoint for probes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// Where it listens; not at all by default.
    pub listen: Option<SocketAddr>,
}

/// Why a document is refused; its text quotes no value that could be secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// It is no JSON object.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is of another version; nothing else was looked at.
    #[error("version of the document is not known: {0}")]
    Version(String),
    /// Fields are wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl RequestError {
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
                "set `version` to 1, or use a sidecar that is as new as the document".to_owned()
            }
            Self::Mistakes(mistakes) => mistakes.hint(),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::new(error.code(), error.to_string(), error.hint(), "config")
    }
}

/// The version of the contract that this crate speaks.
pub const VERSION: u32 = 1;
