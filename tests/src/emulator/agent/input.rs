//! The direction from the client to sshd: handshake, order, acknowledges, flags, and the end of the
//! session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    ACKNOWLEDGES_AGAIN, Agent, CRASHED, Done, Event, PAUSE, TERMINATE_FLAG,
    channel::{Change, Channel},
    pump,
};
use crate::emulator::{
    codec::{ACKNOWLEDGE, INPUT, Message, PAUSE_PUBLICATION, START_PUBLICATION, payload_type},
    faults::AgentFailure,
    journal::{Ending, Record, count, lock},
    payload::{self, Acknowledge},
    settings::AgentBreak,
};

/// The loop that takes the client's messages.
pub(super) struct Input<'a> {
    agent: &'a Arc<Agent>,
    channel: Channel,
    breaks: watch::Receiver<AgentBreak>,
    inbox: &'a mut mpsc::Receiver<Bytes>,
    heard: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
    /// Loops and timers of this session; aborted with it.
    tasks: JoinSet<()>,
    started: Instant,
    expected: i64,
    /// Messages acknowledged ahead of their turn.
    early: BTreeMap<i64, Message>,
    phase: Phase,
    /// Bytes for sshd, from messages that are not acknowledged yet.
    to_write: BytesMut,
    written: Vec<Message>,
    /// When an acknowledge was last ignored.
    forgotten: Instant,
    /// The reader has crashed on a message: all further input is ignored.
    crashed: bool,
    /// The client's payloads in order, retransmitted ones included.
    payloads: u64,
}

enum Phase {
    /// Waiting for the client's answer, until this deadline.
    Handshake(Instant),
    /// `HandshakeComplete` is sent, and data is still discarded.
    Completing,
    Dialling,
    Open(OwnedWriteHalf),
    /// The worker has died silently; its parent notices at this time.
    Crashed(Instant),
    /// Waiting until everything is acknowledged, or until this deadline.
    Draining(Instant, Ending),
}

/// Whether a message was processed: only then is it acknowledged.
enum Outcome {
    Processed,
    /// Not acknowledged, so the client sends it again.
    Rejected,
    /// Bytes for sshd: acknowledged once they are written.
    ToWrite,
    /// The client has answered the handshake; its version.
    Answer(String),
}

impl<'a> Input<'a> {
    pub(super) fn new(
        agent: &'a Arc<Agent>,
        inbox: &'a mut mpsc::Receiver<Bytes>,
        heard: mpsc::Receiver<Event>,
        events: mpsc::Sender<Event>,
        started: Instant,
    ) -> Self {
        Self {
            agent,
            channel: Channel::open(&agent.settings, started),
            breaks: agent.session.watch_agent_breaks(),
            inbox,
            heard,
            events,
            tasks: JoinSet::new(),
            started,
            expected: 0,
            early: BTreeMap::new(),
            phase: Phase::Handshake(started + agent.settings.handshake_timeout),
            to_write: BytesMut::new(),
            written: Vec::new(),
            forgotten: started,
            crashed: false,
            payloads: 0,
        }
    }

