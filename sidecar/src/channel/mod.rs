//! A session's data channel: the WebSocket below it, and the only loop around [`DataChannel`].
//!
//! The WebSocket is always read, whatever the stream above does: acknowledgements, pongs and the end of the session
//! arrive on it. When the WebSocket is lost, the session is resumed on a new one, and the stream pauses.

mod driver;
mod liveness;
mod socket_loop;
mod state;
mod stream;
pub(crate) mod websocket;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use data_channel::{DataChannel, ProtocolError, Statistics, UploadLimits};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use runner_protocol::ErrorCode;
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

use self::{
    driver::Driver,
    state::{PathState, State, Termination},
    websocket::WebSocket,
};
use crate::runtime::{clock::now, failure::ToFailure, shared::Shared};

pub(crate) use state::Disconnected;
pub(crate) use stream::SessionStream;

/// Resumes the session of a data channel.
pub(crate) trait Reconnect: Send + 'static {
    /// Opens a new WebSocket for the session; makes attempts until one succeeds or the session counts as lost.
    ///
    /// `opening_message` makes the first message of the new WebSocket from its token.
    fn reconnect<'a>(
        &'a mut self,
        outage: Outage,
        opening_message: &'a (dyn Fn(&str) -> String + Sync),
    ) -> BoxFuture<'a, Result<WebSocket, ChannelEnd>>;
}

/// Whether the loss of a WebSocket begins an outage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outage {
    /// The WebSocket had carried messages, or had been open for 10 s: the time limit starts again.
    New,
    /// The WebSocket carried nothing: the outage before it goes on.
    Ongoing,
}

/// How a WebSocket was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PathLoss {
    /// The service closed it in order.
    ClosedByService {
        /// From its opening to the close; less than the channel's age if the session was resumed before.
        age: Duration,
    },
    /// It was reset, fell silent, was closed for an error, or failed on our side.
    Broken,
}

/// Why a data channel is over.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ChannelEnd {
    /// The service sent `channel_closed`; the text is its reason, often empty.
    #[error("the service ended the session{}", Quoted(.0))]
    Closed(String),
    /// The WebSocket was lost, and the session could not be resumed.
    #[error("the data channel was lost: {0}")]
    Lost(String),
    /// The WebSocket was lost, and `ssm:ResumeSession` is not allowed.
    #[error("the data channel was lost, and its session may not be resumed: {0}")]
    NotResumable(String),
    /// The agent broke the protocol, or requires something that is not implemented.
    #[error(transparent)]
    Protocol(Arc<ProtocolError>),
    /// This process terminated it.
    #[error("the session was terminated")]
    Terminated,
}

impl ToFailure for ChannelEnd {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Closed(reason) if is_agent_too_old(reason) => ErrorCode::SessionUnsupported,
            Self::Closed(_) | Self::Terminated => ErrorCode::SessionEnded,
            Self::Lost(_) | Self::NotResumable(_) => ErrorCode::SessionLost,
            Self::Protocol(error) => match **error {
                ProtocolError::Unsupported { .. } => ErrorCode::SessionUnsupported,
                ProtocolError::Damaged { .. }
                | ProtocolError::Handshake(_)
                | ProtocolError::Unexpected { .. } => ErrorCode::SessionProtocol,
            },
        }
    }

    fn hint(&self) -> String {
        let hint = match self {
            Self::Closed(reason) if is_agent_too_old(reason) => {
                "update the SSM agent on the bastion to 3.1 or later"
            }
            Self::Closed(_) => {
                "look in CloudTrail for who called TerminateSession, at the idle time-out and the maximum duration in the \
                 Session Manager preferences, and whether the instance runs and its SSM agent reaches the `ssmmessages` \
                 endpoint"
            }
            Self::Lost(_) => {
                "try again; look at the network between this host and AWS if this recurs"
            }
            Self::NotResumable(_) => {
                "try again; allow `ssm:ResumeSession`, as `ssm-sidecar policy` prints it, so that a session survives the \
                 loss of its connection"
            }
            Self::Protocol(error) => match **error {
                ProtocolError::Unsupported { .. } => {
                    "switch KMS encryption off in the Session Manager preferences; if it is off, update the SSM agent on \
                     the bastion"
                }
                ProtocolError::Damaged { .. }
                | ProtocolError::Handshake(_)
                | ProtocolError::Unexpected { .. } => {
                    "update the SSM agent on the bastion; report this if it is up to date"
                }
            },
            Self::Terminated => "start the job again",
        };
        hint.to_owned()
    }
}

/// Whether the agent is older than port sessions: amazon-ssm-agent (seen with 2.3; `getStepExecutionOperation` in
/// `agent/framework/runpluginutil/run.go`) then sends "Plugin with name Port is not supported by this version of ssm
/// agent, please update to latest version".
fn is_agent_too_old(reason: &str) -> bool {
    reason.contains("is not supported by this version of ssm agent")
}

