//! Failures of a sidecar: codes, exit statuses, and the JSON of the `failed` line.

use std::{fmt, process::ExitCode};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a sidecar failed: the JSON of the `failed` line, in this order of fields.
///
/// Message and hint are shown to the customer: lower case, no full stop, no secrets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// The stable code, for programs.
    pub code: ErrorCode,
    /// What happened.
    #[serde(default)]
    pub message: String,
    /// What to change, naming the IAM action, security group, sshd option or field.
    #[serde(default)]
    pub hint: String,
    /// Whether the same config may work later without any change.
    #[serde(default)]
    pub retryable: bool,
    /// Name of the [`Phase`](crate::Phase) of the start in which it failed; `tunnel` once the tunnel is up. A
    /// newer sidecar may name a phase that this crate does not know.
    #[serde(default)]
    pub phase: String,
    /// Who can fix it.
    #[serde(default)]
    pub blame: Blame,
    /// The AWS request id of the call that failed, for AWS Support.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws_request_id: Option<String>,
}

impl Failure {
    /// Hint of every failure with the code [`Internal`](ErrorCode::Internal), the same text for all of them: there
    /// is nothing to change. A retry is harmless, though such failures are not marked as retryable.
    pub const REPORT_HINT: &'static str =
        "report this with the log lines before it; trying again does no harm";

    /// Makes a failure with the default blame and retryability of `code`.
    ///
    /// `phase` is the name of a [`Phase`](crate::Phase).
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

    /// Makes the failure that reports a bug of the sidecar: code [`Internal`](ErrorCode::Internal), hint
    /// [`REPORT_HINT`](Self::REPORT_HINT).
    ///
    /// `message` says what went wrong; like every message it is shown to the customer.
    pub fn internal(message: impl Into<String>, phase: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message, Self::REPORT_HINT, phase)
    }

    /// The status that the sidecar exits with.
    pub const fn exit_status(&self) -> ExitStatus {
        self.code.exit_status()
    }
}

/// What went wrong, dotted by layer. A code is never renamed, and never reused for anything else.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ErrorCode {
    /// The config is wrong.
    ConfigInvalid,
    /// The config has a version that this sidecar does not know.
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
    /// The service, the agent or an API call ended the session.
    SessionEnded,
    /// AWS refuses a call for a reason that has no code of its own.
    AwsRefused,
    /// A setting of the AWS account or region stands in the way.
    AwsAccount,
    /// A bug in the sidecar.
    Internal,
    /// The port cannot be bound.
    LocalListen,
    /// The network namespace cannot be entered.
    LocalNamespace,
    /// The host does not support a protection that is required.
    LocalHardening,
    /// The proxy setting is unusable, or the proxy refuses.
    LocalProxy,
    /// The host has no thread, memory or descriptor left.
    LocalResources,
    /// A certificate on the way to AWS is not trusted.
    AwsUntrusted,
    /// AWS throttles the calls.
    AwsThrottled,
    /// The AWS endpoint cannot be reached from this host.
    AwsUnreachable,
    /// AWS answered with an internal error.
    AwsInternal,
    /// The path broke and did not come back in time.
    SessionLost,
    /// The bastion's SSH server is there, and refuses for the moment.
    SshBusy,
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
    /// The agent is too old, or requires something that this sidecar does not support.
    SessionUnsupported,
    /// The bastion's SSH server broke the protocol or shares no algorithm.
    SshProtocol,
    /// AWS does not accept the keys, or there are none.
    AwsCredentials,
    /// The temporary keys have expired.
    AwsCredentialsExpired,
    /// IAM denies the call.
    AwsAccessDenied,
    /// The bastion refuses the user or the key.
    SshAuthRejected,
    /// The bastion's host key is none of the pinned ones.
    SshHostKeyMismatch,
    /// The bastion's SSH server refuses to forward.
    SshForwardingDenied,
    /// A code that is newer than this crate; only read, never written. The line has its text, and the exit status
    /// says what to do.
    Unrecognized,
}

