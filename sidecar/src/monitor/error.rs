//! Abnormal ends of the worker.

use std::{fmt, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use nix::sys::signal::Signal;
use runner_protocol::{ErrorCode, Failure};

use crate::runtime::failure::ToFailure;

/// Why the worker ended abnormally.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerFailure {
    /// Its host gives it no thread or no descriptor.
    #[error("this host gives the worker process no thread or no descriptor")]
    NoResources,
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
        match self {
            Self::NoResources => ErrorCode::LocalResources,
            Self::Exited(_) | Self::Protocol(_) | Self::Stuck => ErrorCode::Internal,
        }
    }

    fn hint(&self) -> String {
        let killed = Some(Signal::SIGKILL as i32);
        match self {
            Self::NoResources => {
                "raise the limits of processes and threads (`ulimit -u`, `pids.max` of the container, systemd's \
                 `TasksMax`) and of open files (`ulimit -n`)"
            }
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

impl ExitInfo {
    /// Why a worker has ended that had not sent a message: it exits with the status of `local.resources` where it gets
    /// no thread or no descriptor.
    pub(super) fn before_sandbox(self) -> WorkerFailure {
        let lacks = Some(i32::from(ErrorCode::LocalResources.exit_status().code()));
        match self.0 {
            Some(status) if status.code() == lacks => WorkerFailure::NoResources,
            _ => WorkerFailure::Exited(self),
        }
    }
}

impl fmt::Display for ExitInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(formatter, ": {status}"),
            None => Ok(()),
        }
    }
}