/// A peer's text behind a colon, on one line; nothing where it is empty.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(formatter, ": `{}`", self.0.escape_debug()) }
    }
}

/// What the loops of all channels report to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    /// Notified whenever a WebSocket is lost and when a session was resumed.
    pub(crate) path_changed: Arc<Notify>,
    /// What the last channel that met a limit of the service has learned, for those opened later.
    pub(crate) upload_limits: Arc<Mutex<UploadLimits>>,
}

/// A handle on the loop. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ChannelHandle {
    shared: Arc<Shared<State>>,
    opened_at: Instant,
}

/// Starts the loop on an open WebSocket whose opening message was sent.
pub(crate) fn spawn(
    channel: DataChannel,
    socket: WebSocket,
    reconnect: impl Reconnect,
    reports: Reports,
    tasks: &TaskTracker,
) -> (ChannelHandle, SessionStream) {
    let Reports { path_changed, upload_limits } = reports;
    let shared = Arc::new(Shared::new(State::new(channel, upload_limits)));
    let handle = ChannelHandle { shared: Arc::clone(&shared), opened_at: now() };
    let driver = Driver::new(Arc::clone(&shared), path_changed, reconnect);
    tasks.spawn(driver.run(socket).instrument(info_span!("data_channel")));
    (handle, SessionStream::new(shared))
}

impl ChannelHandle {
    /// Completes when the handshake is done, with the agent's version. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`ChannelEnd`] when the channel ends first.
    pub(crate) async fn handshake_done(&self) -> Result<String, ChannelEnd> {
        self.shared
            .wait_for(|state| match (&state.end, &state.agent_version) {
                (Some(end), _) => Some(Err(end.clone())),
                (None, Some(agent_version)) => Some(Ok(agent_version.clone())),
                (None, None) => None,
            })
            .await
    }

    /// Completes when the channel is over. Cancel-safe.
    pub(crate) async fn ended(&self) -> ChannelEnd {
        self.shared.wait_for(|state| state.end.clone()).await
    }

    /// Why the channel is over, once it is.
    pub(crate) fn try_ended(&self) -> Option<ChannelEnd> {
        self.shared.lock().end.clone()
    }

    /// Sends the TerminateSession flag and waits until the service has closed the channel, at most `bound`.
    ///
    /// Returns whether the agent acknowledged the flag or the service closed the channel; false where the channel was
    /// not open yet, or was being resumed. Cancel-safe.
    pub(crate) async fn terminate(&self, bound: Duration) -> bool {
        {
            let mut state = self.shared.lock();
            if state.end.is_some() || !state.channel.terminate() {
                return state.is_closed();
            }
            state.termination = Termination::Sent;
            state.wake_driver();
        }
        // Acknowledgements go on until channel_closed: the agent then ends at once instead of after 2 s.
        let _closed = timeout(bound, self.ended()).await;
        let state = self.shared.lock();
        match state.termination {
            Termination::Acknowledged => true,
            Termination::Sent => state.is_closed(),
            Termination::None => false,
        }
    }

    /// Ends the loop without a message to the service.
    pub(crate) fn abandon(&self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        state.wake_driver();
    }

    /// When the first WebSocket was opened.
    pub(crate) fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Whether there is a WebSocket, rather than a session that is being resumed or is over.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.lock().is_up()
    }

    /// Since when and why there is no WebSocket, while the session is being resumed and after that has failed.
    pub(crate) fn disconnected(&self) -> Option<Disconnected> {
        match &self.shared.lock().path {
            PathState::Up => None,
            PathState::Down(disconnected) => Some(disconnected.clone()),
        }
    }

    /// Completes when the WebSocket has been up for `time` without interruption; never once the channel is over.
    /// Cancel-safe.
    pub(crate) async fn up_for(&self, time: Duration) {
        loop {
            self.shared.wait_for(|state| state.is_up().then_some(())).await;
            let down = self.shared.wait_for(|state| (!state.is_up()).then_some(()));
            if timeout(time, down).await.is_err() {
                return;
            }
        }
    }

    /// What a round trip to the agent takes at most, with rare exceptions; `None` before the first measurement.
    pub(crate) fn round_trip_bound(&self) -> Option<Duration> {
        self.shared.lock().channel.round_trip_bound()
    }

    /// Whether the service answers: there is a WebSocket, and it is not silent for longer than a ping takes. If it is,
    /// the path is broken, and will be noticed to be so.
    pub(crate) fn is_answering(&self, now: Instant) -> bool {
        let state = self.shared.lock();
        state.is_up() && now.saturating_duration_since(state.heard_at) < liveness::SILENT
    }

    /// Whether bytes are held back, by a pause of the service, the window or a limit of the rate.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.shared.lock().channel.holds_bytes()
    }

    /// Since when the agent owes an answer; `None` while it owes none.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.shared.lock().channel.waiting_since()
    }

    /// Counters over all `WebSockets` of the channel.
    pub(crate) fn statistics(&self) -> Statistics {
        self.shared.lock().channel.statistics()
    }
}
