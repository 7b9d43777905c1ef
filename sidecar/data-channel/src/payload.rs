//! What messages carry: stream payload types, flags, and the JSON of the control messages.
//!
//! The peer is a Go program: unknown fields are ignored and names match without regard to case.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::message::{DecodeError, MessageType};

/// Sort of payload of a stream message.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PayloadType {
    /// Bytes of the stream, both ways.
    Output,
    /// Text of an error, agent to client.
    Error,
    /// Size of a terminal; shell sessions only.
    Size,
    /// Parameters; shell sessions only.
    Parameter,
    /// The agent asks what the client can do.
    HandshakeRequest,
    /// The client's answer.
    HandshakeResponse,
    /// The agent is content; the stream begins.
    HandshakeComplete,
    /// The agent asks for proof that the client holds the session key.
    EncryptionChallengeRequest,
    /// The client's proof.
    EncryptionChallengeResponse,
    /// A number that stands for a request or an event; see [`Flag`].
    Flag,
    /// Standard error of a command, agent to client; not in port sessions.
    StdErr,
    /// Exit code of a command, agent to client; not in port sessions.
    ExitCode,
}

impl PayloadType {
    /// Every type, in the order of the numbers from 1.
    pub const ALL: [Self; 12] = [
        Self::Output,
        Self::Error,
        Self::Size,
        Self::Parameter,
        Self::HandshakeRequest,
        Self::HandshakeResponse,
        Self::HandshakeComplete,
        Self::EncryptionChallengeRequest,
        Self::EncryptionChallengeResponse,
        Self::Flag,
        Self::StdErr,
        Self::ExitCode,
    ];

    /// Reads the wire field, `None` for a number without meaning.
    pub fn from_wire(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_wire() == raw)
    }

    /// Returns the value of the wire field.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Output => 1,
            Self::Error => 2,
            Self::Size => 3,
            Self::Parameter => 4,
            Self::HandshakeRequest => 5,
            Self::HandshakeResponse => 6,
            Self::HandshakeComplete => 7,
            Self::EncryptionChallengeRequest => 8,
            Self::EncryptionChallengeResponse => 9,
            Self::Flag => 10,
            Self::StdErr => 11,
            Self::ExitCode => 12,
        }
    }
}

/// Meaning of the four bytes of a [`PayloadType::Flag`] payload.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flag {
    /// The client's connection is gone. Ends an SSH session as failed, so it is never sent here.
    DisconnectToPort,
    /// The client asks to end the session.
    TerminateSession,
    /// The agent could not connect; multiplexed sessions only.
    ConnectToPortError,
}

impl Flag {
    /// Reads a payload, `None` if it is not four bytes with a known number.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let raw = u32::from_be_bytes(payload.try_into().ok()?);
        [Self::DisconnectToPort, Self::TerminateSession, Self::ConnectToPortError]
            .into_iter()
            .find(|known| known.to_wire() == raw)
    }

    /// Returns the number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::DisconnectToPort => 1,
            Self::TerminateSession => 2,
            Self::ConnectToPortError => 3,
        }
    }
}

