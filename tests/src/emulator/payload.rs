//! The JSON bodies of the data channel (section 4 of the specification), as the agent and the service write
//! them and as a client must write them.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    clock,
    codec::{ACKNOWLEDGE, CHANNEL_CLOSED, Message, SYN_FIN},
};

/// Body of an `acknowledge`. Go matches field names regardless of case; the client writes them as here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct Acknowledge {
    pub(crate) acknowledged_message_type: String,
    pub(crate) acknowledged_message_id: Uuid,
    pub(crate) acknowledged_message_sequence_number: i64,
    pub(crate) is_sequential_message: bool,
}

/// The answer to the agent's handshake.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct HandshakeResponse {
    pub(crate) client_version: String,
    pub(crate) processed_client_actions: Vec<ProcessedAction>,
    pub(crate) errors: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct ProcessedAction {
    pub(crate) action_type: String,
    pub(crate) action_status: u8,
    #[serde(default)]
    pub(crate) action_result: Value,
    #[serde(default)]
    pub(crate) error: String,
}

/// Encodes an `acknowledge` for a message of the client.
pub(crate) fn acknowledge(of: &Message, id: Uuid) -> Bytes {
    // Formatted by hand for speed: there is one for every message.
    let body = format!(
        "{{\"AcknowledgedMessageType\":\"{}\",\"AcknowledgedMessageId\":\"{}\",\
         \"AcknowledgedMessageSequenceNumber\":{},\"IsSequentialMessage\":true}}",
        of.kind, of.id, of.sequence
    );
    let mut message = Message::new(ACKNOWLEDGE, 0, 0, body.into());
    message.flags = SYN_FIN;
    message.id = id;
    message.encode()
}

/// Sequence number of the client's message that a frame acknowledges, if it is an `acknowledge`.
pub(crate) fn acknowledged(frame: &Bytes) -> Option<u64> {
    let message = Message::decode(frame).ok().filter(|message| message.kind == ACKNOWLEDGE)?;
    let body: Acknowledge = serde_json::from_slice(&message.payload).ok()?;
    u64::try_from(body.acknowledged_message_sequence_number).ok()
}

/// Encodes `channel_closed`, the service's last message.
pub(crate) fn channel_closed(session: &str, output: &str) -> Bytes {
    let id = Uuid::new_v4();
    let body = json!({
        "MessageId": id,
        "CreatedDate": clock::now(),
        "DestinationId": Uuid::new_v4(),
        "SessionId": session,
        "MessageType": CHANNEL_CLOSED,
        "SchemaVersion": 1,
        "Output": output,
    });
    let mut message = Message::new(CHANNEL_CLOSED, 0, 0, body.to_string().into());
    message.id = id;
    message.encode()
}

/// The agent's first message.
pub(crate) fn handshake_request(
    version: &str,
    port: u16,
    encryption: bool,
    challenge: &str,
) -> Bytes {
    let mut actions = vec![json!({
        "ActionType": SESSION_TYPE,
        "ActionParameters": {
            "SessionType": "Port",
            "Properties": { "portNumber": port.to_string() },
        },
    })];
    if encryption {
        actions.push(json!({
            "ActionType": KMS_ENCRYPTION,
            "ActionParameters": {
                "KMSKeyId": "arn:aws:kms:ap-northeast-1:123456789012:key/0a1b2c3d-0000-4000-8000-0a1b2c3d4e5f",
                "Challenge": challenge,
            },
        }));
    }
    json!({ "AgentVersion": version, "RequestedClientActions": actions }).to_string().into()
}

/// The last message of the handshake.
pub(crate) fn handshake_complete(nanoseconds: u128, customer_message: &str) -> Bytes {
    let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
    let body =
        json!({ "HandshakeTimeToComplete": nanoseconds, "CustomerMessage": customer_message });
    body.to_string().into()
}

/// Parses a version of four numbers.
pub(crate) fn version(text: &str) -> Option<[u32; 4]> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok())?
    };
    let numbers: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// Actions of the handshake.
pub(crate) const SESSION_TYPE: &str = "SessionType";
pub(crate) const KMS_ENCRYPTION: &str = "KMSEncryption";

/// The oldest client that AWS supports (its version history).
pub(crate) const OLDEST_CLIENT: [u32; 4] = [1, 2, 764, 0];
