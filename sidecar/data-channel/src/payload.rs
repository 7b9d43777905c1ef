//! Payloads: types of stream messages, flags, and the JSON of handshake and control messages
//! (docs/ssm-protocol.md, section 5).
//!
//! The peer is a Go program: unknown fields are ignored and names match without regard to case
//! (section 5.3).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::message::{DecodeError, MessageType};

/// Payload type of a stream message (docs/ssm-protocol.md, section 5.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PayloadType {
    /// Bytes of the stream, in both directions.
    Output,
    /// Text of an error, agent to client; shell sessions only.
    Error,
    /// Size of a terminal; shell sessions only.
    Size,
    /// Parameters; shell sessions only.
    Parameter,
    /// The agent requests a session type and further actions.
    HandshakeRequest,
    /// The client's response: a status for each requested action.
    HandshakeResponse,
    /// The agent accepts the response; the stream begins.
    HandshakeComplete,
    /// The agent requests proof that the client has the session key.
    EncryptionChallengeRequest,
    /// The client's proof.
    EncryptionChallengeResponse,
    /// A number; see [`Flag`].
    Flag,
    /// Standard error of a command, agent to client; not in port sessions.
    StdErr,
    /// Exit code of a command, agent to client; not in port sessions.
    ExitCode,
}

impl PayloadType {
    /// Every type, in the order of the wire numbers, which begin at 1.
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

    /// Reads the wire field, `None` for an unknown number.
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

/// The number in a [`PayloadType::Flag`] payload (docs/ssm-protocol.md, section 5.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flag {
    /// The client's local connection has closed. Ends an SSH session as failed, so it is never sent here.
    DisconnectToPort,
    /// The client requests the end of the session.
    TerminateSession,
    /// The agent could not connect to the target; multiplexed sessions only.
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
/// Written without serde for speed: there is one for each received message. The official programs always set
/// `IsSequentialMessage`, for early messages too, and match by the number alone (docs/ssm-protocol.md,
/// sections 5.3 and 7).
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
        // A remainder below ten always fits.
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

/// Reads the acknowledged number; neither official program compares the other fields (docs/ssm-protocol.md,
/// section 7).
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

/// Content of a handshake request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HandshakeRequest {
    /// Version of the agent, four numbers.
    pub agent_version: String,
    /// Requested actions, in order.
    pub actions: Vec<RequestedAction>,
}

/// An action requested in the handshake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RequestedAction {
    /// Use this session type.
    SessionType {
        /// `Port` is the type that carries a byte stream.
        session_type: String,
        /// `type` of the properties: absent for a plain stream, `LocalPortForwarding` for smux.
        forwarding: Option<String>,
    },
    /// Any other action, by its name: `KMSEncryption`, or an action of a later agent.
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

/// Returns the payload of a handshake response. Each action comes with `None` if it succeeded (status 1), or
/// with the reason why it is unsupported (status 3).
#[must_use]
pub fn handshake_response(
    client_version: &str,
    actions: &[(RequestedAction, Option<String>)],
) -> Vec<u8> {
    // Not by `Value`, which sorts the fields: they keep the plugin's order.
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

/// Reads the message for people from a handshake completion, empty if there is none.
///
/// # Errors
///
/// [`DecodeError::Json`] if the payload is not a JSON object.
pub fn parse_handshake_complete(payload: &[u8]) -> Result<String, DecodeError> {
    let fields = object(payload).ok_or(DecodeError::Json("handshake complete"))?;
    Ok(text(&fields, "CustomerMessage").map(|message| excerpt(&message)).unwrap_or_default())
}

/// Reads the reason for a close, for people: without the `ERROR` line, often empty.
///
/// Accepts any payload: the channel is closed whatever the message contains (docs/ssm-protocol.md, section 5.3).
#[must_use]
pub fn parse_channel_closed(payload: &[u8]) -> String {
    let output = match object(payload) {
        Some(fields) => text(&fields, "Output").unwrap_or_default(),
        None => String::from_utf8_lossy(payload).into_owned(),
    };
    let lines = output.lines().filter(|line| !is_error_line(line));
    excerpt(lines.collect::<Vec<_>>().join("\n").trim())
}

/// Whether this line consists of the agent's `----------ERROR-------`.
fn is_error_line(line: &str) -> bool {
    let line = line.trim();
    line.starts_with("---") && line.ends_with("---") && line.trim_matches('-') == "ERROR"
}

/// Returns text of a peer made printable: at most [`EXCERPT_CHARACTERS`] characters, with a space for each
/// control character but line feed.
pub(crate) fn excerpt(text: &str) -> String {
    let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().take(EXCERPT_CHARACTERS).map(printable).collect()
}

/// Returns bytes of a peer as printable text.
pub(crate) fn excerpt_of_bytes(bytes: &[u8]) -> String {
    // A character has at most four bytes: do not convert more of a large payload than is kept.
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

/// Returns a string field; a value of another type as its JSON, null as `None`.
fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    let text = match field(fields, name)? {
        Value::Null => return None,
        Value::String(text) => Cow::from(text),
        other => Cow::from(other.to_string()),
    };
    Some(text.into_owned())
}

/// The action succeeded.
const STATUS_SUCCESS: u8 = 1;

/// The client does not support the action. The plugin sends 0 here, by mistake (docs/ssm-protocol.md, section 5.3).
const STATUS_UNSUPPORTED: u8 = 3;

/// Maximum length of a text of the peer in events and errors. Our choice: enough for a few sentences of the
/// agent, too little to fill a log.
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
