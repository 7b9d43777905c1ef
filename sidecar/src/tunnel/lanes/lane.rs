//! One lane: a session, its data channel and the SSH connection inside.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tracing::{Instrument as _, debug, info, info_span};

use super::{
    config::{Finding, Needs},
    error::LaneError,
    host_key,
    open_session::SessionChannel,
};
use crate::{
    channel::driver::{Broken, Driver, Ended, SessionStream},
    runtime::phase::Phase,
    ssh::{self, Connected, Ssh},
};

/// An open lane.
#[derive(Debug)]
pub struct Lane {
    /// Counts from 1 within this process.
    pub number: u64,
    /// The connection inside the session.
    pub ssh: Ssh,
    /// What the SSH handshake found.
    pub connected: Connected,
    /// It takes no new connection while another lane can.
    leaving: AtomicBool,
    channel: SessionChannel,
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
        Ok(Self { number, ssh, connected, leaving, channel })
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
                        debug!(reason, "the agent found nobody at sshd's port");
                        LaneError::NoSshd { port }
                    }
                    error => error,
                });
            }
            Err(_) if ssh.has_received() => return Err(LaneError::NotSsh { port }),
            Err(_) => return Err(LaneError::NoSshd { port }),
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
        self.channel.driver.began()
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

    /// The agent's version, as it said.
    pub fn agent_version(&self) -> &str {
        &self.channel.agent_version
    }

    /// Ends the session by flag within `bound` and, where allowed, by API; does nothing the second time.
    ///
    /// Cancel-safe: when dropped before its end, the session is ended by API in the background. The flag may
    /// not have been sent by then.
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
