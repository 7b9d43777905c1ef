//! A session with its open data channel, below the SSH connection.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use data_channel::DataChannel;
use futures_util::{FutureExt as _, future::Shared};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::{Instrument as _, debug, info, warn};

use super::{
    config::LaneConfig,
    error::LaneError,
    event::{LaneEvent, LaneObserver},
    resume::Resume,
};
use crate::{
    channel::{
        self, ChannelEnd, ChannelHandle, SessionStream,
        websocket::{self, OpeningSignature, Preconnect},
    },
    runtime::{clock::now, phase::Phase, shutdown::Shutdown, stop},
    session::{IamAction, Session},
    ssh::SshError,
};

/// A session with its open data channel. It is ended on every way out.
#[derive(Debug)]
pub(super) struct OpenSession {
    pub(super) channel: ChannelHandle,
    pub(super) session_id: String,
    /// From the handshake.
    pub(super) agent_version: String,
    pub(super) signature: OpeningSignature,
    /// Number of times that the session was resumed.
    pub(super) resumes: Arc<AtomicU64>,
    /// `None` once it is being ended.
    session: Mutex<Option<Session>>,
    shutdown: Shutdown,
}

impl OpenSession {
    /// Starts a session and opens its data channel, up to the end of the handshake.
    ///
    /// Cancel-safe: the session is ended then, however far the opening is. It runs as a task to its end: a StartSession
    /// that was sent must be answered before its session can be ended, and where only `ssm:StartSession` is allowed, a
    /// session can be ended only through its data channel.
    pub(super) async fn open(
        config: &Arc<LaneConfig>,
        observer: &LaneObserver,
    ) -> Result<(Self, SessionStream), LaneError> {
        let (mut sender, receiver) = oneshot::channel();
        let (config, observer) = (Arc::clone(config), Arc::clone(observer));
        let shutdown = config.shutdown.clone();
        let task = async move {
            let unwanted = sender.closed().boxed().shared();
            let outcome = Self::open_to_the_end(&config, &observer, unwanted.clone()).await;
            drop(unwanted);
            if let Err(Ok((session, _))) = sender.send(outcome) {
                session.end(stop::TERMINATE_FLAG).await;
            }
        };
        shutdown.spawn_to_its_end(task.in_current_span());
        receiver.await.unwrap_or(Err(LaneError::Stopping))
    }

    async fn open_to_the_end(
        config: &LaneConfig,
        observer: &LaneObserver,
        unwanted: Shared<impl Future<Output = ()>>,
    ) -> Result<(Self, SessionStream), LaneError> {
        observer(LaneEvent::Phase(Phase::StartSession));
        let shutdown = &config.shutdown;
        let mut preconnect = Preconnect::new(&config.stream);
        let starting = config.starter.start(unwanted.clone());
        let mut session = preconnect.drive_while(starting).await?;
        info!(session = session.id(), "session started");
        observer(LaneEvent::SessionStarted(session.id().to_owned()));
        observer(LaneEvent::Phase(Phase::Session));
        let resumes = Arc::new(AtomicU64::new(0));
        let opening = open_channel(config, observer, &session, preconnect, &resumes);
        let time_limit = async {
            tokio::select! {
                () = shutdown.stopping() => (),
                () = unwanted => (),
            }
            sleep(stop::OPENING_CHANNEL).await;
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = time_limit => Err(LaneError::Stopping),
        };
        match opened {
            Ok(Opened { channel, agent_version, signature, stream }) => {
                let open = Self {
                    channel,
                    session_id: session.id().to_owned(),
                    agent_version,
                    signature,
                    resumes,
                    session: Mutex::new(Some(session)),
                    shutdown: shutdown.clone(),
                };
                Ok((open, stream))
            }
            Err(error) => {
                if matches!(error, LaneError::Channel(ChannelEnd::Closed(_))) {
                    session.mark_ended();
                }
                Err(error)
            }
        }
    }

