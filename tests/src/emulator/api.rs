//! The SSM API over HTTP: AWS JSON 1.1, signatures, and responses in AWS's format.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, time::sleep};
use uuid::Uuid;

use super::{
    call::{ApiError, Call},
    credentials::{AuthError, Principal},
    faults::{Action, Failure},
    journal::{Ending, Record},
    service::{Service, StartRequest},
    session::Ticket,
    sts,
};

/// Accepts connections until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, service: Arc<Service>) {
    while let Ok((stream, _)) = listener.accept().await {
        // With Nagle's algorithm, the kernel would delay the second half of a response.
        drop(stream.set_nodelay(true));
        let tasks = Arc::clone(&service);
        let service = Arc::clone(&service);
        tasks.tasks.spawn(async move {
            let handler = service_fn(move |request| handle(request, Arc::clone(&service)));
            // An error means that the client, or an injected fault, closed the connection.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await);
        });
    }
}

/// An error that makes hyper close the connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
struct NoAnswer;

async fn handle(
    request: Request<Incoming>,
    service: Arc<Service>,
) -> Result<Response<Full<Bytes>>, NoAnswer> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LONGEST).collect().await else { return Err(NoAnswer) };
    let call = Call::new(parts, body.to_bytes());
    if call.header("content-type").starts_with("application/x-www-form-urlencoded") {
        return answer_sts(&call, &service).await;
    }
    let id = Uuid::new_v4();
    let (name, action) = match action_of(&call) {
        Ok(found) => found,
        Err(error) => {
            service.journal.violation(None, format!("API request: {}", error.message));
            return Ok(respond(id, Err(error)));
        }
    };
    service.journal.add(Record::ApiCallArrived { action: name.clone() });
    let failure = before(&service, action).await?;
    let outcome = match failure.as_ref().and_then(error_of) {
        Some(error) => Err(error),
        None => perform(&call, action, &service),
    };
    let error = outcome.as_ref().err().map(|error| error.code.clone());
    service.journal.add(Record::ApiCall { action: name, error });
    match failure {
        Some(Failure::AnswerLost) => Err(NoAnswer),
        Some(Failure::WithoutToken) => Ok(respond(id, outcome.map(without_token))),
        _ => Ok(respond(id, outcome)),
    }
}

async fn answer_sts(call: &Call, service: &Service) -> Result<Response<Full<Bytes>>, NoAnswer> {
    if sts::is_get_caller_identity(call) {
        let outcome = sts::caller_identity(call, service);
        let error = outcome.as_ref().err().map(|error| error.code.clone());
        service.journal.add(Record::ApiCall { action: "GetCallerIdentity".to_owned(), error });
        let id = Uuid::new_v4();
        let (status, body) = sts::render_identity(outcome, id);
        return Ok(response(status, "text/xml", id, body));
    }
    let failure = before(service, Action::AssumeRole).await?;
    let outcome = match failure.as_ref().and_then(error_of) {
        Some(error) => Err(error),
        None => sts::assume_role(call, service),
    };
    let error = outcome.as_ref().err().map(|error| error.code.clone());
    service.journal.add(Record::ApiCall { action: "AssumeRole".to_owned(), error });
    if matches!(failure, Some(Failure::AnswerLost)) {
        return Err(NoAnswer);
    }
    let id = Uuid::new_v4();
    let (status, body) = sts::render(outcome, id);
    Ok(response(status, "text/xml", id, body))
}

/// Applies the faults that do not depend on the request, before it is handled.
async fn before(service: &Service, action: Action) -> Result<Option<Failure>, NoAnswer> {
    let failure = service.failure(action);
    match failure {
        Some(Failure::Hangs) => std::future::pending().await,
        Some(Failure::ConnectionClosed) => return Err(NoAnswer),
        Some(Failure::Delayed(delay)) => sleep(delay).await,
        _ => {}
    }
    Ok(failure)
}

fn error_of(failure: &Failure) -> Option<ApiError> {
    Some(match failure {
        Failure::Throttled => ApiError::new(400, "ThrottlingException", "Rate exceeded"),
        Failure::InternalServerError => {
            ApiError::new(500, "InternalServerError", "An error occurred on the server side.")
        }
        Failure::TargetNotConnected => not_connected("The target"),
        Failure::Error { status, code, message } => ApiError::new(*status, code, message),
        Failure::Delayed(_)
        | Failure::AnswerLost
        | Failure::WithoutToken
        | Failure::Hangs
        | Failure::ConnectionClosed => return None,
    })
}