    pub(super) async fn run(&mut self) -> Done {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if let Some(done) = self.is_done() {
                return done;
            }
            let deadline = self.deadline();
            tokio::select! {
                count = self.inbox.recv_many(&mut batch, BATCH) => if count == 0 {
                    return Done { by: Ending::Operator, output: String::new() };
                },
                Some(event) = self.heard.recv() => self.handle_event(event),
                Ok(()) = self.breaks.changed() => {
                    let how = *self.breaks.borrow_and_update();
                    self.channel.begin_to_break(how, Instant::now());
                }
                () = sleep_until(deadline) => {}
            }
            match self.channel.review(Instant::now()) {
                Some(Change::Closed) => self.note_away(false),
                Some(Change::Opened) => self.note_back(),
                None => {}
            }
            for frame in batch.drain(..) {
                if let Err(done) = self.handle_frame(&frame).await {
                    return done;
                }
            }
            self.write().await;
        }
    }

    fn deadline(&self) -> Instant {
        let by_phase = match self.phase {
            Phase::Handshake(deadline) | Phase::Crashed(deadline) => deadline,
            Phase::Draining(..) => Instant::now() + POLL,
            Phase::Completing | Phase::Dialling | Phase::Open(_) => {
                Instant::now() + Duration::from_hours(1)
            }
        };
        self.channel.due().map_or(by_phase, |due| due.min(by_phase))
    }

    fn is_done(&self) -> Option<Done> {
        let now = Instant::now();
        let (by, output) = match &self.phase {
            Phase::Handshake(deadline) if *deadline <= now => {
                (Ending::HandshakeTimedOut, HANDSHAKE_TIMED_OUT)
            }
            Phase::Crashed(deadline) if *deadline <= now => (Ending::PortUnreachable, CRASHED),
            Phase::Draining(deadline, by)
                if *deadline <= now || lock(&self.agent.outgoing).is_empty() =>
            {
                (*by, "")
            }
            _ => return None,
        };
        Some(Done { by, output: output.to_owned() })
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Ready => {
                self.phase = Phase::Dialling;
                let (agent, events) = (Arc::clone(self.agent), self.events.clone());
                self.tasks.spawn(async move {
                    sleep(agent.settings.dial_delay).await;
                    let dialled = TcpStream::connect(("localhost", agent.session.port)).await;
                    agent.record_dialled(dialled.is_ok());
                    drop(events.send(Event::Dialled(dialled)).await);
                });
            }
            Event::Dialled(Ok(stream)) => {
                drop(stream.set_nodelay(true));
                let (read, write) = stream.into_split();
                self.tasks.spawn(pump::run(Arc::clone(self.agent), read, self.events.clone()));
                self.phase = Phase::Open(write);
            }
            Event::Dialled(Err(_)) => {
                lock(&self.agent.outgoing).forget();
                let silence = self.agent.settings.unreachable_silence;
                self.phase = Phase::Crashed(Instant::now() + silence);
            }
            Event::ServerClosed => self.finish(Ending::ServerClosed),
        }
    }

    /// Waits until the client has acknowledged everything, but only for the time set.
    fn finish(&mut self, by: Ending) {
        if matches!(self.phase, Phase::Draining(..)) {
            return;
        }
        self.tasks.abort_all();
        let settings = &self.agent.settings;
        let drain = if settings.version >= PAUSE { settings.drain } else { Duration::ZERO };
        self.phase = Phase::Draining(Instant::now() + drain, by);
    }

    async fn handle_frame(&mut self, frame: &Bytes) -> Result<(), Done> {
        let is_deaf = self.crashed || self.channel.is_closed();
        if is_deaf || matches!(self.phase, Phase::Crashed(_)) {
            return Ok(());
        }
        let Ok(message) = Message::decode(frame) else {
            self.crashed = true;
            return Ok(());
        };
        match message.kind.as_str() {
            INPUT => {
                self.agent.resume();
                self.handle_input(message).await
            }
            ACKNOWLEDGE => {
                self.agent.resume();
                self.handle_acknowledge(&message);
                Ok(())
            }
            START_PUBLICATION => {
                self.agent.resume();
                Ok(())
            }
            PAUSE_PUBLICATION => {
                self.agent.pause();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn handle_acknowledge(&mut self, message: &Message) {
        let Ok(body) = serde_json::from_slice::<Acknowledge>(&message.payload) else { return };
        let sequence = body.acknowledged_message_sequence_number;
        if self.agent.settings.resends_for_ever == Some(sequence) {
            return;
        }
        let now = Instant::now();
        let mut outgoing = lock(&self.agent.outgoing);
        // The real agent records a message only after sending it; a fast acknowledge arrives before
        // that.
        let fast = outgoing.age(sequence, now).is_some_and(|age| age < OVERTAKES)
            && now - self.forgotten > FORGETS;
        let share = self.agent.settings.forgotten_acknowledges;
        if fast && lock(&self.agent.rng).chance(share) {
            self.forgotten = now;
            return;
        }
        outgoing.acknowledged(sequence, now);
    }

    async fn handle_input(&mut self, message: Message) -> Result<(), Done> {
        if message.sequence > self.expected {
            if self.early.len() < BUFFER {
                self.agent.acknowledge(&message).await;
                self.early.insert(message.sequence, message);
            }
            return Ok(());
        }
        if message.sequence < self.expected {
            // A message that waits to be written is acknowledged only afterwards.
            let waits = self.written.iter().any(|other| other.sequence == message.sequence);
            if self.agent.settings.version >= ACKNOWLEDGES_AGAIN && !waits {
                self.agent.acknowledge(&message).await;
            }
            return Ok(());
        }
        if message.payload_type == payload_type::OUTPUT && matches!(self.phase, Phase::Open(_)) {
            self.payloads += 1;
            self.fail_by_plan();
            if self.crashed {
                return Ok(());
            }
            if self.channel.is_breaking() {
                self.break_amid(&message).await;
                return Ok(());
            }
        }
        self.take(message, false).await?;
        while let Some(message) = self.early.remove(&self.expected) {
            if !self.take(message, true).await? {
                break;
            }
        }
        Ok(())
    }

    fn fail_by_plan(&mut self) {
        let planned = self.agent.plan.borrow().agent;
        match planned {
            Some((failure, payload)) if payload == self.payloads => match failure {
                AgentFailure::ChannelBreaks => {
                    self.channel.begin_to_break(AgentBreak::WithNextPayload, Instant::now());
                }
                AgentFailure::WorkerKilled => {
                    let reported = Instant::now() + self.agent.settings.report_delay;
                    self.agent.session.kill_worker(reported);
                    self.crashed = true;
                }
            },
            _ => {}
        }
    }

    /// Writes a payload to sshd and loses the channel before it is acknowledged: it stays the next message.
    async fn break_amid(&mut self, message: &Message) {
        self.write().await;
        if let Phase::Open(write) = &mut self.phase {
            drop(write.write_all(&message.payload).await);
        }
        self.channel.close(Instant::now());
        self.note_away(true);
    }

    fn note_away(&self, amid_payload: bool) {
        let session = self.agent.session.id.clone();
        self.agent.session.journal.add(Record::AgentAway { session, amid_payload });
        self.agent.set_away(true);
    }

    fn note_back(&self) {
        let session = self.agent.session.id.clone();
        self.agent.session.journal.add(Record::AgentBack { session });
        self.agent.set_away(false);
        // The real agent forgets a pause when it reconnects.
        self.agent.resume();
    }

    /// Processes the next message in order; false if it was rejected.
    async fn take(&mut self, message: Message, acknowledged: bool) -> Result<bool, Done> {
        match self.process(&message).await? {
            Outcome::Rejected => {
                if acknowledged {
                    // Already acknowledged, so the client will not send it again: it is kept here.
                    self.early.insert(message.sequence, message);
                }
                return Ok(false);
            }
            Outcome::ToWrite if !acknowledged => self.written.push(message),
            Outcome::Answer(version) => {
                self.agent.acknowledge(&message).await;
                self.complete(version).await;
            }
            Outcome::Processed if !acknowledged => self.agent.acknowledge(&message).await,
            Outcome::Processed | Outcome::ToWrite => {}
        }
        self.expected += 1;
        Ok(true)
    }

    async fn process(&mut self, message: &Message) -> Result<Outcome, Done> {
        match message.payload_type {
            payload_type::HANDSHAKE_RESPONSE if matches!(self.phase, Phase::Handshake(_)) => {
                self.answer(&message.payload)
            }
            payload_type::FLAG => {
                self.write().await;
                Ok(self.flag(&message.payload))
            }
            payload_type::OUTPUT => Ok(match &self.phase {
                // Discarded, and acknowledged nevertheless.
                Phase::Handshake(_) | Phase::Completing => Outcome::Processed,
                Phase::Dialling | Phase::Crashed(_) | Phase::Draining(..) => Outcome::Rejected,
                Phase::Open(_) => {
                    self.to_write.extend_from_slice(&message.payload);
                    Outcome::ToWrite
                }
            }),
            _ => Ok(Outcome::Processed),
        }
    }

    /// Reads the client's answer to the handshake, as leniently as the real agent does.
    fn answer(&mut self, payload: &[u8]) -> Result<Outcome, Done> {
        let Ok(response) = serde_json::from_slice::<Value>(payload) else {
            return Ok(Outcome::Rejected);
        };
        let actions = response.get("ProcessedClientActions").and_then(Value::as_array);
        let failed = actions
            .into_iter()
            .flatten()
            .find(|action| action.get("ActionStatus").and_then(Value::as_u64) != Some(SUCCESS));
        if let Some(action) = failed {
            let of = |name: &str| action.get(name).and_then(Value::as_str).unwrap_or_default();
            let output = format!(
                "\n----------ERROR-------\nEncountered error while initiating handshake. {} failed on client with \
                 status {} error: {}",
                of("ActionType"),
                action.get("ActionStatus").unwrap_or(&Value::Null),
                of("Error"),
            );
            return Err(Done { by: Ending::HandshakeRefused, output });
        }
        if self.agent.settings.encryption {
            // The answer to a challenge would have to follow, which no client of a port session can
            // give.
            self.phase = Phase::Handshake(Instant::now() + self.agent.settings.handshake_timeout);
            return Ok(Outcome::Processed);
        }
        let version = response.get("ClientVersion").and_then(Value::as_str).unwrap_or_default();
        Ok(Outcome::Answer(version.to_owned()))
    }

    async fn complete(&mut self, client_version: String) {
        let agent = self.agent;
        let taken = self.started.elapsed().as_nanos();
        let complete = payload::handshake_complete(taken, &agent.settings.customer_message);
        self.phase = Phase::Completing;
        agent.send(payload_type::HANDSHAKE_COMPLETE, complete).await;
        let session = agent.session.id.clone();
        agent.session.journal.add(Record::HandshakeCompleted { session, client_version });
        let (delay, share) = (agent.settings.complete_delay, agent.settings.complete_delay_share);
        // Tokio's timer would round zero up to a millisecond.
        if delay.is_zero() || !lock(&agent.rng).chance(share) {
            return self.handle_event(Event::Ready);
        }
        let events = self.events.clone();
        self.tasks.spawn(async move {
            sleep(delay).await;
            drop(events.send(Event::Ready).await);
        });
    }

    fn flag(&mut self, payload: &[u8]) -> Outcome {
        match payload {
            [0, 0, 0, TERMINATE] if self.agent.settings.version > TERMINATE_FLAG => {
                self.finish(Ending::Flag);
            }
            [0, 0, 0, DISCONNECT] => self.finish(Ending::DisconnectFlag),
            _ => {}
        }
        Outcome::Processed
    }

    /// Writes the pending bytes to sshd and acknowledges them. What cannot be written is sent again by the
    /// client.
    async fn write(&mut self) {
        let first = self.written.first().map(|message| message.sequence);
        if let Phase::Open(write) = &mut self.phase {
            if write.write_all(&self.to_write).await.is_ok() {
                count(&self.agent.session.counters.input_bytes, self.to_write.len());
                for message in &self.written {
                    self.agent.acknowledge(message).await;
                }
            } else if let Some(first) = first {
                self.expected = first;
            }
        }
        self.to_write.clear();
        self.written.clear();
    }
}

/// `ActionStatus` of a successful action.
const SUCCESS: u64 = 1;

/// Flags in the client's messages.
const DISCONNECT: u8 = 1;
const TERMINATE: u8 = 2;

/// Maximum number of messages kept ahead of their turn (section 5).
const BUFFER: usize = 100_000;

/// Maximum number of frames handled between two writes to sshd.
const BATCH: usize = 256;

/// An acknowledge within this time may arrive before the agent has recorded the message.
const OVERTAKES: Duration = Duration::from_millis(1);

/// At most four times a second, as measured (section 9).
const FORGETS: Duration = Duration::from_millis(250);

/// Interval at which to check whether everything is acknowledged.
const POLL: Duration = Duration::from_millis(10);

/// Observed on AWS, its end shortened there (section 9).
const HANDSHAKE_TIMED_OUT: &str = "\n----------ERROR-------\nEncountered error while initiating handshake. Handshake \
                                   timed out. Please ensure that you have the latest version of the session manager \
                                   plugin.";
