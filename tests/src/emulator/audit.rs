//! Checks that the real parts do not make: every message of the client is compared with the whole
//! specification.
//!
//! Runs at the gateway's edge: before the upstream faults and after the downstream ones, so that no
//! injected fault is attributed to the client.

use std::{
    collections::VecDeque,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    codec::{
        self, ACKNOWLEDGE, CHANNEL_CLOSED, INPUT, KIND, LENGTH_OFFSET, Message, OUTPUT,
        PAUSE_PUBLICATION, START_PUBLICATION, SYN_FIN, payload_type, stated_length,
    },
    journal::{Counters, count},
    payload::{
        Acknowledge, HandshakeResponse, KMS_ENCRYPTION, OLDEST_CLIENT, SESSION_TYPE, version,
    },
};

/// What client and agent have sent each other, as far as it is needed to check further messages.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    input: Window<Sent>,
    output: Window<Uuid>,
    unacknowledged: u64,
    handshake: Handshake,
    paused: Option<Instant>,
}

/// Identity of a client's message: distinguishes a retransmission from a different message with the same
/// number.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Sent {
    id: Uuid,
    created: u64,
    digest: [u8; 32],
    acknowledged: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Handshake {
    #[default]
    Expected,
    Requested {
        encryption: bool,
    },
    Answered,
    Complete,
}

