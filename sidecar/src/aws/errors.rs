//! What AWS refuses, in words that tell a customer what to change.
//!
//! Texts of the service are quoted only where they hold nothing secret: those about signatures are not,
//! since they repeat the signed request with its session token.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use aws_sdk_ssm::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId as _,
    primitives::{DateTime, DateTimeFormat},
};
use http::Uri;
use runner_protocol::ErrorCode;

use super::is_loopback;
use crate::{
    http_proxy::Proxy,
    tls::{DISTRUST_HINT, distrust},
};

/// Why a call of the control plane failed; free of secrets.
#[derive(Clone, Debug, thiserror::Error)]
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
}

/// What a failed call means to whoever made it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
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

    /// What to do about it, in the imperative; may be empty.
    pub fn hint(&self) -> &str {
        &self.hint
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
        }
    }

    pub(crate) fn aborted() -> Self {
        Self::new(ApiErrorKind::Aborted, "the call was given up", "")
    }

    pub(crate) fn timed_out(call: &str) -> Self {
        let message = format!("no answer to {call} in time");
        Self::new(ApiErrorKind::TimedOut, message, "Try again; see the AWS Health Dashboard")
    }

    pub(super) fn unsigned(cause: &str) -> Self {
        let message = format!("the opening of the data channel cannot be signed: {}", cut(cause));
        Self::new(ApiErrorKind::Credentials, message, "Check the keys of the document")
    }

    pub(super) fn incomplete(call: &Call<'_>, missing: &str) -> Self {
        let message = format!("the answer to {} has no {missing}", call.name);
        let hint = format!("Check what answers as `{}`", call.place.host);
        Self::new(ApiErrorKind::Internal, message, hint)
    }

    pub(super) fn no_credentials(cause: &str, may_pass: bool) -> Self {
        let message = format!("no credentials in the environment: {}", cut(cause));
        let hint = "Give the environment credentials (variables, profile, web identity or instance \
                    role), or replace `aws.credentials` by `aws.access_key_id` and \
                    `aws.secret_access_key`";
        Self { may_pass, ..Self::new(ApiErrorKind::Credentials, message, hint) }
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
                let hint = "Check `aws.region` and `aws.endpoint_url`";
                Self::new(ApiErrorKind::Refused, message, hint)
            }
        };
        let request_id = error.request_id().filter(|id| is_plain(id));
        found.request_id = request_id.map(str::to_owned);
        found
    }
}

/// Where calls go and whom they concern.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) region: String,
    /// As given by the document, for the SDK.
    pub(super) endpoint_url: Option<String>,
    /// Who answers.
    pub(super) host: String,
    /// The instance, or the role.
    subject: Subject,
    through_proxy: bool,
}

#[derive(Clone, Debug)]
enum Subject {
    Instance(String),
    Role(String),
}

impl Place {
    pub(super) fn new(
        region: &str,
        endpoint: Option<&Uri>,
        instance_id: &str,
        proxy: &Proxy,
    ) -> Self {
        let host = match endpoint {
            Some(endpoint) => {
                endpoint.authority().map_or("", |authority| authority.as_str()).to_owned()
            }
            None => format!("ssm.{region}.{}", suffix(region)),
        };
        Self {
            through_proxy: proxy.towards(&host).is_some(),
            region: region.to_owned(),
            endpoint_url: endpoint.map(Uri::to_string),
            host,
            subject: Subject::Instance(instance_id.to_owned()),
        }
    }

    /// The same for STS: its own regional endpoint, unless all of AWS is played by one on loopback.
    pub(super) fn for_sts(&self, role_arn: &str) -> Self {
        let subject = Subject::Role(role_arn.to_owned());
        let endpoint = self
            .endpoint_url
            .clone()
            .filter(|endpoint| endpoint.parse().is_ok_and(|endpoint: Uri| is_loopback(&endpoint)));
        let host = match endpoint {
            Some(_) => self.host.clone(),
            None => format!("sts.{}.{}", self.region, suffix(&self.region)),
        };
        Self { endpoint_url: endpoint, host, subject, ..self.clone() }
    }

    fn partition(&self) -> &'static str {
        match self.region.split('-').next() {
            Some("cn") => "aws-cn",
            Some("us") if self.region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        }
    }

    fn way_out(&self) -> String {
        let proxy = if self.through_proxy {
            "look into the proxy of `HTTPS_PROXY` that it goes through"
        } else {
            "or name a proxy in `HTTPS_PROXY`"
        };
        let host = &self.host;
        format!(
            "Check `aws.region`, allow outgoing HTTPS to `{host}`, {proxy}; for a private endpoint set \
             `aws.endpoint_url`"
        )
    }
}

/// One call, for the words about its failure.
pub(super) struct Call<'a> {
    pub(super) name: &'static str,
    pub(super) action: &'static str,
    pub(super) place: &'a Place,
}

/// An error that the service has sent.
struct Answer<'a> {
    code: &'a str,
    message: &'a str,
    status: u16,
    /// How far the service's clock is from ours.
    skew: Option<Duration>,
}

