//! The state machine that joins handshake, both streams, timers and events.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    config::Config,
    encoder::Encoder,
    error::ProtocolError,
    event::Event,
    handshake::{Handshake, Step},
    incoming::{Accepted, Incoming, Stored},
    message::{DecodeError, Message, MessageType},
    outgoing::{Acknowledged, Outgoing},
    payload::{self, Flag, PayloadType},
    sequence::SequenceNumber,
    statistics::Statistics,
    timers::{Timer, Timers},
};

/// The client's side of one SSM data channel, over every WebSocket of its session.
///
/// See the [crate] documentation for the order of calls.
#[derive(Debug)]
pub struct DataChannel {
    client_version: String,
    client_id: Uuid,
    encoder: Encoder,
    handshake: Handshake,
    life: Life,
    link: Link,
    incoming: Incoming,
    outgoing: Outgoing,
    acknowledgements: VecDeque<(Uuid, SequenceNumber)>,
    /// What was acknowledged last, each once; any of these acknowledgements may have been lost.
    acknowledged: VecDeque<(Uuid, SequenceNumber)>,
    events: VecDeque<Event>,
    timers: Timers,
    damaged_in_a_row: u32,
    statistics: Statistics,
}

/// Whether the channel can still go on.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Life {
    Live,
    Closed,
    Failed(ProtocolError),
}

/// What the path lets through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Link {
    Up,
    /// Up, but the service has asked to hold data back.
    Paused,
    Down,
}

impl DataChannel {
    /// Makes a channel for a WebSocket that is about to be opened.
    ///
    /// `now` and `unix_ms` are one instant on both clocks, dates of messages derive from them. Ids derive
    /// from `seed`: the same seed and calls give the same bytes.
    #[must_use]
    pub fn new(config: Config, now: Instant, unix_ms: u64, seed: u128) -> Self {
        let message_bytes = config.message_bytes.clamp(256, 65_536);
        let mut encoder = Encoder::new(seed, now, unix_ms);
        Self {
            client_version: config.client_version,
            client_id: encoder.new_identifier(),
            encoder,
            handshake: Handshake::AwaitingRequest,
            life: Life::Live,
            link: Link::Up,
            incoming: Incoming::new(config.incoming_bytes, config.incoming_messages),
            outgoing: Outgoing::new(message_bytes, config.outgoing_bytes),
            acknowledgements: VecDeque::new(),
            acknowledged: VecDeque::new(),
            events: VecDeque::new(),
            timers: Timers::default(),
            damaged_in_a_row: 0,
            statistics: Statistics::default(),
        }
    }

    /// Returns the first frame of a WebSocket, to be sent as text before all others.
    ///
    /// The client id stays the same for the life of the channel, the request id is new each time.
    #[must_use]
    pub fn opening(&mut self, token: &str) -> String {
        // By hand, since the official client's order of fields is kept; `Value` sorts them.
        format!(
            r#"{{"MessageSchemaVersion":"1.0","RequestId":"{}","TokenValue":{},"ClientId":"{}","ClientVersion":{}}}"#,
            self.encoder.new_identifier(),
            Value::from(token),
            self.client_id,
            Value::from(self.client_version.as_str()),
        )
    }

    /// Takes one WebSocket frame, binary or text.
    ///
    /// Single frames that are damaged or of unknown type are dropped and counted.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if the channel cannot go on; every later call returns the same. For
    /// [`ProtocolError::Unsupported`] the agent's request is answered first, so the error comes with the
    /// first frame after the answer was handed out, see also [`Event::Failed`].
    // By value: payloads keep the frame alive, and the caller has no use for it.
    #[expect(clippy::needless_pass_by_value, reason = "the frame is given away")]
    pub fn handle_message(&mut self, now: Instant, frame: Bytes) -> Result<(), ProtocolError> {
        match &self.life {
            Life::Live => (),
            Life::Closed => return Ok(()),
            Life::Failed(error) => return Err(error.clone()),
        }
        let outcome = match self.dispatch(now, &frame) {
            Ok(()) => {
                self.damaged_in_a_row = 0;
                Ok(())
            }
            Err(Refused::Damaged(error)) => self.on_damaged(error),
            Err(Refused::Fatal(error)) => Err(error),
        };
        if let Err(error) = &outcome {
            self.life = Life::Failed(error.clone());
        }
        self.set_timers();
        outcome
    }

