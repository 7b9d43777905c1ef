//! Converts an error of the SDK into an [`ApiError`].

use std::error::Error;

use aws_sdk_ssm::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId as _,
};
use runner_protocol::Blame;

use super::{
    endpoint::Call,
    quote::{is_plain, shorten},
    service_error::ServiceError,
};
use crate::{
    net::dial::ConnectError,
    runtime::failure::chain,
    session::{ApiError, ApiErrorKind},
};

pub(super) fn from_sdk<E>(call: &Call<'_>, error: &SdkError<E>) -> ApiError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let found = match error {
        SdkError::ServiceError(context) => {
            ServiceError::new(context.err().meta(), context.raw()).into_api_error(call)
        }
        SdkError::ResponseError(context) => call.foreign_answer(context.raw().status().as_u16()),
        SdkError::TimeoutError(_) => {
            let host = &call.endpoint.host;
            let message = format!("no answer to {} from `{host}` in time", call.name());
            ApiError::new(ApiErrorKind::TimedOut, message, call.endpoint.connectivity_hint())
        }
        SdkError::DispatchFailure(failure) => {
            let failure = failure.as_connector_error().map(|error| error as &(dyn Error + 'static));
            not_sent(call, failure.unwrap_or(error))
        }
        other => {
            let cause = shorten(&root_cause(other));
            let message = format!("{} cannot be called: {cause}", call.name());
            let hint = "check `aws.region` and `aws.endpoint_url`";
            ApiError::new(ApiErrorKind::InvalidConfig, message, hint)
        }
    };
    let request_id = error.request_id().filter(|id| is_plain(id));
    found.with_request_id(request_id.map(str::to_owned))
}

/// The error for an opening of a data channel that cannot be signed.
pub(super) fn unsigned(cause: &str) -> ApiError {
    let message = format!("the opening of the data channel cannot be signed: {}", shorten(cause));
    ApiError::new(ApiErrorKind::Credentials, message, "check the keys of the config")
}

/// The error where the host's environment gives no credentials. `cause`: why looking for them failed; `None`: there are
/// none.
pub(super) fn no_credentials(cause: Option<&str>, is_transient: bool) -> ApiError {
    let cause = cause.map(|cause| format!(": {}", shorten(cause))).unwrap_or_default();
    let message = format!("no credentials in the environment{cause}");
    let hint = "give the environment credentials (variables, profile, web identity or instance \
                role), or replace `aws.credentials` by `aws.access_key_id` and \
                `aws.secret_access_key`";
    ApiError::new(ApiErrorKind::Credentials, message, hint)
        .with_transience(is_transient)
        .blaming(Blame::Operator)
}

fn not_sent(call: &Call<'_>, error: &(dyn Error + 'static)) -> ApiError {
    if let Some(error) = find::<ConnectError>(error) {
        return not_connected(call, error);
    }
    let host = &call.endpoint.host;
    let message = format!("`{host}` cannot be reached: {}", shorten(&root_cause(error)));
    // The connection was open: the call may have arrived.
    ApiError::new(ApiErrorKind::Unreachable, message, call.endpoint.connectivity_hint())
        .with_unknown_outcome(true)
}

fn not_connected(call: &Call<'_>, error: &ConnectError) -> ApiError {
    let (kind, message) = match error {
        ConnectError::Unreachable { is_proxy: false, cause, .. } => {
            let host = &call.endpoint.host;
            (ApiErrorKind::Unreachable, format!("`{host}` cannot be reached: {}", shorten(cause)))
        }
        ConnectError::Proxy { cause, .. } => {
            let kind =
                if cause.is_transient() { ApiErrorKind::Unreachable } else { ApiErrorKind::Proxy };
            (kind, chain(error))
        }
        ConnectError::Unreachable { .. } => (ApiErrorKind::Unreachable, chain(error)),
        ConnectError::Untrusted { .. } => (ApiErrorKind::Untrusted, chain(error)),
        ConnectError::Resources(_) => (ApiErrorKind::Resources, chain(error)),
    };
    ApiError::new(kind, message, error.hint_or(|_| call.endpoint.connectivity_hint()))
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

/// The cause of `error`, with what an `io::Error` wraps, which its `source` leaves out.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
