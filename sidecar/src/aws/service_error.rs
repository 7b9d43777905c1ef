//! An error that the service has sent, as an [`ApiError`] with a hint.
//!
//! The service's texts are quoted only where they hold no secret. Those about signatures are not quoted: they repeat
//! the signed request with its session token.

use std::time::{Duration, SystemTime};

use aws_sdk_ssm::{
    config::http::HttpResponse,
    error::ErrorMetadata,
    primitives::{DateTime, DateTimeFormat},
};
use runner_protocol::Blame;

use super::{
    endpoint::{Call, Endpoint, Resource},
    quote::{is_plain, shorten},
};
use crate::session::{ApiError, ApiErrorKind, IamAction, SSH_DOCUMENT, partition::partition};

/// An error that the service has sent.
pub(super) struct ServiceError<'a> {
    code: &'a str,
    message: &'a str,
    status: u16,
    /// How far this host's clock is off the service's, in either direction; `None` without a `Date` header.
    skew: Option<Duration>,
}

impl<'a> ServiceError<'a> {
    pub(super) fn new(meta: &'a ErrorMetadata, raw: &HttpResponse) -> Self {
        Self {
            code: meta.code().unwrap_or_default(),
            message: meta.message().unwrap_or_default(),
            status: raw.status().as_u16(),
            skew: raw.headers().get("date").and_then(skew),
        }
    }

    pub(super) fn into_api_error(self, call: &Call<'_>) -> ApiError {
        match self.kind() {
            Kind::TargetNotConnected => not_connected(call.endpoint),
            Kind::AccessDenied => denied(call, self.message),
            Kind::ExpiredToken => {
                let message = "the temporary AWS credentials have expired";
                let hint = "give new ones: in the config, or while the tunnel is up as a `credentials` \
                            line on stdin";
                ApiError::new(ApiErrorKind::CredentialsExpired, message, hint)
            }
            Kind::BadCredentials => self.bad_credentials(),
            Kind::Throttled => throttled(call.name()),
            Kind::SessionGone => {
                let message = "the session does not exist any more";
                ApiError::new(ApiErrorKind::SessionGone, message, "start the job again")
            }
            Kind::ServiceFailed => failed(call.name(), &self.quoted()),
            Kind::Foreign => call.foreign_answer(self.status),
            Kind::UnknownDocument => {
                let region = &call.endpoint.region;
                let message = format!("`{SSH_DOCUMENT}` is not known in `{region}`");
                let hint = "check `aws.region`; Session Manager must be offered there";
                ApiError::new(ApiErrorKind::Refused, message, hint)
            }
            Kind::Refused => {
                let message = format!("{} was refused: {}", call.name(), self.quoted());
                let hint = match &call.endpoint.resource {
                    Resource::Instance(_) => {
                        "check `bastion.instance_id`, `bastion.ssh_port` and `aws.region`"
                    }
                    Resource::Role(_) => "check `aws.assume_role` and `aws.region`",
                };
                ApiError::new(ApiErrorKind::Refused, message, hint)
            }
        }
    }

    fn kind(&self) -> Kind {
        let known = KINDS.iter().find(|(codes, _)| codes.contains(&self.code));
        match (known, self.status) {
            (Some((_, kind)), _) => *kind,
            (None, 429) => Kind::Throttled,
            (None, 500..) => Kind::ServiceFailed,
            // AWS always sends a code: most likely the answer is a proxy's.
            (None, _) if self.code.is_empty() => Kind::Foreign,
            (None, _) => Kind::Refused,
        }
    }

    /// Code and text of the service, for a message.
    fn quoted(&self) -> String {
        match (self.code, shorten(self.message)) {
            ("", _) => format!("HTTP {}", self.status),
            (code, text) if text.is_empty() => shorten(code),
            (code, text) => format!("{}: {}", shorten(code), text.trim_end_matches('.')),
        }
    }

    fn bad_credentials(&self) -> ApiError {
        if let Some(skew) = self.skew.filter(|skew| *skew >= MAX_SKEW) {
            let minutes = skew.as_secs() / 60;
            let message =
                format!("AWS refuses the signature: this host's clock is {minutes} min off");
            return ApiError::new(ApiErrorKind::Credentials, message, "set the host's clock (NTP)")
                .blaming(Blame::Operator);
        }
        let code = shorten(self.code);
        let (message, hint) = match self.code {
            "InvalidSignatureException" | "SignatureDoesNotMatch" => (
                format!("AWS refuses the signature ({code})"),
                "check `aws.secret_access_key`: it does not belong to `aws.access_key_id`",
            ),
            _ => (
                format!("AWS does not know the credentials ({code})"),
                "check `aws.access_key_id`, that the key is active, and that `aws.session_token` is \
                 given with temporary keys (those that begin with `ASIA`)",
            ),
        };
        ApiError::new(ApiErrorKind::Credentials, message, hint)
    }
}

