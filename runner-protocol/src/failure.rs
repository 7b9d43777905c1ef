//! How a sidecar fails: codes, exit statuses, and the JSON of the `failed` line.

use std::{fmt, process::ExitCode};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a sidecar ended before it was asked to; the JSON of the `failed` line, in this order of fields.
///
/// Message and hint are for the customer's eyes: lower case, no full stop, free of secrets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// What a program tells failures apart by.
    pub code: ErrorCode,
    /// What happened.
    #[serde(default)]
    pub message: String,
    /// What to change, naming the IAM action, security group, sshd option or field.
    #[serde(default)]
    pub hint: String,
    /// Whether the same document may work later without any change.
    #[serde(default)]
    pub retryable: bool,
    /// The phase of the start that was going on; `tunnel` afterwards.
    #[serde(default)]
    pub phase: String,
    /// Who can cure it.
    #[serde(default)]
    pub blame: Blame,
    /// The id under which AWS knows the call that failed, for its support.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws_request_id: Option<String>,
}

impl Failure {
    /// Makes a failure with the blame and the retryability that `code` has by default.
    pub fn new(
        code: ErrorCode,
        message: impl Into<String>,
        hint: impl Into<String>,
        phase: impl Into<String>,
    ) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
            retryable: code.is_retryable(),
            phase: phase.into(),
            blame: code.blame(),
            aws_request_id: None,
        }
    }

    /// The status that the sidecar exits with.
    pub const fn exit_status(&self) -> ExitStatus {
        self.code.exit_status()
    }
}

/// What went wrong, dotted by layer; never renamed, never used for anything else.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ErrorCode {
    /// The document is wrong.
    ConfigInvalid,
    /// The document is of a version that this sidecar does not know.
    ConfigVersion,
    /// The private key cannot be read.
    ConfigKeyUnreadable,
    /// The private key is encrypted and no passphrase is given.
    ConfigPassphraseRequired,
    /// The passphrase does not open the private key.
    ConfigPassphraseWrong,
    /// The instance's SSM agent is not connected.
    AwsInstanceNotConnected,
    /// The bastion's sshd cannot be reached from its agent.
    SshUnreachable,
    /// The target cannot be reached from the bastion.
    TargetUnreachable,
    /// The target's name does not resolve on the bastion.
    TargetUnresolved,
    /// Somebody ended the session.
    SessionEnded,
    /// A defect of the sidecar.
    Internal,
    /// The port to listen on cannot be had.
    LocalListen,
    /// The network namespace cannot be entered.
    LocalNamespace,
    /// The host cannot give a protection that is required.
    LocalHardening,
    /// AWS asks for fewer calls.
    AwsThrottled,
    /// The endpoint of AWS cannot be reached from here.
    AwsUnreachable,
    /// AWS failed.
    AwsInternal,
    /// The path broke and did not come back in time.
    SessionLost,
    /// `StartSession` took too long.
    TimeoutStartSession,
    /// Opening the data channel took too long.
    TimeoutSession,
    /// Key exchange or authentication took too long.
    TimeoutSsh,
    /// The target took too long to accept a connection.
    TimeoutTarget,
    /// The agent or the gateway broke the protocol.
    SessionProtocol,
    /// The agent is too old, or wants what this sidecar does not do.
    SessionUnsupported,
    /// The bastion's SSH server broke the protocol or has nothing in common.
    SshProtocol,
    /// AWS does not know the keys, or there are none.
    AwsCredentials,
    /// The temporary keys have expired.
    AwsCredentialsExpired,
    /// AWS refuses the call to these keys.
    AwsAccessDenied,
    /// The bastion refuses the user or the key.
    SshAuthRejected,
    /// The bastion shows another host key than the pinned ones.
    SshHostKeyMismatch,
    /// The bastion's SSH server refuses to forward.
    SshForwardingDenied,
    /// A code that is newer than this crate: only ever read, never sent. Its text stands in the line,
    /// and the exit status tells what to do.
    Unrecognized,
}

