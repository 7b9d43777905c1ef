//! What the emulator saw, for tests to wait for and to assert on.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::flow_control::Limit;

/// An event in the emulator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A request to the SSM API has arrived.
    ApiCallArrived {
        /// Action, such as `StartSession`.
        action: String,
    },
    /// A request to the SSM API or to STS was answered, or left unanswered by a fault.
    ApiCall {
        /// Action, such as `StartSession`.
        action: String,
        /// The error's code; `None` for success.
        error: Option<String>,
    },
    /// A session was started.
    SessionStarted {
        /// The session's id.
        id: String,
        /// The instance, such as `i-0123456789abcdef0`.
        target: String,
        /// The SSM document, such as `AWS-StartSSHSession`.
        document: String,
        /// Port of the instance.
        port: u16,
        /// The reason as given by the caller.
        reason: Option<String>,
        /// ARN of the caller.
        by: String,
    },
    /// A session was given a new token and URL.
    SessionResumed {
        /// The session's id.
        id: String,
    },
    /// A session has ended.
    SessionTerminated {
        /// The session's id.
        id: String,
        /// What ended it.
        by: Ending,
    },
    /// The opening of a data channel was refused.
    OpeningRefused {
        /// Id of the session named in the URL.
        session: String,
        /// Whether the upgrade carried a signature.
        signed: bool,
        /// Reason of the refusal.
        why: String,
    },
    /// A data channel was opened: its token was accepted.
    Opened {
        /// The session's id.
        session: String,
        /// Whether the upgrade carried a signature.
        signed: bool,
    },
    /// A client's WebSocket is closed.
    Disconnected {
        /// The session's id.
        session: String,
        /// How it was closed, and by which side.
        why: String,
    },
    /// The agent has sent `HandshakeComplete`.
    HandshakeCompleted {
        /// The session's id.
        session: String,
        /// `ClientVersion` of the client's answer.
        client_version: String,
    },
    /// The agent has dialled the instance's port.
    Dialled {
        /// The session's id.
        session: String,
        /// Whether the connection was accepted.
        reached: bool,
    },
    /// The gateway has sent `pause_publication` to the client.
    PublicationPaused {
        /// The session's id.
        session: String,
        /// The limit that the client exceeded.
        limit: Limit,
    },
    /// The gateway has sent `start_publication` to the client, after a pause.
    PublicationStarted {
        /// The session's id.
        session: String,
    },
    /// The client went on after a pause, and loses its channel.
    CloseProvoked {
        /// The session's id.
        session: String,
    },
    /// The agent's own channel has broken.
    AgentAway {
        /// The session's id.
        session: String,
        /// Whether a payload was written to sshd and not acknowledged.
        amid_payload: bool,
    },
    /// The agent has opened its channel again.
    AgentBack {
        /// The session's id.
        session: String,
    },
    /// The agent's session worker was killed.
    WorkerKilled {
        /// The session's id.
        session: String,
    },
    /// The client violated the specification.
    Violation {
        /// The session's id, if there is one.
        session: Option<String>,
        /// What it did.
        text: String,
    },
}

/// What ended a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// The `TerminateSession` flag on the data channel.
    Flag,
    /// The `TerminateSession` call.
    Api,
    /// The `DisconnectToPort` flag, which ends an SSH session as failed.
    DisconnectFlag,
    /// sshd closed its connection.
    ServerClosed,
    /// No input within the idle time-out.
    Idle,
    /// The maximum duration was reached.
    MaximumDuration,
    /// The agent's handshake was not answered in time.
    HandshakeTimedOut,
    /// The handshake was answered with a status other than success.
    HandshakeRefused,
    /// Nothing listens at the port.
    PortUnreachable,
    /// The agent's version does not support port sessions.
    Unsupported,
    /// The agent's session worker was killed, and its master has reported it.
    WorkerKilled,
    /// The client went on after `pause_publication`.
    FlowControl,
    /// [`Control::terminate`](super::Control::terminate).
    Operator,
}

