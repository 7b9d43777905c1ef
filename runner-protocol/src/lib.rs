//! The contract between a job runner and its ssm-sidecar, version 1, as types.
//!
//! A runner starts one `ssm-sidecar` process per job, writes the **config**, one JSON object, to its stdin and
//! keeps that pipe open. The sidecar opens a tunnel to the database that the config names and writes `ready
//! <port>` to stdout. The open stdin is the job's lease: when it closes, the tunnel closes, every SSM session that
//! was started is terminated, and the process exits with status 0. SIGTERM and SIGINT do the same.
//!
//! The crate's `README.md` is the same contract in prose, for runners in other languages.
//!
//! # stdin
//!
//! The sidecar starts as soon as the closing brace of the config has arrived ([`ConfigReader`]), pretty-printed or
//! not. [`Config::from_json`] reports all mistakes at once, each by its path, and repeats no value that could be a
//! secret. Optional fields may also be null.
//!
//! ```
//! use runner_protocol::{Config, Failure};
//!
//! let text = r#"{
//!     "name": "orders, nightly",
//!     "aws": { "access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI" },
//!     "bastion": { "instance_id": "i-0123456789abcdef0", "ssh_private_key": "-----BEGIN …" },
//!     "target": { "engine": "mysql", "host": "orders.internal" }
//! }"#;
//! let config = Config::from_json(text)?;
//! assert_eq!(config.target.port, 3306);
//! assert_eq!(config.bastion.ssh_user, "ec2-user");
//!
//! let wrong = text.replace("i-0123456789abcdef0", "bastion-1").replace("host", "hots");
//! let failure = Failure::from(Config::from_json(&wrong).unwrap_err());
//! assert_eq!(
//!     failure.message,
//!     "bastion.instance_id: not an instance id; target.host: missing; target.hots: unknown field",
//! );
//! # Ok::<(), runner_protocol::ConfigError>(())
//! ```
//!
//! After the config, stdin may carry one JSON object per line ([`MessageReader`]). Version 1 defines
//! `{"type":"credentials", …}`, which replaces the keys for all later calls. Unknown types and broken lines are
//! ignored and logged, never fatal.
//!
//! ```
//! use runner_protocol::{ConfigReader, Message, MessageReader};
//!
//! let mut reader = ConfigReader::new();
//! assert!(reader.push(b"{ \"name\": \"a")?.is_none());
//! let framed = reader.push(b"} b\" }\n{\"type\":\"weather\"}\n{\"type\":\"credentials\",")?.unwrap();
//! assert_eq!(framed.text.as_str(), r#"{ "name": "a} b" }"#);
//!
//! let mut messages = MessageReader::new();
//! let [unknown] = messages.push(framed.rest).try_into().unwrap();
//! assert_eq!(unknown.unwrap_err().to_string(), "type of message is not known: weather");
//! let rest = b"\"access_key_id\":\"AKIA\",\"secret_access_key\":\"wJal\"}\n";
//! let messages = messages.push(rest);
//! let [Ok(Message::Credentials(keys))] = messages.as_slice() else { panic!() };
//! assert_eq!(keys.access_key_id.expose(), "AKIA");
//! # Ok::<(), runner_protocol::Malformed>(())
//! ```
//!
//! # stdout
//!
//! Lines of `word SP rest` ([`Line`]): `ready <port>` once, and `failed <json>` at most once, last, before an exit
//! status other than 0. More lines come with `"events": true`. A runner ignores unknown words, and anything after
//! the parts of a line that it knows; [`Line::parse`] does so.
//!
//! ```
//! use runner_protocol::{ErrorCode, Line};
//!
//! assert_eq!(Line::parse("ready 40123"), Some(Line::Ready(40123)));
//! assert_eq!(Line::parse("a word of version 1.7"), None);
//! let line = r#"failed {"code":"ssh.auth_rejected","message":"…","hint":"…","retryable":false,"phase":"ssh","blame":"customer"}"#;
//! let Some(Line::Failed(failure)) = Line::parse(line) else { panic!() };
//! assert_eq!(failure.code, ErrorCode::SshAuthRejected);
//! ```
//!
//! stderr carries logs.
//!
//! # Exit status
//!
//! Enough for a runner to choose between "retry", "tell the customer" and "page the operator" ([`ExitStatus`],
//! [`ErrorCode`]).
//!
//! ```
//! use runner_protocol::{ErrorCode, ExitStatus};
//!
//! assert_eq!(ErrorCode::AwsThrottled.exit_status(), ExitStatus::TempFail);
//! assert_eq!(ExitStatus::from_code(75), Some(ExitStatus::TempFail));
//! ```
//!
//! # Stability
//!
//! Names, codes, exit statuses and line formats do not change within version 1. New optional fields, codes and
//! line words may be added. So a sidecar refuses unknown fields, which could be newer than itself, and a runner
//! ignores unknown words.

pub mod config;
mod endpoint;
mod failure;
mod fields;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(all(feature = "launch", target_os = "linux"))]
pub mod launch;
mod line;
mod message;
mod mistake;
mod phase;
pub mod region;
mod rules;
mod schema;
mod secret;
mod unknown;
mod value;

pub use config::{Config, ConfigError, Keys};
pub use endpoint::EndpointUrl;
pub use failure::{Blame, ErrorCode, ExitStatus, Failure};
pub use framing::{ConfigReader, Framed, MAX_CONFIG_BYTES, MAX_DEPTH, Malformed};
pub use line::{Line, PhaseTimes, Summary};
pub use message::{MAX_MESSAGE_BYTES, Message, MessageError, MessageReader};
pub use mistake::{Mistake, Mistakes};
pub use phase::{Phase, UnknownPhase};
pub use schema::schema;
pub use secret::Secret;
