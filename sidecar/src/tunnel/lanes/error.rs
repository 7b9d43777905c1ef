//! Why lanes are not opened, and why they end.

use std::fmt;

use runner_protocol::{Blame, ErrorCode, Failure};

use super::{
    hang_up::{HangUp, Retry, is_end_of_server},
    stall::Silent,
};
use crate::{
    channel::{ChannelEnd, websocket::WebSocketOpenError},
    runtime::failure::ToFailure,
    session::{ApiError, ApiErrorKind, IamAction},
    ssh::SshError,
};

/// Why a lane could not be opened, or is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Stream(#[from] WebSocketOpenError),
    #[error(transparent)]
    Channel(#[from] ChannelEnd),
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The session is open, but sshd sends nothing.
    #[error("sshd does not answer on port {port} of the bastion")]
    NoSshd {
        /// `bastion.ssh_port`.
        port: u16,
    },
    #[error(transparent)]
    HungUp(#[from] HangUp),
    #[error(
        "what answers on port {port} of the bastion does not identify itself as an SSH server{}",
        Sent(received)
    )]
    NotSsh {
        /// `bastion.ssh_port`.
        port: u16,
        /// Its words.
        received: Option<String>,
    },
    /// The session of an open lane has ended as it does when sshd closes its connection.
    #[error("the service ended the session, as it does when sshd closes its connection{}", Amid(*uploading))]
    ClosedBySshd {
        /// Whether bytes to sshd were in flight.
        uploading: bool,
    },
    /// The WebSocket is up, but the other end does not answer.
    #[error("{silent}")]
    Stalled { silent: Silent },
    /// A lane after the first took too long to open.
    #[error("a new session was not usable within {seconds} s")]
    OpenTimedOut { seconds: u64 },
    /// `timeouts.reconnect_s` is over without a lane.
    #[error("the path was lost and did not come back in time")]
    NotReplaced(#[source] Box<Self>),
    #[error("stopping")]
    Stopping,
}

impl LaneError {
    /// Whether a new attempt within seconds makes sense, where a lane has been open before.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // New credentials may arrive on stdin.
            Self::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => true,
            // Enough for the start, so most likely again in a moment.
            Self::Api(error) if error.kind() == ApiErrorKind::Resources => true,
            Self::Api(error) => error.is_transient(),
            // The same opening was accepted before: a refusal other than "not allowed" is the service's fault.
            Self::Stream(WebSocketOpenError::Refused { status, .. }) => {
                !matches!(status, 401 | 403)
            }
            Self::Stream(error) => error.is_transient(),
            Self::Channel(_)
            | Self::NoSshd { .. }
            | Self::OpenTimedOut { .. }
            | Self::Stalled { .. }
            | Self::ClosedBySshd { .. }
            | Self::Ssh(SshError::StreamEnded) => true,
            Self::HungUp(hang_up) => hang_up.retry() != Retry::Never,
            Self::Ssh(error) if error.is_key_refused() => false,
            Self::Ssh(SshError::Protocol(error)) => {
                !matches!(**error, ssh_client::Error::HostKeyMismatch { .. })
            }
            Self::NotSsh { .. } | Self::NotReplaced(_) | Self::Stopping => false,
        }
    }

    /// Replaces the end of the session by that of sshd, if that is what this is.
    pub(crate) fn or_hung_up(self, hang_up: HangUp) -> Self {
        match self {
            Self::Channel(ChannelEnd::Closed(reason)) if is_end_of_server(&reason) => {
                match hang_up.foreign_words() {
                    Some(words) => {
                        Self::NotSsh { port: hang_up.port, received: Some(words.to_owned()) }
                    }
                    None => hang_up.into(),
                }
            }
            other => other,
        }
    }

    /// Replaces the end of the session of an open lane by that of sshd, if that is what this is.
    pub(super) fn or_closed_by_sshd(self, uploading: bool) -> Self {
        match self {
            Self::Channel(ChannelEnd::Closed(reason)) if is_end_of_server(&reason) => {
                Self::ClosedBySshd { uploading }
            }
            other => other,
        }
    }

    /// Whether the start makes another attempt.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::HungUp(hang_up) => hang_up.retry(),
            Self::Ssh(error) if error.is_busy() => Retry::WhileThereIsTime,
            _ => Retry::Never,
        }
    }

    /// Whether sshd has refused the login, and did not say that this is for the moment.
    pub(super) fn is_login_refused(&self) -> bool {
        let is_answer = self.is_key_refused() || matches!(self, Self::HungUp(_));
        is_answer && !self.is_transient()
    }

    /// Whether sshd has answered a login with the key of the config, and refused.
    pub(crate) fn is_key_refused(&self) -> bool {
        matches!(self, Self::Ssh(error) if error.is_key_refused())
    }

    /// The IAM action that is not allowed, if that is why.
    pub(crate) fn denied_action(&self) -> Option<IamAction> {
        match self {
            Self::Api(error) => error.denied_action(),
            Self::Stream(error) => error.denied_action(),
            _ => None,
        }
    }
}

