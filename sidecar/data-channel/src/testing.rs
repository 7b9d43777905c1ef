//! A model of the SSM agent (docs/ssm-protocol.md, sections 6 to 8, 10 and 16), written independently of the
//! client: its receiver, and its retransmission of the oldest message only. For tests of this crate, and with the
//! feature `testing` of others. It panics where a client breaks the protocol.

#![expect(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test double fails the test"
)]

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Message, MessageType, PayloadType,
    message::{ACKNOWLEDGE_FLAGS, Envelope},
};

/// Variants of the agent.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Whether it acknowledges duplicates, as agents since 3.2.1041.0 do.
    pub acknowledges_again: bool,
    /// It acknowledges only messages whose numbers are multiples of this.
    pub acknowledges_every: i64,
    /// Time to connect to sshd. Input before that is neither acknowledged nor kept.
    pub dial: Duration,
    /// Requested actions of the handshake.
    pub actions: Value,
    /// It ignores acknowledgements of this message, and repeats it for ever.
    pub resends_for_ever: Option<i64>,
    /// Each message has an earlier date than its predecessor.
    pub clock_runs_back: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        let actions = json!([{
            "ActionType": "SessionType",
            "ActionParameters": { "SessionType": "Port", "Properties": { "portNumber": "22" } },
        }]);
        Self {
            acknowledges_again: true,
            acknowledges_every: 1,
            dial: Duration::ZERO,
            actions,
            resends_for_ever: None,
            clock_runs_back: false,
        }
    }
}

/// The agent's end of one session, without IO.
#[derive(Debug)]
pub struct Agent {
    behaviour: Behaviour,
    complete_at: Option<Instant>,
    expected: i64,
    early: BTreeMap<i64, (u32, Bytes)>,
    next: i64,
    /// By number: frame, and when it was last sent.
    unacknowledged: BTreeMap<i64, (Bytes, Instant)>,
    source: VecDeque<u8>,
    read_at: Instant,
    tick_at: Instant,
    smoothed: Duration,
    variation: Duration,
    timeout: Duration,
    out: VecDeque<Bytes>,
    ids: u128,
    /// Bytes written to sshd.
    pub written: Vec<u8>,
    /// Number of messages that came before the handshake was complete: acknowledged and discarded.
    pub discarded: usize,
    /// Payloads of the processed handshake responses.
    pub responses: Vec<Bytes>,
    /// Whether the TerminateSession flag was received.
    pub terminated: bool,
    close_at: Option<Instant>,
    /// Numbers of received stream messages, with the time.
    pub seen: Vec<(Instant, i64)>,
    /// Numbers acknowledged by the client, in order of arrival.
    pub acknowledged: Vec<i64>,
}

impl Agent {
    /// A session that begins at `now`, with the handshake request.
    pub fn new(behaviour: Behaviour, now: Instant) -> Self {
        let mut agent = Self {
            behaviour,
            complete_at: None,
            expected: 0,
            early: BTreeMap::new(),
            next: 0,
            unacknowledged: BTreeMap::new(),
            source: VecDeque::new(),
            read_at: now,
            tick_at: now + TICK,
            smoothed: Duration::from_millis(100),
            variation: Duration::ZERO,
            timeout: Duration::from_millis(200),
            out: VecDeque::new(),
            ids: 1,
            written: Vec::new(),
            discarded: 0,
            responses: Vec::new(),
            terminated: false,
            close_at: None,
            seen: Vec::new(),
            acknowledged: Vec::new(),
        };
        let actions = &agent.behaviour.actions;
        let request = json!({ "AgentVersion": "3.3.0.0", "RequestedClientActions": actions });
        agent.send(PayloadType::HandshakeRequest, request.to_string().as_bytes(), now);
        agent
    }

    /// Changes [`Behaviour::acknowledges_every`].
    pub fn acknowledge_every(&mut self, messages: i64) {
        self.behaviour.acknowledges_every = messages;
    }

    /// Continues with these numbers. Nothing may be in flight.
    pub fn skip_to(&mut self, expected: i64, next: i64) {
        assert!(self.unacknowledged.is_empty() && self.early.is_empty());
        (self.expected, self.next) = (expected, next);
    }

    /// Adds bytes that sshd sends.
    pub fn offer(&mut self, bytes: &[u8]) {
        self.source.extend(bytes);
    }

    /// Replaces the bytes that sshd has still to send.
    pub fn offer_instead(&mut self, bytes: &[u8]) {
        self.source.clear();
        self.offer(bytes);
    }

    /// Whether sshd's bytes are sent and acknowledged.
    pub fn has_sent_everything(&self) -> bool {
        self.source.is_empty() && self.unacknowledged.is_empty()
    }

    /// Takes a frame of the client.
    pub fn handle_message(&mut self, now: Instant, frame: &Bytes) {
        let message = Message::decode(frame).unwrap();
        match message.message_type {
            MessageType::Acknowledge => {
                let fields: Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(fields["AcknowledgedMessageType"], "output_stream_data");
                assert_eq!((message.flags, message.sequence_number), (3, 0));
                let number = fields["AcknowledgedMessageSequenceNumber"].as_i64().unwrap();
                assert!(number < self.next, "acknowledged {number} before it was sent");
                self.acknowledged.push(number);
                if self.behaviour.resends_for_ever == Some(number) {
                    return;
                }
                if let Some((_, sent_at)) = self.unacknowledged.remove(&number) {
                    self.on_round_trip(now - sent_at);
                }
            }
            MessageType::InputStreamData => self.on_input(now, message),
            other => panic!("a client sent {other:?}"),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            // Only the oldest, whatever else is missing.
            if let Some((_, (frame, sent_at))) = self.unacknowledged.iter_mut().next()
                && now - *sent_at > self.timeout
            {
                *sent_at = now;
                self.out.push_back(frame.clone());
            }
        }
        if self.close_at.take_if(|at| *at <= now).is_some() {
            self.close("");
        }
        if now >= self.read_at && self.is_ready(now) && !self.source.is_empty() {
            let length = self.source.len().min(1_024);
            let payload: Vec<u8> = self.source.drain(..length).collect();
            self.send(PayloadType::Output, &payload, now);
            self.read_at = now + Duration::from_millis(1);
        }
    }

