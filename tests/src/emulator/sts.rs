//! STS: `AssumeRole` and `GetCallerIdentity` in the query protocol.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

use super::{
    call::{ApiError, Call},
    clock,
    credentials::{AuthError, Key, Principal},
    service::Service,
    sigv4::form_decode,
};

/// The keys issued by `AssumeRole`.
pub(crate) struct Assumed {
    id: String,
    secret: String,
    token: String,
    expires: SystemTime,
    principal: Arc<Principal>,
}

/// Whether a call is `GetCallerIdentity`.
pub(crate) fn is_get_caller_identity(call: &Call) -> bool {
    call.body.split(|byte| *byte == b'&').any(|pair| pair == b"Action=GetCallerIdentity")
}

/// Returns the caller, which needs no permission.
pub(crate) fn caller_identity(call: &Call, service: &Service) -> Result<Arc<Principal>, ApiError> {
    call.caller(service, "sts").map_err(refuse)
}

/// Status and body of the response to `GetCallerIdentity`.
pub(crate) fn render_identity(
    outcome: Result<Arc<Principal>, ApiError>,
    id: Uuid,
) -> (u16, String) {
    match outcome {
        Ok(principal) => {
            let account = principal.arn.split(':').nth(4).unwrap_or_default();
            let body = format!(
                "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>{}</Arn>\
                 <UserId>{}</UserId><Account>{account}</Account></GetCallerIdentityResult>\
                 <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>\
                 </GetCallerIdentityResponse>",
                escape(&principal.arn),
                escape(&principal.user_id),
            );
            (200, body)
        }
        Err(error) => render(Err(error), id),
    }
}

/// Carries out `AssumeRole`.
pub(crate) fn assume_role(call: &Call, service: &Service) -> Result<Assumed, ApiError> {
    let caller = call.caller(service, "sts").map_err(refuse)?;
    let request = Request::read(&call.body).inspect_err(|error| {
        service.journal.violation(None, format!("AssumeRole: {}", error.message));
    })?;
    let denied = || {
        let text = format!(
            "User: {} is not authorized to perform: sts:AssumeRole on resource: {}",
            caller.arn, request.role_arn
        );
        ApiError::new(403, "AccessDenied", text)
    };
    let mut roles = service.settings.roles.iter();
    let role = roles.find(|role| role.arn == request.role_arn).ok_or_else(denied)?;
    if role.external_id.is_some() && role.external_id != request.external_id {
        return Err(denied());
    }
    let lifetime = role.lifetime.unwrap_or(request.duration);
    let assumed = Assumed {
        id: format!("ASIA{}", service.random(|rng| rng.hex(16)).to_ascii_uppercase()),
        secret: service.random(|rng| rng.hex(40)),
        token: format!("IQoJb3JpZ2luX2VjE{}", service.random(|rng| rng.hex(300))),
        expires: SystemTime::now() + lifetime,
        principal: Arc::new(Principal::session_of(role, &request.session_name)),
    };
    service.keys.add(
        &assumed.id,
        Key {
            secret: assumed.secret.clone(),
            token: Some(assumed.token.clone()),
            expires: Some(assumed.expires),
            principal: Arc::clone(&assumed.principal),
        },
    );
    Ok(assumed)
}

struct Request {
    role_arn: String,
    session_name: String,
    external_id: Option<String>,
    duration: Duration,
}

impl Request {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let wrong = |what: &str| ApiError::new(400, "ValidationError", what);
        let text = std::str::from_utf8(body).map_err(|_| wrong("the body is no text"))?;
        let mut members = BTreeMap::new();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = String::from_utf8(form_decode(value)).map_err(|_| wrong(name))?;
            if members.insert(name, value).is_some() {
                return Err(wrong("a member stands twice"));
            }
        }
        let mut take = |name: &str| members.remove(name);
        if take("Action").as_deref() != Some("AssumeRole")
            || take("Version").as_deref() != Some("2011-06-15")
        {
            return Err(ApiError::new(400, "InvalidAction", "not AssumeRole of 2011-06-15"));
        }
        let role_arn = take("RoleArn").ok_or_else(|| wrong("RoleArn is missing"))?;
        let session_name =
            take("RoleSessionName").ok_or_else(|| wrong("RoleSessionName is missing"))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        if !(2..=64).contains(&session_name.len()) || !session_name.chars().all(allowed) {
            return Err(wrong("RoleSessionName is not of its pattern"));
        }
        let external_id = take("ExternalId");
        let seconds = match take("DurationSeconds") {
            Some(seconds) => seconds.parse().map_err(|_| wrong("DurationSeconds is no number"))?,
            None => 3_600,
        };
        if !(900..=43_200).contains(&seconds) {
            return Err(wrong("DurationSeconds is out of range"));
        }
        if let Some(name) = members.keys().next() {
            return Err(wrong(&format!("unknown member `{name}`")));
        }
        Ok(Self { role_arn, session_name, external_id, duration: Duration::from_secs(seconds) })
    }
}

fn refuse(error: AuthError) -> ApiError {
    match error {
        AuthError::Missing => ApiError::new(
            403,
            "MissingAuthenticationToken",
            "Request is missing Authentication Token",
        ),
        AuthError::Incomplete(text) => ApiError::new(400, "IncompleteSignature", text),
        AuthError::UnknownKey => ApiError::new(
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        ),
        AuthError::Expired => ApiError::new(
            403,
            "ExpiredToken",
            "The security token included in the request is expired",
        ),
        AuthError::Invalid(text) => ApiError::new(403, "SignatureDoesNotMatch", text),
    }
}

/// Status and body of the response to `AssumeRole`.
pub(crate) fn render(outcome: Result<Assumed, ApiError>, id: Uuid) -> (u16, String) {
    match outcome {
        Ok(assumed) => {
            let Assumed { id: key, secret, token, expires, principal } = assumed;
            let body = format!(
                "<AssumeRoleResponse xmlns=\"{NAMESPACE}\"><AssumeRoleResult><AssumedRoleUser>\
                 <AssumedRoleId>{}</AssumedRoleId><Arn>{}</Arn></AssumedRoleUser><Credentials>\
                 <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                 <SessionToken>{token}</SessionToken><Expiration>{}</Expiration></Credentials>\
                 </AssumeRoleResult><ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>\
                 </AssumeRoleResponse>",
                escape(&principal.user_id),
                escape(&principal.arn),
                clock::iso8601(expires),
            );
            (200, body)
        }
        Err(ApiError { status, code, message }) => {
            let kind = if status >= 500 { "Receiver" } else { "Sender" };
            let body = format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{kind}</Type><Code>{code}</Code>\
                 <Message>{}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>",
                escape(&message)
            );
            (status, body)
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
