//! How a lane's session goes on after its WebSocket is lost.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::needs::Needs;
use crate::{
    driver::{Ended, Reconnect, Trouble},
    pauses::Pauses,
    session::{ApiErrorKind, SessionApi},
    websocket::{self, Ahead, OpenError, WebSocket},
};

/// Resumes one session, as often as it takes.
#[derive(Debug)]
pub(super) struct Resume {
    api: Arc<dyn SessionApi>,
    stream: websocket::Settings,
    session_id: String,
    /// The last one; its cell value expires, so a newer one replaces it.
    stream_url: String,
    budget: Duration,
    patience: Patience,
    resumes: Arc<AtomicU64>,
}

impl Resume {
    pub(super) fn new(
        needs: &Needs,
        session_id: String,
        stream_url: String,
        resumes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            api: Arc::clone(&needs.api),
            stream: needs.stream.clone(),
            session_id,
            stream_url,
            budget: needs.reconnect,
            patience: Patience::new(needs.reconnect),
            resumes,
        }
    }

    /// One attempt; the token of an attempt that failed is not used again.
    async fn attempt(
        &mut self,
        opening: &(dyn Fn(&str) -> String + Sync),
    ) -> Result<WebSocket, Attempt> {
        let mut ahead = Ahead::new(&self.stream);
        let resumed = match ahead.during(self.api.resume(&self.session_id)).await {
            Ok(resumed) => resumed,
            Err(error) if error.may_pass() => return Err(Attempt::Again(error.to_string())),
            // Renewed ones may be on their way over stdin.
            Err(error) if error.kind() == ApiErrorKind::CredentialsExpired => {
                return Err(Attempt::Again(error.to_string()));
            }
            Err(error) => return Err(Attempt::Over(error.to_string())),
        };
        let Some(token) = resumed.token else {
            return Err(Attempt::Over("the session has ended".to_owned()));
        };
        if let Some(url) = resumed.stream_url {
            self.stream_url = url;
        }
        let opening = opening(token.expose());
        let opened =
            websocket::open(&self.stream, &*self.api, &self.stream_url, opening, ahead).await;
        let error = match opened {
            Ok(socket) => {
                self.patience.refusals = 0;
                return Ok(socket);
            }
            Err(error) => error,
        };
        let is_refusal = matches!(error, OpenError::Refused { .. }) && !error.may_pass();
        self.patience.refusals = if is_refusal { self.patience.refusals + 1 } else { 0 };
        Err(if self.patience.refusals >= MAXIMUM_REFUSALS {
            Attempt::Over(error.to_string())
        } else {
            Attempt::Again(error.to_string())
        })
    }
}

enum Attempt {
    /// May succeed later.
    Again(String),
    /// Will not.
    Over(String),
}

impl Reconnect for Resume {
    fn reconnect<'a>(
        &'a mut self,
        trouble: Trouble,
        opening: &'a (dyn Fn(&str) -> String + Sync),
    ) -> Pin<Box<dyn Future<Output = Result<WebSocket, Ended>> + Send + 'a>> {
        Box::pin(async move {
            if trouble == Trouble::New {
                self.patience = Patience::new(self.budget);
            } else {
                // The first attempt of new trouble is made at once; this is a further one.
                self.patience.pause("the session's sockets come to nothing").await?;
            }
            loop {
                let attempt = timeout_at(self.patience.deadline, self.attempt(opening)).await;
                let reason = match attempt {
                    Ok(Ok(socket)) => {
                        self.resumes.fetch_add(1, Relaxed);
                        return Ok(socket);
                    }
                    Ok(Err(Attempt::Over(reason))) => {
                        debug!(reason, "the session cannot be resumed");
                        return Err(Ended::Lost(reason));
                    }
                    Ok(Err(Attempt::Again(reason))) => reason,
                    Err(_) => "no attempt was answered in time".to_owned(),
                };
                warn!(reason, "not resumed yet");
                self.patience.pause(&reason).await?;
            }
        })
    }
}

/// How long to go on, and the pauses on the way.
#[derive(Debug)]
struct Patience {
    deadline: Instant,
    pauses: Pauses,
    /// Openings in a row that the service has refused though it had just named the way.
    refusals: u32,
}

impl Patience {
    fn new(budget: Duration) -> Self {
        let deadline = Instant::now() + budget;
        Self { deadline, pauses: Pauses::new(FIRST_PAUSE), refusals: 0 }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// [`Ended::Lost`] for `reason` when there is no time left for one.
    async fn pause(&mut self, reason: &str) -> Result<(), Ended> {
        let pause = self.pauses.next_pause();
        if Instant::now() + pause >= self.deadline {
            return Err(Ended::Lost(reason.to_owned()));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Before the second attempt; the plugin's own figure.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// A new session is worth more than a further attempt once the service has refused so many openings in a row.
const MAXIMUM_REFUSALS: u32 = 5;
