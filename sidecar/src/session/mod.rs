//! A session that is terminated on every way out, and the control plane that it needs.
//!
//! [`SessionApi`] separates the process that holds the AWS credentials from the one that parses what the network sends.
//!
//! # Why `StartSession` is not simply retried
//!
//! `StartSession` has no idempotency token. When its answer is lost, after a timeout or with a broken connection, a
//! session may exist whose id is not known; it cannot be looked up either, since customers grant `ssm:StartSession`
//! alone. Such a session has no data channel and ends by the service's own time-out. The SDK's retries are off, so
//! that this is decided here: a call that was certainly not carried out (refused, throttled, not connected) is
//! repeated within the budget, one whose outcome is unknown is repeated **once**, so that one start leaves at most
//! two such sessions.

mod api;
mod error;
mod iam;
pub(crate) mod iam_policy;
pub(crate) mod partition;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, debug, info, warn};

use crate::runtime::{backoff::Backoff, shutdown::Shutdown, stop};

pub(crate) use api::{Keys, Resumed, SessionApi, SignedHeaders, Started, Token};
pub(crate) use error::{ApiError, ApiErrorKind};
pub(crate) use iam::{IamAction, SSH_DOCUMENT};

/// Starts sessions, and counts them.
#[derive(Debug)]
pub(crate) struct SessionStarter {
    api: Arc<dyn SessionApi>,
    shutdown: Shutdown,
    budget: Duration,
    started: AtomicU64,
}

impl SessionStarter {
    /// `budget`: how long one start is retried after transient errors: throttling, failures of the service, a service
    /// that is not reached. After `InstanceNotConnected` only a sixth of it: the agent may just be starting, but far
    /// more often id, region or agent are wrong, and the customer is waiting for that error.
    pub(crate) fn new(api: Arc<dyn SessionApi>, shutdown: Shutdown, budget: Duration) -> Self {
        Self { api, shutdown, budget, started: AtomicU64::new(0) }
    }

    /// Sessions started so far, those that never became usable included.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }

    /// Starts a session, with retries of transient errors within the budget.
    ///
    /// Not cancel-safe: a `StartSession` that was sent must be answered before its session can be terminated. Await it
    /// in a task that runs to its end (`Shutdown::spawn_to_its_end`). After a stop, or once `unwanted` has completed,
    /// nothing is retried.
    ///
    /// # Errors
    ///
    /// [`ApiError`] of the last attempt.
    pub(crate) async fn start(
        &self,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Session, ApiError> {
        let mut unwanted = pin!(unwanted);
        let began = Instant::now();
        let mut backoff = Backoff::new(FIRST_DELAY);
        let mut unknown = 0;
        loop {
            let error = match self.api.start().await {
                Ok(answer) => {
                    self.started.fetch_add(1, Relaxed);
                    return Ok(Session::new(answer, Arc::clone(&self.api), self.shutdown.clone()));
                }
                Err(error) => error,
            };
            self.started.fetch_add(u64::from(error.session_created()), Relaxed);
            unknown += u32::from(error.outcome_unknown());
            let budget = match error.kind() {
                ApiErrorKind::InstanceNotConnected => self.budget / NOT_CONNECTED_SHARE,
                _ if error.is_transient() => self.budget,
                _ => return Err(error),
            };
            let delay = backoff.next_delay();
            if began.elapsed() + delay >= budget || unknown > MAX_UNKNOWN {
                return Err(error);
            }
            info!(%error, delay_ms = delay.as_millis(), "StartSession is retried");
            tokio::select! {
                () = sleep(delay) => (),
                () = self.shutdown.stopping() => return Err(error),
                () = &mut unwanted => return Err(error),
            }
        }
    }
}

/// A session of this process; dropping it terminates it.
#[derive(Debug)]
pub(crate) struct Session {
    /// The id to be terminated on drop; `None` once there is nothing left to terminate.
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

    pub(crate) fn id(&self) -> &str {
        &self.started.session_id
    }

    pub(crate) fn stream_url(&self) -> &str {
        &self.started.stream_url
    }

    /// The token of the first opening message.
    pub(crate) fn token(&self) -> &str {
        self.started.token.expose()
    }

    /// Notes that the service has ended the session: there is nothing left to terminate.
    pub(crate) fn mark_ended(&mut self) {
        if let Some(id) = self.armed.take() {
            self.api.session_ended(&id);
        }
    }

    /// Terminates the session, with retries of transient errors: for [`TERMINATE_PATIENCE`], or for
    /// [`stop::TERMINATE_API`] from the stop of the process on.
    ///
    /// Cancel-safe: when dropped before the answer, one last attempt is made in the background.
    ///
    /// # Errors
    ///
    /// [`ApiError`] of the last attempt; most often `ssm:TerminateSession` is not allowed. Unless the session was
    /// ended through its data channel, it then lasts until its idle time-out.
    pub(crate) async fn terminate(mut self) -> Result<(), ApiError> {
        let Some(id) = self.armed.clone() else { return Ok(()) };
        let outcome = terminate_with_retries(&*self.api, &self.shutdown, &id).await;
        // After a refusal, too: the call in `drop` would be refused as well.
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
        let mut backoff = Backoff::new(FIRST_DELAY);
        loop {
            match api.terminate(id).await {
                Ok(()) => return Ok(()),
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    debug!(%error, "TerminateSession is retried");
                    last = Some(error);
                }
            }
            sleep(backoff.next_delay()).await;
        }
    };
    let time_limit = async {
        tokio::select! {
            () = sleep(TERMINATE_PATIENCE) => (),
            () = shutdown.stopping() => sleep(stop::TERMINATE_API).await,
        }
    };
    tokio::select! {
        biased;
        outcome = attempts => return outcome,
        () = time_limit => (),
    }
    Err(last.unwrap_or_else(|| ApiError::timed_out(IamAction::TerminateSession)))
}

/// Delay before the second attempt, before its random part is added.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// Attempts of unknown outcome that may be followed by another one.
const MAX_UNKNOWN: u32 = 1;

/// Time for all attempts to terminate one session while the job continues.
const TERMINATE_PATIENCE: Duration = Duration::from_mins(5);

/// An instance that is not connected is retried for the budget divided by this.
const NOT_CONNECTED_SHARE: u32 = 6;

#[cfg(test)]
mod tests;