fn action_of(call: &Call) -> Result<(String, Action), ApiError> {
    if call.parts.method != Method::POST || call.parts.uri.path() != "/" {
        return Err(ApiError::new(404, "UnknownOperationException", "not POST /"));
    }
    if call.header("content-type") != JSON {
        return Err(ApiError::new(
            415,
            "SerializationException",
            "Content-Type is not AWS JSON 1.1",
        ));
    }
    let target = call.header("x-amz-target");
    let name = target.strip_prefix("AmazonSSM.").unwrap_or_default();
    let action = match name {
        "StartSession" => Action::StartSession,
        "ResumeSession" => Action::ResumeSession,
        "TerminateSession" => Action::TerminateSession,
        _ => return Err(ApiError::new(400, "UnknownOperationException", target)),
    };
    Ok((name.to_owned(), action))
}

fn perform(call: &Call, action: Action, service: &Arc<Service>) -> Result<Value, ApiError> {
    let caller = call.caller(service, "ssm").map_err(refuse)?;
    let members = members(call).inspect_err(|error| {
        service.journal.violation(None, format!("{action:?}: {}", error.message));
    })?;
    match action {
        Action::StartSession => start(&members, &caller, service),
        Action::ResumeSession => resume(&members, &caller, service),
        _ => terminate(&members, &caller, service),
    }
}

fn refuse(error: AuthError) -> ApiError {
    match error {
        AuthError::Missing => ApiError::new(
            400,
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        ),
        AuthError::Incomplete(text) => ApiError::new(400, "IncompleteSignatureException", text),
        AuthError::UnknownKey => ApiError::new(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        AuthError::Expired => ApiError::new(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ),
        AuthError::Invalid(text) => ApiError::new(400, "InvalidSignatureException", text),
    }
}

fn members(call: &Call) -> Result<Map<String, Value>, ApiError> {
    let wrong = || ApiError::new(400, "SerializationException", "the body is no JSON object");
    serde_json::from_slice(&call.body).map_err(|_| wrong())
}

fn start(
    members: &Map<String, Value>,
    caller: &Arc<Principal>,
    service: &Arc<Service>,
) -> Result<Value, ApiError> {
    let request = start_request(members).inspect_err(|error| {
        service.journal.violation(None, format!("StartSession: {}", error.message));
    })?;
    let (region, account) = (&service.settings.region, &service.settings.account);
    let kind = if request.target.starts_with("mi-") { "ssm" } else { "ec2" };
    let noun = if kind == "ssm" { "managed-instance" } else { "instance" };
    let resources = [
        format!("arn:aws:{kind}:{region}:{account}:{noun}/{}", request.target),
        format!("arn:aws:ssm:{region}::document/{}", request.document),
    ];
    for resource in resources {
        let allowed = service.authorize(caller, "ssm:StartSession", &[resource]);
        allowed.map_err(|text| ApiError::new(400, "AccessDeniedException", text))?;
    }
    if request.document != SSH_DOCUMENT {
        let text = format!("Document with name {} does not exist.", request.document);
        return Err(ApiError::new(400, "InvalidDocument", text));
    }
    if !service.has_instance(&request.target) {
        return Err(not_connected(&request.target));
    }
    let (session, ticket) = service.start(request, caller);
    Ok(answer(&session.id, &ticket))
}

fn start_request(members: &Map<String, Value>) -> Result<StartRequest, ApiError> {
    known(members, &["Target", "DocumentName", "Parameters", "Reason"])?;
    let target = text(members, "Target", 400)?.ok_or_else(|| {
        ApiError::validation("Value at 'target' failed to satisfy constraint: not null")
    })?;
    if !is_instance(&target) {
        return Err(ApiError::validation(format!("Value '{target}' at 'target' is no instance")));
    }
    let document = text(members, "DocumentName", 128)?
        .unwrap_or_else(|| "SSM-SessionManagerRunShell".to_owned());
    let reason = text(members, "Reason", 256)?;
    if reason.as_deref().is_some_and(|reason| reason.chars().any(char::is_control)) {
        return Err(ApiError::validation("Value at 'reason' has control characters"));
    }
    let port = match members.get("Parameters") {
        None => 22,
        Some(Value::Object(parameters)) => {
            known(parameters, &["portNumber"])?;
            parameters.get("portNumber").map_or(Ok(22), port)?
        }
        Some(_) => {
            return Err(ApiError::new(400, "SerializationException", "Parameters is no map"));
        }
    };
    Ok(StartRequest { target, document, port, reason })
}

/// A list with one string that is a port number.
fn port(value: &Value) -> Result<u16, ApiError> {
    let wrong = || ApiError::validation("Parameters.portNumber is no list of one port as text");
    let [value] = value.as_array().ok_or_else(wrong)?.as_slice() else { return Err(wrong()) };
    let text = value.as_str().ok_or_else(wrong)?;
    let port: u16 = text.parse().map_err(|_| wrong())?;
    if port == 0 || port.to_string() != text { Err(wrong()) } else { Ok(port) }
}

/// `i-` or `mi-` followed by 8 or 17 hexadecimal digits; always 17 for `mi-`.
fn is_instance(target: &str) -> bool {
    let (digits, short) = match target.strip_prefix("mi-") {
        Some(digits) => (digits, false),
        None => (target.strip_prefix("i-").unwrap_or_default(), true),
    };
    let hex = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && (digits.len() == 17 || (short && digits.len() == 8))
}

fn resume(
    members: &Map<String, Value>,
    caller: &Principal,
    service: &Service,
) -> Result<Value, ApiError> {
    let id = session_id(members, "ssm:ResumeSession", caller, service)?;
    let session = service.session(&id).ok_or_else(|| unknown(&id))?;
    if session.is_over() {
        return Ok(json!({ "SessionId": id }));
    }
    service.journal.add(Record::SessionResumed { id: id.clone() });
    Ok(answer(&id, &service.admit(&session)))
}

fn terminate(
    members: &Map<String, Value>,
    caller: &Principal,
    service: &Service,
) -> Result<Value, ApiError> {
    let id = session_id(members, "ssm:TerminateSession", caller, service)?;
    let session = service.session(&id).ok_or_else(|| unknown(&id))?;
    session.end(Ending::Api, "");
    Ok(json!({ "SessionId": id }))
}

/// The only member of a request, if the caller is allowed the action on that session.
fn session_id(
    members: &Map<String, Value>,
    action: &str,
    caller: &Principal,
    service: &Service,
) -> Result<String, ApiError> {
    let id = known(members, &["SessionId"]).and_then(|()| text(members, "SessionId", 96));
    let id =
        id.and_then(|id| id.ok_or_else(|| ApiError::validation("Value at 'sessionId' is null")));
    let id = id.inspect_err(|error| {
        service.journal.violation(None, format!("{action}: {}", error.message));
    })?;
    let allowed = service.authorize_on_session(caller, action, &id);
    allowed.map_err(|text| ApiError::new(400, "AccessDeniedException", text))?;
    Ok(id)
}

fn known(members: &Map<String, Value>, names: &[&str]) -> Result<(), ApiError> {
    match members.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(ApiError::validation(format!("unknown member `{name}`"))),
        None => Ok(()),
    }
}