    /// The next deadline; `None` while nothing is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tick = (!self.unacknowledged.is_empty()).then_some(self.tick_at);
        let read = self.complete_at.filter(|_| !self.source.is_empty());
        let read = read.map(|at| (at + self.behaviour.dial).max(self.read_at));
        [tick, read, self.close_at].into_iter().flatten().min()
    }

    /// The next frame for the client.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// Sends `channel_closed`, as the service does at the end of the session.
    pub fn close(&mut self, output: &str) {
        let closed = json!({ "Output": output, "SchemaVersion": 1 }).to_string();
        self.send_control(MessageType::ChannelClosed, closed.as_bytes());
    }

    /// Sends a message without a number.
    pub fn send_control(&mut self, message_type: MessageType, payload: &[u8]) {
        let frame = self.message(message_type, 0, 0, 0, payload);
        self.out.push_back(frame);
    }

    /// Sends a message with the next number, again until it is acknowledged.
    pub fn send(&mut self, payload_type: PayloadType, payload: &[u8], now: Instant) {
        let (number, flags) = (self.next, u64::from(self.next == 0));
        let kind = MessageType::OutputStreamData;
        let frame = self.message(kind, number, flags, payload_type.to_wire(), payload);
        self.next += 1;
        if self.unacknowledged.is_empty() {
            self.tick_at = now + TICK;
        }
        self.unacknowledged.insert(number, (frame.clone(), now));
        self.out.push_back(frame);
    }

    fn on_input(&mut self, now: Instant, message: Message) {
        let number = message.sequence_number;
        self.seen.push((now, number));
        let acknowledge = match number.cmp(&self.expected) {
            Ordering::Less => self.behaviour.acknowledges_again,
            Ordering::Greater => {
                self.early.insert(number, (message.payload_type, message.payload));
                true
            }
            Ordering::Equal => {
                let accepted = self.process(now, message.payload_type, message.payload);
                self.expected += i64::from(accepted);
                while accepted && let Some((kind, payload)) = self.early.remove(&self.expected) {
                    self.process(now, kind, payload);
                    self.expected += 1;
                }
                accepted
            }
        };
        if acknowledge && number % self.behaviour.acknowledges_every == 0 {
            let payload = json!({
                "AcknowledgedMessageType": "input_stream_data",
                "AcknowledgedMessageId": message.message_id.to_string(),
                "AcknowledgedMessageSequenceNumber": number,
                "IsSequentialMessage": true,
            });
            let payload = payload.to_string();
            let kind = MessageType::Acknowledge;
            let frame = self.message(kind, 0, ACKNOWLEDGE_FLAGS, 0, payload.as_bytes());
            self.out.push_back(frame);
        }
    }

    /// False if the handler is not ready.
    fn process(&mut self, now: Instant, payload_type: u32, payload: Bytes) -> bool {
        match PayloadType::from_wire(payload_type).unwrap() {
            PayloadType::HandshakeResponse => {
                let response: Value = serde_json::from_slice(&payload).unwrap();
                self.responses.push(payload);
                let actions = response["ProcessedClientActions"].as_array().unwrap();
                if actions.iter().all(|action| action["ActionStatus"] == 1) {
                    let complete = json!({ "HandshakeTimeToComplete": 1, "CustomerMessage": "" });
                    let complete = complete.to_string();
                    self.send(PayloadType::HandshakeComplete, complete.as_bytes(), now);
                    self.complete_at = Some(now);
                } else {
                    self.close("handshake failed");
                }
            }
            _ if self.complete_at.is_none() => self.discarded += 1,
            _ if !self.is_ready(now) => return false,
            PayloadType::Output => self.written.extend_from_slice(&payload),
            PayloadType::Flag => {
                assert_eq!(payload[..], [0, 0, 0, 2]);
                self.terminated = true;
                self.source.clear();
                self.close_at = Some(now + Duration::from_millis(15));
            }
            other => panic!("a client sent {other:?}"),
        }
        true
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.complete_at.is_some_and(|at| now >= at + self.behaviour.dial)
    }

    fn message(
        &mut self,
        message_type: MessageType,
        sequence_number: i64,
        flags: u64,
        payload_type: u32,
        payload: &[u8],
    ) -> Bytes {
        self.ids += 1;
        let message_id = Uuid::from_u128(self.ids);
        let ids = u64::try_from(self.ids).unwrap();
        let created_date_ms = if self.behaviour.clock_runs_back { u64::MAX - ids } else { 1 };
        let mut frame = BytesMut::new();
        Envelope {
            message_type,
            created_date_ms,
            sequence_number,
            flags,
            message_id,
            payload_type,
        }
        .encode(payload, &mut frame);
        frame.freeze()
    }

    fn on_round_trip(&mut self, sample: Duration) {
        self.variation = self.variation * 3 / 4 + self.smoothed.abs_diff(sample) / 4;
        self.smoothed = self.smoothed * 7 / 8 + sample / 8;
        let margin = (self.variation * 4).max(Duration::from_millis(10));
        self.timeout = (self.smoothed + margin).min(Duration::from_secs(1));
    }
}

const TICK: Duration = Duration::from_millis(100);