    /// Runs what is due at `now`. Then call [`DataChannel::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timers.take_expired(Timer::Pause, now) {
            self.end_pause(now);
        }
        self.outgoing.handle_timeout(now);
        self.set_timers();
    }

    /// Returns when [`DataChannel::handle_timeout`] is due, `None` while nothing is waited for.
    ///
    /// Ask again after every other call.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Returns the next frame to send, each as one binary message: acknowledgements first, then what is
    /// sent again, then what is new. `None` until something changes.
    ///
    /// Frames that may have to be sent again are shared, not copied.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.link == Link::Down || self.life == Life::Closed {
            return None;
        }
        if let Some((id, number)) = self.acknowledgements.pop_front() {
            self.statistics.acknowledgements_sent += 1;
            return Some(self.encoder.acknowledgement(id, number, now));
        }
        if self.life != Life::Live {
            return None;
        }
        let held = self.link == Link::Paused;
        let transmit = self.outgoing.poll_transmit(now, held, &mut self.encoder);
        if let Some(transmit) = &transmit {
            match transmit.first {
                Some(bytes) => {
                    self.statistics.messages_sent += 1;
                    self.statistics.bytes_sent += bytes as u64;
                }
                None => self.statistics.retransmissions += 1,
            }
            self.fail_if_refused();
        }
        self.set_timers();
        transmit.map(|transmit| transmit.frame)
    }

    /// Returns the next event, `None` until something happens.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the next bytes of the stream, in order: never empty, a slice of the frame they came in.
    ///
    /// What is not read keeps its room, and what finds no room comes again at ten messages a second: read
    /// at once, and slow the sender down by means of what runs inside the stream.
    #[must_use]
    pub fn read(&mut self) -> Option<Bytes> {
        self.incoming.read()
    }

    /// Accepts as much of `data` as there is room for and returns how much that was.
    ///
    /// 0 before [`Event::Open`], when the room is used up, and once the channel ends. Bytes wait for
    /// nothing but the window; those that wait share messages.
    pub fn write(&mut self, data: &[u8]) -> usize {
        if self.is_open() { self.outgoing.write(data) } else { 0 }
    }

    /// Returns how many bytes [`DataChannel::write`] would accept.
    pub fn writable(&self) -> usize {
        if self.is_open() { self.outgoing.writable() } else { 0 }
    }

    /// Asks the agent to end the session, behind what can be sent before; [`Event::Terminated`] follows.
    ///
    /// What has been written but finds no room in the window is dropped. Returns false where the agent
    /// would not listen, before [`Event::Open`] and after the end: then only the API ends the session.
    pub fn terminate(&mut self) -> bool {
        if !self.is_open() {
            return false;
        }
        self.outgoing.terminate();
        true
    }

    /// Takes the loss of the WebSocket: nothing is sent and no clock runs until
    /// [`DataChannel::on_resumed`].
    pub fn on_disconnected(&mut self, now: Instant) {
        self.link = Link::Down;
        self.outgoing.freeze(now);
        self.timers.stop_all();
    }

    /// Takes a new WebSocket of the same session, whose opening message has been sent: everything that is
    /// not acknowledged is sent again, in order and at once. There is no new handshake.
    pub fn on_resumed(&mut self, _now: Instant) {
        self.link = Link::Up;
        self.statistics.resumes += 1;
        self.damaged_in_a_row = 0;
        self.outgoing.on_new_path();
        self.set_timers();
    }

    /// Returns counters and current figures.
    pub fn statistics(&self) -> Statistics {
        let (in_flight, rtt) = (self.outgoing.in_flight(), self.outgoing.rtt());
        Statistics {
            smoothed_rtt: rtt.smoothed(),
            minimum_rtt: rtt.minimum(),
            round_trip_bound: self.round_trip_bound(),
            retransmission_timeout: rtt.retransmission_timeout(),
            window: self.outgoing.window(),
            in_flight: in_flight.counted(),
            set_aside: in_flight.aside(),
            ..self.statistics
        }
    }

    /// What a round trip takes at most, as in [`Statistics::round_trip_bound`], without the rest.
    #[must_use]
    pub fn round_trip_bound(&self) -> Option<Duration> {
        self.outgoing.rtt().bound()
    }

    /// Whether the handshake is complete and the channel has not ended since.
    pub fn is_open(&self) -> bool {
        self.life == Life::Live && self.handshake == Handshake::Open
    }

    /// Returns how many messages were sent and not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outgoing.in_flight().counted() + self.outgoing.in_flight().aside()
    }

    /// Goes on with these numbers, as if as many messages had gone to and fro; nothing is in flight.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, outgoing: SequenceNumber, incoming: SequenceNumber) {
        self.outgoing.skip_to(outgoing);
        self.incoming.skip_to(incoming);
    }

    fn dispatch(&mut self, now: Instant, frame: &Bytes) -> Result<(), Refused> {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(DecodeError::UnknownType(_)) => {
                self.statistics.dropped_unknown += 1;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        match message.message_type {
            MessageType::OutputStreamData => self.on_stream_message(now, message, frame.len())?,
            MessageType::Acknowledge => self.on_acknowledgement(now, &message)?,
            MessageType::PausePublication => self.on_pause(now),
            MessageType::StartPublication => self.end_pause(now),
            // Its digest is not looked at: it comes once, and whatever it says it is the end.
            MessageType::ChannelClosed => self.on_closed(&message.payload),
            MessageType::InputStreamData => self.statistics.dropped_unknown += 1,
        }
        Ok(())
    }

    fn on_stream_message(
        &mut self,
        now: Instant,
        message: Message,
        frame_bytes: usize,
    ) -> Result<(), Refused> {
        if !message.is_intact() {
            return Err(DecodeError::Digest.into());
        }
        let Some(number) = SequenceNumber::from_wire(message.sequence_number) else {
            return Err(DecodeError::SequenceNumber(message.sequence_number).into());
        };
        self.end_pause(now);
        if self.acknowledgements.len() >= MAXIMUM_ACKNOWLEDGEMENTS {
            self.statistics.dropped_no_room += 1;
            return Ok(());
        }
        let payload_bytes = message.payload.len();
        let stored =
            Stored { payload_type: message.payload_type, payload: message.payload, frame_bytes };
        let accepted = self.incoming.accept(number, stored);
        match accepted {
            Accepted::InOrder => (),
            Accepted::Early => self.statistics.out_of_order += 1,
            Accepted::Duplicate => self.statistics.duplicates += 1,
            Accepted::NoRoom => {
                self.statistics.dropped_no_room += 1;
                return Ok(());
            }
        }
        // Before anything is done with it: the agent's only repair slot waits for this.
        self.acknowledgements.push_back((message.message_id, number));
        if accepted == Accepted::Duplicate {
            self.acknowledge_again(number);
        } else {
            self.statistics.messages_received += 1;
            self.statistics.bytes_received += payload_bytes as u64;
            if self.acknowledged.len() >= MAXIMUM_REPEATED {
                self.acknowledged.pop_front();
            }
            self.acknowledged.push_back((message.message_id, number));
        }
        while let Some(stored) = self.incoming.next_in_order() {
            self.on_next(stored).map_err(Refused::Fatal)?;
        }
        Ok(())
    }

    /// Repeats, once, the acknowledgements behind that of `lost`, which has come again: where one was lost
    /// others may have been, and the agent, which repairs the oldest alone, ten times a second, would find
    /// that out one by one.
    fn acknowledge_again(&mut self, lost: SequenceNumber) {
        let others = self.acknowledged.drain(..).filter(|(_, number)| *number > lost);
        self.acknowledgements.extend(others);
    }

    /// Takes a stream message in its turn.
    fn on_next(&mut self, stored: Stored) -> Result<(), ProtocolError> {
        let payload_type = PayloadType::from_wire(stored.payload_type);
        match payload_type {
            Some(PayloadType::Output) if self.handshake == Handshake::Open => {
                self.incoming.deliver(stored);
            }
            Some(
                kind @ (PayloadType::Output
                | PayloadType::HandshakeRequest
                | PayloadType::HandshakeComplete
                | PayloadType::EncryptionChallengeRequest),
            ) => self.on_handshake(kind, &stored.payload)?,
            Some(
                kind @ (PayloadType::Error
                | PayloadType::StdErr
                | PayloadType::ExitCode
                | PayloadType::Flag),
            ) => {
                let text = match Flag::from_payload(&stored.payload) {
                    Some(flag) if kind == PayloadType::Flag => format!("{flag:?}"),
                    _ => payload::excerpt_of_bytes(&stored.payload),
                };
                self.note(Event::Notice { payload_type: kind, text });
            }
            // Not for a client, or of an agent to come: no bytes of the stream in any case.
            _ => self.statistics.ignored_payloads += 1,
        }
        Ok(())
    }

    fn on_handshake(&mut self, kind: PayloadType, payload: &[u8]) -> Result<(), ProtocolError> {
        let (next, step) =
            self.handshake.clone().on_message(kind, payload, &self.client_version)?;
        self.handshake = next;
        match step {
            Step::Answer(response) => self.outgoing.answer_handshake(response),
            Step::Opened { agent_version, customer_message } => {
                self.events.push_back(Event::Open { agent_version, customer_message });
            }
        }
        Ok(())
    }

    fn on_acknowledgement(&mut self, now: Instant, message: &Message) -> Result<(), Refused> {
        if !message.is_intact() {
            return Err(DecodeError::Digest.into());
        }
        let number = payload::parse_acknowledgement(&message.payload)?;
        let Some(number) = SequenceNumber::from_wire(number) else {
            return Err(DecodeError::SequenceNumber(number).into());
        };
        self.end_pause(now);
        match self.outgoing.on_acknowledged(number, now) {
            Acknowledged::Message => (),
            Acknowledged::Termination => self.events.push_back(Event::Terminated),
            Acknowledged::Nothing => self.statistics.ignored_acknowledgements += 1,
        }
        Ok(())
    }

    fn on_pause(&mut self, now: Instant) {
        // A second request does not prolong the first: a service that repeats itself cannot hold us.
        if self.link == Link::Up {
            self.link = Link::Paused;
            self.statistics.pauses += 1;
            self.outgoing.freeze(now);
            self.timers.set(Timer::Pause, Some(now + MAXIMUM_PAUSE));
            self.note(Event::Paused);
        }
    }

    fn end_pause(&mut self, now: Instant) {
        if self.link == Link::Paused {
            self.link = Link::Up;
            self.timers.set(Timer::Pause, None);
            self.outgoing.thaw(now);
            self.note(Event::Started);
        }
    }

    fn on_closed(&mut self, payload: &[u8]) {
        self.life = Life::Closed;
        self.acknowledgements.clear();
        self.events.push_back(Event::Closed { reason: payload::parse_channel_closed(payload) });
    }

    fn on_damaged(&mut self, last: DecodeError) -> Result<(), ProtocolError> {
        self.statistics.dropped_damaged += 1;
        self.damaged_in_a_row += 1;
        if self.damaged_in_a_row < MAXIMUM_DAMAGED {
            return Ok(());
        }
        Err(ProtocolError::Damaged { frames: self.damaged_in_a_row, last })
    }

    /// Ends the channel once the agent has been told that its request is not supported.
    fn fail_if_refused(&mut self) {
        if let Handshake::Refused { what } = &self.handshake
            && !self.outgoing.awaits_handshake_response()
        {
            let error = ProtocolError::Unsupported { what: what.clone() };
            self.life = Life::Failed(error.clone());
            self.events.push_back(Event::Failed(error));
        }
    }

    /// Queues an event that a peer can cause without end.
    fn note(&mut self, event: Event) {
        if self.events.len() < MAXIMUM_EVENTS {
            self.events.push_back(event);
        } else if matches!(event, Event::Notice { .. }) {
            self.statistics.ignored_payloads += 1;
        }
    }

    fn set_timers(&mut self) {
        if self.life != Life::Live || self.link == Link::Down {
            self.timers.stop_all();
            return;
        }
        self.timers.set(Timer::Retransmission, self.outgoing.retransmission_deadline());
        self.timers.set(Timer::Pacing, self.outgoing.pacing_deadline());
    }
}

/// Why a frame was not taken.
enum Refused {
    /// The frame is dropped, the channel goes on.
    Damaged(DecodeError),
    /// The channel is over.
    Fatal(ProtocolError),
}

impl From<DecodeError> for Refused {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(error)
    }
}

/// So many damaged frames without a good one between them end the channel: TLS lets none through, so
/// these were sent so.
const MAXIMUM_DAMAGED: u32 = 64;

/// Acknowledgements that wait to be sent; more means that nobody polls.
const MAXIMUM_ACKNOWLEDGEMENTS: usize = 65_536;

/// Acknowledgements that may be repeated: of what sshd sends ahead at most, in messages of 1,024 bytes.
const MAXIMUM_REPEATED: usize = 512;

/// Events that a peer can cause without end wait in this number at most.
const MAXIMUM_EVENTS: usize = 64;

/// How long a pause lasts without a word that ends it, since `start_publication` may get lost. The agent's
/// own attempts to come back take 6 s.
const MAXIMUM_PAUSE: Duration = Duration::from_secs(10);
