//! Converts the errors of all layers into the content of the `failed` line.

use std::error::Error;

use runner_protocol::{Blame, ErrorCode, Failure};

use super::phase::Phase;

/// An error that can end the job. Each layer implements it beside its own enum, so that a new variant does not
/// compile without code and hint.
pub(crate) trait ToFailure: Error {
    /// The code of the contract.
    fn code(&self) -> ErrorCode;

    /// What to change, in the imperative.
    fn hint(&self) -> String;

    /// Who can fix the cause; `None`: as the code implies.
    fn blame(&self) -> Option<Blame> {
        None
    }

    /// The AWS request id of the failed call.
    fn aws_request_id(&self) -> Option<&str> {
        None
    }

    /// Returns the content of the `failed` line. `phase`: the phase in which it failed.
    fn to_failure(&self, phase: Phase) -> Failure
    where
        Self: Sized,
    {
        let mut failure = Failure::new(self.code(), chain(self), self.hint(), phase.name());
        failure.blame = self.blame().unwrap_or(failure.blame);
        failure.aws_request_id = self.aws_request_id().map(str::to_owned);
        failure
    }
}

/// A defect of this program.
#[derive(Clone, Debug, thiserror::Error)]
#[error("internal error: {0}")]
pub(crate) struct InternalError(String);

impl InternalError {
    /// `what` happened, in lower case.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl ToFailure for InternalError {
    fn code(&self) -> ErrorCode {
        ErrorCode::Internal
    }

    fn hint(&self) -> String {
        Failure::REPORT_HINT.to_owned()
    }
}

/// The error and its causes, joined by colons; a cause whose text is part of the text so far is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
