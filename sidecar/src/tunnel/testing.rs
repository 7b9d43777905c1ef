//! AWS, agent, sshd and target in this process, for tests on the paused clock.

mod gateway;
mod sshd;

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use data_channel::testing::{Agent, Behaviour};
use futures_util::future::BoxFuture;
use http::Uri;
use parking_lot::Mutex;
use tokio::{
    io::{DuplexStream, duplex},
    sync::{Mutex as AsyncMutex, watch},
};
use tokio_util::task::TaskTracker;

use super::lanes::LaneConfig;
use crate::{
    config::{self, Settings},
    net::{
        dial::{Connector, Dial, Transport},
        proxy::Proxy,
        tls::RootCertificates,
    },
    runtime::{clock::now, shutdown::Shutdown},
    session::{ApiError, ApiErrorKind, Resumed, SessionApi, SignedHeaders, Started, Token},
};

pub(crate) use sshd::{FirstWords, REFUSED_PORT};

/// The customer's side. Clones share it. Sessions are named `s-1`, `s-2`, ….
#[derive(Clone, Debug, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    sessions: BTreeMap<String, Session>,
    resume_is_denied: bool,
    start_fails: bool,
    start_spacing: Duration,
    /// When the agent begins the last session that was started.
    last_begin: Option<Instant>,
    dialling: Dialling,
    /// What sshd does in the next sessions, instead of serving.
    refusals: VecDeque<Refusal>,
    tasks: TaskTracker,
}

/// What becomes of connections to the stream host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Dialling {
    #[default]
    Connects,
    Refused,
    /// Neither connected nor refused.
    Silent,
}

/// How an sshd refuses every login.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// It sends this and hangs up.
    HangsUp(&'static [u8]),
    /// It sends this and nothing more.
    Stuck(&'static [u8]),
}

/// What is wrong with the path of a session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum PathFault {
    #[default]
    None,
    /// The WebSocket present at that moment ends.
    Cut,
    /// Nothing passes either way, though the connection is open.
    Silent,
    /// The agent is gone; the gateway still answers pings.
    AgentGone,
    /// sshd neither reads nor writes; the agent still acknowledges.
    SshdStuck,
}

/// A session at the service, with its agent.
#[derive(Clone, Debug)]
struct Session {
    agent: Arc<Mutex<Agent>>,
    /// The agent's connection to sshd. Locked by the one WebSocket that is served.
    sshd: Arc<AsyncMutex<DuplexStream>>,
    fault: watch::Sender<PathFault>,
    /// When the agent begins it.
    begin: Instant,
}

impl World {
    /// The settings of a config with `rest` after its other fields, for this world's AWS at loopback.
    pub(crate) fn settings(rest: &str) -> Settings {
        let mut settings = config::tests::settings(rest);
        settings.aws.is_loopback = true;
        settings
    }

    pub(crate) fn lane_config(&self, rest: &str) -> Arc<LaneConfig> {
        let (settings, shutdown) = (Self::settings(rest), Shutdown::default());
        let api = Arc::new(self.clone());
        Arc::new(LaneConfig::new(&settings, api, self.connector(), shutdown))
    }

    pub(crate) fn connector(&self) -> Connector {
        Connector {
            roots: RootCertificates::from_pem(b""),
            proxy: Proxy::default(),
            dial: Arc::new(self.clone()),
        }
    }

    /// From now on `ssm:ResumeSession` is denied.
    pub(crate) fn deny_resume(&self) {
        self.0.lock().resume_is_denied = true;
    }

    /// From now on no session can be started, or they can again.
    pub(crate) fn set_start_fails(&self, fails: bool) {
        self.0.lock().start_fails = fails;
    }

    /// The agent begins sessions at least this time apart.
    pub(crate) fn space_starts(&self, spacing: Duration) {
        self.0.lock().start_spacing = spacing;
    }

    /// Until when the agent is busy with the sessions that were started.
    pub(crate) fn agent_busy_for(&self) -> Duration {
        let begin = self.0.lock().last_begin;
        begin.map_or(Duration::ZERO, |begin| begin.saturating_duration_since(now()))
    }

