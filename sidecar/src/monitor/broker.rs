//! What the worker asks for, judged and done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Uri;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::sessions::Wards;
use crate::{
    aws::ControlPlane,
    commands::error::REPORT,
    ipc::{
        Frame,
        message::{Answer, Call, ToWorker, encode},
    },
    net::dial::{connect_tcp, first_hop},
    session::{ApiError, ApiErrorKind, SessionApi as _},
};

/// Does calls; clones share what they know of the sessions.
#[derive(Clone, Debug)]
pub(super) struct Clerk {
    plane: Arc<ControlPlane>,
    wards: Arc<Mutex<Wards>>,
}

impl Clerk {
    pub(super) fn new(plane: Arc<ControlPlane>, wards: Wards) -> Self {
        Self { plane, wards: Arc::new(Mutex::new(wards)) }
    }

    /// The sessions.
    pub(super) fn wards(&self) -> MutexGuard<'_, Wards> {
        self.wards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to AWS.
    pub(super) fn plane(&self) -> &Arc<ControlPlane> {
        &self.plane
    }

    /// Does `call` and returns the frame that answers it. What is not the worker's to ask is refused.
    pub(super) async fn answer(self, number: u64, call: Call) -> Frame {
        let mut descriptors = Vec::new();
        let answer = match call {
            Call::Start => Answer::Started(self.start().await),
            Call::Resume { session } => Answer::Resumed(match self.own(&session) {
                Ok(()) => self.plane.resume(&session).await.inspect(|resumed| {
                    self.wards().resumed(&session, resumed);
                }),
                Err(error) => Err(error),
            }),
            Call::Terminate { session } => Answer::Terminated(match self.own(&session) {
                Ok(()) => self.terminate(&session).await,
                // Ended from here before, or never begun: in either case there is nothing to end.
                Err(_) => Ok(()),
            }),
            Call::Sign { uri } => Answer::Signed(self.sign(&uri).await),
            Call::Caller => Answer::Caller(self.plane.caller().await),
            Call::Dial { uri } => Answer::Dialled(match self.dial(&uri).await {
                Ok(stream) => {
                    descriptors.push(stream.into());
                    Ok(())
                }
                Err(cause) => Err(cause),
            }),
        };
        let frame = encode(&ToWorker::Answer { number, answer }).unwrap_or_default();
        Frame { descriptors, ..frame }
    }

    /// Ends a session, once; the worker tries again what may pass.
    async fn terminate(&self, id: &str) -> Result<(), ApiError> {
        let outcome = self.plane.terminate(id).await;
        if outcome.as_ref().err().is_none_or(|error| !error.may_pass()) {
            // Ended, gone, or not ours to end: nothing is left to do about it here.
            self.wards().close(id);
        }
        outcome
    }

    async fn start(&self) -> Result<crate::session::Started, ApiError> {
        // Bound to a name, so that the lock is not held while the call is under way.
        let may_begin = self.wards().begin();
        if !may_begin {
            warn!("the worker has too many sessions open to start another");
            return Err(refusal("too many sessions are open"));
        }
        let starting = Starting { clerk: self, started: false };
        starting.finish(self.plane.start().await)
    }

    async fn sign(&self, uri: &str) -> Result<Vec<(String, String)>, ApiError> {
        let uri = self.channel(uri)?;
        let headers = self.plane.sign_opening(&uri).await?;
        let text = |(name, value): (http::HeaderName, http::HeaderValue)| {
            let value = value.to_str().ok()?.to_owned();
            Some((name.as_str().to_owned(), value))
        };
        let headers: Option<_> = headers.into_iter().map(text).collect();
        headers.ok_or_else(|| refusal("a header of the signature is no text"))
    }

    async fn dial(&self, uri: &str) -> Result<std::net::TcpStream, String> {
        let expected = uri.parse().ok().filter(|uri| self.wards().expects(uri));
        let uri = match expected {
            Some(uri) => uri,
            None => self.channel(uri).map_err(|error| error.to_string())?,
        };
        let (host, port, _) = first_hop(&uri, self.wards().settings());
        let limit = self.wards().settings().timeout;
        let connected = timeout(limit, connect_tcp(&host, port)).await;
        let stream = connected.map_err(|_| "no answer".to_owned())?;
        stream.and_then(tokio::net::TcpStream::into_std).map_err(|error| error.to_string())
    }

    fn own(&self, session: &str) -> Result<(), ApiError> {
        if self.wards().knows(session) {
            return Ok(());
        }
        warn!("the worker asks for a session that it has not started");
        Err(ApiError::new(ApiErrorKind::SessionGone, "no such session was started here", REPORT))
    }

    fn channel(&self, uri: &str) -> Result<Uri, ApiError> {
        let known = uri.parse().ok().filter(|uri| self.wards().leads_to(uri));
        known.ok_or_else(|| {
            warn!("the worker asks for a data channel that is none of its sessions'");
            refusal("it is no data channel of a session that was started here")
        })
    }
}

/// A call that may bring a session; it counts as such until it is over, even by a panic.
struct Starting<'a> {
    clerk: &'a Clerk,
    started: bool,
}

impl Starting<'_> {
    fn finish(
        mut self,
        outcome: Result<crate::session::Started, ApiError>,
    ) -> Result<crate::session::Started, ApiError> {
        self.started = true;
        self.clerk.wards().began(outcome.as_ref().ok());
        debug!(ok = outcome.is_ok(), "StartSession answered");
        outcome
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.started {
            self.clerk.wards().began(None);
        }
    }
}

fn refusal(why: &str) -> ApiError {
    ApiError::new(ApiErrorKind::Aborted, why, REPORT)
}