impl Audit {
    /// Checks a frame from the client; returns true if it is input, which resets the session's idle timer.
    pub(crate) fn incoming(
        &mut self,
        frame: &Bytes,
        counters: &Counters,
        violations: &mut Vec<String>,
    ) -> bool {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(malformed) => {
                violations.push(format!("malformed message: {malformed}"));
                return false;
            }
        };
        check_header(frame, &message, violations);
        match message.kind.as_str() {
            INPUT => {
                self.check_input(&message, counters, violations);
                true
            }
            ACKNOWLEDGE => {
                count(&counters.acknowledges, 1);
                self.check_acknowledge(&message, violations);
                false
            }
            other => {
                violations.push(format!("message type `{}` of a client", other.escape_debug()));
                false
            }
        }
    }

    fn check_input(
        &mut self,
        message: &Message,
        counters: &Counters,
        violations: &mut Vec<String>,
    ) {
        let mut wrong = |text: String| violations.push(text);
        let Ok(sequence) = u64::try_from(message.sequence) else {
            return wrong(format!("input with sequence number {}", message.sequence));
        };
        if message.flags != 0 {
            wrong(format!("input {sequence} with flags {}", message.flags));
        }
        let sent = Sent {
            id: message.id,
            created: message.created,
            digest: message.digest,
            acknowledged: false,
        };
        let next = self.input.next();
        if sequence > next {
            return wrong(format!("input {sequence} where {next} is next"));
        }
        if sequence < next {
            count(&counters.input_repeated, 1);
            if let Some(before) = self.input.entry(sequence) {
                let same = (before.id, before.created, before.digest)
                    == (sent.id, sent.created, sent.digest);
                if !same {
                    wrong(format!("input {sequence} is repeated with another id, date or payload"));
                }
            }
            return;
        }
        self.input.push(sent);
        self.unacknowledged += 1;
        count(&counters.input_messages, 1);
        counters.max_unacknowledged.fetch_max(self.unacknowledged, Ordering::Relaxed);
        // Input that was in flight when the pause was sent is allowed.
        if self.paused.is_some_and(|since| since.elapsed() > GRACE) {
            count(&counters.input_while_paused, 1);
        }
        match message.payload_type {
            payload_type::OUTPUT => {
                if self.handshake != Handshake::Complete {
                    wrong(format!("data in input {sequence} before HandshakeComplete"));
                }
            }
            payload_type::HANDSHAKE_RESPONSE => self.check_response(message, violations),
            payload_type::FLAG => match message.payload.as_ref() {
                [0, 0, 0, 2] => {}
                [0, 0, 0, 1] => wrong("DisconnectToPort in an SSH session".to_owned()),
                other => wrong(format!("flag {other:?}")),
            },
            other => wrong(format!("payload type {other} of a client")),
        }
    }

    fn check_response(&mut self, message: &Message, violations: &mut Vec<String>) {
        let mut wrong = |text: &str| violations.push(format!("HandshakeResponse: {text}"));
        let Handshake::Requested { encryption } = self.handshake else {
            return wrong("not asked for, or given twice");
        };
        self.handshake = Handshake::Answered;
        let Ok(response) = serde_json::from_slice::<HandshakeResponse>(&message.payload) else {
            return wrong("not of its form");
        };
        if version(&response.client_version).is_none_or(|version| version < OLDEST_CLIENT) {
            wrong("ClientVersion is not four numbers from 1.2.764.0 on");
        }
        if response.errors.is_some_and(|errors| errors.iter().any(String::is_empty)) {
            wrong("an empty error");
        }
        let actions: Vec<_> = response
            .processed_client_actions
            .iter()
            .map(|action| (action.action_type.as_str(), action.action_status))
            .collect();
        let expected: &[_] = if encryption {
            &[(SESSION_TYPE, 1), (KMS_ENCRYPTION, 3)]
        } else {
            &[(SESSION_TYPE, 1)]
        };
        if actions != expected {
            wrong(&format!("actions {actions:?} in place of {expected:?}"));
        }
        let mut processed = response.processed_client_actions.iter();
        if processed.any(|action| action.action_status == 1 && !action.error.is_empty()) {
            wrong("an error beside a success");
        }
        let mut processed = response.processed_client_actions.iter();
        if processed.any(|action| !matches!(action.action_result, Value::Null | Value::Object(_))) {
            wrong("ActionResult is neither null nor an object");
        }
    }

    fn check_acknowledge(&self, message: &Message, violations: &mut Vec<String>) {
        let mut wrong = |text: String| violations.push(format!("acknowledge: {text}"));
        let header = (message.sequence, message.flags, message.payload_type);
        if header != (0, SYN_FIN, 0) {
            wrong(format!("sequence number, flags and payload type are {header:?}"));
        }
        let body = match serde_json::from_slice::<Acknowledge>(&message.payload) {
            Ok(body) => body,
            Err(error) => return wrong(format!("not of its form: {error}")),
        };
        if body.acknowledged_message_type != OUTPUT || !body.is_sequential_message {
            wrong("AcknowledgedMessageType or IsSequentialMessage".to_owned());
        }
        let number = body.acknowledged_message_sequence_number;
        let Ok(sequence) = u64::try_from(number) else {
            return wrong(format!("of sequence number {number}"));
        };
        match self.output.entry(sequence) {
            // Too old to be in the window; a violation only if it was never sent.
            None if sequence < self.output.next() => {}
            None => wrong(format!("of {sequence}, which was not delivered")),
            Some(id) if id.is_nil() => {
                wrong(format!("of {sequence}, which was not delivered intact"));
            }
            Some(id) if *id != body.acknowledged_message_id => {
                wrong(format!("of {sequence} with another message's id"));
            }
            Some(_) => {}
        }
    }

    /// Records a frame that is about to be delivered to the client; returns the sequence number of the
    /// message that it acknowledges.
    pub(crate) fn outgoing(
        &mut self,
        frame: &Bytes,
        damaged: bool,
        counters: &Counters,
    ) -> Option<u64> {
        if let Some((sequence, id, payload_type)) = codec::output(frame) {
            while self.output.next() <= sequence {
                // Not delivered intact yet.
                self.output.push(Uuid::nil());
            }
            if damaged {
                return None;
            }
            count(&counters.delivered, 1);
            if let Some(entry) = self.output.entry_mut(sequence) {
                *entry = id;
            }
            if payload_type != payload_type::OUTPUT
                && let Ok(message) = Message::decode(frame)
            {
                self.handshake_goes_on(&message);
            }
            self.paused = None;
            return None;
        }
        if damaged {
            return None;
        }
        let message = Message::decode(frame).ok()?;
        match message.kind.as_str() {
            ACKNOWLEDGE => {
                let body = serde_json::from_slice::<Acknowledge>(&message.payload);
                let number = body.map(|body| body.acknowledged_message_sequence_number);
                let sequence = number.ok().and_then(|number| u64::try_from(number).ok());
                let sent = sequence.and_then(|sequence| self.input.entry_mut(sequence));
                if let Some(sent) = sent
                    && !sent.acknowledged
                {
                    sent.acknowledged = true;
                    self.unacknowledged -= 1;
                }
                return sequence;
            }
            PAUSE_PUBLICATION => self.paused = Some(Instant::now()),
            START_PUBLICATION | CHANNEL_CLOSED => self.paused = None,
            _ => {}
        }
        None
    }

    fn handshake_goes_on(&mut self, message: &Message) {
        match (message.payload_type, self.handshake) {
            (payload_type::HANDSHAKE_REQUEST, Handshake::Expected) => {
                let request: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let encryption = request.pointer("/RequestedClientActions/1").is_some();
                self.handshake = Handshake::Requested { encryption };
            }
            (payload_type::HANDSHAKE_COMPLETE, Handshake::Answered) => {
                self.handshake = Handshake::Complete;
            }
            _ => {}
        }
    }
}

