//! Resumes a lane's session after its WebSocket is lost.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use futures_util::future::BoxFuture;
use tokio::time::{sleep, timeout_at};
use tracing::{debug, warn};

use super::{
    config::LaneConfig,
    resume_policy::{Attempt, Decision, ResumePolicy},
};
use crate::{
    channel::{
        ChannelEnd, Outage, Reconnect,
        websocket::{self, Preconnect, StreamEndpoint, WebSocket, WebSocketOpenError},
    },
    runtime::{backoff, clock::now},
    session::{ApiErrorKind, SessionApi},
};

/// Resumes one session, any number of times.
#[derive(Debug)]
pub(super) struct Resume {
    api: Arc<dyn SessionApi>,
    stream: StreamEndpoint,
    session_id: String,
    /// The last one: its cell value expires, so a newer one replaces it.
    stream_url: String,
    policy: ResumePolicy,
    resumes: Arc<AtomicU64>,
}

impl Resume {
    /// `resumes` counts the successful attempts.
    pub(super) fn new(
        config: &LaneConfig,
        session_id: String,
        stream_url: String,
        resumes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            api: Arc::clone(&config.api),
            stream: config.stream.clone(),
            session_id,
            stream_url,
            policy: ResumePolicy::new(now(), config.reconnect, backoff::random_seed()),
            resumes,
        }
    }

    /// Makes one attempt. The token of a failed attempt is not used again.
    ///
    /// # Errors
    ///
    /// How it failed, and why.
    async fn attempt(
        &mut self,
        opening_message: &(dyn Fn(&str) -> String + Sync),
    ) -> Result<WebSocket, (Attempt, String)> {
        let mut preconnect = Preconnect::new(&self.stream);
        let resumed = match preconnect.drive_while(self.api.resume(&self.session_id)).await {
            Ok(resumed) => resumed,
            Err(error) => {
                let failed = match error.kind() {
                    ApiErrorKind::AccessDenied => Attempt::Denied,
                    // New credentials may arrive on stdin.
                    ApiErrorKind::CredentialsExpired => Attempt::Unavailable,
                    _ if error.is_transient() => Attempt::Unavailable,
                    _ => Attempt::Permanent,
                };
                return Err((failed, error.to_string()));
            }
        };
        let Some(token) = resumed.token else {
            return Err((Attempt::Permanent, "the session has ended".to_owned()));
        };
        if let Some(url) = resumed.stream_url {
            self.stream_url = url;
        }
        let opening = opening_message(token.expose());
        let outcome =
            websocket::open(&self.stream, &*self.api, &self.stream_url, opening, preconnect).await;
        outcome.map_err(|error| {
            let is_refused = matches!(error, WebSocketOpenError::Refused { .. });
            let failed = if is_refused && !error.is_transient() {
                Attempt::Rejected
            } else {
                Attempt::ConnectFailed
            };
            (failed, error.to_string())
        })
    }
}

impl Reconnect for Resume {
    fn reconnect<'a>(
        &'a mut self,
        outage: Outage,
        opening_message: &'a (dyn Fn(&str) -> String + Sync),
    ) -> BoxFuture<'a, Result<WebSocket, ChannelEnd>> {
        Box::pin(async move {
            let mut denied = false;
            let mut decision = self.policy.on_disconnected(now(), outage);
            let mut reason = "WebSocket connections close before any data is received".to_owned();
            loop {
                match decision {
                    Decision::Now => (),
                    Decision::After(delay) => sleep(delay).await,
                    Decision::GiveUp => {
                        debug!(reason, "the session cannot be resumed");
                        return Err(if denied {
                            ChannelEnd::NotResumable(reason)
                        } else {
                            ChannelEnd::Lost(reason)
                        });
                    }
                }
                let deadline = self.policy.deadline().into();
                let failed = match timeout_at(deadline, self.attempt(opening_message)).await {
                    Ok(Ok(socket)) => {
                        self.policy.on_opened();
                        self.resumes.fetch_add(1, Relaxed);
                        return Ok(socket);
                    }
                    Ok(Err((failed, why))) => {
                        reason = why;
                        failed
                    }
                    Err(_) => {
                        "no attempt was answered in time".clone_into(&mut reason);
                        Attempt::Unavailable
                    }
                };
                denied = failed == Attempt::Denied;
                decision = self.policy.on_failed(now(), failed);
                if decision != Decision::GiveUp {
                    warn!(reason, "the session could not be resumed, retrying");
                }
            }
        })
    }
}
