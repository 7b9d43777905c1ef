//! Why a call of the control plane failed: refused, not answered, or never sent.

use std::error::Error;

use aws_sdk_ssm::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId as _,
};
use runner_protocol::{Blame, ErrorCode};
use serde::{Deserialize, Serialize};

use super::{
    endpoint::Call,
    service_error::{Answer, unintelligible},
};
use crate::{
    commands::error::REPORT,
    net::tls::{DISTRUST_HINT, distrust},
};

/// Why a call of the control plane failed; free of secrets.
#[derive(Clone, Debug, Deserialize, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    kind: ApiErrorKind,
    message: String,
    hint: String,
    request_id: Option<String>,
    /// Whether the same call may succeed in a while.
    may_pass: bool,
    /// Whether the call may have been carried out.
    outcome_unknown: bool,
    /// Where it is not who it most often is.
    blame: Option<Blame>,
}

/// What a failed call means to whoever made it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum ApiErrorKind {
    /// The instance's agent is not connected to Systems Manager, or there is no such instance here.
    InstanceNotConnected,
    /// The caller is known but not allowed to do this.
    AccessDenied,
    /// The caller's keys are wrong, or none were found.
    Credentials,
    /// The caller's temporary keys have run out.
    CredentialsExpired,
    /// Too many calls.
    Throttled,
    /// The service has failed.
    Internal,
    /// The service was not reached.
    Unreachable,
    /// The service was reached and has not answered.
    TimedOut,
    /// There is no such session any more.
    SessionGone,
    /// The service takes exception to a value of the document.
    Refused,
    /// The call was given up by us.
    Aborted,
}

impl ApiError {
    /// Which case it is.
    pub const fn kind(&self) -> ApiErrorKind {
        self.kind
    }

    /// The code of the contract.
    pub const fn code(&self) -> ErrorCode {
        match self.kind {
            ApiErrorKind::InstanceNotConnected => ErrorCode::AwsInstanceNotConnected,
            ApiErrorKind::AccessDenied => ErrorCode::AwsAccessDenied,
            ApiErrorKind::Credentials => ErrorCode::AwsCredentials,
            ApiErrorKind::CredentialsExpired => ErrorCode::AwsCredentialsExpired,
            ApiErrorKind::Throttled => ErrorCode::AwsThrottled,
            ApiErrorKind::Internal => ErrorCode::AwsInternal,
            ApiErrorKind::Unreachable => ErrorCode::AwsUnreachable,
            ApiErrorKind::TimedOut => ErrorCode::TimeoutStartSession,
            ApiErrorKind::SessionGone => ErrorCode::SessionEnded,
            ApiErrorKind::Refused => ErrorCode::ConfigInvalid,
            ApiErrorKind::Aborted => ErrorCode::Internal,
        }
    }

    /// What to do about it, in the imperative.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Who can cure it, where it is known not to be who it most often is.
    pub const fn blame(&self) -> Option<Blame> {
        self.blame
    }

    /// The service's name for the call, for a question to AWS.
    pub fn aws_request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// Whether the same call may succeed in a while.
    pub const fn may_pass(&self) -> bool {
        self.may_pass
    }

    /// Whether the call may have been carried out although its answer is missing.
    pub const fn outcome_unknown(&self) -> bool {
        self.outcome_unknown
    }

    /// An error of its own making, for whoever implements the trait elsewhere.
    pub fn new(kind: ApiErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let may_pass = matches!(
            kind,
            ApiErrorKind::InstanceNotConnected
                | ApiErrorKind::Throttled
                | ApiErrorKind::Internal
                | ApiErrorKind::Unreachable
                | ApiErrorKind::TimedOut
        );
        Self {
            kind,
            message: message.into(),
            hint: hint.into(),
            request_id: None,
            may_pass,
            outcome_unknown: kind == ApiErrorKind::TimedOut,
            blame: None,
        }
    }

    /// The same, for `blame` to cure.
    pub(super) fn blaming(self, blame: Blame) -> Self {
        Self { blame: Some(blame), ..self }
    }

    pub(crate) fn aborted() -> Self {
        Self::new(ApiErrorKind::Aborted, "the call was given up", REPORT)
    }

