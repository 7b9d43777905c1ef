//! Why lanes are not opened, and why they end.

use crate::{
    channel::{driver::Ended, websocket::OpenError},
    session::{ApiError, ApiErrorKind},
    ssh::SshError,
};

/// Why a lane could not be opened, or is over.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The SSM API refused or could not be reached.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The data channel's WebSocket could not be opened.
    #[error(transparent)]
    Stream(#[from] OpenError),
    /// The data channel ended.
    #[error(transparent)]
    Channel(#[from] Ended),
    /// The SSH connection ended.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The session stands, but sshd is silent.
    #[error("sshd does not answer on port {port} of the bastion")]
    NoSshd {
        /// `bastion.ssh_port`.
        port: u16,
    },
    /// Somebody answers at sshd's port, but does not speak SSH.
    #[error("what answers on port {port} of the bastion does not identify itself as an SSH server")]
    NotSsh {
        /// `bastion.ssh_port`.
        port: u16,
    },
    /// A lane beside the first, or in place of it, took too long.
    #[error("a new session was not usable within {seconds} s")]
    Overdue {
        /// How long it had.
        seconds: u64,
    },
    /// The time for a new lane is used up.
    #[error("the path was lost and did not come back in time")]
    NotReplaced(#[source] Box<Self>),
    /// The process is stopping.
    #[error("stopping")]
    Stopping,
}

impl LaneError {
    /// Whether trying again within seconds makes sense, where a lane has been open before.
    pub fn may_pass(&self) -> bool {
        match self {
            // Renewed ones may be on their way over stdin.
            Self::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => true,
            Self::Api(error) => error.may_pass(),
            // To whom it was open before, an answer but "not allowed" is the service's own trouble.
            Self::Stream(OpenError::Refused { status, .. }) => !matches!(status, 401 | 403),
            Self::Stream(error) => error.may_pass(),
            Self::Channel(_)
            | Self::NoSshd { .. }
            | Self::Overdue { .. }
            | Self::Ssh(SshError::StreamEnded) => true,
            Self::Ssh(SshError::Protocol(error)) => !matches!(
                **error,
                ssh_client::Error::HostKeyMismatch { .. } | ssh_client::Error::AuthRejected { .. }
            ),
            Self::NotSsh { .. } | Self::NotReplaced(_) | Self::Stopping => false,
        }
    }
}
