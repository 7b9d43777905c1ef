//! One session as the service sees it: who may open its data channel, who is connected, and whether it has
//! ended.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    audit::Audit,
    codec::{Message, PAUSE_PUBLICATION, START_PUBLICATION},
    faults::Break,
    flow_control::{Effect, Gauge},
    journal::{Counters, Ending, Journal, Record, lock},
    payload,
    settings::AgentBreak,
};

/// The URL and token with which a session's data channel is opened.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) url: String,
    pub(crate) token: String,
}

pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) port: u16,
    pub(crate) journal: Journal,
    pub(crate) counters: Arc<Counters>,
    state: Mutex<State>,
    to_agent: mpsc::Sender<Bytes>,
    end: watch::Sender<Option<End>>,
    /// The gauge may have a signal for the client.
    flow_changed: Notify,
    agent_breaks: watch::Sender<AgentBreak>,
    /// When the agent's master reports its killed session worker.
    worker_killed: watch::Sender<Option<Instant>>,
}

/// How a session ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) output: String,
}

/// Instructions to a client's connection.
#[derive(Debug)]
pub(crate) enum ToClient {
    Frame(Bytes),
    /// Bytes written to the connection unchanged, as if gateway or agent had sent them.
    Raw(Bytes),
    Break(Break),
}

struct State {
    client: Client,
    /// Number of the client that is connected, or was connected last; counts up.
    generation: u64,
    query: String,
    token: Option<(String, Instant)>,
    client_id: Option<Uuid>,
    last_input: Instant,
    audit: Audit,
    flow: Gauge,
}

enum Client {
    /// No client has connected yet: the agent's messages are kept for it.
    Expected(Vec<Bytes>),
    Connected(mpsc::Sender<ToClient>),
    /// The client has disconnected: the agent's messages are lost.
    Away,
}

/// A connected client's side of a session.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) generation: u64,
    pub(crate) frames: mpsc::Receiver<ToClient>,
    /// The agent's messages from before the client connected.
    pub(crate) early: Vec<Bytes>,
}

impl Session {
    pub(crate) fn new(id: String, port: u16, journal: Journal) -> (Self, mpsc::Receiver<Bytes>) {
        let (to_agent, inbox) = mpsc::channel(TO_AGENT);
        let state = State {
            client: Client::Expected(Vec::new()),
            generation: 0,
            query: String::new(),
            token: None,
            client_id: None,
            last_input: Instant::now(),
            audit: Audit::default(),
            flow: Gauge::default(),
        };
        let counters = journal.counters(&id);
        let session = Self {
            id,
            port,
            journal,
            counters,
            state: Mutex::new(state),
            to_agent,
            end: watch::Sender::new(None),
            flow_changed: Notify::new(),
            agent_breaks: watch::Sender::new(AgentBreak::default()),
            worker_killed: watch::Sender::new(None),
        };
        (session, inbox)
    }

    /// Accepts only this query and this token from now on.
    pub(crate) fn admit(&self, query: &str, token: &str, expires: Instant) {
        let mut state = lock(&self.state);
        query.clone_into(&mut state.query);
        state.token = Some((token.to_owned(), expires));
        state.last_input = Instant::now();
    }

    /// The query of the URL that was issued last.
    pub(crate) fn query(&self) -> String {
        lock(&self.state).query.clone()
    }

    /// Attaches the client of an opening message in place of the previous one, if its token is valid.
    pub(crate) fn attach(&self, token: &str, client_id: Uuid) -> Result<Attached, String> {
        let mut state = lock(&self.state);
        if self.is_over() && !matches!(state.client, Client::Expected(_)) {
            return Err("the session has ended".to_owned());
        }
        match &state.token {
            Some((expected, _)) if expected != token => {
                return Err("the token belongs to another session".to_owned());
            }
            None => return Err("the token was used before".to_owned()),
            Some((_, expires)) if *expires <= Instant::now() => {
                return Err("the token has expired".to_owned());
            }
            Some(_) => {}
        }
        if state.client_id.is_some_and(|known| known != client_id) {
            self.journal.violation(Some(&self.id), "ClientId changes within a session");
        }
        state.token = None;
        state.client_id = Some(client_id);
        state.generation += 1;
        state.flow.reconnected();
        let (sender, frames) = mpsc::channel(TO_CLIENT);
        let before = std::mem::replace(&mut state.client, Client::Connected(sender));
        let early = match before {
            Client::Expected(early) => early,
            Client::Connected(_) | Client::Away => Vec::new(),
        };
        Ok(Attached { generation: state.generation, frames, early })
    }

    /// Detaches the client of this generation; false if another client has already replaced it.
    pub(crate) fn detach(&self, generation: u64) -> bool {
        let mut state = lock(&self.state);
        let is_last = state.generation == generation;
        if is_last {
            state.client = Client::Away;
        }
        is_last
    }

    /// Passes a frame of the agent to the client; waits while the client's queue is full. Dropped without a
    /// client.
    pub(crate) async fn deliver(&self, frame: Bytes) {
        let sender = {
            let mut state = lock(&self.state);
            match &mut state.client {
                Client::Expected(early) if early.len() < EARLY => return early.push(frame),
                Client::Expected(_) => return,
                Client::Away => {
                    // The agent will not repeat it unless the client does.
                    if let Some(sequence) = payload::acknowledged(&frame) {
                        state.flow.acknowledged(sequence);
                    }
                    return;
                }
                Client::Connected(sender) => sender.clone(),
            }
        };
        drop(sender.send(ToClient::Frame(frame)).await);
    }

