//! How a lane's session goes on after its WebSocket is lost.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::{sleep, timeout_at};
use tracing::{debug, warn};

use super::{
    config::Needs,
    resume_policy::{Failure, Patience, Verdict},
};
use crate::{
    channel::{
        driver::{Ended, Reconnect, Trouble},
        websocket::{self, Ahead, OpenError, WebSocket},
    },
    runtime::{backoff, clock::now},
    session::{ApiErrorKind, SessionApi},
};

/// Resumes one session, as often as it takes.
#[derive(Debug)]
pub(super) struct Resume {
    api: Arc<dyn SessionApi>,
    stream: websocket::Settings,
    session_id: String,
    /// The last one; its cell value expires, so a newer one replaces it.
    stream_url: String,
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
            patience: Patience::new(now(), needs.reconnect, backoff::seed()),
            resumes,
        }
    }

    /// One attempt; the token of an attempt that failed is not used again.
    ///
    /// # Errors
    ///
    /// What came of it, and why.
    async fn attempt(
        &mut self,
        opening: &(dyn Fn(&str) -> String + Sync),
    ) -> Result<WebSocket, (Failure, String)> {
        let mut ahead = Ahead::new(&self.stream);
        let resumed = match ahead.during(self.api.resume(&self.session_id)).await {
            Ok(resumed) => resumed,
            Err(error) => {
                // Renewed credentials may be on their way over stdin.
                let may_pass = error.may_pass() || error.kind() == ApiErrorKind::CredentialsExpired;
                let failure = if may_pass { Failure::NoWay } else { Failure::Final };
                return Err((failure, error.to_string()));
            }
        };
        let Some(token) = resumed.token else {
            return Err((Failure::Final, "the session has ended".to_owned()));
        };
        if let Some(url) = resumed.stream_url {
            self.stream_url = url;
        }
        let opening = opening(token.expose());
        websocket::open(&self.stream, &*self.api, &self.stream_url, opening, ahead).await.map_err(
            |error| {
                let is_refusal = matches!(error, OpenError::Refused { .. }) && !error.may_pass();
                let failure = if is_refusal { Failure::Refused } else { Failure::Unopened };
                (failure, error.to_string())
            },
        )
    }
}

impl Reconnect for Resume {
    fn reconnect<'a>(
        &'a mut self,
        trouble: Trouble,
        opening: &'a (dyn Fn(&str) -> String + Sync),
    ) -> Pin<Box<dyn Future<Output = Result<WebSocket, Ended>> + Send + 'a>> {
        Box::pin(async move {
            let mut verdict = self.patience.on_lost(now(), trouble);
            let mut reason = "the session's sockets come to nothing".to_owned();
            loop {
                match verdict {
                    Verdict::Try => (),
                    Verdict::TryAfter(pause) => sleep(pause).await,
                    Verdict::GiveUp => {
                        debug!(reason, "the session cannot be resumed");
                        return Err(Ended::Lost(reason));
                    }
                }
                let deadline = self.patience.deadline().into();
                let failure = match timeout_at(deadline, self.attempt(opening)).await {
                    Ok(Ok(socket)) => {
                        self.patience.on_opened();
                        self.resumes.fetch_add(1, Relaxed);
                        return Ok(socket);
                    }
                    Ok(Err((failure, why))) => {
                        reason = why;
                        failure
                    }
                    Err(_) => {
                        "no attempt was answered in time".clone_into(&mut reason);
                        Failure::NoWay
                    }
                };
                verdict = self.patience.on_failed(now(), failure);
                if verdict != Verdict::GiveUp {
                    warn!(reason, "not resumed yet");
                }
            }
        })
    }
}