fn text(
    members: &Map<String, Value>,
    name: &str,
    longest: usize,
) -> Result<Option<String>, ApiError> {
    let text = match members.get(name) {
        None => return Ok(None),
        Some(Value::String(text)) => text,
        Some(_) => {
            return Err(ApiError::new(400, "SerializationException", format!("{name} is no text")));
        }
    };
    if !(1..=longest).contains(&text.chars().count()) {
        return Err(ApiError::validation(format!("{name} has not 1 to {longest} characters")));
    }
    Ok(Some(text.clone()))
}

fn answer(id: &str, ticket: &Ticket) -> Value {
    json!({ "SessionId": id, "StreamUrl": ticket.url, "TokenValue": ticket.token })
}

fn without_token(mut answer: Value) -> Value {
    if let Some(members) = answer.as_object_mut() {
        members.remove("TokenValue");
    }
    answer
}

fn not_connected(target: &str) -> ApiError {
    ApiError::new(430, "TargetNotConnected", format!("{target} is not connected."))
}

fn unknown(id: &str) -> ApiError {
    ApiError::new(400, "DoesNotExistException", format!("Session {id} does not exist."))
}

/// Errors declared by the API spell the field `Message`, errors common to all of AWS `message`.
fn respond(id: Uuid, outcome: Result<Value, ApiError>) -> Response<Full<Bytes>> {
    let (status, body) = match outcome {
        Ok(body) => (200, body),
        Err(ApiError { status, code, message }) => {
            let declared = DECLARED.contains(&code.as_str());
            let name = if declared { "Message" } else { "message" };
            (status, json!({ "__type": code, name: message }))
        }
    };
    response(status, JSON, id, body.to_string())
}

fn response(status: u16, content_type: &str, id: Uuid, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    for (name, value) in [("content-type", content_type), ("x-amzn-requestid", &id.to_string())] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

impl From<Infallible> for NoAnswer {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The only SSM document whose sessions are emulated.
const SSH_DOCUMENT: &str = "AWS-StartSSHSession";

const JSON: &str = "application/x-amz-json-1.1";

const DECLARED: [&str; 4] =
    ["InvalidDocument", "TargetNotConnected", "InternalServerError", "DoesNotExistException"];

/// Largest request body, in bytes.
const LONGEST: usize = 64 * 1024;
