//! The state machine that combines handshake, both streams, timers and events.

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
    upload_limits::UploadLimits,
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
    state: ChannelState,
    path: PathState,
    incoming: Incoming,
    outgoing: Outgoing,
    acknowledgements: VecDeque<(Uuid, SequenceNumber)>,
    /// The last acknowledgements queued, each once; any of them may get lost.
    recent_acknowledgements: VecDeque<(Uuid, SequenceNumber)>,
    events: VecDeque<Event>,
    timers: Timers,
    /// Since when the agent owes an answer, if it owes one: its last message, the first message in flight, or the begin of
    /// this path or the end of the last pause, whichever is latest.
    waiting_since: Instant,
    damaged_in_a_row: u32,
    statistics: Statistics,
}

/// Whether the channel is usable.
#[derive(Clone, Debug, Eq, PartialEq)]
enum ChannelState {
    Live,
    Closed,
    Failed(ProtocolError),
}

/// State of the path below the channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PathState {
    Up,
    /// Up, but the service has sent `pause_publication`.
    Paused,
    Down,
}

impl DataChannel {
    /// Creates a channel for a WebSocket that is about to be opened.
    ///
    /// `now` and `unix_ms` (since the Unix epoch) are the same moment on both clocks; dates of messages derive
    /// from them. Ids derive from `seed`: the same seed and calls give the same bytes.
    #[must_use]
    pub fn new(config: Config, now: Instant, unix_ms: u64, seed: u128) -> Self {
        let message_bytes = config.message_bytes.clamp(256, 65_536);
        let mut encoder = Encoder::new(seed, now, unix_ms);
        Self {
            client_version: config.client_version,
            client_id: encoder.new_identifier(),
            encoder,
            handshake: Handshake::AwaitingRequest,
            state: ChannelState::Live,
            path: PathState::Up,
            incoming: Incoming::new(config.incoming_bytes, config.incoming_messages),
            outgoing: Outgoing::new(
                message_bytes,
                config.outgoing_bytes,
                config.upload_limits,
                now,
            ),
            acknowledgements: VecDeque::new(),
            recent_acknowledgements: VecDeque::new(),
            events: VecDeque::new(),
            timers: Timers::default(),
            waiting_since: now,
            damaged_in_a_row: 0,
            statistics: Statistics::default(),
        }
    }

    /// Returns the first frame of a WebSocket, to be sent as text before all others.
    ///
    /// The client id stays the same for the life of the channel, the request id is new each time
    /// (docs/ssm-protocol.md, section 3.3).
    #[must_use]
    pub fn opening(&mut self, token: &str) -> String {
        // Not by `Value`, which sorts the fields: they keep the plugin's order.
        format!(
            r#"{{"MessageSchemaVersion":"1.0","RequestId":"{}","TokenValue":{},"ClientId":"{}","ClientVersion":{}}}"#,
            self.encoder.new_identifier(),
            Value::from(token),
            self.client_id,
            Value::from(self.client_version.as_str()),
        )
    }

    /// Handles one WebSocket frame, binary or text.
    ///
    /// Single frames that are damaged or of unknown type are dropped and counted.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if the channel has failed; every later call returns the same. For
    /// [`ProtocolError::Unsupported`] the handshake response is sent first, so the error comes with the
    /// first frame after `poll_transmit` has returned that response; see also [`Event::Failed`].
    // By value: payloads keep the frame alive.
    #[expect(clippy::needless_pass_by_value, reason = "the frame is given away")]
    pub fn handle_message(&mut self, now: Instant, frame: Bytes) -> Result<(), ProtocolError> {
        match &self.state {
            ChannelState::Live => (),
            ChannelState::Closed => return Ok(()),
            ChannelState::Failed(error) => return Err(error.clone()),
        }
        let outcome = match self.dispatch(now, &frame) {
            Ok(()) => {
                self.damaged_in_a_row = 0;
                Ok(())
            }
            Err(FrameError::Damaged(error)) => self.on_damaged(error),
            Err(FrameError::Fatal(error)) => Err(error),
        };
        if let Err(error) = &outcome {
            self.state = ChannelState::Failed(error.clone());
        }
        self.set_timers();
        outcome
    }