fn not_connected(endpoint: &Endpoint) -> ApiError {
    let Endpoint { region, resource, .. } = endpoint;
    let instance = match resource {
        Resource::Instance(id) | Resource::Role(id) => id,
    };
    let message =
        format!("instance `{instance}` is not connected to Systems Manager in `{region}`");
    let suffix = partition(region).suffix;
    let hint = format!(
        "check five things: (1) `bastion.instance_id`, `aws.region` and the account of the keys; (2) that the \
         instance runs; (3) that its SSM agent runs; (4) that its instance profile has \
         `AmazonSSMManagedInstanceCore`; (5) that it reaches `ssm.{region}.{suffix}` and \
         `ssmmessages.{region}.{suffix}` on port 443"
    );
    ApiError::new(ApiErrorKind::InstanceNotConnected, message, hint)
}

fn throttled(name: &str) -> ApiError {
    let message = format!("AWS throttles {name}");
    let hint = "start fewer sessions at once in this account, and try again later";
    ApiError::new(ApiErrorKind::Throttled, message, hint)
}

fn failed(name: &str, quoted: &str) -> ApiError {
    let message = format!("AWS failed to carry out {name}: {quoted}");
    ApiError::new(ApiErrorKind::Internal, message, "try again; see the AWS Health Dashboard")
}

fn denied(call: &Call<'_>, text: &str) -> ApiError {
    let Endpoint { region, resource: called, .. } = call.endpoint;
    let denied = AccessDenied::parse(text);
    let action = denied.action.unwrap_or(call.action.as_str());
    let resource = denied.resource.map(str::to_owned).or_else(|| match called {
        Resource::Role(arn) => Some(arn.clone()),
        Resource::Instance(_) => None,
    });
    let on = resource.map(|resource| format!(" on `{resource}`")).unwrap_or_default();
    let message = format!("`{action}` is not allowed{on}");
    let principal = denied.principal.map(|who| format!(" for `{who}`")).unwrap_or_default();
    // AWS ends its text with "because no identity-based policy allows the … action" or "with an explicit deny in …"
    // (IAM user guide, "Troubleshoot access denied error messages").
    let verb = if text.contains("explicit deny") { "remove the explicit deny of" } else { "allow" };
    let further = match (called, call.action) {
        (Resource::Role(_), _) => {
            "; the role's trust policy must allow the same caller, with the external id if there is one"
                .to_owned()
        }
        (Resource::Instance(id), IamAction::StartSession) => format!(
            "; it is needed on the instance `{id}` and on \
             `arn:{}:ssm:{region}::document/{SSH_DOCUMENT}`",
            partition(region).id
        ),
        _ => "; `ssm-sidecar policy` prints the statement".to_owned(),
    };
    let hint = format!("{verb} `{action}`{on}{principal}{further}");
    ApiError::new(ApiErrorKind::AccessDenied, message, hint).denying(IamAction::from_name(action))
}

/// The parts of AWS's text "User: U is not authorized to perform: A on resource: R because …".
#[derive(Debug, Default, Eq, PartialEq)]
struct AccessDenied<'a> {
    principal: Option<&'a str>,
    action: Option<&'a str>,
    resource: Option<&'a str>,
}

impl<'a> AccessDenied<'a> {
    fn parse(text: &'a str) -> Self {
        let after = |label: &str| {
            let (_, rest) = text.split_once(label)?;
            let word = rest.split_whitespace().next()?;
            Some(word.trim_end_matches(['.', ','])).filter(|word| is_plain(word))
        };
        Self {
            principal: after("User: "),
            action: after("perform: "),
            resource: after("on resource: "),
        }
    }
}

fn skew(date: &str) -> Option<Duration> {
    let date = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?;
    let (date, now) = (SystemTime::try_from(date).ok()?, SystemTime::now());
    now.duration_since(date).or_else(|_| date.duration_since(now)).ok()
}

/// Clock difference from which the clock is taken as the cause of a refused signature. AWS refuses from 5 min on; one
/// minute less allows for the time of the call.
const MAX_SKEW: Duration = Duration::from_mins(4);

/// What an error code means.
#[derive(Clone, Copy)]
enum Kind {
    TargetNotConnected,
    AccessDenied,
    ExpiredToken,
    BadCredentials,
    Throttled,
    SessionGone,
    ServiceFailed,
    /// Not from AWS.
    Foreign,
    UnknownDocument,
    /// Any other refusal.
    Refused,
}

/// The error codes of SSM and STS, by meaning (API references, "Common errors"; the names vary by protocol).
const KINDS: &[(&[&str], Kind)] = &[
    (&["TargetNotConnected"], Kind::TargetNotConnected),
    (
        &["AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "OptInRequired"],
        Kind::AccessDenied,
    ),
    (&["ExpiredTokenException", "ExpiredToken"], Kind::ExpiredToken),
    (
        &[
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "InvalidAccessKeyId",
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "RequestExpired",
            "RequestTimeTooSkewed",
            "AuthFailure",
            "InvalidToken",
            "NotAuthorized",
        ],
        Kind::BadCredentials,
    ),
    (
        &[
            "ThrottlingException",
            "Throttling",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "TooManyRequestsException",
            "RequestLimitExceeded",
            "SlowDown",
        ],
        Kind::Throttled,
    ),
    (&["DoesNotExistException"], Kind::SessionGone),
    (
        &[
            "InternalServerError",
            "InternalFailure",
            "InternalError",
            "ServiceUnavailable",
            "ServiceUnavailableException",
            "RequestTimeout",
            "RequestTimeoutException",
        ],
        Kind::ServiceFailed,
    ),
    (&["InvalidDocument"], Kind::UnknownDocument),
];
