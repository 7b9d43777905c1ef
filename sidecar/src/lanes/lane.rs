//! One lane: a session, its data channel and the SSH connection inside.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use data_channel::DataChannel;
use tokio::{
    sync::{Mutex, Notify, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{host_key, resume::Resume};
use crate::{
    driver::{self, Broken, Driver, Ended, SessionStream},
    progress::Phase,
    session::{self, ApiError, ApiErrorKind, Session, SessionApi},
    shutdown::Shutdown,
    ssh::{self, Connected, Ssh, SshError},
    websocket::{self, OpenError, OpeningSignature},
};

/// What every lane of this process is made from.
#[derive(Debug)]
pub struct Needs {
    /// The control plane.
    pub api: Arc<dyn SessionApi>,
    /// How to reach the service's stream host.
    pub stream: websocket::Settings,
    /// Payload of each message towards the agent, in bytes.
    pub message_bytes: usize,
    /// The bastion's sshd, user, key and pins.
    pub ssh: ssh_client::Config,
    /// The type of host key to ask for, once a fingerprint was found to be of it.
    pub host_key_type: OnceLock<host_key::Type>,
    /// For hints: where the bastion's sshd should listen.
    pub ssh_port: u16,
    /// The database.
    pub target: Target,
    /// How many lanes may be open at once.
    pub sessions: usize,
    /// How long a broken path may take to come back.
    pub reconnect: Duration,
    /// How long the service leaves a data channel open.
    pub channel_life: Duration,
    /// How long a start may go on trying what may pass.
    pub start: Duration,
    /// Notified when a lane's WebSocket breaks and when its session is resumed.
    pub path_changed: Arc<Notify>,
    /// Hears what a start finds out on its way, for whoever wants to know more than the outcome.
    pub observer: Option<Arc<dyn Observer>>,
    /// The tasks and the stop signal of the process.
    pub shutdown: Shutdown,
}

/// Hears what the start of a lane finds out.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// Called from the lane's task; must not block.
    fn on_found(&self, finding: Finding);
}

/// What the start of a lane has found out.
#[derive(Clone, Debug)]
pub enum Finding {
    /// The id of the session that was started.
    Session(String),
    /// The data channel is open.
    Channel {
        /// As it said.
        agent_version: String,
        /// How the opening was signed.
        signature: OpeningSignature,
    },
    /// The key exchange is done; authentication is next.
    Server {
        /// Its identification.
        server: String,
        /// `SHA256:…`.
        fingerprint: String,
        /// Whether the document pins it.
        pinned: bool,
    },
}

impl Needs {
    fn found(&self, finding: impl FnOnce() -> Finding) {
        if let Some(observer) = &self.observer {
            observer.on_found(finding());
        }
    }

    fn pins_fingerprints(&self) -> bool {
        self.ssh.pins.iter().any(|pin| matches!(pin, ssh_client::HostKeyPin::Fingerprint(_)))
    }
}

/// Where connections lead.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the bastion resolves it.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// An open lane.
#[derive(Debug)]
pub struct Lane {
    /// Counts from 1 within this process.
    pub number: u64,
    /// The connection inside the session.
    pub ssh: Ssh,
    /// What the SSH handshake found.
    pub connected: Connected,
    /// The agent's version, as it said.
    pub agent_version: String,
    /// It takes no new connection while another lane can.
    leaving: AtomicBool,
    carrier: Carrier,
}

/// Why a lane could not be opened, or is over.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The SSM API refused or could not be reached.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The data channel's WebSocket could not be opened.
    #[error(transparent)]
    Stream(#[from] OpenError),
    /// The data channel ended.
    #[error(transparent)]
    Channel(#[from] Ended),
    /// The SSH connection ended.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The session stands, but sshd is silent.
    #[error("sshd does not answer on port {port} of the bastion")]
    NoSshd {
        /// `bastion.ssh_port`.
        port: u16,
        /// What the agent said about it, if anything.
        reason: String,
    },
    /// Somebody answers at sshd's port, but does not speak SSH.
    #[error("what answers on port {port} of the bastion does not identify itself as an SSH server")]
    NotSsh {
        /// `bastion.ssh_port`.
        port: u16,
    },
    /// The time for a new lane is used up.
    #[error("the path was lost and did not come back in time")]
    NotReplaced(#[source] Box<Self>),
    /// The process is stopping.
    #[error("stopping")]
    Stopping,
}

impl LaneError {
    /// Whether trying again within seconds makes sense, where a lane has been open before.
    pub fn may_pass(&self) -> bool {
        match self {
            // Renewed ones may be on their way over stdin.
            Self::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => true,
            Self::Api(error) => error.may_pass(),
            // To whom it was open before, an answer but "not allowed" is the service's own trouble.
            Self::Stream(OpenError::Refused { status, .. }) => !matches!(status, 401 | 403),
            Self::Stream(error) => error.may_pass(),
            Self::Channel(_) | Self::NoSshd { .. } | Self::Ssh(SshError::StreamEnded) => true,
            Self::Ssh(SshError::Protocol(error)) => !matches!(
                **error,
                ssh_client::Error::HostKeyMismatch { .. } | ssh_client::Error::AuthRejected { .. }
            ),
            Self::NotSsh { .. } | Self::NotReplaced(_) | Self::Stopping => false,
        }
    }
}

impl Lane {
    /// Starts a session, opens its data channel and authenticates to sshd; tells each phase's begin.
    ///
    /// Cancel-safe: whatever was started by then is ended.
    ///
    /// # Errors
    ///
    /// [`LaneError`] of the phase that failed; the session, if there is one, is ended.
    pub async fn open(
        number: u64,
        needs: &Arc<Needs>,
        begin: impl Fn(Phase) + Send + Clone + 'static,
    ) -> Result<Self, LaneError> {
        let mut config = needs.ssh.clone();
        if let Some(known) = needs.host_key_type.get() {
            config.host_key_algorithms = Some(known.names());
        }
        let mismatch = match Self::attempt(number, needs, &config, begin.clone()).await {
            Err(LaneError::Ssh(error)) if needs.pins_fingerprints() => error,
            outcome => return outcome,
        };
        // A fingerprint does not tell the type of its key, and a server presents one type per connection.
        for other in host_key::Type::not_presented(&mismatch) {
            info!(host_key = ?other, "the pinned fingerprint may be of another type: connecting again");
            config.host_key_algorithms = Some(other.names());
            match Self::attempt(number, needs, &config, begin.clone()).await {
                Err(LaneError::Ssh(error)) if host_key::is_not_the_pinned(&error) => (),
                Ok(lane) => {
                    // Another lane may have found the same meanwhile.
                    let _known = needs.host_key_type.get_or_init(|| other);
                    return Ok(lane);
                }
                outcome => return outcome,
            }
        }
        Err(mismatch.into())
    }

    async fn attempt(
        number: u64,
        needs: &Arc<Needs>,
        config: &ssh_client::Config,
        begin: impl Fn(Phase) + Send + Clone + 'static,
    ) -> Result<Self, LaneError> {
        let span = info_span!("lane", number);
        let (carrier, stream) =
            Carrier::start(needs, begin.clone()).instrument(span.clone()).await?;
        let agent_version = carrier.agent_version.clone();
        begin(Phase::Ssh);
        let outcome = Self::authenticate(needs, config, &carrier, stream).instrument(span).await;
        let (ssh, connected) = match outcome {
            Ok(found) => found,
            Err(error) => {
                // The caller reports at once; the process waits for the end of the session.
                drop(carrier);
                return Err(error);
            }
        };
        let leaving = AtomicBool::new(false);
        Ok(Self { number, ssh, connected, agent_version, leaving, carrier })
    }

    async fn authenticate(
        needs: &Needs,
        config: &ssh_client::Config,
        carrier: &Carrier,
        stream: SessionStream,
    ) -> Result<(Ssh, Connected), LaneError> {
        let port = needs.ssh_port;
        let driver = carrier.driver.clone();
        let round_trip = move || driver.round_trip_bound();
        let ssh = ssh::start(stream, config.clone(), round_trip, needs.shutdown.tasks());
        match timeout(BANNER_WAIT, ssh.identified()).await {
            Ok(Ok(server)) => debug!(server, "sshd identified itself"),
            Ok(Err(error)) => {
                return Err(match carrier.explain(error).await {
                    // How the agent ends when nothing listens at the port; other ends have other words.
                    LaneError::Channel(Ended::Closed(reason))
                        if reason.is_empty() || reason.contains("document process failed") =>
                    {
                        LaneError::NoSshd { port, reason }
                    }
                    error => error,
                });
            }
            Err(_) if ssh.has_received() => return Err(LaneError::NotSsh { port }),
            Err(_) => return Err(LaneError::NoSshd { port, reason: String::new() }),
        }
        match ssh.key_exchanged().await {
            Ok(Connected { server, fingerprint, pinned }) => {
                needs.found(|| Finding::Server { server, fingerprint, pinned });
            }
            Err(error) => return Err(carrier.explain(error).await),
        }
        match ssh.authenticated().await {
            Ok(connected) => Ok((ssh, connected)),
            Err(error) => Err(carrier.explain(error).await),
        }
    }

    /// Completes when the lane carries nothing any more, with the reason. Cancel-safe.
    pub async fn ended(&self) -> LaneError {
        tokio::select! {
            biased;
            ended = self.carrier.driver.ended() => ended.into(),
            error = self.ssh.ended() => self.carrier.explain(error).await,
        }
    }

    /// When its data channel was opened, from which the service counts.
    pub fn opened(&self) -> Instant {
        Instant::from_std(self.carrier.driver.began())
    }

    /// Whether its path carries bytes at this moment, rather than being mended.
    pub fn is_up(&self) -> bool {
        self.carrier.driver.is_up()
    }

    /// Since when and why it does not, while its session is being resumed and after that was given up.
    pub fn broken(&self) -> Option<Broken> {
        self.carrier.driver.broken()
    }

    /// Completes when its path has carried bytes for `time` without a break; never once it is over.
    /// Cancel-safe.
    pub async fn up_for(&self, time: Duration) {
        self.carrier.driver.up_for(time).await;
    }

    /// Keeps new connections away, as far as other lanes can take them, or lets them come again.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Relaxed);
    }

    /// Whether new connections are kept away.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// What the service calls its session.
    pub fn session_id(&self) -> &str {
        &self.carrier.session_id
    }

    /// Ends the session by flag and by API, within `bound` each.
    pub async fn terminate(&self, bound: Duration) {
        self.carrier.end(bound).await;
    }

    /// Times the session was resumed.
    pub fn resumes(&self) -> u64 {
        self.carrier.resumes.load(Relaxed)
    }

    /// The data channel.
    pub fn driver(&self) -> &Driver {
        &self.carrier.driver
    }
}

/// A session with its open data channel; ended on every way out.
#[derive(Debug)]
struct Carrier {
    driver: Driver,
    session_id: String,
    agent_version: String,
    resumes: Arc<AtomicU64>,
    /// Taken by whoever ends it.
    session: Arc<Mutex<Option<Session>>>,
    shutdown: Shutdown,
}

impl Carrier {
    /// Starts a session and opens its channel up to the end of the handshake.
    ///
    /// Runs as a task that is seen through even when nobody waits any more: a StartSession that was sent
    /// must be answered before its session can be ended, and where only `ssm:StartSession` is allowed
    /// the session can be ended by no other way than through its channel.
    async fn start(
        needs: &Arc<Needs>,
        begin: impl Fn(Phase) + Send + 'static,
    ) -> Result<(Self, SessionStream), LaneError> {
        let (sender, receiver) = oneshot::channel();
        let needs = Arc::clone(needs);
        let tasks = needs.shutdown.tasks().clone();
        let task = async move {
            let outcome = Self::start_unattended(&needs, begin).await;
            // Nobody waits: the drop ends the session.
            if let Err(Ok((carrier, _))) = sender.send(outcome) {
                carrier.end(END_BOUND).await;
            }
        };
        tasks.spawn(task.in_current_span());
        receiver.await.unwrap_or(Err(LaneError::Stopping))
    }

    async fn start_unattended(
        needs: &Needs,
        begin: impl Fn(Phase),
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
            shutdown.stopping().await;
            sleep(OPEN_AFTER_STOP).await;
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = late => Err(LaneError::Stopping),
        };
        match opened {
            Ok((driver, agent_version, stream)) => {
                let session_id = session.id().to_owned();
                let session = Arc::new(Mutex::new(Some(session)));
                let shutdown = shutdown.clone();
                let carrier =
                    Self { driver, session_id, agent_version, resumes, session, shutdown };
                Ok((carrier, stream))
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
                 `ssmmessages:OpenDataChannel` on `arn:aws:ssm:*:*:session/${{aws:userid}}-*`"
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
    async fn explain(&self, error: SshError) -> LaneError {
        if !matches!(error, SshError::StreamEnded) {
            return error.into();
        }
        match timeout(EXPLAIN_WAIT, self.driver.ended()).await {
            Ok(ended) => ended.into(),
            Err(_) => error.into(),
        }
    }

    /// Ends the session by flag and, where allowed, by API; does nothing the second time.
    async fn end(&self, bound: Duration) {
        let Some(mut session) = self.session.lock().await.take() else { return };
        let flagged = self.driver.terminate(bound).await;
        debug!(flagged, "terminate flag");
        if let Some(Ended::Closed(_)) = self.driver.try_ended() {
            session.mark_ended();
        }
        self.driver.abandon();
        end_by_api(session, flagged).await;
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let Ok(mut slot) = self.session.try_lock() else { return };
        let Some(session) = slot.take() else { return };
        drop(slot);
        let ending = Self {
            driver: self.driver.clone(),
            session_id: self.session_id.clone(),
            agent_version: String::new(),
            resumes: Arc::clone(&self.resumes),
            session: Arc::new(Mutex::new(Some(session))),
            shutdown: self.shutdown.clone(),
        };
        self.shutdown
            .spawn_to_its_end(async move { ending.end(END_BOUND).await }.in_current_span());
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

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// sshd's identification comes 1 to 15 ms after the handshake (seen with the real agent); a port that
/// nobody listens on shows only as silence for a minute.
const BANNER_WAIT: Duration = Duration::from_secs(8);

/// The channel's own reason may follow the end of the stream by a moment.
const EXPLAIN_WAIT: Duration = Duration::from_millis(500);

/// How long an opening may go on after the stop, so that its session can be ended through its channel.
const OPEN_AFTER_STOP: Duration = Duration::from_millis(1500);

/// For the agent to acknowledge the flag and to close.
pub(super) const END_BOUND: Duration = Duration::from_secs(2);