    /// Handles the deadlines that have passed at `now`. Then call [`DataChannel::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timers.take_expired(Timer::Pause, now) {
            self.end_pause(now);
        }
        self.outgoing.handle_timeout(now);
        self.set_timers();
    }

    /// Returns when [`DataChannel::handle_timeout`] is due, `None` while no timer runs.
    ///
    /// Every other call may change it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Returns the next frame to send, as one binary message: first acknowledgements, then retransmissions,
    /// then new messages. After `None` there is nothing to send until another method has been called.
    ///
    /// Frames that may have to be sent again are shared, not copied.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.path == PathState::Down || self.state == ChannelState::Closed {
            return None;
        }
        if let Some((id, number)) = self.acknowledgements.pop_front() {
            self.statistics.acknowledgements_sent += 1;
            return Some(self.encoder.acknowledgement(id, number, now));
        }
        if self.state != ChannelState::Live {
            return None;
        }
        let held = self.path == PathState::Paused;
        let nothing_in_flight = self.outgoing.in_flight().counted() == 0;
        let transmit = self.outgoing.poll_transmit(now, held, &mut self.encoder);
        if nothing_in_flight && transmit.is_some() {
            self.waiting_since = now;
        }
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

    /// Returns the next event, `None` if there is none.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the next bytes of the stream, in order: never empty, a slice of the frame they came in.
    ///
    /// Unread bytes occupy the buffer. Messages that find it full are dropped, and the agent repeats them at ten
    /// a second (docs/ssm-protocol.md, section 8.1). So read at once, and slow the sender down by the flow
    /// control of the protocol inside the stream.
    #[must_use]
    pub fn read(&mut self) -> Option<Bytes> {
        self.incoming.read()
    }

    /// Accepts as much of `data` as there is room for and returns its length.
    ///
    /// 0 before [`Event::Open`], when [`Config::outgoing_bytes`] is used up, and once the channel has ended or
    /// `terminate` was called. Bytes are sent as soon as the window allows; until then they are joined into
    /// full messages.
    pub fn write(&mut self, data: &[u8]) -> usize {
        if self.is_open() { self.outgoing.write(data) } else { 0 }
    }

    /// Returns how many bytes [`DataChannel::write`] would accept.
    pub fn writable(&self) -> usize {
        if self.is_open() { self.outgoing.writable() } else { 0 }
    }

    /// Requests the end of the session by the TerminateSession flag; [`Event::Terminated`] follows
    /// (docs/ssm-protocol.md, section 12).
    ///
    /// Written bytes that fit the window are sent before the flag, the rest is dropped. Returns false before
    /// [`Event::Open`], when the agent would discard the flag, and after the end: then only the API call ends
    /// the session.
    pub fn terminate(&mut self) -> bool {
        if !self.is_open() {
            return false;
        }
        self.outgoing.terminate();
        true
    }

    /// Notes the loss of the WebSocket: nothing is sent and no timer runs until
    /// [`DataChannel::on_resumed`].
    pub fn on_disconnected(&mut self, now: Instant) {
        self.path = PathState::Down;
        self.outgoing.on_path_lost(now);
        self.timers.stop_all();
    }

    /// Notes a new WebSocket of the same session, whose opening message has been sent: everything
    /// unacknowledged is sent again, in order and at once. There is no new handshake (docs/ssm-protocol.md,
    /// section 11).
    pub fn on_resumed(&mut self, now: Instant) {
        self.path = PathState::Up;
        self.waiting_since = now;
        self.statistics.resumes += 1;
        self.damaged_in_a_row = 0;
        self.outgoing.on_new_path();
        self.set_timers();
    }

    /// Returns counters and current values.
    pub fn statistics(&self) -> Statistics {
        let (in_flight, rtt) = (self.outgoing.in_flight(), self.outgoing.rtt());
        Statistics {
            smoothed_rtt: rtt.smoothed(),
            minimum_rtt: rtt.minimum(),
            round_trip_bound: self.round_trip_bound(),
            retransmission_timeout: rtt.retransmission_timeout(),
            window: self.outgoing.congestion().window(),
            in_flight: in_flight.counted(),
            bytes_in_flight: in_flight.counted_bytes() as u64,
            set_aside: in_flight.aside(),
            ..self.statistics
        }
    }

    /// Returns what the channel has learned of how much the service takes, for the channels after it.
    #[must_use]
    pub fn upload_limits(&self) -> UploadLimits {
        self.outgoing.congestion().limits()
    }

    /// Whether written bytes are held back: by a pause, the window, a limit of the rate, or the loss of the WebSocket.
    #[must_use]
    pub fn holds_bytes(&self) -> bool {
        self.path != PathState::Up || self.outgoing.has_unsent()
    }

    /// Since when messages are in flight and nothing has come from the agent; `None` while none is in flight, during a
    /// pause and without a WebSocket. The service answers pings for an agent that is gone.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        let is_waiting = self.state == ChannelState::Live
            && self.path == PathState::Up
            && self.outgoing.in_flight().counted() > 0;
        is_waiting.then_some(self.waiting_since)
    }

    /// Whether the last path, or the channel, was lost soon after a pause or during a fast upload: what follows starts
    /// slowly.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.outgoing.congestion().is_congested()
    }

    /// Returns [`Statistics::round_trip_bound`] alone, at less cost.
    #[must_use]
    pub fn round_trip_bound(&self) -> Option<Duration> {
        self.outgoing.rtt().bound()
    }

    /// Whether the handshake is complete and the channel has not ended.
    pub fn is_open(&self) -> bool {
        self.state == ChannelState::Live && self.handshake == Handshake::Open
    }

    /// Returns the number of messages sent and not acknowledged, including those set aside.
    pub fn unacknowledged(&self) -> usize {
        self.outgoing.in_flight().counted() + self.outgoing.in_flight().aside()
    }

    /// Continues with these numbers. Nothing may be in flight.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, outgoing: SequenceNumber, incoming: SequenceNumber) {
        self.outgoing.skip_to(outgoing);
        self.incoming.skip_to(incoming);
    }

    fn dispatch(&mut self, now: Instant, frame: &Bytes) -> Result<(), FrameError> {
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
            // Without a check of the digest: it comes once, and ends the session in any case.
            MessageType::ChannelClosed => self.on_closed(&message.payload, now),
            MessageType::InputStreamData => self.statistics.dropped_unknown += 1,
        }
        Ok(())
    }

    fn on_stream_message(
        &mut self,
        now: Instant,
        message: Message,
        frame_bytes: usize,
    ) -> Result<(), FrameError> {
        if !message.is_intact() {
            return Err(DecodeError::Digest.into());
        }
        let Some(number) = SequenceNumber::from_wire(message.sequence_number) else {
            return Err(DecodeError::SequenceNumber(message.sequence_number).into());
        };
        self.waiting_since = now;
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
        // Before any other work: the agent repairs only its oldest unacknowledged message
        // (docs/ssm-protocol.md, section 7).
        self.acknowledgements.push_back((message.message_id, number));
        if accepted == Accepted::Duplicate {
            self.acknowledge_again(number);
        } else {
            self.statistics.messages_received += 1;
            self.statistics.bytes_received += payload_bytes as u64;
            if self.recent_acknowledgements.len() >= MAXIMUM_RECENT {
                self.recent_acknowledgements.pop_front();
            }
            self.recent_acknowledgements.push_back((message.message_id, number));
        }
        while let Some(stored) = self.incoming.next_in_order() {
            self.on_next(stored).map_err(FrameError::Fatal)?;
        }
        Ok(())
    }

    /// Repeats, once, the acknowledgements queued after that of `lost`, a message that has come again.
    ///
    /// Where one acknowledgement was lost, later ones may have been too. The agent repeats only its oldest
    /// message, ten times a second, and would detect each loss separately (docs/ssm-protocol.md, section 8.1).
    fn acknowledge_again(&mut self, lost: SequenceNumber) {
        let others = self.recent_acknowledgements.drain(..).filter(|(_, number)| *number > lost);
        self.acknowledgements.extend(others);
    }

    /// Handles the next stream message in order.
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
                self.push_bounded(Event::Notice { payload_type: kind, text });
            }
            // Meant for the agent, or unknown: not part of the stream in any case.
            _ => self.statistics.ignored_payloads += 1,
        }
        Ok(())
    }

    fn on_handshake(&mut self, kind: PayloadType, payload: &[u8]) -> Result<(), ProtocolError> {
        let (next, step) =
            self.handshake.clone().on_message(kind, payload, &self.client_version)?;
        self.handshake = next;
        match step {
            Step::Respond(response) => self.outgoing.respond_to_handshake(response),
            Step::Opened { agent_version, customer_message } => {
                self.events.push_back(Event::Open { agent_version, customer_message });
            }
        }
        Ok(())
    }

    fn on_acknowledgement(&mut self, now: Instant, message: &Message) -> Result<(), FrameError> {
        if !message.is_intact() {
            return Err(DecodeError::Digest.into());
        }
        let number = payload::parse_acknowledgement(&message.payload)?;
        let Some(number) = SequenceNumber::from_wire(number) else {
            return Err(DecodeError::SequenceNumber(number).into());
        };
        self.waiting_since = now;
        match self.outgoing.on_acknowledged(number, now) {
            Acknowledged::Message => self.shorten_pause(now),
            Acknowledged::Termination => self.events.push_back(Event::Terminated),
            Acknowledged::Nothing => self.statistics.ignored_acknowledgements += 1,
        }
        Ok(())
    }

    fn on_pause(&mut self, now: Instant) {
        // A second request does not prolong the pause, so that repetition cannot hold data for ever.
        if self.path == PathState::Up {
            self.path = PathState::Paused;
            self.statistics.pauses += 1;
            self.outgoing.on_pause(now);
            self.timers.set(Timer::Pause, Some(now + MAXIMUM_PAUSE));
            self.push_bounded(Event::Paused);
        }
    }

    fn end_pause(&mut self, now: Instant) {
        if self.path == PathState::Paused {
            self.path = PathState::Up;
            self.timers.set(Timer::Pause, None);
            self.outgoing.on_pause_ended(now);
            self.waiting_since = now;
            self.push_bounded(Event::Started);
        }
    }

    /// Lets the pause end [`QUIET`] after the last message in flight was acknowledged: the service holds nothing any
    /// more then, and `start_publication` may have been lost.
    fn shorten_pause(&mut self, now: Instant) {
        // Those set aside will not be acknowledged.
        if self.path == PathState::Paused && self.outgoing.in_flight().counted() == 0 {
            self.timers.bring_forward(Timer::Pause, now + QUIET);
        }
    }

    fn on_closed(&mut self, payload: &[u8], now: Instant) {
        self.state = ChannelState::Closed;
        self.outgoing.on_path_lost(now);
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

    /// Ends the channel once the response that refuses the request has been sent.
    fn fail_if_refused(&mut self) {
        if let Handshake::Refused { what } = &self.handshake
            && !self.outgoing.awaits_handshake_response()
        {
            let error = ProtocolError::Unsupported { what: what.clone() };
            self.state = ChannelState::Failed(error.clone());
            self.events.push_back(Event::Failed(error));
        }
    }

    /// Queues an event of a kind that the peer can cause any number of times.
    fn push_bounded(&mut self, event: Event) {
        if self.events.len() < MAXIMUM_EVENTS {
            self.events.push_back(event);
        } else if matches!(event, Event::Notice { .. }) {
            self.statistics.ignored_payloads += 1;
        }
    }

    fn set_timers(&mut self) {
        if self.state != ChannelState::Live || self.path == PathState::Down {
            self.timers.stop_all();
            return;
        }
        self.timers.set(Timer::Retransmission, self.outgoing.retransmission_deadline());
        self.timers.set(Timer::Pacing, self.outgoing.pacing_deadline());
    }
}

