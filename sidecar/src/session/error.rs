//! Why a call of the control plane failed: refused, not answered, or never sent.

use runner_protocol::{Blame, ErrorCode, Failure};
use serde::{Deserialize, Serialize};

use super::IamAction;
use crate::runtime::failure::ToFailure;

/// Why a call of the control plane failed. Free of secrets.
#[derive(Clone, Debug, Deserialize, Serialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    kind: ApiErrorKind,
    message: String,
    hint: String,
    request_id: Option<String>,
    is_transient: bool,
    outcome_unknown: bool,
    session_created: bool,
    blame: Option<Blame>,
    denied_action: Option<IamAction>,
}

/// The kinds of failed calls that callers treat differently.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) enum ApiErrorKind {
    /// The instance's agent is not connected to Systems Manager, or there is no such instance here.
    InstanceNotConnected,
    /// The credentials are valid, but not allowed to do this.
    AccessDenied,
    /// The credentials are wrong, or none were found.
    Credentials,
    /// The temporary credentials have expired.
    CredentialsExpired,
    Throttled,
    /// The service failed.
    Internal,
    /// There was no connection to the service.
    Unreachable,
    /// A certificate on the way to the service is not trusted.
    Untrusted,
    /// The proxy refuses for good, or is none.
    Proxy,
    /// This host lacks a thread, memory or a descriptor.
    Resources,
    /// The service did not answer in time.
    TimedOut,
    /// The session does not exist any more.
    SessionGone,
    /// The service refuses the call for a reason that has no kind of its own.
    Refused,
    /// A setting of the account or region stands in the way.
    Account,
    /// A value of the config is wrong; the message names its field.
    InvalidConfig,
    /// This process gave the call up.
    Aborted,
}

impl ApiError {
    pub(crate) fn new(
        kind: ApiErrorKind,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let is_transient = matches!(
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
            is_transient,
            outcome_unknown: kind == ApiErrorKind::TimedOut,
            session_created: false,
            blame: None,
            denied_action: None,
        }
    }

    /// The call was given up by this process.
    pub(crate) fn aborted() -> Self {
        Self::new(ApiErrorKind::Aborted, "the call was given up", Failure::REPORT_HINT)
    }

    /// No answer to `call`, such as `TerminateSession`, in the time for all its attempts.
    pub(crate) fn timed_out(call: IamAction) -> Self {
        let message = format!("no answer to {} in time", call.operation());
        Self::new(ApiErrorKind::TimedOut, message, "try again; see the AWS Health Dashboard")
    }

    pub(crate) fn blaming(self, blame: Blame) -> Self {
        Self { blame: Some(blame), ..self }
    }

    pub(crate) fn denying(self, action: Option<IamAction>) -> Self {
        Self { denied_action: action, ..self }
    }

    pub(crate) fn with_request_id(self, request_id: Option<String>) -> Self {
        Self { request_id, ..self }
    }

    pub(crate) fn with_transience(self, is_transient: bool) -> Self {
        Self { is_transient, ..self }
    }

    pub(crate) fn with_unknown_outcome(self, outcome_unknown: bool) -> Self {
        Self { outcome_unknown, ..self }
    }

    /// The call has created a session all the same, which cannot be used.
    pub(crate) fn with_session_created(self) -> Self {
        Self { session_created: true, ..self }
    }

    pub(crate) const fn session_created(&self) -> bool {
        self.session_created
    }

    pub(crate) const fn kind(&self) -> ApiErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    pub(crate) const fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// Whether the call may have been carried out although its answer is missing.
    pub(crate) const fn outcome_unknown(&self) -> bool {
        self.outcome_unknown
    }

    /// The action that a policy does not allow; `None` for other errors, and for an action that [`IamAction`] lacks.
    pub(crate) const fn denied_action(&self) -> Option<IamAction> {
        self.denied_action
    }
}

impl ToFailure for ApiError {
    fn code(&self) -> ErrorCode {
        match self.kind {
            ApiErrorKind::InstanceNotConnected => ErrorCode::AwsInstanceNotConnected,
            ApiErrorKind::AccessDenied => ErrorCode::AwsAccessDenied,
            ApiErrorKind::Credentials => ErrorCode::AwsCredentials,
            ApiErrorKind::CredentialsExpired => ErrorCode::AwsCredentialsExpired,
            ApiErrorKind::Throttled => ErrorCode::AwsThrottled,
            ApiErrorKind::Internal => ErrorCode::AwsInternal,
            ApiErrorKind::Unreachable => ErrorCode::AwsUnreachable,
            ApiErrorKind::Untrusted => ErrorCode::AwsUntrusted,
            ApiErrorKind::Proxy => ErrorCode::LocalProxy,
            ApiErrorKind::Resources => ErrorCode::LocalResources,
            ApiErrorKind::TimedOut => ErrorCode::TimeoutStartSession,
            ApiErrorKind::SessionGone => ErrorCode::SessionEnded,
            ApiErrorKind::Refused => ErrorCode::AwsRefused,
            ApiErrorKind::Account => ErrorCode::AwsAccount,
            ApiErrorKind::InvalidConfig => ErrorCode::ConfigInvalid,
            ApiErrorKind::Aborted => ErrorCode::Internal,
        }
    }

    fn hint(&self) -> String {
        self.hint.clone()
    }

    fn blame(&self) -> Option<Blame> {
        self.blame
    }

    fn aws_request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}