/// A record and its time.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Time since the emulator was built.
    pub at: Duration,
    /// What happened.
    pub record: Record,
}

/// Everything that an emulator saw. Clones share the same records.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    start: Instant,
    entries: Mutex<Vec<Entry>>,
    tokens: Mutex<Vec<String>>,
    counters: Mutex<BTreeMap<String, Arc<Counters>>>,
    changed: Notify,
}

/// What was waited for did not happen; shows the journal's records.
#[derive(Debug, thiserror::Error)]
#[error("not seen within {within:?}; the journal:\n{journal:?}")]
pub struct Missed {
    /// The deadline.
    pub within: Duration,
    journal: Journal,
}

/// Counters of a session, from its start to now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SessionStats {
    /// New stream messages of the client.
    pub input_messages: u64,
    /// Retransmitted stream messages of the client.
    pub input_repeated: u64,
    /// Payload bytes that reached sshd.
    pub input_bytes: u64,
    /// New stream messages while the client was paused.
    pub input_while_paused: u64,
    /// Maximum number of the client's messages in flight, as seen by the gateway.
    pub max_unacknowledged: u64,
    /// New stream messages of the agent.
    pub output_messages: u64,
    /// Retransmitted stream messages of the agent.
    pub output_repeated: u64,
    /// Payload bytes that came from sshd.
    pub output_bytes: u64,
    /// Acknowledges sent by the client.
    pub acknowledges: u64,
    /// Stream messages delivered intact to the client, retransmissions included.
    pub delivered: u64,
    /// Pings sent by the client.
    pub pings: u64,
    /// Pauses that the client provoked.
    pub pauses: u64,
    /// Closes that the client provoked by going on after a pause.
    pub closes_provoked: u64,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            entries: Mutex::default(),
            tokens: Mutex::default(),
            counters: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn add(&self, record: Record) {
        let at = self.0.start.elapsed();
        let mut entries = lock(&self.0.entries);
        // A client with a defect repeats its violation with every message.
        let full = entries.len() >= LIMIT && matches!(record, Record::Violation { .. });
        if !full {
            entries.push(Entry { at, record });
        }
        drop(entries);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn violation(&self, session: Option<&str>, text: impl Into<String>) {
        let session = session.map(str::to_owned);
        self.add(Record::Violation { session, text: text.into() });
    }

    pub(crate) fn add_token(&self, token: &str) {
        lock(&self.0.tokens).push(token.to_owned());
    }

    pub(crate) fn counters(&self, session: &str) -> Arc<Counters> {
        Arc::clone(lock(&self.0.counters).entry(session.to_owned()).or_default())
    }

    /// All records up to now.
    pub fn records(&self) -> Vec<Entry> {
        lock(&self.0.entries).clone()
    }

    /// Waits until the records satisfy `condition`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Missed`] when they do not within `deadline`.
    pub async fn wait_for(
        &self,
        mut condition: impl FnMut(&[Entry]) -> bool,
        deadline: Duration,
    ) -> Result<(), Missed> {
        let seen = async {
            loop {
                let changed = self.0.changed.notified();
                // Evaluated on a copy, since the condition may query the journal itself.
                if condition(&self.records()) {
                    return;
                }
                changed.await;
            }
        };
        let missed = |_| Missed { within: deadline, journal: self.clone() };
        timeout(deadline, seen).await.map_err(missed)
    }

    /// Waits for records after the first `known` ones, and returns them. Cancel-safe.
    pub async fn after(&self, known: usize) -> Vec<Entry> {
        loop {
            let changed = self.0.changed.notified();
            let new: Vec<_> = lock(&self.0.entries).iter().skip(known).cloned().collect();
            if !new.is_empty() {
                return new;
            }
            changed.await;
        }
    }

    /// Descriptions of all violations by the client.
    pub fn violations(&self) -> Vec<String> {
        let entries = lock(&self.0.entries);
        let violation = |entry: &Entry| match &entry.record {
            Record::Violation { session: Some(session), text } => {
                Some(format!("{session}: {text}"))
            }
            Record::Violation { session: None, text } => Some(text.clone()),
            _ => None,
        };
        entries.iter().filter_map(violation).collect()
    }

    /// Ids of all sessions, in the order in which they were started.
    pub fn sessions(&self) -> Vec<String> {
        let entries = lock(&self.0.entries);
        let started = |entry: &Entry| match &entry.record {
            Record::SessionStarted { id, .. } => Some(id.clone()),
            _ => None,
        };
        entries.iter().filter_map(started).collect()
    }

    /// Ids of the sessions that were started and have not ended.
    pub fn open_sessions(&self) -> Vec<String> {
        let mut open = self.sessions();
        open.retain(|id| self.ending(id).is_none());
        open
    }

    /// What ended a session, if it has ended.
    pub fn ending(&self, session: &str) -> Option<Ending> {
        lock(&self.0.entries).iter().find_map(|entry| match &entry.record {
            Record::SessionTerminated { id, by } if id == session => Some(*by),
            _ => None,
        })
    }

    /// Error codes of all calls of an action, in order; `None` for a successful call.
    pub fn calls(&self, action: &str) -> Vec<Option<String>> {
        let entries = lock(&self.0.entries);
        let call = |entry: &Entry| match &entry.record {
            Record::ApiCall { action: name, error } if name == action => Some(error.clone()),
            _ => None,
        };
        entries.iter().filter_map(call).collect()
    }

    /// How many calls of an action have arrived, including those not answered yet.
    pub fn arrived(&self, action: &str) -> usize {
        let entries = lock(&self.0.entries);
        let of = |record: &Record| matches!(record, Record::ApiCallArrived { action: name } if name == action);
        entries.iter().filter(|entry| of(&entry.record)).count()
    }

    /// How many pauses the clients of all sessions provoked.
    pub fn pauses(&self) -> u64 {
        lock(&self.0.counters).values().map(|counters| counters.stats().pauses).sum()
    }

    /// How many closes the clients of all sessions provoked by going on after a pause.
    pub fn closes_provoked(&self) -> u64 {
        lock(&self.0.counters).values().map(|counters| counters.stats().closes_provoked).sum()
    }

    /// Every token that was issued, for tests that search for leaks.
    pub fn tokens(&self) -> Vec<String> {
        lock(&self.0.tokens).clone()
    }

    /// Counters of a session; all zero for an unknown one.
    pub fn stats(&self, session: &str) -> SessionStats {
        lock(&self.0.counters).get(session).map(|counters| counters.stats()).unwrap_or_default()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { at, record } in lock(&self.0.entries).iter() {
            writeln!(formatter, "{:>9.3} s  {record:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// The counters behind [`SessionStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) input_messages: AtomicU64,
    pub(crate) input_repeated: AtomicU64,
    pub(crate) input_bytes: AtomicU64,
    pub(crate) input_while_paused: AtomicU64,
    pub(crate) max_unacknowledged: AtomicU64,
    pub(crate) output_messages: AtomicU64,
    pub(crate) output_repeated: AtomicU64,
    pub(crate) output_bytes: AtomicU64,
    pub(crate) acknowledges: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) pings: AtomicU64,
    pub(crate) pauses: AtomicU64,
    pub(crate) closes_provoked: AtomicU64,
}

impl Counters {
    fn stats(&self) -> SessionStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionStats {
            input_messages: read(&self.input_messages),
            input_repeated: read(&self.input_repeated),
            input_bytes: read(&self.input_bytes),
            input_while_paused: read(&self.input_while_paused),
            max_unacknowledged: read(&self.max_unacknowledged),
            output_messages: read(&self.output_messages),
            output_repeated: read(&self.output_repeated),
            output_bytes: read(&self.output_bytes),
            acknowledges: read(&self.acknowledges),
            delivered: read(&self.delivered),
            pings: read(&self.pings),
            pauses: read(&self.pauses),
            closes_provoked: read(&self.closes_provoked),
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Locks a mutex whose content a panic cannot leave inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of records after which further violations are dropped.
const LIMIT: usize = 10_000;