/// Appends the payload of an acknowledgement of the message `id` with the number `sequence_number`.
///
/// Written by hand: there is one for each received message. The official programs always claim
/// `IsSequentialMessage`, for early messages too, and match by the number alone.
pub fn write_acknowledgement(
    acknowledged: MessageType,
    id: Uuid,
    sequence_number: i64,
    payload: &mut Vec<u8>,
) {
    payload.extend_from_slice(br#"{"AcknowledgedMessageType":""#);
    payload.extend_from_slice(acknowledged.name().as_bytes());
    payload.extend_from_slice(br#"","AcknowledgedMessageId":""#);
    payload.extend_from_slice(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    payload.extend_from_slice(br#"","AcknowledgedMessageSequenceNumber":"#);
    write_decimal(sequence_number, payload);
    payload.extend_from_slice(br#","IsSequentialMessage":true}"#);
}

fn write_decimal(value: i64, text: &mut Vec<u8>) {
    if value < 0 {
        text.push(b'-');
    }
    let start = text.len();
    let mut rest = value.unsigned_abs();
    loop {
        // A remainder of ten always fits.
        text.push(b'0' + u8::try_from(rest % 10).unwrap_or_default());
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = text.get_mut(start..) {
        digits.reverse();
    }
}

/// Reads the number that an acknowledgement is about; its other fields are compared by neither side.
///
/// # Errors
///
/// [`DecodeError::Json`] if the payload has no such number.
pub fn parse_acknowledgement(payload: &[u8]) -> Result<i64, DecodeError> {
    #[derive(Deserialize)]
    struct Exact {
        #[serde(rename = "AcknowledgedMessageSequenceNumber")]
        sequence_number: i64,
    }
    if let Ok(exact) = serde_json::from_slice::<Exact>(payload) {
        return Ok(exact.sequence_number);
    }
    let number = object(payload)
        .as_ref()
        .and_then(|fields| field(fields, "AcknowledgedMessageSequenceNumber"))
        .and_then(Value::as_i64);
    number.ok_or(DecodeError::Json(MessageType::Acknowledge.name()))
}

/// What the agent says and asks in its handshake request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HandshakeRequest {
    /// Version of the agent, four numbers.
    pub agent_version: String,
    /// What the client is asked to do, in order.
    pub actions: Vec<RequestedAction>,
}

/// One thing that the client is asked to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RequestedAction {
    /// Speak this sort of session.
    SessionType {
        /// `Port` is the sort that carries a byte stream.
        session_type: String,
        /// `type` of the properties: absent for a plain stream, `LocalPortForwarding` for smux.
        forwarding: Option<String>,
    },
    /// Anything else, by its name: `KMSEncryption`, or what later agents think of.
    Other(String),
}

impl RequestedAction {
    fn name(&self) -> &str {
        match self {
            Self::SessionType { .. } => "SessionType",
            Self::Other(name) => name,
        }
    }
}

/// Reads the payload of a handshake request.
///
/// # Errors
///
/// [`DecodeError::Json`] if it is not a JSON object, or an action has no name.
pub fn parse_handshake_request(payload: &[u8]) -> Result<HandshakeRequest, DecodeError> {
    let malformed = || DecodeError::Json("handshake request");
    let fields = object(payload).ok_or_else(malformed)?;
    let agent_version = text(&fields, "AgentVersion").unwrap_or_default();
    let actions = match field(&fields, "RequestedClientActions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(actions)) => actions
            .iter()
            .map(|action| parse_action(action.as_object()?))
            .collect::<Option<_>>()
            .ok_or_else(malformed)?,
        Some(_) => return Err(malformed()),
    };
    Ok(HandshakeRequest { agent_version, actions })
}

fn parse_action(fields: &Map<String, Value>) -> Option<RequestedAction> {
    let name = text(fields, "ActionType")?;
    if name != "SessionType" {
        return Some(RequestedAction::Other(name));
    }
    let parameters = field(fields, "ActionParameters")?.as_object()?;
    let properties = field(parameters, "Properties").and_then(Value::as_object);
    Some(RequestedAction::SessionType {
        session_type: text(parameters, "SessionType")?,
        forwarding: properties.and_then(|properties| text(properties, "type")),
    })
}

/// Writes the payload of a handshake response: for each action `None` if it was done, or why it is
/// not supported (status 3).
#[must_use]
pub fn handshake_response(
    client_version: &str,
    actions: &[(RequestedAction, Option<String>)],
) -> Vec<u8> {
    // By hand, since the official client's order of fields is kept; `Value` sorts them.
    let quote = |text: &str| Value::from(text).to_string();
    let processed: Vec<String> = actions
        .iter()
        .map(|(action, refusal)| {
            format!(
                r#"{{"ActionType":{},"ActionStatus":{},"ActionResult":null,"Error":{}}}"#,
                quote(action.name()),
                if refusal.is_none() { STATUS_SUCCESS } else { STATUS_UNSUPPORTED },
                quote(refusal.as_deref().unwrap_or_default()),
            )
        })
        .collect();
    let errors: Vec<String> =
        actions.iter().filter_map(|(_, refusal)| refusal.as_deref()).map(quote).collect();
    let errors =
        if errors.is_empty() { "null".to_owned() } else { format!("[{}]", errors.join(",")) };
    format!(
        r#"{{"ClientVersion":{},"ProcessedClientActions":[{}],"Errors":{errors}}}"#,
        quote(client_version),
        processed.join(","),
    )
    .into_bytes()
}

/// Reads the message for people out of a handshake completion, empty if there is none.
///
/// # Errors
///
/// [`DecodeError::Json`] if the payload is not a JSON object.
pub fn parse_handshake_complete(payload: &[u8]) -> Result<String, DecodeError> {
    let fields = object(payload).ok_or(DecodeError::Json("handshake complete"))?;
    Ok(text(&fields, "CustomerMessage").map(|message| excerpt(&message)).unwrap_or_default())
}

/// Reads why the service closed the channel, for people: without the `ERROR` line, often empty.
///
/// Lenient on purpose: the channel is closed whatever its last message looks like.
#[must_use]
pub fn parse_channel_closed(payload: &[u8]) -> String {
    let output = match object(payload) {
        Some(fields) => text(&fields, "Output").unwrap_or_default(),
        None => String::from_utf8_lossy(payload).into_owned(),
    };
    let lines = output.lines().filter(|line| !is_error_line(line));
    excerpt(lines.collect::<Vec<_>>().join("\n").trim())
}

/// Whether this is the agent's `----------ERROR-------`, by itself on a line.
fn is_error_line(line: &str) -> bool {
    let line = line.trim();
    line.starts_with("---") && line.ends_with("---") && line.trim_matches('-') == "ERROR"
}

/// Returns text of a peer as it may be shown: cut to [`EXCERPT_CHARACTERS`], a blank for each control character but the
/// end of a line.
pub(crate) fn excerpt(text: &str) -> String {
    let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().take(EXCERPT_CHARACTERS).map(printable).collect()
}

/// Returns bytes of a peer as text that may be shown.
pub(crate) fn excerpt_of_bytes(bytes: &[u8]) -> String {
    // Four bytes a character at most, so that a huge payload is not converted to be thrown away.
    let start = bytes.get(..4 * EXCERPT_CHARACTERS).unwrap_or(bytes);
    excerpt(&String::from_utf8_lossy(start))
}

fn object(payload: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(payload).ok()
}

fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).or_else(|| {
        fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    })
}

/// A string field; other values that are there as their JSON.
fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    let text = match field(fields, name)? {
        Value::Null => return None,
        Value::String(text) => Cow::from(text),
        other => Cow::from(other.to_string()),
    };
    Some(text.into_owned())
}

/// The action was done.
const STATUS_SUCCESS: u8 = 1;

/// The client does not know the action. The official client sends 0 here, by a slip.
const STATUS_UNSUPPORTED: u8 = 3;

/// Enough for a sentence or two of the agent, too little to fill a log.
const EXCERPT_CHARACTERS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_types_have_the_numbers_one_to_twelve() {
        for (index, payload_type) in PayloadType::ALL.into_iter().enumerate() {
            let raw = u32::try_from(index).unwrap() + 1;
            assert_eq!(payload_type.to_wire(), raw);
            assert_eq!(PayloadType::from_wire(raw), Some(payload_type));
        }
        assert_eq!([0, 13, u32::MAX].map(PayloadType::from_wire), [None; 3]);
    }

    #[test]
    fn flags_are_four_bytes() {
        assert_eq!(Flag::from_payload(&[0, 0, 0, 2]), Some(Flag::TerminateSession));
        for payload in [&[][..], &[2], &[0, 0, 2], &[0, 0, 0, 0], &[0, 0, 0, 2, 0]] {
            assert_eq!(Flag::from_payload(payload), None, "payload {payload:?}");
        }
    }

    #[test]
    fn acknowledgements_are_matched_by_number_alone() {
        let cases: [(&str, Option<i64>); 9] = [
            (r#"{"AcknowledgedMessageSequenceNumber":7}"#, Some(7)),
            (r#"{"Extra":[{}],"AcknowledgedMessageSequenceNumber":7,"X":1}"#, Some(7)),
            (r#"{"acknowledgedmessagesequencenumber":7}"#, Some(7)),
            (r#"{"AcknowledgedMessageSequenceNumber":9223372036854775807}"#, Some(i64::MAX)),
            (r#"{"AcknowledgedMessageSequenceNumber":-1}"#, Some(-1)),
            (r#"{"AcknowledgedMessageSequenceNumber":9223372036854775808}"#, None),
            (r#"{"AcknowledgedMessageSequenceNumber":"7"}"#, None),
            (r#"{"AcknowledgedMessageType":"input_stream_data"}"#, None),
            ("", None),
        ];
        for (payload, expected) in cases {
            assert_eq!(parse_acknowledgement(payload.as_bytes()).ok(), expected, "{payload}");
        }
    }

    #[test]
    fn every_number_is_written_in_decimal() {
        for number in [0, 1, 9, 10, 99, 100, 1_234_567_890, i64::MAX, -1, i64::MIN] {
            let mut text = Vec::new();
            write_decimal(number, &mut text);
            assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
        }
    }

    #[test]
    fn handshake_requests_are_read_as_go_would() {
        let request = |json: &str| parse_handshake_request(json.as_bytes());
        let port = |forwarding: Option<&str>| RequestedAction::SessionType {
            session_type: "Port".into(),
            forwarding: forwarding.map(Into::into),
        };
        let parsed = request(
            r#"{"agentversion":"3.1","Later":1,"RequestedClientActions":[
                {"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":null}},
                {"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}},
                {"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"key"}}]}"#,
        );
        let actions = vec![
            port(None),
            port(Some("LocalPortForwarding")),
            RequestedAction::Other("KMSEncryption".into()),
        ];
        assert_eq!(parsed, Ok(HandshakeRequest { agent_version: "3.1".into(), actions }));
        for actions in ["", r#","RequestedClientActions":null"#, r#","RequestedClientActions":[]"#]
        {
            let parsed = request(&format!(r#"{{"AgentVersion":"3"{actions}}}"#)).unwrap();
            assert_eq!(parsed.actions, [], "{actions}");
        }
        for malformed in [
            "",
            "[]",
            r#"{"RequestedClientActions":{}}"#,
            r#"{"RequestedClientActions":[1]}"#,
            r#"{"RequestedClientActions":[{}]}"#,
            r#"{"RequestedClientActions":[{"ActionType":"SessionType"}]}"#,
        ] {
            assert_eq!(
                request(malformed),
                Err(DecodeError::Json("handshake request")),
                "{malformed}"
            );
        }
    }

    #[test]
    fn refused_actions_have_status_three_and_an_error() {
        let refused = RequestedAction::Other("KMS\"Encryption".into());
        let response = handshake_response("1.2.764.0", &[(refused, Some("no".into()))]);
        assert_eq!(
            String::from_utf8(response).unwrap(),
            r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"KMS\"Encryption","ActionStatus":3,"ActionResult":null,"Error":"no"}],"Errors":["no"]}"#
        );
    }

    #[test]
    fn the_reason_of_a_close_is_found_in_whatever_came() {
        let cases = [
            (r#"{"Output":""}"#, ""),
            (r"{}", ""),
            (r#"{"Output":null}"#, ""),
            (r#"{"Output":7,"SchemaVersion":"x"}"#, "7"),
            (r#"{"output":"lower"}"#, "lower"),
            (
                r#"{"Output":"\n----------ERROR-------\nSetting up failed: no"}"#,
                "Setting up failed: no",
            ),
            (r#"{"Output":"--- ERROR ---\nstays"}"#, "--- ERROR ---\nstays"),
            (r#"{"Output":"a\nb"}"#, "a\nb"),
            ("not json", "not json"),
            ("", ""),
            ("[1]", "[1]"),
        ];
        for (payload, reason) in cases {
            assert_eq!(parse_channel_closed(payload.as_bytes()), reason, "{payload}");
        }
        let long = format!(r#"{{"Output":"{}"}}"#, "ä".repeat(5_000));
        assert_eq!(parse_channel_closed(long.as_bytes()).chars().count(), EXCERPT_CHARACTERS);
    }
}
