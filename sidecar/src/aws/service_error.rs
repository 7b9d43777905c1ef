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
    access_denied::denied,
    endpoint::{Call, Endpoint, Resource},
    quote::quoted,
};
use crate::session::{
    ApiError, ApiErrorKind, SSH_DOCUMENT,
    partition::{is_enabled_by_default, partition},
};

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
            Kind::BadCredentials => self.bad_credentials(&call.endpoint.region),
            Kind::Throttled => throttled(call.name()),
            Kind::SessionGone => {
                let message = "the session does not exist any more";
                ApiError::new(ApiErrorKind::SessionGone, message, "start the job again")
            }
            Kind::ServiceFailed => failed(call.name(), &self.quoted()),
            Kind::Foreign => call.foreign_answer(self.status),
            Kind::UnknownDocument => {
                let region = &call.endpoint.region;
                let message =
                    format!("`{SSH_DOCUMENT}` is not known in `{region}`: {}", self.quoted());
                let hint = "check `aws.region`; Session Manager must be offered there";
                ApiError::new(ApiErrorKind::Account, message, hint)
            }
            Kind::RegionDisabled if is_enabled_by_default(&call.endpoint.region) => {
                let hint = "finish the sign-up of the AWS account, or see in its billing console whether it is suspended";
                account(call, &self.quoted(), hint)
            }
            Kind::RegionDisabled => {
                account(call, &self.quoted(), &region_hint(&call.endpoint.region))
            }
            Kind::Quota => {
                let hint = "raise the quota that AWS names (Service Quotas), or run fewer jobs at once in this account";
                account(call, &self.quoted(), hint)
            }
            Kind::InvalidParameter => match self.wrong_field(call) {
                Some(field) => {
                    let message = format!("AWS does not take `{field}`: {}", self.quoted());
                    let hint = format!("correct `{field}` as AWS's sentence says");
                    ApiError::new(ApiErrorKind::InvalidConfig, message, hint)
                }
                None => refused(call, &self.quoted()),
            },
            Kind::Refused if self.message.contains(ADVANCED_TIER) => {
                let hint = "switch the account to the advanced-instances tier in this region (Systems Manager, \
                            Fleet Manager, account settings; AWS charges for each managed instance), or use an EC2 \
                            instance (`i-…`) as bastion: `mi-…` needs that tier for Session Manager";
                account(call, &self.quoted(), hint)
            }
            Kind::Refused => refused(call, &self.quoted()),
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

    /// Code and text of the service in backticks, for a message.
    fn quoted(&self) -> String {
        match (self.code, self.message.trim()) {
            ("", "") => format!("HTTP {}", self.status),
            ("", text) => quoted(text),
            (code, "") => quoted(code),
            (code, text) => quoted(&format!("{code}: {text}")),
        }
    }

    /// The field of the config from which the parameter comes that AWS names, as in "1 validation error detected:
    /// Value 'x' at 'target' failed to satisfy constraint: …".
    fn wrong_field(&self, call: &Call<'_>) -> Option<&'static str> {
        let fields: &[(&str, &str)] = match call.endpoint.resource {
            Resource::Instance(_) => &[
                ("target", "bastion.instance_id"),
                ("portNumber", "bastion.ssh_port"),
                ("reason", "name"),
            ],
            Resource::Role(_) => &[
                ("roleArn", "aws.assume_role.role_arn"),
                ("externalId", "aws.assume_role.external_id"),
                ("roleSessionName", "aws.assume_role.session_name"),
            ],
            Resource::Caller => &[],
        };
        let names = |parameter: &str| {
            [format!("'{parameter}'"), format!("\"{parameter}\"")]
                .iter()
                .any(|name| self.message.contains(name.as_str()))
        };
        fields.iter().find(|(parameter, _)| names(parameter)).map(|(_, field)| *field)
    }

    fn bad_credentials(&self, region: &str) -> ApiError {
        if let Some(skew) = self.skew.filter(|skew| *skew >= MAX_SKEW) {
            let minutes = skew.as_secs() / 60;
            let message =
                format!("AWS refuses the signature: this host's clock is {minutes} min off");
            return ApiError::new(ApiErrorKind::Credentials, message, "set the host's clock (NTP)")
                .blaming(Blame::Operator);
        }
        let code = quoted(self.code);
        let (message, hint) = match self.code {
            "InvalidSignatureException" | "SignatureDoesNotMatch" => (
                format!("AWS refuses the signature ({code})"),
                "check `aws.secret_access_key`: it does not belong to `aws.access_key_id`"
                    .to_owned(),
            ),
            _ => {
                let hint = "check `aws.access_key_id`, that the key is active, and that `aws.session_token` is \
                            given with temporary keys (those that begin with `ASIA`)";
                // A region that is not enabled answers as if the key did not exist.
                let hint = if is_enabled_by_default(region) {
                    hint.to_owned()
                } else {
                    format!("{}; if it is, {hint}", region_hint(region))
                };
                (format!("AWS does not know the credentials in `{region}` ({code})"), hint)
            }
        };
        ApiError::new(ApiErrorKind::Credentials, message, hint)
    }
}