    /// Passes a message to the client's connection, outside the agent's sequence; false without a
    /// connection.
    pub(crate) async fn tell_client(&self, message: ToClient) -> bool {
        let sender = match &lock(&self.state).client {
            Client::Connected(sender) => sender.clone(),
            Client::Expected(_) | Client::Away => return false,
        };
        sender.send(message).await.is_ok()
    }

    /// Passes a frame of the client to the agent; waits while the agent's queue is full.
    pub(crate) async fn submit(&self, frame: Bytes) {
        drop(self.to_agent.send(frame).await);
    }

    /// Tells the agent to publish, or to pause.
    pub(crate) async fn publish_to(&self, listening: bool) {
        let kind = if listening { START_PUBLICATION } else { PAUSE_PUBLICATION };
        self.submit(publication(kind)).await;
    }

    /// Breaks the agent's own channel.
    pub(crate) fn break_agent(&self, how: AgentBreak) {
        self.agent_breaks.send_replace(how);
    }

    pub(crate) fn watch_agent_breaks(&self) -> watch::Receiver<AgentBreak> {
        self.agent_breaks.subscribe()
    }

    pub(crate) fn set_agent_away(&self, away: bool) {
        self.flow(|gauge| gauge.set_agent_away(away));
        self.flow_changed.notify_one();
    }

    /// Kills the agent's session worker, unless it is dead; its master reports that at this time.
    pub(crate) fn kill_worker(&self, reported: Instant) {
        self.worker_killed.send_if_modified(|killed| {
            let lives = killed.is_none() && !self.is_over();
            if lives {
                *killed = Some(reported);
                self.journal.add(Record::WorkerKilled { session: self.id.clone() });
            }
            lives
        });
    }

    /// Waits until the agent's session worker is killed; returns when that is reported. Cancel-safe.
    pub(crate) async fn worker_killed(&self) -> Instant {
        let mut killed = self.worker_killed.subscribe();
        let reported = match killed.wait_for(Option::is_some).await {
            Ok(reported) => *reported,
            // Cannot happen: the sender is in `self`.
            Err(_) => None,
        };
        reported.unwrap_or_else(Instant::now)
    }

    pub(crate) fn note_input(&self) {
        lock(&self.state).last_input = Instant::now();
    }

    pub(crate) fn last_input(&self) -> Instant {
        lock(&self.state).last_input
    }

    pub(crate) fn audit<T>(&self, check: impl FnOnce(&mut Audit) -> T) -> T {
        check(&mut lock(&self.state).audit)
    }

    /// Records a frame that is about to be delivered to the client.
    pub(crate) fn note_delivery(&self, frame: &Bytes, damaged: bool) {
        let mut state = lock(&self.state);
        let acknowledged = state.audit.outgoing(frame, damaged, &self.counters);
        let effect = acknowledged.map(|sequence| state.flow.acknowledged(sequence));
        if effect == Some(Effect::Signal) {
            self.flow_changed.notify_one();
        }
    }

    /// Consults or changes the gauge of the client's flow.
    pub(crate) fn flow<T>(&self, change: impl FnOnce(&mut Gauge) -> T) -> T {
        change(&mut lock(&self.state).flow)
    }

    pub(crate) fn signal_flow(&self) {
        self.flow_changed.notify_one();
    }

    /// Waits until the gauge may have a signal for the client. Cancel-safe.
    pub(crate) async fn flow_changed(&self) {
        self.flow_changed.notified().await;
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        self.journal.violation(Some(&self.id), text);
    }

    /// Ends the session, unless it has ended already.
    pub(crate) fn end(&self, by: Ending, output: &str) {
        self.end.send_if_modified(|end| {
            if end.is_some() {
                return false;
            }
            *end = Some(End { output: output.to_owned() });
            self.journal.add(Record::SessionTerminated { id: self.id.clone(), by });
            true
        });
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Whether a client may still connect: the first one is admitted even after the end, to learn of it.
    pub(crate) fn admits(&self) -> bool {
        !self.is_over() || matches!(lock(&self.state).client, Client::Expected(_))
    }

    /// Waits for the end of the session. Cancel-safe.
    pub(crate) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        let ended = match end.wait_for(Option::is_some).await {
            Ok(end) => (*end).clone(),
            // Cannot happen: the sender is in `self`.
            Err(_) => None,
        };
        ended.unwrap_or(End { output: String::new() })
    }
}

/// `start_publication` or `pause_publication`: empty and without a digest, as observed.
pub(crate) fn publication(kind: &str) -> Bytes {
    let mut message = Message::new(kind, 0, 0, Bytes::new());
    message.digest = [0; 32];
    message.id = Uuid::new_v4();
    message.encode()
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Path prefix of a data channel; the session's id follows.
pub(crate) const PATH: &str = "/v1/data-channel/";

/// Capacity of the queue to the agent, in frames.
const TO_AGENT: usize = 1_024;

/// Capacity of the queue to the client, in frames.
const TO_CLIENT: usize = 1_024;

/// Number of the agent's frames kept for the first client.
const EARLY: usize = 64;