impl ToFailure for LaneError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Api(error) => error.code(),
            Self::Stream(error) => error.code(),
            Self::Channel(end) => end.code(),
            Self::Ssh(error) => error.code(),
            Self::HungUp(hang_up) => hang_up.code(),
            Self::NoSshd { .. } => ErrorCode::SshUnreachable,
            Self::NotSsh { .. } => ErrorCode::SshProtocol,
            Self::OpenTimedOut { .. } => ErrorCode::TimeoutSession,
            Self::ClosedBySshd { .. } => ErrorCode::SessionEnded,
            Self::Stalled { .. } | Self::NotReplaced(_) => ErrorCode::SessionLost,
            Self::Stopping => ErrorCode::Internal,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Api(error) => error.hint(),
            Self::Stream(error) => error.hint(),
            Self::Channel(end) => end.hint(),
            Self::Ssh(error) => error.hint(),
            Self::HungUp(hang_up) => hang_up.hint(),
            Self::NoSshd { port } => format!(
                "start sshd on the bastion and let it listen on port {port} at localhost, or set \
                 `bastion.ssh_port` to the port that it listens on"
            ),
            Self::NotSsh { port, .. } => {
                format!("set `bastion.ssh_port` to sshd's port: {port} is another server's")
            }
            Self::ClosedBySshd { .. } => {
                "see sshd's log on the bastion for why; look in CloudTrail for who called TerminateSession, if it has none"
                    .to_owned()
            }
            Self::Stalled { silent: Silent::Agent } => {
                "look whether the bastion is overloaded or short of memory, and in the log of its SSM agent".to_owned()
            }
            Self::Stalled { silent: Silent::Sshd } => {
                "look whether the bastion is overloaded or short of memory, and in sshd's log".to_owned()
            }
            Self::OpenTimedOut { .. } => {
                "check the way to the `ssmmessages` host, from here and from the instance".to_owned()
            }
            Self::NotReplaced(_) => {
                "start the job again; if the path breaks often, allow `ssm:ResumeSession` and raise \
                 `timeouts.reconnect_s`"
                    .to_owned()
            }
            // Never reported: the stop has its own outcome.
            Self::Stopping => Failure::REPORT_HINT.to_owned(),
        }
    }

    fn blame(&self) -> Option<Blame> {
        match self {
            Self::Api(error) => error.blame(),
            _ => None,
        }
    }

    fn aws_request_id(&self) -> Option<&str> {
        match self {
            Self::Api(error) => error.aws_request_id(),
            _ => None,
        }
    }
}

/// A peer's words behind a colon; nothing where there are none.
struct Sent<'a>(&'a Option<String>);

impl fmt::Display for Sent<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(words) => write!(formatter, ": it sent `{words}`"),
            None => Ok(()),
        }
    }
}

struct Amid(bool);

impl fmt::Display for Amid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Seen with the real agent.
        let text = ", amid an upload: the SSM agent repeats bytes that sshd has when its own connection to AWS breaks";
        if self.0 { formatter.write_str(text) } else { Ok(()) }
    }
}
