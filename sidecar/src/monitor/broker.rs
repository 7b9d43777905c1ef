//! Checks the worker's requests, and carries them out.

use std::sync::Arc;

use http::Uri;
use parking_lot::{Mutex, MutexGuard};
use runner_protocol::Failure;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::sessions::SessionRegistry;
use crate::{
    ipc::{
        Frame,
        message::{ConnectFailure, Request, Response, ToWorker, encode},
    },
    net::dial::connect_tcp,
    runtime::resources::MissingResource,
    session::{ApiError, ApiErrorKind, SessionApi, Started},
};

/// Carries out requests. Clones share the registry of sessions.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    api: Arc<dyn SessionApi>,
    sessions: Arc<Mutex<SessionRegistry>>,
}

impl Broker {
    pub(super) fn new(api: Arc<dyn SessionApi>, sessions: SessionRegistry) -> Self {
        Self { api, sessions: Arc::new(Mutex::new(sessions)) }
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, SessionRegistry> {
        self.sessions.lock()
    }

    pub(super) fn api(&self) -> &dyn SessionApi {
        &*self.api
    }

    /// Carries out `request`, or refuses what the worker may not request; returns the frame with the response.
    pub(super) async fn respond(self, id: u64, request: Request) -> Frame {
        let mut descriptors = Vec::new();
        let response = match request {
            Request::StartSession => Response::Started(self.start().await),
            Request::ResumeSession { session_id } => {
                Response::Resumed(match self.check(&session_id) {
                    Ok(()) => self.api.resume(&session_id).await.inspect(|resumed| {
                        self.sessions().resumed(&session_id, resumed);
                    }),
                    Err(error) => Err(error),
                })
            }
            Request::TerminateSession { session_id } => {
                Response::Terminated(match self.check(&session_id) {
                    Ok(()) => self.terminate(&session_id).await,
                    // Never started, or removed from the registry after its end: nothing to terminate.
                    Err(_) => Ok(()),
                })
            }
            Request::SignOpening { uri } => Response::Signed(self.sign(&uri).await),
            Request::Caller => Response::Caller(self.api.caller().await),
            Request::Connect { uri } => Response::Connected(match self.connect(&uri).await {
                Ok(stream) => {
                    descriptors.push(stream.into());
                    Ok(())
                }
                Err(cause) => Err(cause),
            }),
        };
        let frame = encode(&ToWorker::Response { id, response }).unwrap_or_default();
        Frame { descriptors, ..frame }
    }

    async fn start(&self) -> Result<Started, ApiError> {
        // A statement of its own, so that the lock is not held during the call.
        let reserved = self.sessions().try_reserve();
        if !reserved {
            warn!("the worker has too many sessions open to start another");
            return Err(refused("too many sessions are open"));
        }
        let reservation = StartReservation { broker: self, is_finished: false };
        reservation.finish(self.api.start().await)
    }

    /// Calls TerminateSession once; the worker retries.
    async fn terminate(&self, id: &str) -> Result<(), ApiError> {
        let outcome = self.api.terminate(id).await;
        if outcome.as_ref().err().is_none_or(|error| !error.is_transient()) {
            // Terminated, or not to be terminated by this process.
            self.sessions().mark_ended(id);
        }
        outcome
    }

    async fn sign(&self, uri: &str) -> Result<Vec<(String, String)>, ApiError> {
        let uri = self.check_channel(uri)?;
        let headers = self.api.sign_opening(&uri).await?;
        let text = |(name, value): (http::HeaderName, http::HeaderValue)| {
            let value = value.to_str().ok()?.to_owned();
            Some((name.as_str().to_owned(), value))
        };
        let headers: Option<_> = headers.into_iter().map(text).collect();
        headers.ok_or_else(|| refused("a header of the signature is not text"))
    }

    async fn connect(&self, uri: &str) -> Result<std::net::TcpStream, ConnectFailure> {
        let expected = uri.parse().ok().filter(|uri| self.sessions().is_stream_host(uri));
        let uri = match expected {
            Some(uri) => uri,
            None => {
                self.check_channel(uri).map_err(|error| ConnectFailure::Other(error.to_string()))?
            }
        };
        let (host, port, limit) = {
            let sessions = self.sessions();
            let endpoint = sessions.endpoint();
            let (host, port, _) = endpoint.connector.first_hop(&uri);
            (host, port, endpoint.timeout)
        };
        let connected = timeout(limit, connect_tcp(&host, port)).await;
        let stream = connected.map_err(|_| ConnectFailure::Other("no answer".to_owned()))?;
        stream.and_then(tokio::net::TcpStream::into_std).map_err(|error| match MissingResource::of(
            &error,
        ) {
            Some(missing) => ConnectFailure::Resources(missing),
            None => ConnectFailure::Other(error.to_string()),
        })
    }

    fn check(&self, session_id: &str) -> Result<(), ApiError> {
        if self.sessions().contains(session_id) {
            return Ok(());
        }
        warn!("the worker names a session that was not started for it");
        let message = "no such session was started here";
        Err(ApiError::new(ApiErrorKind::SessionGone, message, Failure::REPORT_HINT))
    }

    fn check_channel(&self, uri: &str) -> Result<Uri, ApiError> {
        let allowed = uri.parse().ok().filter(|uri| self.sessions().allows_channel(uri));
        allowed.ok_or_else(|| {
            warn!("the worker names a data channel of no session that was started for it");
            refused("it is no data channel of a session that was started here")
        })
    }
}

/// A StartSession call in flight. Dropped without an answer, as by a panic, it ends the reservation.
struct StartReservation<'a> {
    broker: &'a Broker,
    is_finished: bool,
}

impl StartReservation<'_> {
    fn finish(mut self, outcome: Result<Started, ApiError>) -> Result<Started, ApiError> {
        self.is_finished = true;
        self.broker.sessions().start_finished(outcome.as_ref().ok());
        debug!(ok = outcome.is_ok(), "StartSession answered");
        outcome
    }
}

impl Drop for StartReservation<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.broker.sessions().start_finished(None);
        }
    }
}

fn refused(why: &str) -> ApiError {
    ApiError::new(ApiErrorKind::Aborted, why, Failure::REPORT_HINT)
}
