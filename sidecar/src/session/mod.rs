//! An SSM session that is never left behind, and the control plane that it needs.
//!
//! [`SessionApi`] is the seam between whoever holds the AWS credentials and whoever parses what the network
//! sends: five calls and a note, nothing else crosses it.
//!
//! # Why `StartSession` is not simply retried
//!
//! `StartSession` has no idempotency token. When its answer is lost, after a timeout or with a broken
//! connection, a session may exist whose id nobody knows; it cannot be looked up either, since customers
//! grant `ssm:StartSession` alone. Such a session has no data channel and ends by the service's own
//! time-out. The SDK's retries are off, so that this is decided here: a call that was certainly not
//! carried out (refused, throttled, not connected) is repeated freely within the budget, one whose
//! outcome is unknown is repeated **once**, so that one start leaves at most two such sessions.

pub mod iam_policy;
pub mod partition;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, debug, info, warn};
use zeroize::Zeroizing;

use crate::runtime::{backoff::Pauses, shutdown::Shutdown};

pub use crate::aws::{ApiError, ApiErrorKind};

/// The control plane of one bastion: what may be asked of whoever holds the credentials.
pub trait SessionApi: Send + Sync + fmt::Debug {
    /// Starts a session that leads to the bastion's sshd.
    ///
    /// Not cancel-safe: a session may be started by a call that nobody waits for. Use [`start`].
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>>;

    /// Asks for a new way into a session whose WebSocket was lost. Cancel-safe.
    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>>;

    /// Ends a session; one that is over already counts as ended. Cancel-safe.
    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>>;

    /// Makes the headers that sign the opening of the data channel at `uri`, none where the URI is signed
    /// itself (`X-Amz-…` in its query). Valid for minutes: sign anew for each opening. Cancel-safe.
    fn sign_opening<'a>(&'a self, uri: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>>;

    /// Asks AWS whose the credentials are: an ARN. Cancel-safe.
    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>>;

    /// Notes that a session is over already, so that nobody needs to end it.
    fn over(&self, session_id: &str);
}

/// Headers to add to a request; empty where it is not to be signed.
pub type SignedHeaders = Vec<(HeaderName, HeaderValue)>;

/// What `StartSession` answers.
#[derive(Debug, Deserialize, Serialize)]
pub struct Started {
    /// Up to 96 characters.
    pub session_id: String,
    /// Where the data channel is opened. Opaque: it is used byte for byte as it came.
    pub stream_url: String,
    /// Proves to the stream host that the session is ours; valid for seconds.
    pub token: Token,
}

/// What `ResumeSession` answers.
#[derive(Debug, Deserialize, Serialize)]
pub struct Resumed {
    /// Where to open the data channel now; the URL used before if there is none.
    pub stream_url: Option<String>,
    /// None when the session is over.
    pub token: Option<Token>,
}

/// A session's token: shown by no `Debug`, wiped when dropped.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// The text for the opening message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Serialize for Token {
    /// For the link between monitor and worker alone, whose frames are wiped.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

/// An AWS access key; wiped when dropped.
#[derive(Clone)]
pub struct Keys {
    /// Names the key; no secret, yet nothing to show either.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: Zeroizing<String>,
    /// With temporary keys.
    pub session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("temporary", &self.session_token.is_some())
            .finish_non_exhaustive()
    }
}

/// How long [`start`] goes on trying.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retries {
    /// For throttling, errors of the service and a service that is not reached.
    pub budget: Duration,
    /// For an instance that is not connected: its agent may just be starting, but far more often the id, the
    /// region or the agent is wrong, and the customer waits for that answer.
    pub not_connected: Duration,
}

impl From<Duration> for Retries {
    /// A sixth of the budget for an instance that is not connected.
    fn from(budget: Duration) -> Self {
        Self { budget, not_connected: budget / 6 }
    }
}

/// Starts a session, trying again what may pass within the budget.
///
/// Runs as a task that `shutdown` waits for and that a stop does not cut: a `StartSession` that was sent is
/// seen through. Cancel-safe: when this future is dropped meanwhile, the session is terminated as soon
/// as it is known. After a stop nothing is tried again.
///
/// # Errors
///
/// [`ApiError`] of the last attempt.
pub async fn start(
    api: Arc<dyn SessionApi>,
    shutdown: &Shutdown,
    retries: impl Into<Retries>,
) -> Result<Session, ApiError> {
    let retries = retries.into();
    let (mut sender, receiver) = oneshot::channel();
    let watched = shutdown.clone();
    let task = async move {
        let outcome = start_with_retries(api, &watched, retries, &mut sender).await;
        // Not taken: the `Session` in it is dropped here, on the tracker, and terminates.
        drop(sender.send(outcome));
    };
    shutdown.spawn_to_its_end(task.in_current_span());
    // The sender is lost only with the runtime itself, or in a panic of the task.
    receiver.await.unwrap_or_else(|_| Err(ApiError::aborted()))
}

