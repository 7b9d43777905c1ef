//! One lane: a session, its data channel and the SSH connection inside.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tracing::{Instrument as _, debug, info, info_span};

use super::{
    config::LaneConfig,
    error::LaneError,
    event::{LaneEvent, LaneObserver},
    hang_up::{HangUp, Stage},
    host_key::{self, HostKeyType},
    open_session::OpenSession,
    stall::{Silent, Stall, StallChange, Waiting},
};
use crate::{
    channel::{
        ChannelEnd, ChannelHandle, Disconnected, SessionStream, websocket::OpeningSignature,
    },
    runtime::{clock::now, phase::Phase, shared::Shared},
    ssh::{self, ServerIdentity, Ssh},
};

/// An open lane.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Counts from 1 within this process.
    pub(crate) number: u64,
    pub(crate) ssh: Ssh,
    pub(crate) server: ServerIdentity,
    session: OpenSession,
    /// Set by [`review`](Self::review).
    stall: Shared<Option<Stall>>,
}

impl Lane {
    /// Starts a session, opens its data channel and authenticates to sshd.
    ///
    /// Cancel-safe: what was started by then is ended.
    ///
    /// # Errors
    ///
    /// [`LaneError`] of the phase that failed; the session, if there is one, is ended.
    pub(crate) async fn open(
        config: &Arc<LaneConfig>,
        observer: &LaneObserver,
    ) -> Result<Self, LaneError> {
        let number = config.next_lane();
        let mut ssh = config.ssh.clone();
        if let Some(known) = config.host_key_type.get() {
            ssh.host_key_algorithms = Some(known.names());
        }
        let mismatch = match Self::attempt(number, config, &ssh, observer).await {
            Err(LaneError::Ssh(error)) if config.pins_fingerprints() => error,
            outcome => return outcome,
        };
        // A fingerprint does not reveal the type of its key, and a server presents one type per connection.
        for other in HostKeyType::not_presented(&mismatch) {
            info!(host_key = ?other, "the pinned fingerprint may be of another type: connecting again");
            ssh.host_key_algorithms = Some(other.names());
            match Self::attempt(number, config, &ssh, observer).await {
                Err(LaneError::Ssh(error)) if host_key::is_mismatch(&error) => (),
                Ok(lane) => {
                    // Another lane may have found the same meanwhile.
                    let _known = config.host_key_type.get_or_init(|| other);
                    return Ok(lane);
                }
                outcome => return outcome,
            }
        }
        Err(mismatch.into())
    }

    async fn attempt(
        number: u64,
        config: &Arc<LaneConfig>,
        ssh: &ssh_client::Config,
        observer: &LaneObserver,
    ) -> Result<Self, LaneError> {
        let span = info_span!("lane", number);
        let (session, stream) =
            OpenSession::open(config, observer).instrument(span.clone()).await?;
        observer(LaneEvent::Phase(Phase::Ssh));
        // On failure the session is dropped: the caller reports at once, and the process waits for the session's end.
        let (ssh, server) =
            Self::authenticate(config, ssh, observer, &session, stream).instrument(span).await?;
        config.lane_has_opened();
        Ok(Self { number, ssh, server, session, stall: Shared::new(None) })
    }

    async fn authenticate(
        config: &LaneConfig,
        ssh: &ssh_client::Config,
        observer: &LaneObserver,
        session: &OpenSession,
        stream: SessionStream,
    ) -> Result<(Ssh, ServerIdentity), LaneError> {
        let port = config.ssh_port;
        let channel = session.channel.clone();
        let round_trip = move || channel.round_trip_bound();
        let ssh = ssh::start(stream, ssh.clone(), round_trip, config.shutdown.tasks());
        let began = now();
        let hung_up = async |stage, error| {
            let after = now() - began;
            let (words, user) = (ssh.words(), config.ssh.user.clone());
            session.explain(error).await.or_hung_up(HangUp { stage, words, after, port, user })
        };
        match timeout(config.banner_wait(), ssh.identified()).await {
            Ok(Ok(server)) => debug!(server, "sshd identified itself"),
            Ok(Err(error)) => {
                return Err(match hung_up(Stage::BeforeIdentification, error).await {
                    // How the agent ends when nothing listens on the port; for other causes it sends other texts.
                    LaneError::Channel(ChannelEnd::Closed(reason))
                        if reason.contains("document process failed") =>
                    {
                        debug!(reason, "nothing listens on sshd's port");
                        LaneError::NoSshd { port }
                    }
                    error => error,
                });
            }
            Err(_) if ssh.has_received() => {
                return Err(LaneError::NotSsh { port, received: ssh.words() });
            }
            Err(_) => return Err(LaneError::NoSshd { port }),
        }
        match ssh.key_exchanged().await {
            Ok(server) => observer(LaneEvent::ServerVerified(server)),
            Err(error) => return Err(hung_up(Stage::KeyExchange, error).await),
        }
        match ssh.authenticated().await {
            Ok(server) => Ok((ssh, server)),
            Err(error) => Err(hung_up(Stage::Login, error).await),
        }
    }

