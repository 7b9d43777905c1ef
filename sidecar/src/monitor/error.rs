//! Abnormal ends of the worker.

use std::{fmt, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use nix::sys::signal::Signal;
use runner_protocol::{ErrorCode, Failure};

use crate::runtime::failure::ToFailure;

/// Why the worker ended abnormally.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerFailure {
    /// It exited, or was killed, before its last message.
    #[error("internal error: the worker process has ended{0}")]
    Exited(ExitInfo),
    /// It sent what it may not send, or does not read.
    #[error("internal error: the worker process broke its protocol: {0}")]
    Protocol(String),
    /// It did not end in time after the stop.
    #[error("internal error: the worker process did not end in time")]
    Stuck,
}

impl ToFailure for WorkerFailure {
    fn code(&self) -> ErrorCode {
        ErrorCode::Internal
    }

    fn hint(&self) -> String {
        let killed = Some(Signal::SIGKILL as i32);
        match self {
            Self::Exited(ExitInfo(Some(status))) if status.signal() == killed => {
                "give the sidecar more memory, if the kernel's log says that it ran out; if not, find out who kills \
                 processes on this host"
            }
            Self::Exited(_) | Self::Protocol(_) | Self::Stuck => Failure::REPORT_HINT,
        }
        .to_owned()
    }
}

/// A process's exit status, where it is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExitInfo(pub(super) Option<ExitStatus>);

impl fmt::Display for ExitInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(formatter, ": {status}"),
            None => Ok(()),
        }
    }
}
