//! Why a tunnel fails.

use runner_protocol::{Blame, ErrorCode};

use super::{lanes::LaneError, target::TargetError};
use crate::runtime::{
    failure::{InternalError, ToFailure},
    phase::Phase,
};

/// Why the tunnel was not opened, or has ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error(transparent)]
    Target(#[from] TargetError),
    /// `timeouts.ready_s` is over.
    #[error("not ready within {seconds} s: {}", pending(*.phase))]
    NotReady { seconds: u64, phase: Phase },
    #[error(transparent)]
    Internal(#[from] InternalError),
}

impl ToFailure for TunnelError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Lane(error) => error.code(),
            Self::Target(error) => error.code(),
            Self::NotReady { phase, .. } => match phase {
                Phase::Config | Phase::StartSession => ErrorCode::TimeoutStartSession,
                Phase::Session => ErrorCode::TimeoutSession,
                Phase::Ssh => ErrorCode::TimeoutSsh,
                Phase::Target | Phase::Tunnel => ErrorCode::TimeoutTarget,
            },
            Self::Internal(error) => error.code(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Lane(error) => error.hint(),
            Self::Target(error) => error.hint(),
            Self::NotReady { phase, .. } => match phase {
                Phase::Config | Phase::StartSession => {
                    "check the way to the SSM API (proxy, VPC endpoint), or raise `timeouts.ready_s`"
                }
                Phase::Session => {
                    "check the way to the `ssmmessages` host, from here and from the instance, or raise \
                     `timeouts.ready_s`"
                }
                Phase::Ssh => {
                    "check the load of the bastion and its sshd, and an AuthorizedKeysCommand or directory service that \
                     its login waits for, or raise `timeouts.ready_s`"
                }
                Phase::Target | Phase::Tunnel => {
                    "check that the target's security group lets the bastion in, or raise `timeouts.ready_s`"
                }
            }
            .to_owned(),
            Self::Internal(error) => error.hint(),
        }
    }

    fn blame(&self) -> Option<Blame> {
        match self {
            Self::Lane(error) => error.blame(),
            _ => None,
        }
    }

    fn aws_request_id(&self) -> Option<&str> {
        match self {
            Self::Lane(error) => error.aws_request_id(),
            _ => None,
        }
    }
}

/// What was not done when the time was over.
const fn pending(phase: Phase) -> &'static str {
    match phase {
        Phase::Config | Phase::StartSession => "StartSession was not answered",
        Phase::Session => "the data channel was not open",
        Phase::Ssh => "the bastion's sshd had not let us in",
        Phase::Target | Phase::Tunnel => "the target had not answered the bastion",
    }
}

#[cfg(test)]
mod tests;