    /// Completes when the lane is over, with the reason. Cancel-safe.
    pub(crate) async fn ended(&self) -> LaneError {
        let reason = tokio::select! {
            biased;
            end = self.session.channel.ended() => end.into(),
            error = self.ssh.ended() => self.session.explain(error).await,
        };
        reason.or_closed_by_sshd(self.session.channel.statistics().bytes_in_flight > 0)
    }

    /// When its data channel was opened: the service limits its life from then on.
    pub(crate) fn opened_at(&self) -> Instant {
        self.session.channel.opened_at()
    }

    /// Whether the opening of its data channel was signed.
    pub(crate) fn is_signed(&self) -> bool {
        self.session.signature == OpeningSignature::Signed
    }

    /// Whether it has a WebSocket, rather than a session that is being resumed, and its other end answers.
    pub(crate) fn is_up(&self) -> bool {
        self.session.channel.is_up() && self.stall.lock().is_none()
    }

    /// Looks whether agent and sshd answer; returns when to look again, and what has changed.
    pub(super) fn review(&self, now: Instant) -> (Instant, Option<StallChange>) {
        let waiting = if self.session.channel.is_answering(now) {
            let channel = &self.session.channel;
            let sshd = if channel.holds_bytes() { None } else { self.ssh.unanswered_since() };
            Waiting { agent: channel.waiting_since(), sshd }
        } else {
            Waiting::default()
        };
        let mut known = self.stall.lock();
        let before = *known;
        let (stall, next) = waiting.review(before, now);
        *known = stall;
        drop(known);
        let change = match (before, stall) {
            (None, Some(stall)) => Some(StallChange::Began(stall)),
            (Some(_), None) => Some(StallChange::Ended),
            (None, None) | (Some(_), Some(_)) => None,
        };
        if change.is_some() {
            self.stall.notify();
        }
        (next, change)
    }

    /// Who does not answer, while that is so.
    pub(super) fn silent(&self) -> Option<Silent> {
        self.stall.lock().map(|stall| stall.silent)
    }

    /// Completes when its other end does not answer. Cancel-safe.
    pub(super) async fn stalled(&self) {
        self.stall.wait_for(|stall| stall.is_some().then_some(())).await;
    }

    /// Since when and why it has no WebSocket, while its session is being resumed and after that has failed.
    pub(crate) fn disconnected(&self) -> Option<Disconnected> {
        self.session.channel.disconnected()
    }

    /// Completes when its WebSocket has been up for `time` without interruption; never once it is over. Cancel-safe.
    pub(crate) async fn up_for(&self, time: Duration) {
        self.session.channel.up_for(time).await;
    }

    /// The id of its session.
    pub(crate) fn session_id(&self) -> &str {
        &self.session.session_id
    }

    /// The agent's version, from the handshake.
    pub(crate) fn agent_version(&self) -> &str {
        &self.session.agent_version
    }

    /// Ends the session by flag within `bound` and, where allowed, by API. Does nothing the second time.
    ///
    /// Cancel-safe: when dropped before its end, the session is ended by API in the background. The flag may
    /// not have been sent by then.
    pub(crate) async fn terminate(&self, bound: Duration) {
        self.session.end(bound).await;
    }

    /// Times the session was resumed.
    pub(crate) fn resumes(&self) -> u64 {
        self.session.resumes.load(Relaxed)
    }

    pub(crate) fn channel(&self) -> &ChannelHandle {
        &self.session.channel
    }
}