impl ErrorCode {
    /// Every code of the contract, in its order.
    pub const ALL: [Self; 31] = [
        Self::ConfigInvalid,
        Self::ConfigVersion,
        Self::ConfigKeyUnreadable,
        Self::ConfigPassphraseRequired,
        Self::ConfigPassphraseWrong,
        Self::AwsInstanceNotConnected,
        Self::SshUnreachable,
        Self::TargetUnreachable,
        Self::TargetUnresolved,
        Self::SessionEnded,
        Self::Internal,
        Self::LocalListen,
        Self::LocalNamespace,
        Self::LocalHardening,
        Self::AwsThrottled,
        Self::AwsUnreachable,
        Self::AwsInternal,
        Self::SessionLost,
        Self::TimeoutStartSession,
        Self::TimeoutSession,
        Self::TimeoutSsh,
        Self::TimeoutTarget,
        Self::SessionProtocol,
        Self::SessionUnsupported,
        Self::SshProtocol,
        Self::AwsCredentials,
        Self::AwsCredentialsExpired,
        Self::AwsAccessDenied,
        Self::SshAuthRejected,
        Self::SshHostKeyMismatch,
        Self::SshForwardingDenied,
    ];

    /// The code as it stands in the `failed` line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigInvalid => "config.invalid",
            Self::ConfigVersion => "config.version",
            Self::ConfigKeyUnreadable => "config.key_unreadable",
            Self::ConfigPassphraseRequired => "config.passphrase_required",
            Self::ConfigPassphraseWrong => "config.passphrase_wrong",
            Self::AwsInstanceNotConnected => "aws.instance_not_connected",
            Self::SshUnreachable => "ssh.unreachable",
            Self::TargetUnreachable => "target.unreachable",
            Self::TargetUnresolved => "target.unresolved",
            Self::SessionEnded => "session.ended",
            Self::Internal => "internal",
            Self::LocalListen => "local.listen",
            Self::LocalNamespace => "local.namespace",
            Self::LocalHardening => "local.hardening",
            Self::AwsThrottled => "aws.throttled",
            Self::AwsUnreachable => "aws.unreachable",
            Self::AwsInternal => "aws.internal",
            Self::SessionLost => "session.lost",
            Self::TimeoutStartSession => "timeout.start_session",
            Self::TimeoutSession => "timeout.session",
            Self::TimeoutSsh => "timeout.ssh",
            Self::TimeoutTarget => "timeout.target",
            Self::SessionProtocol => "session.protocol",
            Self::SessionUnsupported => "session.unsupported",
            Self::SshProtocol => "ssh.protocol",
            Self::AwsCredentials => "aws.credentials",
            Self::AwsCredentialsExpired => "aws.credentials_expired",
            Self::AwsAccessDenied => "aws.access_denied",
            Self::SshAuthRejected => "ssh.auth_rejected",
            Self::SshHostKeyMismatch => "ssh.host_key_mismatch",
            Self::SshForwardingDenied => "ssh.forwarding_denied",
            Self::Unrecognized => "unrecognized",
        }
    }

    /// Reads a code of the contract.
    pub fn from_wire(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// The status that a sidecar exits with after this failure.
    pub const fn exit_status(self) -> ExitStatus {
        match self {
            Self::ConfigInvalid
            | Self::ConfigVersion
            | Self::ConfigKeyUnreadable
            | Self::ConfigPassphraseRequired
            | Self::ConfigPassphraseWrong => ExitStatus::DataErr,
            Self::AwsInstanceNotConnected
            | Self::SshUnreachable
            | Self::TargetUnreachable
            | Self::TargetUnresolved
            | Self::SessionEnded => ExitStatus::Unavailable,
            Self::Internal | Self::Unrecognized => ExitStatus::Software,
            Self::LocalListen | Self::LocalNamespace | Self::LocalHardening => ExitStatus::OsErr,
            Self::AwsThrottled
            | Self::AwsUnreachable
            | Self::AwsInternal
            | Self::SessionLost
            | Self::TimeoutStartSession
            | Self::TimeoutSession
            | Self::TimeoutSsh
            | Self::TimeoutTarget => ExitStatus::TempFail,
            Self::SessionProtocol | Self::SessionUnsupported | Self::SshProtocol => {
                ExitStatus::Protocol
            }
            Self::AwsCredentials
            | Self::AwsCredentialsExpired
            | Self::AwsAccessDenied
            | Self::SshAuthRejected
            | Self::SshHostKeyMismatch
            | Self::SshForwardingDenied => ExitStatus::NoPerm,
        }
    }

    /// Whether trying again without any change is right.
    pub const fn is_retryable(self) -> bool {
        matches!(self.exit_status(), ExitStatus::TempFail)
    }

    /// Who can cure it most often. A line may name another: a host's wrong clock is the operator's to set, though
    /// [`AwsCredentials`](Self::AwsCredentials) is most often the customer's.
    pub const fn blame(self) -> Blame {
        match self {
            Self::ConfigInvalid
            | Self::ConfigVersion
            | Self::ConfigKeyUnreadable
            | Self::ConfigPassphraseRequired
            | Self::ConfigPassphraseWrong
            | Self::AwsInstanceNotConnected
            | Self::SshUnreachable
            | Self::TargetUnreachable
            | Self::TargetUnresolved
            | Self::SessionEnded
            | Self::TimeoutSsh
            | Self::TimeoutTarget
            | Self::SessionUnsupported
            | Self::SshProtocol
            | Self::AwsCredentials
            | Self::AwsCredentialsExpired
            | Self::AwsAccessDenied
            | Self::SshAuthRejected
            | Self::SshHostKeyMismatch
            | Self::SshForwardingDenied => Blame::Customer,
            Self::LocalListen
            | Self::LocalNamespace
            | Self::LocalHardening
            | Self::AwsUnreachable
            | Self::SessionLost
            | Self::TimeoutSession => Blame::Operator,
            Self::AwsThrottled
            | Self::AwsInternal
            | Self::TimeoutStartSession
            | Self::SessionProtocol => Blame::Aws,
            Self::Internal => Blame::Bug,
            Self::Unrecognized => Blame::Unrecognized,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::from_wire(&text).unwrap_or(Self::Unrecognized))
    }
}

