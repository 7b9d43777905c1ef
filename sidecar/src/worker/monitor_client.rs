//! The monitor as the worker sees it: it starts, resumes and ends sessions, signs, and makes connections.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

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
        message::{Answer, Call, ToMonitor, encode},
    },
    net::dial::Dial,
    session::{ApiError, Resumed, SessionApi, SignedHeaders, Started},
};

/// Asks the monitor.
#[derive(Debug)]
pub struct Remote {
    outbox: mpsc::Sender<Frame>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    /// None once nobody answers any more.
    waiting: Option<HashMap<u64, oneshot::Sender<Answered>>>,
}

type Answered = (Answer, Option<OwnedFd>);

impl Remote {
    /// Calls go to `outbox`.
    pub fn new(outbox: mpsc::Sender<Frame>) -> Self {
        let calls = Calls { next: 0, waiting: Some(HashMap::new()) };
        Self { outbox, calls: Mutex::new(calls) }
    }

    /// Hands the answer to whoever waits for it; a connection that nobody waits for any more is closed.
    pub fn answered(&self, number: u64, answer: Answer, descriptor: Option<OwnedFd>) {
        let caller = self.lock().waiting.as_mut().and_then(|waiting| waiting.remove(&number));
        let given = caller.map(|caller| caller.send((answer, descriptor)).is_ok());
        if given != Some(true) {
            debug!(number, "nobody waits for this answer");
        }
    }

    /// Fails every call, those to come as well.
    pub fn hang_up(&self) {
        self.lock().waiting = None;
    }

    async fn ask(&self, call: Call) -> Result<Answered, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut calls = self.lock();
            let number = calls.next;
            calls.next += 1;
            let Some(waiting) = &mut calls.waiting else { return Err(ApiError::aborted()) };
            waiting.insert(number, sender);
            number
        };
        let frame = encode(&ToMonitor::Call { number, call }).map_err(|_| ApiError::aborted())?;
        self.outbox.send(frame).await.map_err(|_| ApiError::aborted())?;
        receiver.await.map_err(|_| ApiError::aborted())
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionApi for Remote {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        Box::pin(async {
            match self.ask(Call::Start).await? {
                (Answer::Started(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(async {
            match self.ask(Call::Resume { session: session_id.to_owned() }).await? {
                (Answer::Resumed(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async {
            match self.ask(Call::Terminate { session: session_id.to_owned() }).await? {
                (Answer::Terminated(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn sign_opening<'a>(&'a self, uri: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(async {
            let (Answer::Signed(outcome), _) =
                self.ask(Call::Sign { uri: uri.to_string() }).await?
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
            match self.ask(Call::Caller).await? {
                (Answer::Caller(outcome), _) => outcome,
                _ => Err(ApiError::aborted()),
            }
        })
    }

    fn over(&self, session_id: &str) {
        let message = ToMonitor::Over { session: session_id.to_owned() };
        // Not told, the monitor ends it once more.
        let told = encode(&message).map(|frame| self.outbox.try_send(frame).is_ok());
        debug!(session = session_id, ?told, "the session is over");
    }
}

impl Dial for Remote {
    fn dial<'a>(
        &'a self,
        uri: &'a Uri,
        _: &'a str,
        _: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async {
            let answer = self.ask(Call::Dial { uri: uri.to_string() }).await;
            match answer.map_err(io::Error::other)? {
                (Answer::Dialled(Ok(())), Some(stream)) => {
                    TcpStream::from_std(std::net::TcpStream::from(stream))
                }
                (Answer::Dialled(Err(cause)), _) => Err(io::Error::other(cause)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
    }
}
