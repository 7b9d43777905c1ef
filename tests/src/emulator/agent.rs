//! The agent's side of one session, with the real agent's behaviour (sections 4 to 6 of the specification):
//! it checks little, discards data that arrives too early, and retransmits slowly.
//!
//! Three loops, as in the real agent: one takes the client's messages and writes them to sshd; one reads
//! from sshd and sends; one retransmits the oldest message every 100 ms. Only a slow sshd delays the first
//! loop, and with it the acknowledges.

mod channel;
mod input;
mod outgoing;
mod pump;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use uuid::Uuid;

use super::{
    codec::{Message, OUTPUT, SYN, payload_type},
    faults::{Plan, Rng},
    journal::{Ending, Record, count, lock},
    payload,
    session::Session,
    settings::{AgentSettings, Pacing},
};

use input::Input;
use outgoing::Outgoing;

/// The state that the loops share.
pub(crate) struct Agent {
    session: Arc<Session>,
    settings: AgentSettings,
    pacing: Pacing,
    outgoing: Mutex<Outgoing>,
    rng: Mutex<Rng>,
    /// Wakes the loop that reads from sshd when a pause ends.
    resumed: Notify,
    plan: watch::Receiver<Arc<Plan>>,
    /// The agent's own channel is broken: what it sends is lost.
    away: AtomicBool,
}

/// What the other loops report to the one that takes input.
enum Event {
    /// The period in which data is discarded has passed.
    Ready,
    Dialled(std::io::Result<TcpStream>),
    /// sshd closed its connection, and everything it sent has been forwarded.
    ServerClosed,
}

/// Why the agent ends the session.
struct Done {
    by: Ending,
    output: String,
}

/// Runs the agent of a session until the agent or the session ends.
pub(crate) async fn run(
    session: Arc<Session>,
    mut inbox: mpsc::Receiver<Bytes>,
    begin: Instant,
    settings: AgentSettings,
    pacing: Pacing,
    plan: watch::Receiver<Arc<Plan>>,
    rng: Rng,
) {
    let agent = Arc::new(Agent {
        session: Arc::clone(&session),
        settings,
        pacing,
        outgoing: Mutex::new(Outgoing::new()),
        rng: Mutex::new(rng),
        resumed: Notify::new(),
        plan,
        away: AtomicBool::new(false),
    });
    let life = async {
        let reported = tokio::select! {
            done = agent.live(&mut inbox, begin) => return done,
            reported = session.worker_killed() => reported,
        };
        // Everything of the worker is gone, its connection to sshd included.
        dead(inbox, reported).await
    };
    let done = tokio::select! {
        done = life => done,
        _ = session.ended() => return,
    };
    session.end(done.by, &done.output);
}

/// Loses what the client sends to a session worker that was killed, until that is reported.
async fn dead(mut inbox: mpsc::Receiver<Bytes>, reported: Instant) -> Done {
    let lose = async { while inbox.recv().await.is_some() {} };
    drop(timeout_at(reported, lose).await);
    Done { by: Ending::WorkerKilled, output: CRASHED.to_owned() }
}

impl Agent {
    async fn live(self: &Arc<Self>, inbox: &mut mpsc::Receiver<Bytes>, begin: Instant) -> Done {
        sleep_until(begin).await;
        if self.settings.version < PORT_PLUGIN {
            return Done { by: Ending::Unsupported, output: UNSUPPORTED.to_owned() };
        }
        let (events, heard) = mpsc::channel(4);
        let start = Instant::now();
        self.send(payload_type::HANDSHAKE_REQUEST, self.handshake_request()).await;
        let mut input = Input::new(self, inbox, heard, events, start);
        tokio::select! {
            done = input.run() => done,
            () = self.resend() => unreachable(),
        }
    }

    fn handshake_request(&self) -> Bytes {
        let [a, b, c, d] = self.settings.version;
        let version = format!("{a}.{b}.{c}.{d}");
        let challenge = lock(&self.rng).hex(24);
        payload::handshake_request(
            &version,
            self.session.port,
            self.settings.encryption,
            &challenge,
        )
    }

    /// Sends a stream message. Only one loop at a time calls this, which keeps the messages in order.
    async fn send(&self, payload_type: u32, payload: Bytes) {
        let id = self.uuid();
        let frame = lock(&self.outgoing).add(Instant::now(), |sequence| {
            let mut message = Message::new(OUTPUT, sequence, payload_type, payload);
            if sequence == 0 {
                message.flags = SYN;
            }
            message.id = id;
            message.encode()
        });
        count(&self.session.counters.output_messages, 1);
        self.deliver(frame).await;
    }

    /// Acknowledges a message of the client.
    async fn acknowledge(&self, message: &Message) {
        self.deliver(payload::acknowledge(message, self.uuid())).await;
    }

    /// Retransmits the oldest message whenever it is overdue.
    async fn resend(&self) {
        let mut ticks = interval(RESEND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let overdue = lock(&self.outgoing).overdue(Instant::now());
            if let Some(frame) = overdue {
                count(&self.session.counters.output_repeated, 1);
                self.deliver(frame).await;
            }
        }
    }

    /// Passes a frame to the gateway; it is lost while the agent's own channel is broken.
    async fn deliver(&self, frame: Bytes) {
        if !self.away.load(Ordering::Relaxed) {
            self.session.deliver(frame).await;
        }
    }

    /// The agent's own channel is broken, or open again.
    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
        self.session.set_agent_away(away);
    }

    /// Any message from the client ends a pause.
    fn resume(&self) {
        if lock(&self.outgoing).set_paused(false) {
            self.resumed.notify_waiters();
        }
    }

    fn pause(&self) {
        if self.settings.version >= PAUSE {
            lock(&self.outgoing).set_paused(true);
        }
    }

    /// Waits while publication is paused.
    async fn unpaused(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !lock(&self.outgoing).is_paused() {
                return;
            }
            resumed.await;
        }
    }

    fn uuid(&self) -> Uuid {
        lock(&self.rng).uuid()
    }

    fn record_dialled(&self, reached: bool) {
        let session = self.session.id.clone();
        self.session.journal.add(Record::Dialled { session, reached });
    }
}

/// The type of a loop that never ends.
fn unreachable() -> Done {
    Done { by: Ending::Operator, output: String::new() }
}

/// First versions of the agent with the behaviour named (specification, section 6).
const PORT_PLUGIN: [u32; 4] = [2, 3, 672, 0];
const PAUSE: [u32; 4] = [3, 0, 732, 0];
const ACKNOWLEDGES_AGAIN: [u32; 4] = [3, 2, 1041, 0];
/// Versions newer than this one.
const TERMINATE_FLAG: [u32; 4] = [2, 3, 722, 0];

/// Interval at which the oldest message is checked.
const RESEND: Duration = Duration::from_millis(100);

/// Observed on AWS (specification, section 9).
const UNSUPPORTED: &str = "Plugin with name Port is not supported by this version of ssm agent, please update to \
                           latest version";

/// What the worker's parent reports when the worker has died.
const CRASHED: &str = "document process failed unexpectedly: ipc messaging received timeout signal, check \
                       [ssm-document-worker]/[ssm-session-worker] log for crash reason";