/// Who can cure a failure.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The customer whose bastion, target and document it is.
    Customer,
    /// Whoever runs the sidecar: its host, its network.
    Operator,
    /// The service.
    Aws,
    /// Us.
    Bug,
    /// A word that is newer than this crate: only ever read, never sent.
    #[default]
    #[serde(other)]
    Unrecognized,
}

/// The exit statuses of a sidecar: all that a runner needs to choose between "retry", "tell the customer" and
/// "page the operator". Numbers and names are those of BSD's `sysexits.h`, as far as the meanings fit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum ExitStatus {
    /// 0: ended because it was asked to.
    Ok = 0,
    /// 64: wrong command line.
    Usage = 64,
    /// 65: the document is wrong; tell the customer, don't retry.
    DataErr = 65,
    /// 69: something on the customer's side is unavailable.
    Unavailable = 69,
    /// 70: a defect of ours.
    Software = 70,
    /// 71: this host refuses.
    OsErr = 71,
    /// 75: passing trouble; retrying is right.
    TempFail = 75,
    /// 76: a peer broke its protocol or is too old.
    Protocol = 76,
    /// 77: credentials or permissions were refused.
    NoPerm = 77,
}

impl ExitStatus {
    /// Every status of the contract.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Usage,
        Self::DataErr,
        Self::Unavailable,
        Self::Software,
        Self::OsErr,
        Self::TempFail,
        Self::Protocol,
        Self::NoPerm,
    ];

    /// The number that the process exits with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Reads what a process exited with; `None` for numbers that a sidecar does not use.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| i32::from(status.code()) == code)
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_of_a_newer_sidecar_is_still_read() {
        let line = r#"{"code":"ssh.too_tired","message":"m","mood":[1],"blame":"moon"}"#;
        let failure: Failure = serde_json::from_str(line).unwrap();
        assert_eq!(failure.code, ErrorCode::Unrecognized);
        assert_eq!(failure.blame, Blame::Unrecognized);
        assert_eq!((failure.message.as_str(), failure.hint.as_str()), ("m", ""));
        assert!(!failure.retryable);
    }

    #[test]
    fn only_status_75_is_retryable() {
        for code in ErrorCode::ALL {
            assert_eq!(code.is_retryable(), code.exit_status().code() == 75, "{code}");
        }
    }

    #[test]
    fn each_code_has_a_name_of_its_own() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_wire(code.as_str()), Some(code));
        }
        assert_eq!(ErrorCode::from_wire("unrecognized"), None);
        assert_eq!(ErrorCode::from_wire("config"), None);
    }

    #[test]
    fn statuses_are_read_back() {
        for status in ExitStatus::ALL {
            assert_eq!(ExitStatus::from_code(status.code().into()), Some(status));
        }
        assert_eq!(ExitStatus::from_code(1), None);
    }
}