    /// Replaces the end of the stream by the end of the data channel, which explains it.
    pub(super) async fn explain(&self, error: SshError) -> LaneError {
        if !matches!(error, SshError::StreamEnded) {
            return error.into();
        }
        match timeout(EXPLANATION_WAIT, self.channel.ended()).await {
            Ok(end) => end.into(),
            Err(_) => error.into(),
        }
    }

    /// Ends the session by flag and, where allowed, by API. Does nothing the second time.
    ///
    /// Cancel-safe as [`Ending::run`] is.
    pub(super) async fn end(&self, bound: Duration) {
        if let Some(ending) = self.take_ending() {
            ending.run(bound).await;
        }
    }

    fn take_ending(&self) -> Option<Ending> {
        let session = self.session.lock().take()?;
        Some(Ending { channel: self.channel.clone(), session })
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if let Some(ending) = self.take_ending() {
            let ending = async move { ending.run(stop::TERMINATE_FLAG).await };
            self.shutdown.spawn_to_its_end(ending.in_current_span());
        }
    }
}

async fn open_channel(
    config: &LaneConfig,
    observer: &LaneObserver,
    session: &Session,
    preconnect: Preconnect<'_>,
    resumes: &Arc<AtomicU64>,
) -> Result<Opened, LaneError> {
    let settings = data_channel::Config {
        message_bytes: config.message_bytes,
        upload_limits: *config.reports.upload_limits.lock(),
        ..data_channel::Config::default()
    };
    let seed = uuid::Uuid::new_v4().as_u128();
    let mut channel = DataChannel::new(settings, now(), unix_ms(), seed);
    let url = session.stream_url().to_owned();
    let opening = channel.opening(session.token());
    let socket = websocket::open(&config.stream, &*config.api, &url, opening, preconnect).await?;
    let signature = socket.signature();
    if signature == OpeningSignature::UnsignedAfterRefusal && config.is_first_unsigned_opening() {
        // In order where no more than `ssm:StartSession` is allowed.
        info!(
            "the signed opening of the data channel was refused, the unsigned one was accepted, which AWS may cease to do: \
             allow `{}`, as `ssm-sidecar policy` prints it",
            IamAction::OpenDataChannel
        );
    }
    let resume = Resume::new(config, session.id().to_owned(), url, Arc::clone(resumes));
    let reports = config.reports.clone();
    let (channel, stream) =
        channel::spawn(channel, socket, resume, reports, config.shutdown.tasks());
    let agent_version = channel.handshake_done().await?;
    observer(LaneEvent::ChannelOpen { agent_version: agent_version.clone(), signature });
    Ok(Opened { channel, agent_version, signature, stream })
}

/// A data channel after its handshake.
struct Opened {
    channel: ChannelHandle,
    agent_version: String,
    signature: OpeningSignature,
    stream: SessionStream,
}

/// A session that is to be ended.
struct Ending {
    channel: ChannelHandle,
    session: Session,
}

impl Ending {
    /// Ends the session by flag within `bound`, and where allowed by API.
    ///
    /// Cancel-safe: when dropped before its end, the session is ended by API in the background; the flag may have been
    /// sent by then.
    async fn run(mut self, bound: Duration) {
        let acknowledged = self.channel.terminate(bound).await;
        debug!(acknowledged, "TerminateSession flag");
        if let Some(ChannelEnd::Closed(_)) = self.channel.try_ended() {
            self.session.mark_ended();
        }
        self.channel.abandon();
        let id = self.session.id().to_owned();
        match self.session.terminate().await {
            Ok(()) => (),
            // Denied where only `ssm:StartSession` is allowed; the flag has ended the session then.
            Err(error) if acknowledged => debug!(%error, "TerminateSession failed"),
            Err(error) => warn!(session = id, %error, "session left to its idle time-out"),
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The end of the data channel may follow the end of the stream by a moment.
const EXPLANATION_WAIT: Duration = Duration::from_millis(500);