    /// From now on sshd refuses so, in one session each; after that it serves.
    pub(crate) fn refuse(&self, refusals: impl IntoIterator<Item = Refusal>) {
        self.0.lock().refusals = refusals.into_iter().collect();
    }

    pub(crate) fn set_dialling(&self, dialling: Dialling) {
        self.0.lock().dialling = dialling;
    }

    pub(crate) fn set_path(&self, session: &str, fault: PathFault) {
        self.session(session).fault.send_replace(fault);
    }

    /// Returns the calls of the API since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        mem::take(&mut self.0.lock().calls)
    }

    /// Whether the agent of this session received the TerminateSession flag.
    pub(crate) fn was_flagged(&self, session: &str) -> bool {
        self.session(session).agent.lock().terminated
    }

    fn session(&self, id: &str) -> Session {
        self.0.lock().sessions[id].clone()
    }

    /// Starts a session with its agent and its connection to sshd.
    fn start_session(&self) -> String {
        let mut state = self.0.lock();
        let id = format!("s-{}", state.sessions.len() + 1);
        let (near, far) = duplex(SSHD_BUFFER);
        match state.refusals.pop_front() {
            Some(refusal) => drop(state.tasks.spawn(sshd::refuse(far, refusal))),
            None => drop(state.tasks.spawn(sshd::serve(far))),
        }
        let spaced = state.last_begin.map(|last| last + state.start_spacing);
        let begin = spaced.map_or_else(now, |earliest| earliest.max(now()));
        state.last_begin = Some(begin);
        let session = Session {
            agent: Arc::new(Mutex::new(Agent::new(Behaviour::default(), begin))),
            sshd: Arc::new(AsyncMutex::new(near)),
            fault: watch::Sender::default(),
            begin,
        };
        state.sessions.insert(id.clone(), session);
        id
    }

    fn record(&self, call: String) {
        self.0.lock().calls.push(call);
    }
}

impl SessionApi for World {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        self.record("start".to_owned());
        if self.0.lock().start_fails {
            let refused = ApiError::new(ApiErrorKind::AccessDenied, "denied", "");
            return Box::pin(async { Err(refused) });
        }
        let session_id = self.start_session();
        let stream_url = format!("ws://127.0.0.1:1/v1/data-channel/{session_id}");
        let token = Token::from("token".to_owned());
        Box::pin(async { Ok(Started { session_id, stream_url, token }) })
    }

    fn resume<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        self.record(format!("resume {id}"));
        let answer = if self.0.lock().resume_is_denied {
            Err(ApiError::new(ApiErrorKind::AccessDenied, "denied", ""))
        } else {
            Ok(Resumed { stream_url: None, token: Some(Token::from("token".to_owned())) })
        };
        Box::pin(async { answer })
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        self.record(format!("terminate {id}"));
        Box::pin(async { Ok(()) })
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(async { Ok(SignedHeaders::new()) })
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(async { Err(ApiError::aborted()) })
    }

    fn session_ended(&self, id: &str) {
        self.record(format!("ended {id}"));
    }
}

impl Dial for World {
    fn dial<'a>(
        &'a self,
        _: &'a Uri,
        _: &'a str,
        _: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        let dialling = self.0.lock().dialling;
        Box::pin(async move {
            match dialling {
                Dialling::Connects => {
                    let (near, far) = duplex(SOCKET_BUFFER);
                    let tasks = self.0.lock().tasks.clone();
                    tasks.spawn(gateway::serve(self.clone(), far));
                    let near: Box<dyn Transport> = Box::new(near);
                    Ok(near)
                }
                Dialling::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
                Dialling::Silent => pending().await,
            }
        })
    }
}

/// As much as kernels buffer for a connection, in bytes.
const SOCKET_BUFFER: usize = 256 * 1024;

/// More than any test sends: the gateway writes to sshd without reading from it meanwhile.
const SSHD_BUFFER: usize = 16 * 1024 * 1024;
