//! Joins the errors of all layers that a command can fail with.

use runner_protocol::{Blame, ErrorCode, Failure};

use crate::{
    config::SettingsError,
    monitor::WorkerFailure,
    net::proxy::InvalidProxy,
    runner::config_reader::ReadError,
    runtime::{
        failure::{InternalError, ToFailure},
        hardening::MissingProtection,
        phase::Phase,
        resources::MissingResource,
    },
    tunnel::{health::HealthError, listener::ListenError},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A protection that the config requires is missing.
    #[error(transparent)]
    Hardening(#[from] MissingProtection),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Health(#[from] HealthError),
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// The host does not start the worker process.
    #[error("the worker process cannot be started")]
    NoWorker(#[source] std::io::Error),
    #[error(transparent)]
    Resources(#[from] MissingResource),
    #[error(transparent)]
    Worker(#[from] WorkerFailure),
    #[error(transparent)]
    Internal(#[from] InternalError),
}

impl Error {
    /// The host does not start the worker process.
    pub(crate) fn no_worker(error: std::io::Error) -> Self {
        MissingResource::of_process(&error).map_or(Self::NoWorker(error), Self::Resources)
    }

    /// tokio's runtime cannot be built.
    pub(crate) fn no_runtime(error: &std::io::Error) -> Self {
        match MissingResource::of(error) {
            Some(missing) => missing.into(),
            None => InternalError::new(format!("no runtime: {error}")).into(),
        }
    }

    /// Returns the content of the `failed` line; `phase` is the one that ran.
    pub(crate) fn into_failure(self, phase: Phase) -> Failure {
        let phase = match &self {
            Self::Read(_) | Self::Settings(_) => Phase::Config,
            _ => phase,
        };
        self.to_failure(phase)
    }

    /// The error of the layer below; `None` for those of this enum.
    fn inner(&self) -> Option<&dyn ToFailure> {
        Some(match self {
            Self::Read(error) => error,
            Self::Settings(error) => error,
            Self::Hardening(error) => error,
            Self::Listen(error) => error,
            Self::Health(error) => error,
            Self::Proxy(error) => error,
            Self::Resources(error) => error,
            Self::Worker(error) => error,
            Self::Internal(error) => error,
            Self::NoWorker(_) => return None,
        })
    }
}

impl ToFailure for Error {
    fn code(&self) -> ErrorCode {
        self.inner().map_or(ErrorCode::LocalHardening, ToFailure::code)
    }

    fn hint(&self) -> String {
        let own = || "let the sidecar start a second process of itself: mount /proc".to_owned();
        self.inner().map_or_else(own, ToFailure::hint)
    }

    fn blame(&self) -> Option<Blame> {
        self.inner().and_then(ToFailure::blame)
    }

    fn aws_request_id(&self) -> Option<&str> {
        self.inner().and_then(ToFailure::aws_request_id)
    }
}

#[cfg(test)]
mod tests;