/// Checks what holds for every message of a client.
fn check_header(frame: &Bytes, message: &Message, violations: &mut Vec<String>) {
    let mut wrong = |text: &str| violations.push(format!("{}: {text}", message.kind));
    if frame.first_chunk() != Some(&LENGTH_OFFSET.to_be_bytes()) {
        wrong("HeaderLength is not 116");
    }
    let padding = frame.get(4 + message.kind.len()..4 + KIND).unwrap_or_default();
    if padding.iter().any(|byte| *byte != b' ') {
        wrong("MessageType is not padded with spaces");
    }
    if message.schema_version != 1 {
        wrong("SchemaVersion is not 1");
    }
    let created = SystemTime::UNIX_EPOCH + Duration::from_millis(message.created);
    let now = SystemTime::now();
    if created + CLOCK < now || created > now + CLOCK {
        wrong("CreatedDate is hours off");
    }
    if message.id.get_version_num() != 4 {
        wrong("MessageId is no random UUID");
    }
    if stated_length(frame) != u32::try_from(message.payload.len()).ok() {
        wrong("PayloadLength is not that of the payload");
    }
    if message.payload.is_empty() {
        wrong("the payload is empty");
    }
    if !message.is_intact() {
        wrong("PayloadDigest is not that of the payload");
    }
}

/// The most recent entries of a sequence that begins at 0.
#[derive(Debug)]
struct Window<T> {
    first: u64,
    entries: VecDeque<T>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { first: 0, entries: VecDeque::new() }
    }
}

impl<T> Window<T> {
    fn next(&self) -> u64 {
        self.first + u64::try_from(self.entries.len()).unwrap_or(0)
    }

    fn push(&mut self, entry: T) {
        if self.entries.len() >= WINDOW {
            self.entries.pop_front();
            self.first += 1;
        }
        self.entries.push_back(entry);
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.first)?).ok()
    }

    fn entry(&self, sequence: u64) -> Option<&T> {
        self.entries.get(self.index(sequence)?)
    }

    fn entry_mut(&mut self, sequence: u64) -> Option<&mut T> {
        let index = self.index(sequence)?;
        self.entries.get_mut(index)
    }
}

/// Number of messages kept; more than the agent's own buffer holds.
const WINDOW: usize = 131_072;

/// How long after a pause was sent new input is still allowed.
const GRACE: Duration = Duration::from_secs(1);

