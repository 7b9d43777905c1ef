//! One lane: a session, its data channel and the SSH connection inside.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::{Instrument as _, debug, info, info_span};

use super::{host_key, session_channel::SessionChannel};
use crate::{
    driver::{Broken, Driver, Ended, SessionStream},
    progress::Phase,
    session::{ApiError, ApiErrorKind, SessionApi},
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
    pub(super) fn found(&self, finding: impl FnOnce() -> Finding) {
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
    channel: SessionChannel,
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
        let (channel, stream) =
            SessionChannel::start(needs, begin.clone()).instrument(span.clone()).await?;
        let agent_version = channel.agent_version.clone();
        begin(Phase::Ssh);
        let outcome = Self::authenticate(needs, config, &channel, stream).instrument(span).await;
        let (ssh, connected) = match outcome {
            Ok(found) => found,
            Err(error) => {
                // The caller reports at once; the process waits for the end of the session.
                drop(channel);
                return Err(error);
            }
        };
        let leaving = AtomicBool::new(false);
        Ok(Self { number, ssh, connected, agent_version, leaving, channel })
    }

    async fn authenticate(
        needs: &Needs,
        config: &ssh_client::Config,
        channel: &SessionChannel,
        stream: SessionStream,
    ) -> Result<(Ssh, Connected), LaneError> {
        let port = needs.ssh_port;
        let driver = channel.driver.clone();
        let round_trip = move || driver.round_trip_bound();
        let ssh = ssh::start(stream, config.clone(), round_trip, needs.shutdown.tasks());
        match timeout(BANNER_WAIT, ssh.identified()).await {
            Ok(Ok(server)) => debug!(server, "sshd identified itself"),
            Ok(Err(error)) => {
                return Err(match channel.explain(error).await {
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
            Err(error) => return Err(channel.explain(error).await),
        }
        match ssh.authenticated().await {
            Ok(connected) => Ok((ssh, connected)),
            Err(error) => Err(channel.explain(error).await),
        }
    }

    /// Completes when the lane carries nothing any more, with the reason. Cancel-safe.
    pub async fn ended(&self) -> LaneError {
        tokio::select! {
            biased;
            ended = self.channel.driver.ended() => ended.into(),
            error = self.ssh.ended() => self.channel.explain(error).await,
        }
    }

    /// When its data channel was opened, from which the service counts.
    pub fn opened(&self) -> Instant {
        Instant::from_std(self.channel.driver.began())
    }

    /// Whether its path carries bytes at this moment, rather than being mended.
    pub fn is_up(&self) -> bool {
        self.channel.driver.is_up()
    }

    /// Since when and why it does not, while its session is being resumed and after that was given up.
    pub fn broken(&self) -> Option<Broken> {
        self.channel.driver.broken()
    }

    /// Completes when its path has carried bytes for `time` without a break; never once it is over.
    /// Cancel-safe.
    pub async fn up_for(&self, time: Duration) {
        self.channel.driver.up_for(time).await;
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
        &self.channel.session_id
    }

    /// Ends the session by flag and by API, within `bound` each.
    pub async fn terminate(&self, bound: Duration) {
        self.channel.end(bound).await;
    }

    /// Times the session was resumed.
    pub fn resumes(&self) -> u64 {
        self.channel.resumes.load(Relaxed)
    }

    /// The data channel.
    pub fn driver(&self) -> &Driver {
        &self.channel.driver
    }
}

/// sshd's identification comes 1 to 15 ms after the handshake (seen with the real agent); a port that
/// nobody listens on shows only as silence for a minute.
const BANNER_WAIT: Duration = Duration::from_secs(8);
