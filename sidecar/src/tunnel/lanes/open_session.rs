//! A session with its data channel, below the SSH connection.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use data_channel::DataChannel;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::{Instrument as _, debug, info, warn};

use super::{
    config::{Finding, Needs},
    error::LaneError,
    resume::Resume,
};
use crate::{
    channel::{
        driver::{self, Driver, Ended, SessionStream},
        websocket::{self, OpeningSignature},
    },
    runtime::{clock::now, phase::Phase, shutdown::Shutdown},
    session::{self, Session},
    ssh::SshError,
};

/// A session with its open data channel; ended on every way out.
#[derive(Debug)]
pub(super) struct SessionChannel {
    pub(super) driver: Driver,
    pub(super) session_id: String,
    /// As the agent said.
    pub(super) agent_version: String,
    /// Times the session was resumed.
    pub(super) resumes: Arc<AtomicU64>,
    /// Taken by whoever ends it.
    session: Mutex<Option<Session>>,
    shutdown: Shutdown,
}

impl SessionChannel {
    /// Starts a session and opens its channel up to the end of the handshake.
    ///
    /// Cancel-safe: the session is ended then, however far it is.
    ///
    /// Runs as a task that is seen through even when nobody waits any more: a StartSession that was sent
    /// must be answered before its session can be ended, and where only `ssm:StartSession` is allowed
    /// the session can be ended by no other way than through its channel.
    pub(super) async fn start(
        needs: &Arc<Needs>,
        begin: impl Fn(Phase) + Send + 'static,
    ) -> Result<(Self, SessionStream), LaneError> {
        let (mut sender, receiver) = oneshot::channel();
        let needs = Arc::clone(needs);
        let tasks = needs.shutdown.tasks().clone();
        let task = async move {
            let outcome = Self::start_unattended(&needs, begin, sender.closed()).await;
            // Nobody waits any more.
            if let Err(Ok((channel, _))) = sender.send(outcome) {
                channel.end(END_BOUND).await;
            }
        };
        tasks.spawn(task.in_current_span());
        receiver.await.unwrap_or(Err(LaneError::Stopping))
    }

    async fn start_unattended(
        needs: &Needs,
        begin: impl Fn(Phase),
        unwanted: impl Future<Output = ()>,
    ) -> Result<(Self, SessionStream), LaneError> {
        begin(Phase::StartSession);
        let shutdown = &needs.shutdown;
        let mut ahead = websocket::Ahead::new(&needs.stream);
        let starting = session::start(Arc::clone(&needs.api), shutdown, needs.start);
        let mut session = ahead.during(starting).await?;
        info!(session = session.id(), "session started");
        needs.found(|| Finding::Session(session.id().to_owned()));
        begin(Phase::Session);
        let resumes = Arc::new(AtomicU64::new(0));
        let opening = Self::open_channel(needs, &mut session, ahead, &resumes);
        let late = async {
            tokio::select! {
                () = shutdown.stopping() => (),
                () = unwanted => (),
            }
            sleep(OPEN_AFTER_STOP).await;
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = late => Err(LaneError::Stopping),
        };
        match opened {
            Ok((driver, agent_version, stream)) => {
                let session_id = session.id().to_owned();
                let session = Mutex::new(Some(session));
                let shutdown = shutdown.clone();
                let channel =
                    Self { driver, session_id, agent_version, resumes, session, shutdown };
                Ok((channel, stream))
            }
            Err(error) => {
                if matches!(error, LaneError::Channel(Ended::Closed(_))) {
                    session.mark_ended();
                }
                drop(session);
                Err(error)
            }
        }
    }

    async fn open_channel(
        needs: &Needs,
        session: &mut Session,
        ahead: websocket::Ahead<'_>,
        resumes: &Arc<AtomicU64>,
    ) -> Result<(Driver, String, SessionStream), LaneError> {
        let settings = data_channel::Config {
            message_bytes: needs.message_bytes,
            ..data_channel::Config::default()
        };
        let seed = uuid::Uuid::new_v4().as_u128();
        let mut channel = DataChannel::new(settings, now(), unix_ms(), seed);
        let url = session.stream_url().to_owned();
        let opening = channel.opening(session.token());
        let socket = websocket::open(&needs.stream, &*needs.api, &url, opening, ahead).await?;
        if socket.signature() == OpeningSignature::UnsignedAfterRefusal {
            warn!(
                "the signed opening of the data channel was refused, the unsigned one was not: allow \
                 `ssmmessages:OpenDataChannel`, as `ssm-sidecar policy` prints it"
            );
        }
        let signature = socket.signature();
        let resume = Resume::new(needs, session.id().to_owned(), url, Arc::clone(resumes));
        let (driver, stream) = driver::spawn(
            channel,
            socket,
            resume,
            Arc::clone(&needs.path_changed),
            needs.shutdown.tasks(),
        );
        let agent_version = driver.opened().await?;
        needs.found(|| Finding::Channel { agent_version: agent_version.clone(), signature });
        Ok((driver, agent_version, stream))
    }

    /// The end of the session explains the end of the stream in it.
    pub(super) async fn explain(&self, error: SshError) -> LaneError {
        if !matches!(error, SshError::StreamEnded) {
            return error.into();
        }
        match timeout(EXPLAIN_WAIT, self.driver.ended()).await {
            Ok(ended) => ended.into(),
            Err(_) => error.into(),
        }
    }

    /// Ends the session by flag and, where allowed, by API; does nothing the second time.
    ///
    /// Cancel-safe as [`Ending::carry_out`] is.
    pub(super) async fn end(&self, bound: Duration) {
        if let Some(ending) = self.take_ending() {
            ending.carry_out(bound).await;
        }
    }

    fn take_ending(&self) -> Option<Ending> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Ending { driver: self.driver.clone(), session })
    }
}

impl Drop for SessionChannel {
    fn drop(&mut self) {
        if let Some(ending) = self.take_ending() {
            let ending = async move { ending.carry_out(END_BOUND).await };
            self.shutdown.spawn_to_its_end(ending.in_current_span());
        }
    }
}

/// What is left to do with a session: to end it, once.
struct Ending {
    driver: Driver,
    session: Session,
}

impl Ending {
    /// Ends the session by flag within `bound`, and where allowed by API.
    ///
    /// Cancel-safe: when dropped before its end, the session is ended by API in the background; the flag may
    /// have been sent by then.
    async fn carry_out(mut self, bound: Duration) {
        let flagged = self.driver.terminate(bound).await;
        debug!(flagged, "terminate flag");
        if let Some(Ended::Closed(_)) = self.driver.try_ended() {
            self.session.mark_ended();
        }
        self.driver.abandon();
        end_by_api(self.session, flagged).await;
    }
}

/// `flagged`: the agent was told already, and heard it.
async fn end_by_api(session: Session, flagged: bool) {
    let id = session.id().to_owned();
    match session.terminate().await {
        Ok(()) => (),
        // Refused where only `ssm:StartSession` is allowed; the flag has done it then.
        Err(error) if flagged => debug!(%error, "TerminateSession was not done"),
        Err(error) => warn!(session = id, %error, "session left to its idle time-out"),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The channel's own reason may follow the end of the stream by a moment.
const EXPLAIN_WAIT: Duration = Duration::from_millis(500);

/// How long an opening may go on after the stop, and once nobody waits for it, so that its session can be ended
/// through its channel.
const OPEN_AFTER_STOP: Duration = Duration::from_millis(1500);

/// For the agent to acknowledge the flag and to close.
pub(super) const END_BOUND: Duration = Duration::from_secs(2);