/// The hint where the account has not enabled `region`.
fn region_hint(region: &str) -> String {
    format!(
        "make sure that the account has enabled the region `{region}` (AWS Account Management, AWS Regions: it is off \
         until somebody opts in) and that temporary keys come from a regional STS endpoint"
    )
}

fn account(call: &Call<'_>, quoted: &str, hint: &str) -> ApiError {
    let message = format!("a setting of the account does not allow {}: {quoted}", call.name());
    ApiError::new(ApiErrorKind::Account, message, hint)
}

fn refused(call: &Call<'_>, quoted: &str) -> ApiError {
    let message = format!("AWS refuses {}: {quoted}", call.name());
    let fields = match &call.endpoint.resource {
        Resource::Instance(_) => "`bastion.instance_id`, `bastion.ssh_port` and `aws.region`",
        Resource::Role(_) => "`aws.assume_role` and `aws.region`",
        Resource::Caller => "`aws.region`",
    };
    let hint = format!(
        "change what AWS's sentence names; if it is about a value of the config, check {fields}; CloudTrail has the \
         call by its request id"
    );
    ApiError::new(ApiErrorKind::Refused, message, hint)
}

fn not_connected(endpoint: &Endpoint) -> ApiError {
    let Endpoint { region, instance_id: instance, .. } = endpoint;
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

fn skew(date: &str) -> Option<Duration> {
    let date = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?;
    let (date, now) = (SystemTime::try_from(date).ok()?, SystemTime::now());
    now.duration_since(date).or_else(|_| date.duration_since(now)).ok()
}

/// Clock difference from which the clock is taken as the cause of a refused signature. AWS refuses from 5 min on; one
/// minute less allows for the time of the call.
const MAX_SKEW: Duration = Duration::from_mins(4);

/// Part of "Enable advanced-instances tier to use Session Manager with your on-premises instances": code `BadRequest`
/// for an instance `mi-…` in an account on the standard tier.
const ADVANCED_TIER: &str = "advanced-instances tier";

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
    /// The account has not enabled the region, or this service in it.
    RegionDisabled,
    Quota,
    /// A parameter's value is not allowed.
    InvalidParameter,
    /// Any other refusal.
    Refused,
}

/// The error codes of SSM and STS, by meaning (API references, "Common errors"; the names vary by protocol).
const KINDS: &[(&[&str], Kind)] = &[
    (&["TargetNotConnected"], Kind::TargetNotConnected),
    (&["AccessDeniedException", "AccessDenied", "UnauthorizedOperation"], Kind::AccessDenied),
    (&["OptInRequired", "RegionDisabledException"], Kind::RegionDisabled),
    (&["ServiceQuotaExceededException", "LimitExceededException"], Kind::Quota),
    (&["ValidationException", "ValidationError", "InvalidParameters"], Kind::InvalidParameter),
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