/// Why a frame was rejected.
enum FrameError {
    /// The frame is dropped, the channel continues.
    Damaged(DecodeError),
    /// The channel fails.
    Fatal(ProtocolError),
}

impl From<DecodeError> for FrameError {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(error)
    }
}

/// Consecutive damaged frames that end the channel. TLS excludes damage on the way, so the sender is at
/// fault.
const MAXIMUM_DAMAGED: u32 = 64;

/// Maximum number of unsent acknowledgements; more means that the caller does not poll.
const MAXIMUM_ACKNOWLEDGEMENTS: usize = 65_536;

/// Maximum number of acknowledgements kept for repetition: 512 messages of 1,024 bytes are what sshd sends
/// ahead at most.
const MAXIMUM_RECENT: usize = 512;

/// Maximum number of queued events, for the kinds that the peer can cause any number of times.
const MAXIMUM_EVENTS: usize = 64;

/// Maximum length of a pause, since `start_publication` may get lost. Longer than the 6.2 s that the agent
/// spends on its attempts to reconnect (docs/ssm-protocol.md, sections 9.1 and 11).
const MAXIMUM_PAUSE: Duration = Duration::from_secs(10);

/// Our choice: longer than the second over which a service may count a rate.
const QUIET: Duration = Duration::from_secs(2);