    pub(crate) fn timed_out(call: &str) -> Self {
        let message = format!("no answer to {call} in time");
        Self::new(ApiErrorKind::TimedOut, message, "try again; see the AWS Health Dashboard")
    }

    pub(crate) fn unsigned(cause: &str) -> Self {
        let message = format!("the opening of the data channel cannot be signed: {}", cut(cause));
        Self::new(ApiErrorKind::Credentials, message, "check the keys of the document")
    }

    pub(super) fn incomplete(call: &Call<'_>, missing: &str) -> Self {
        let message = format!("the answer to {} has no {missing}", call.name);
        let hint = format!("check what answers as `{}`", call.place.host);
        Self::new(ApiErrorKind::Internal, message, hint)
    }

    /// `cause`: what went wrong where credentials were looked for; none where there was nothing to look at.
    pub(crate) fn no_credentials(cause: Option<&str>, may_pass: bool) -> Self {
        let cause = cause.map(|cause| format!(": {}", cut(cause))).unwrap_or_default();
        let message = format!("no credentials in the environment{cause}");
        let hint = "give the environment credentials (variables, profile, web identity or instance \
                    role), or replace `aws.credentials` by `aws.access_key_id` and \
                    `aws.secret_access_key`";
        let error = Self { may_pass, ..Self::new(ApiErrorKind::Credentials, message, hint) };
        error.blaming(Blame::Operator)
    }

    pub(super) fn from_sdk<E>(call: &Call<'_>, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let mut found = match error {
            SdkError::ServiceError(context) => {
                Answer::new(context.err().meta(), context.raw()).judge(call)
            }
            SdkError::ResponseError(context) => {
                unintelligible(call, context.raw().status().as_u16())
            }
            SdkError::TimeoutError(_) => {
                let message =
                    format!("no answer to {} from `{}` in time", call.name, call.place.host);
                Self::new(ApiErrorKind::TimedOut, message, call.place.way_out())
            }
            SdkError::DispatchFailure(failure) => {
                let failure =
                    failure.as_connector_error().map(|error| error as &(dyn Error + 'static));
                unreached(call, failure.unwrap_or(error))
            }
            other => {
                let message =
                    format!("{} cannot be called: {}", call.name, cut(&root_cause(other)));
                let hint = "check `aws.region` and `aws.endpoint_url`";
                Self::new(ApiErrorKind::Refused, message, hint)
            }
        };
        let request_id = error.request_id().filter(|id| is_plain(id));
        found.request_id = request_id.map(str::to_owned);
        found
    }
}

fn unreached(call: &Call<'_>, error: &(dyn Error + 'static)) -> ApiError {
    let host = &call.place.host;
    if let Some(reason) = find::<rustls::Error>(error).and_then(distrust) {
        let message = format!("the certificate of `{host}` is not accepted: {reason}");
        let kind = ApiErrorKind::Unreachable;
        return ApiError { may_pass: false, ..ApiError::new(kind, message, DISTRUST_HINT) };
    }
    let connected =
        find::<hyper_util::client::legacy::Error>(error).is_some_and(|error| !error.is_connect());
    let message = format!("`{host}` cannot be reached: {}", cut(&root_cause(error)));
    let error = ApiError::new(ApiErrorKind::Unreachable, message, call.place.way_out());
    ApiError { outcome_unknown: connected, ..error }
}

/// Whether a word of a peer may be repeated as it is: a name, an ARN, an id.
pub(super) fn is_plain(word: &str) -> bool {
    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:/.*@+=,$".contains(&byte);
    !word.is_empty() && word.len() <= MAX_QUOTED && word.bytes().all(taken)
}

/// A peer's text on one line, without control characters and not too long.
pub(super) fn cut(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = line.take(MAX_QUOTED).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        short.push('…');
    }
    short.trim().to_owned()
}

/// The text of the innermost cause.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = cause(error);
    while let Some(error) = next {
        text = error.to_string();
        next = cause(error);
    }
    text
}

/// The first `E` among `error` and its causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = cause(error);
    }
    None
}

/// The cause of `error`, what an `io::Error` wraps included: its `source` leaves that out.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Longest text of a peer that is repeated, in characters.
const MAX_QUOTED: usize = 300;