impl<'a> Answer<'a> {
    fn new(meta: &'a aws_sdk_ssm::error::ErrorMetadata, raw: &HttpResponse) -> Self {
        Self {
            code: meta.code().unwrap_or_default(),
            message: meta.message().unwrap_or_default(),
            status: raw.status().as_u16(),
            skew: raw.headers().get("date").and_then(skew),
        }
    }

    fn judge(&self, call: &Call<'_>) -> ApiError {
        let name = call.name;
        let quoted = || match (self.code, cut(self.message)) {
            ("", _) => format!("HTTP {}", self.status),
            (code, text) if text.is_empty() => cut(code),
            (code, text) => format!("{}: {text}", cut(code)),
        };
        match self.code {
            "TargetNotConnected" => not_connected(call.place),
            "AccessDeniedException"
            | "AccessDenied"
            | "UnauthorizedOperation"
            | "OptInRequired" => denied(call, self.message),
            "ExpiredTokenException" | "ExpiredToken" => {
                let message = "the temporary AWS credentials have expired";
                let hint = "Give new ones: in the document, or while the tunnel is up as a `credentials` \
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
                ApiError::new(ApiErrorKind::SessionGone, "the session does not exist any more", "")
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
                let hint = "Check `aws.region`; Session Manager must be offered there";
                ApiError::new(ApiErrorKind::Refused, message, hint)
            }
            _ => {
                let message = format!("{name} was refused: {}", quoted());
                let hint = match &call.place.subject {
                    Subject::Instance(_) => {
                        "Check `bastion.instance_id`, `bastion.ssh_port` and `aws.region`"
                    }
                    Subject::Role(_) => "Check `aws.assume_role` and `aws.region`",
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
            return ApiError::new(ApiErrorKind::Credentials, message, "Set the host's clock (NTP)");
        }
        let code = cut(self.code);
        let (message, hint) = match self.code {
            "InvalidSignatureException" | "SignatureDoesNotMatch" => (
                format!("AWS refuses the signature ({code})"),
                "Check `aws.secret_access_key`: it does not belong to `aws.access_key_id`",
            ),
            _ => (
                format!("AWS does not know the credentials ({code})"),
                "Check `aws.access_key_id`, that the key is active, and that `aws.session_token` is \
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
    let suffix = suffix(region);
    let hint = format!(
        "Check `bastion.instance_id`, `aws.region` and the account of the keys; that the instance runs and \
         its SSM agent with it; that its instance profile has `AmazonSSMManagedInstanceCore`; and that \
         it reaches `ssm.{region}.{suffix}` and `ssmmessages.{region}.{suffix}` on port 443"
    );
    ApiError::new(ApiErrorKind::InstanceNotConnected, message, hint)
}

fn throttled(name: &str) -> ApiError {
    let message = format!("AWS throttles {name}");
    ApiError::new(ApiErrorKind::Throttled, message, "Start fewer sessions at once in this account")
}

fn failed(name: &str, quoted: &str) -> ApiError {
    let message = format!("AWS failed to carry out {name}: {quoted}");
    ApiError::new(ApiErrorKind::Internal, message, "Try again; see the AWS Health Dashboard")
}

fn unintelligible(call: &Call<'_>, status: u16) -> ApiError {
    let Call { name, place, .. } = call;
    let message =
        format!("what `{}` answers to {name} is not from AWS (HTTP {status})", place.host);
    let hint = "Look for a proxy or a captive portal on the way, and check `aws.endpoint_url`";
    ApiError::new(ApiErrorKind::Internal, message, hint)
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
    let verb = if text.contains("explicit deny") { "Remove the explicit deny of" } else { "Allow" };
    let (region, partition) = (&place.region, place.partition());
    let further = match (&place.subject, call.name) {
        (Subject::Role(_), _) => {
            "; the role's trust policy must name it too, with the external id if there is one"
                .to_owned()
        }
        (Subject::Instance(id), "StartSession") => format!(
            "; it is needed on the instance `{id}` and on \
             `arn:{partition}:ssm:{region}::document/AWS-StartSSHSession`"
        ),
        _ => format!("; it is needed on `arn:{partition}:ssm:*:*:session/${{aws:userid}}-*`"),
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

/// Whether a word of a peer may be repeated as it is: a name, an ARN, an id.
fn is_plain(word: &str) -> bool {
    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:/.*@+=,$".contains(&byte);
    !word.is_empty() && word.len() <= MAX_QUOTED && word.bytes().all(taken)
}

/// A peer's text on one line, without control characters and not too long.
fn cut(text: &str) -> String {
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

fn skew(date: &str) -> Option<Duration> {
    let date = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?;
    let (date, now) = (SystemTime::try_from(date).ok()?, SystemTime::now());
    now.duration_since(date).or_else(|_| date.duration_since(now)).ok()
}

fn suffix(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

/// Longest text of a peer that is repeated, in characters.
const MAX_QUOTED: usize = 300;

/// Clock difference at which signatures begin to be refused: 5 min, less the time of the call.
const MAX_SKEW: Duration = Duration::from_mins(4);