/// Tolerance for the client's clock: a retransmitted message keeps its date.
const CLOCK: Duration = Duration::from_hours(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::{codec::SYN, payload};

    fn audit() -> Audit {
        let mut audit = Audit::default();
        let mut request = Message::new(
            OUTPUT,
            0,
            payload_type::HANDSHAKE_REQUEST,
            payload::handshake_request("3.3.987.0", 22, false, ""),
        );
        request.flags = SYN;
        request.id = Uuid::new_v4();
        audit.outgoing(&request.encode(), false, &Counters::default());
        audit
    }

    fn message(kind: &str, sequence: i64, payload_type: u32, payload: &str) -> Message {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let mut message = Message::new(kind, sequence, payload_type, payload);
        message.id = Uuid::new_v4();
        if kind == ACKNOWLEDGE {
            message.flags = SYN_FIN;
        }
        message
    }

    fn response() -> Message {
        let body = r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
        message(INPUT, 0, payload_type::HANDSHAKE_RESPONSE, body)
    }

    fn judge(audit: &mut Audit, message: &Message) -> Vec<String> {
        let mut violations = Vec::new();
        audit.incoming(&message.encode(), &Counters::default(), &mut violations);
        violations
    }

    #[test]
    fn correct_client_causes_no_violation() {
        let mut audit = audit();
        let response = response();
        assert_eq!(judge(&mut audit, &response), [""; 0]);
        assert_eq!(judge(&mut audit, &response), [""; 0], "repeated");
        let complete = message(OUTPUT, 1, payload_type::HANDSHAKE_COMPLETE, "{}");
        audit.outgoing(&complete.encode(), false, &Counters::default());
        assert_eq!(judge(&mut audit, &message(INPUT, 1, payload_type::OUTPUT, "SSH")), [""; 0]);
        assert_eq!(
            judge(&mut audit, &message(INPUT, 2, payload_type::FLAG, "\0\0\0\u{2}")),
            [""; 0]
        );
        let acknowledge =
            Message::decode(&payload::acknowledge(&complete, Uuid::new_v4())).unwrap();
        assert_eq!(judge(&mut audit, &acknowledge), [""; 0]);
    }

    #[test]
    fn every_mistake_is_noticed() {
        let mut early = message(INPUT, 0, payload_type::OUTPUT, "SSH");
        let cases = [
            ("before HandshakeComplete", early.clone()),
            ("where 0 is next", message(INPUT, 1, payload_type::HANDSHAKE_RESPONSE, "{}")),
            ("not of its form", message(INPUT, 0, payload_type::HANDSHAKE_RESPONSE, "{}")),
            ("DisconnectToPort", message(INPUT, 0, payload_type::FLAG, "\0\0\0\u{1}")),
            ("flag [0, 0]", message(INPUT, 0, payload_type::FLAG, "\0\0")),
            ("payload type 3", message(INPUT, 0, 3, "{}")),
            ("sequence number -1", message(INPUT, -1, 1, "x")),
            ("message type `output_stream_data`", message(OUTPUT, 0, 1, "x")),
            ("acknowledge: not of its form", message(ACKNOWLEDGE, 0, 0, "{}")),
            ("PayloadDigest", Message { digest: [0; 32], ..response() }),
            ("SchemaVersion", Message { schema_version: 2, ..response() }),
            ("CreatedDate", Message { created: 1, ..response() }),
            ("MessageId", Message { id: Uuid::nil(), ..response() }),
            ("with flags 1", Message { flags: 1, ..response() }),
            ("payload is empty", message(INPUT, 0, 6, "")),
        ];
        for (expected, message) in cases {
            let violations = judge(&mut audit(), &message);
            assert!(
                violations.iter().any(|text| text.contains(expected)),
                "{expected}: {violations:?}"
            );
        }
        let mut audit = audit();
        judge(&mut audit, &early);
        early.id = Uuid::new_v4();
        let violations = judge(&mut audit, &early);
        assert!(
            violations.iter().any(|text| text.contains("repeated with another")),
            "{violations:?}"
        );
    }

    #[test]
    fn acknowledging_what_never_arrived_is_noticed() {
        let counters = Counters::default();
        let lost = message(OUTPUT, 2, payload_type::OUTPUT, "lost");
        let damaged = message(OUTPUT, 1, payload_type::OUTPUT, "damaged");
        let of = |message: &Message| {
            Message::decode(&payload::acknowledge(message, Uuid::new_v4())).unwrap()
        };
        let mut audit = audit();
        audit.outgoing(&damaged.encode(), true, &counters);
        assert_eq!(judge(&mut audit, &of(&damaged)).len(), 1);
        assert_eq!(judge(&mut audit, &of(&lost)).len(), 1);
        audit.outgoing(&damaged.encode(), false, &counters);
        assert_eq!(judge(&mut audit, &of(&damaged)), [""; 0]);
        let other = Message { id: Uuid::new_v4(), ..damaged };
        assert_eq!(judge(&mut audit, &of(&other)).len(), 1);
    }
}
