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

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::lane::Needs;
use crate::{
    driver::{Ended, Reconnect},
    session::{ApiErrorKind, SessionApi},
    websocket::{self, WebSocket},
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
            resumes,
        }
    }

    /// One attempt; the token of an attempt that failed is not used again.
    async fn attempt(
        &mut self,
        opening: &(dyn Fn(&str) -> String + Sync),
    ) -> Result<WebSocket, Attempt> {
        let resumed = match self.api.resume(&self.session_id).await {
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
        websocket::open(&self.stream, &*self.api, &self.stream_url, opening(token.expose()))
            .await
            .map_err(|error| Attempt::Again(error.to_string()))
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
        opening: &'a (dyn Fn(&str) -> String + Sync),
    ) -> Pin<Box<dyn Future<Output = Result<WebSocket, Ended>> + Send + 'a>> {
        Box::pin(async move {
            let deadline = Instant::now() + self.budget;
            let mut pauses = ExponentialBuilder::default()
                .with_min_delay(FIRST_PAUSE)
                .with_max_delay(LONGEST_PAUSE)
                .without_max_times()
                .with_jitter()
                .build();
            let mut last = "no attempt was answered".to_owned();
            loop {
                match timeout_at(deadline, self.attempt(opening)).await {
                    Ok(Ok(socket)) => {
                        self.resumes.fetch_add(1, Relaxed);
                        return Ok(socket);
                    }
                    Ok(Err(Attempt::Over(reason))) => {
                        debug!(reason, "the session cannot be resumed");
                        return Err(Ended::Lost(reason));
                    }
                    Ok(Err(Attempt::Again(reason))) => {
                        warn!(reason, "not resumed yet");
                        last = reason;
                    }
                    Err(_) => return Err(Ended::Lost(last)),
                }
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                if Instant::now() + pause >= deadline {
                    return Err(Ended::Lost(last));
                }
                sleep(pause).await;
            }
        })
    }
}

/// Before the second attempt; the plugin's own figure.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// Between later attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