impl ErrorCode {
    /// Every code of the contract, in the contract's order.
    pub const ALL: [Self; 37] = [
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
        Self::AwsRefused,
        Self::AwsAccount,
        Self::Internal,
        Self::LocalListen,
        Self::LocalNamespace,
        Self::LocalHardening,
        Self::LocalProxy,
        Self::LocalResources,
        Self::AwsUntrusted,
        Self::AwsThrottled,
        Self::AwsUnreachable,
        Self::AwsInternal,
        Self::SessionLost,
        Self::SshBusy,
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

    /// The code as written in the `failed` line.
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
            Self::AwsRefused => "aws.refused",
            Self::AwsAccount => "aws.account",
            Self::Internal => "internal",
            Self::LocalListen => "local.listen",
            Self::LocalNamespace => "local.namespace",
            Self::LocalHardening => "local.hardening",
            Self::LocalProxy => "local.proxy",
            Self::LocalResources => "local.resources",
            Self::AwsUntrusted => "aws.untrusted",
            Self::AwsThrottled => "aws.throttled",
            Self::AwsUnreachable => "aws.unreachable",
            Self::AwsInternal => "aws.internal",
            Self::SessionLost => "session.lost",
            Self::SshBusy => "ssh.busy",
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

    /// Parses a code of the contract; `None` for any other text.
    pub fn from_wire(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// The status that a sidecar exits with after this failure. A code has exactly one.
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
            | Self::SessionEnded
            | Self::AwsRefused
            | Self::AwsAccount => ExitStatus::Unavailable,
            Self::Internal | Self::Unrecognized => ExitStatus::Software,
            Self::LocalListen
            | Self::LocalNamespace
            | Self::LocalHardening
            | Self::LocalProxy
            | Self::LocalResources
            | Self::AwsUntrusted => ExitStatus::OsErr,
            Self::AwsThrottled
            | Self::AwsUnreachable
            | Self::AwsInternal
            | Self::SessionLost
            | Self::SshBusy
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

    /// Whether a retry without any change is right: true for status 75 alone.
    pub const fn is_retryable(self) -> bool {
        matches!(self.exit_status(), ExitStatus::TempFail)
    }

    /// Who can fix it in most cases. A line may name another: with [`AwsCredentials`](Self::AwsCredentials) it is
    /// the operator if this host's clock is wrong.
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
            | Self::SshBusy
            | Self::AwsRefused
            | Self::AwsAccount
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
            | Self::LocalProxy
            | Self::LocalResources
            | Self::AwsUntrusted
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

/// Who can fix a failure.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The customer, who owns bastion, target and config.
    Customer,
    /// The operator of the sidecar, its host and its network.
    Operator,
    /// AWS.
    Aws,
    /// The sidecar has a bug.
    Bug,
    /// A word that is newer than this crate; only read, never written.
    #[default]
    #[serde(other)]
    Unrecognized,
}

/// The exit statuses of a sidecar: enough for a runner to choose between "retry", "tell the customer" and "page
/// the operator". Numbers and names are those of BSD's `sysexits.h`, as far as the meanings fit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum ExitStatus {
    /// 0: the tunnel was stopped as requested.
    Ok = 0,
    /// 64: wrong command line.
    Usage = 64,
    /// 65: the config is wrong; tell the customer, do not retry.
    DataErr = 65,
    /// 69: something on the customer's side is unavailable.
    Unavailable = 69,
    /// 70: a bug in the sidecar.
    Software = 70,
    /// 71: this host does not allow something that the sidecar needs, such as a port or a namespace.
    OsErr = 71,
    /// 75: a transient failure; retry.
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

    /// Parses an exit code; `None` for numbers that a sidecar does not use.
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
    use crate::phase::Phase;

    #[test]
    fn failure_of_a_newer_sidecar_can_be_read() {
        let line =
            r#"{"code":"ssh.too_tired","message":"m","mood":[1],"phase":"relay","blame":"moon"}"#;
        let failure: Failure = serde_json::from_str(line).unwrap();
        assert_eq!(failure.code, ErrorCode::Unrecognized);
        assert_eq!(failure.blame, Blame::Unrecognized);
        assert_eq!((failure.message.as_str(), failure.hint.as_str()), ("m", ""));
        assert_eq!(failure.phase, "relay");
        assert!(!failure.retryable);
    }

    #[test]
    fn internal_failures_ask_for_a_report() {
        let failure = Failure::internal("m", Phase::Ssh);
        let expected = Failure::new(ErrorCode::Internal, "m", Failure::REPORT_HINT, "ssh");
        assert_eq!(failure, expected);
        assert_eq!((failure.blame, failure.retryable), (Blame::Bug, false));
    }

    #[test]
    fn only_status_75_is_retryable() {
        for code in ErrorCode::ALL {
            assert_eq!(code.is_retryable(), code.exit_status().code() == 75, "{code}");
        }
    }

    #[test]
    fn each_code_has_its_own_name() {
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
