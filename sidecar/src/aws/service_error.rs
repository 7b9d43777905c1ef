//! An error that the service has sent, in words that tell a customer what to change.
//!
//! Texts of the service are quoted only where they hold nothing secret: those about signatures are not,
//! since they repeat the signed request with its session token.

use std::time::{Duration, SystemTime};

use aws_sdk_ssm::{
    config::http::HttpResponse,
    error::ErrorMetadata,
    primitives::{DateTime, DateTimeFormat},
};

use runner_protocol::Blame;

use super::{
    endpoint::{Call, Place, Subject},
    partition,
    sdk_error::{ApiError, ApiErrorKind, cut, is_plain},
};

/// An error that the service has sent.
pub(super) struct Answer<'a> {
    code: &'a str,
    message: &'a str,
    status: u16,
    /// How far the service's clock is from ours.
    skew: Option<Duration>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(meta: &'a ErrorMetadata, raw: &HttpResponse) -> Self {
        Self {
            code: meta.code().unwrap_or_default(),
            message: meta.message().unwrap_or_default(),
            status: raw.status().as_u16(),
            skew: raw.headers().get("date").and_then(skew),
        }
    }

    pub(super) fn judge(&self, call: &Call<'_>) -> ApiError {
        let name = call.name;
        let quoted = || match (self.code, cut(self.message)) {
            ("", _) => format!("HTTP {}", self.status),
            (code, text) if text.is_empty() => cut(code),
            (code, text) => format!("{}: {}", cut(code), text.trim_end_matches('.')),
        };
        match self.code {
            "TargetNotConnected" => not_connected(call.place),
            "AccessDeniedException"
            | "AccessDenied"
            | "UnauthorizedOperation"
            | "OptInRequired" => denied(call, self.message),
            "ExpiredTokenException" | "ExpiredToken" => {
                let message = "the temporary AWS credentials have expired";
                let hint = "give new ones: in the document, or while the tunnel is up as a `credentials` \
                            line on stdin";
                ApiError::new(ApiErrorKind::CredentialsExpired, message, hint)
            }
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "RequestExpired"
            | "RequestTimeTooSkewed"
            | "AuthFailure"
            | "InvalidToken"
            | "NotAuthorized" => self.bad_credentials(),
            "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "SlowDown" => throttled(name),
            "DoesNotExistException" => {
                let message = "the session does not exist any more";
                ApiError::new(ApiErrorKind::SessionGone, message, "start the job again")
            }
            _ if self.status == 429 => throttled(name),
            "InternalServerError"
            | "InternalFailure"
            | "InternalError"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "RequestTimeout"
            | "RequestTimeoutException" => failed(name, &quoted()),
            _ if self.status >= 500 => failed(name, &quoted()),
            // An answer without code is not from AWS, most likely from a proxy on the way.
            "" => unintelligible(call, self.status),
            "InvalidDocument" => {
                let message =
                    format!("`AWS-StartSSHSession` is not known in `{}`", call.place.region);
                let hint = "check `aws.region`; Session Manager must be offered there";
                ApiError::new(ApiErrorKind::Refused, message, hint)
            }
            _ => {
                let message = format!("{name} was refused: {}", quoted());
                let hint = match &call.place.subject {
                    Subject::Instance(_) => {
                        "check `bastion.instance_id`, `bastion.ssh_port` and `aws.region`"
                    }
                    Subject::Role(_) => "check `aws.assume_role` and `aws.region`",
                };
                ApiError::new(ApiErrorKind::Refused, message, hint)
            }
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
        let code = cut(self.code);
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

fn not_connected(place: &Place) -> ApiError {
    let Place { region, subject, .. } = place;
    let instance = match subject {
        Subject::Instance(id) | Subject::Role(id) => id,
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

/// For an answer that the service itself would not give.
pub(super) fn unintelligible(call: &Call<'_>, status: u16) -> ApiError {
    let Call { name, place, .. } = call;
    let message =
        format!("what `{}` answers to {name} is not from AWS (HTTP {status})", place.host);
    let hint = "look for a proxy or a captive portal on the way, and check `aws.endpoint_url`";
    ApiError::new(ApiErrorKind::Internal, message, hint).blaming(Blame::Operator)
}

fn denied(call: &Call<'_>, text: &str) -> ApiError {
    let place = call.place;
    let denial = Denial::parse(text);
    let action = denial.action.unwrap_or(call.action);
    let resource = denial.resource.map(str::to_owned).or_else(|| match &place.subject {
        Subject::Role(arn) => Some(arn.clone()),
        Subject::Instance(_) => None,
    });
    let on = resource.as_ref().map(|resource| format!(" on `{resource}`")).unwrap_or_default();
    let message = format!("`{action}` is not allowed{on}");
    let who = denial.principal.map(|who| format!(" for `{who}`")).unwrap_or_default();
    // AWS ends its text with "because no identity-based policy allows the … action" or "with an explicit deny in …"
    // (IAM user guide, "Troubleshoot access denied error messages").
    let verb = if text.contains("explicit deny") { "remove the explicit deny of" } else { "allow" };
    let (region, partition) = (&place.region, partition(&place.region).id);
    let further = match (&place.subject, call.name) {
        (Subject::Role(_), _) => {
            "; the role's trust policy must allow the same caller, with the external id if there is one"
                .to_owned()
        }
        (Subject::Instance(id), "StartSession") => format!(
            "; it is needed on the instance `{id}` and on \
             `arn:{partition}:ssm:{region}::document/AWS-StartSSHSession`"
        ),
        _ => "; `ssm-sidecar policy` prints the statement".to_owned(),
    };
    let hint = format!("{verb} `{action}`{on}{who}{further}");
    ApiError::new(ApiErrorKind::AccessDenied, message, hint)
}

/// What AWS says in "User: U is not authorized to perform: A on resource: R because …".
#[derive(Debug, Default, Eq, PartialEq)]
struct Denial<'a> {
    principal: Option<&'a str>,
    action: Option<&'a str>,
    resource: Option<&'a str>,
}

impl<'a> Denial<'a> {
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

/// Clock difference at which signatures begin to be refused: 5 min, less the time of the call.
const MAX_SKEW: Duration = Duration::from_mins(4);