async fn start_with_retries(
    api: Arc<dyn SessionApi>,
    shutdown: &Shutdown,
    retries: Retries,
    caller: &mut oneshot::Sender<Result<Session, ApiError>>,
) -> Result<Session, ApiError> {
    let began = Instant::now();
    let mut pauses = Pauses::new(FIRST_PAUSE);
    let mut unknown = 0;
    loop {
        let error = match api.start().await {
            Ok(started) => return Ok(Session::new(started, api, shutdown.clone())),
            Err(error) => error,
        };
        unknown += u32::from(error.outcome_unknown());
        let budget = match error.kind() {
            ApiErrorKind::InstanceNotConnected => retries.not_connected,
            _ if error.may_pass() => retries.budget,
            _ => return Err(error),
        };
        let pause = pauses.next_pause();
        if began.elapsed() + pause >= budget || unknown > MAX_UNKNOWN {
            return Err(error);
        }
        info!(%error, pause_ms = pause.as_millis(), "StartSession is tried again");
        tokio::select! {
            () = sleep(pause) => (),
            () = shutdown.stopping() => return Err(error),
            () = caller.closed() => return Err(error),
        }
    }
}

/// A session of ours, terminated on every way out.
#[derive(Debug)]
pub struct Session {
    /// None once there is nothing left to terminate.
    armed: Option<String>,
    started: Started,
    api: Arc<dyn SessionApi>,
    shutdown: Shutdown,
    runtime: Handle,
}

impl Session {
    fn new(started: Started, api: Arc<dyn SessionApi>, shutdown: Shutdown) -> Self {
        let armed = Some(started.session_id.clone());
        Self { armed, started, api, shutdown, runtime: Handle::current() }
    }

    /// The service's name for it.
    pub fn id(&self) -> &str {
        &self.started.session_id
    }

    /// Where its data channel is opened.
    pub fn stream_url(&self) -> &str {
        &self.started.stream_url
    }

    /// For the first opening message.
    pub fn token(&self) -> &str {
        self.started.token.expose()
    }

    /// Notes that the service has ended the session, so that there is nothing to terminate.
    pub fn mark_ended(&mut self) {
        if let Some(id) = self.armed.take() {
            self.api.over(&id);
        }
    }

    /// Terminates the session, trying again what may pass: for minutes, or for seconds once the process
    /// stops.
    ///
    /// Cancel-safe: when dropped before the answer, one last attempt is made in the background.
    ///
    /// # Errors
    ///
    /// [`ApiError`] of the last attempt; most often `ssm:TerminateSession` is not allowed. The session
    /// is then left to its idle time-out, unless it was ended through its data channel.
    pub async fn terminate(mut self) -> Result<(), ApiError> {
        let Some(id) = self.armed.clone() else { return Ok(()) };
        let outcome = terminate_with_retries(&*self.api, &self.shutdown, &id).await;
        // Also after a refusal: the same call in `drop` would be refused again.
        self.armed = None;
        outcome
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(id) = self.armed.take() else { return };
        let (api, shutdown) = (Arc::clone(&self.api), self.shutdown.clone());
        let last_attempt = async move {
            match terminate_with_retries(&*api, &shutdown, &id).await {
                Ok(()) => debug!(session = id, "session terminated"),
                Err(error) => warn!(session = id, %error, "session left to its idle time-out"),
            }
        };
        self.shutdown.tasks().spawn_on(last_attempt.in_current_span(), &self.runtime);
    }
}

/// Terminates the session `id`, as [`Session::terminate`] does.
///
/// # Errors
///
/// [`ApiError`] of the last attempt.
pub(crate) async fn terminate_with_retries(
    api: &dyn SessionApi,
    shutdown: &Shutdown,
    id: &str,
) -> Result<(), ApiError> {
    let mut last = None;
    let attempts = async {
        let mut pauses = Pauses::new(FIRST_PAUSE);
        loop {
            match api.terminate(id).await {
                Ok(()) => return Ok(()),
                Err(error) if !error.may_pass() => return Err(error),
                Err(error) => {
                    debug!(%error, "TerminateSession is tried again");
                    last = Some(error);
                }
            }
            sleep(pauses.next_pause()).await;
        }
    };
    let patience = async {
        tokio::select! {
            () = sleep(TERMINATE_PATIENCE) => (),
            () = shutdown.stopping() => sleep(TERMINATE_BUDGET).await,
        }
    };
    tokio::select! {
        biased;
        outcome = attempts => return outcome,
        () = patience => (),
    }
    Err(last.unwrap_or_else(|| ApiError::timed_out("TerminateSession")))
}

/// Before the second attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Attempts of unknown outcome after which one more may be made.
const MAX_UNKNOWN: u32 = 1;

/// For the attempts to terminate one session while the job goes on.
const TERMINATE_PATIENCE: Duration = Duration::from_mins(5);

/// For the attempts to terminate one session together, from the stop on: a stop as a whole has 5 s.
const TERMINATE_BUDGET: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
