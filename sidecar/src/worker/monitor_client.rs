//! The worker's requests to the monitor: [`SessionApi`] and [`Dial`] over the socket.

use parking_lot::Mutex;
use std::{collections::HashMap, io, os::fd::OwnedFd};

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Uri};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
};
use tracing::debug;

use crate::{
    ipc::{
        Frame,
        message::{ConnectFailure, Request, Response, ToMonitor, encode},
    },
    net::dial::{Dial, Transport},
    session::{ApiError, Resumed, SessionApi, SignedHeaders, Started},
};

/// Sends requests, and matches the responses.
#[derive(Debug)]
pub(crate) struct MonitorClient {
    outbox: mpsc::Sender<Frame>,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    /// `None` once the monitor has ended.
    waiting: Option<HashMap<u64, oneshot::Sender<ResponseAndDescriptor>>>,
}

type ResponseAndDescriptor = (Response, Option<OwnedFd>);

impl MonitorClient {
    pub(crate) fn new(outbox: mpsc::Sender<Frame>) -> Self {
        let pending = Pending { next: 0, waiting: Some(HashMap::new()) };
        Self { outbox, pending: Mutex::new(pending) }
    }

    /// Completes the request of this id. A connection that is not waited for any more is closed.
    pub(crate) fn complete(&self, id: u64, response: Response, descriptor: Option<OwnedFd>) {
        let waiting = self.pending.lock().waiting.as_mut().and_then(|waiting| waiting.remove(&id));
        let received = waiting.map(|waiting| waiting.send((response, descriptor)).is_ok());
        if received != Some(true) {
            debug!(id, "a response that is not waited for");
        }
    }

    /// Fails every request, later ones included.
    pub(crate) fn close(&self) {
        self.pending.lock().waiting = None;
    }

    async fn ask(&self, request: Request) -> Result<ResponseAndDescriptor, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut pending = self.pending.lock();
            let id = pending.next;
            pending.next += 1;
            let Some(waiting) = &mut pending.waiting else { return Err(ApiError::aborted()) };
            waiting.insert(id, sender);
            id
        };
        let frame = encode(&ToMonitor::Request { id, request }).map_err(|_| ApiError::aborted())?;
        self.outbox.send(frame).await.map_err(|_| ApiError::aborted())?;
        receiver.await.map_err(|_| ApiError::aborted())
    }
}

impl SessionApi for MonitorClient {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        Box::pin(async {
            match self.ask(Request::StartSession).await? {
                (Response::Started(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(async {
            match self.ask(Request::ResumeSession { session_id: session_id.to_owned() }).await? {
                (Response::Resumed(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async {
            match self.ask(Request::TerminateSession { session_id: session_id.to_owned() }).await? {
                (Response::Terminated(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn sign_opening<'a>(&'a self, uri: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(async {
            let (Response::Signed(outcome), _) =
                self.ask(Request::SignOpening { uri: uri.to_string() }).await?
            else {
                return Err(ApiError::aborted());
            };
            let header = |(name, value): (String, String)| {
                let name = HeaderName::try_from(name).ok()?;
                let mut value = HeaderValue::try_from(value).ok()?;
                value.set_sensitive(true);
                Some((name, value))
            };
            let headers: Option<SignedHeaders> = outcome?.into_iter().map(header).collect();
            headers.ok_or_else(ApiError::aborted)
        })
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(async {
            match self.ask(Request::Caller).await? {
                (Response::Caller(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn session_ended(&self, session_id: &str) {
        let message = ToMonitor::SessionEnded { session_id: session_id.to_owned() };
        // If the message is lost, the monitor terminates the session once more.
        let sent = encode(&message).map(|frame| self.outbox.try_send(frame).is_ok());
        debug!(session = session_id, ?sent, "the session is over");
    }
}

impl Dial for MonitorClient {
    fn dial<'a>(
        &'a self,
        uri: &'a Uri,
        _: &'a str,
        _: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async {
            let response = self.ask(Request::Connect { uri: uri.to_string() }).await;
            match response.map_err(io::Error::other)? {
                (Response::Connected(Ok(())), Some(stream)) => {
                    let stream = TcpStream::from_std(std::net::TcpStream::from(stream))?;
                    let stream: Box<dyn Transport> = Box::new(stream);
                    Ok(stream)
                }
                (Response::Connected(Err(failure)), _) => Err(match failure {
                    ConnectFailure::Resources(missing) => missing.into(),
                    ConnectFailure::Other(cause) => io::Error::other(cause),
                }),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
    }
}
