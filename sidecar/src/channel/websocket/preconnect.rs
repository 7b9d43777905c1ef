//! A connection made before it is known what for: while the service makes up its answer, the way to where that
//! will lead is made ready. It saves the round trips of TCP and TLS from the start.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::time::Instant;
use tracing::debug;

use super::{OpenError, Settings, stream_url};
use crate::net::dial::{self, Transport};

/// A connection to the stream host, made or being made.
///
/// It is a guess: whatever becomes of it, a connection can still be made when the `StreamUrl` is known.
pub struct Ahead<'a> {
    /// Where it leads; `None` where nobody can tell.
    host: Option<Uri>,
    state: State<'a>,
}

enum State<'a> {
    Connecting(BoxFuture<'a, Result<Box<dyn Transport>, OpenError>>),
    Made(Box<dyn Transport>, Instant),
    /// There is none, or none any more.
    None,
}

impl<'a> Ahead<'a> {
    /// Nothing is sent before the first [`during`](Self::during).
    pub fn new(settings: &'a Settings) -> Self {
        let host = stream_url::expected(settings);
        let state = match host.clone() {
            Some(uri) => {
                State::Connecting(Box::pin(async move { dial::connect(&uri, settings).await }))
            }
            None => State::None,
        };
        Self { host, state }
    }

    /// None at all.
    pub const fn none() -> Self {
        Self { host: None, state: State::None }
    }

    /// Goes on connecting while `other` is under way, and returns what comes of that. Cancel-safe if `other`
    /// is.
    pub async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            let State::Connecting(connecting) = &mut self.state else { return other.await };
            let made = tokio::select! {
                outcome = &mut other => return outcome,
                made = connecting => made,
            };
            self.state = known(made);
        }
    }

    /// The connection, if it leads to the host of `uri` and can be trusted to be alive; waits for one that is
    /// being made. Cancel-safe: it is dropped then.
    pub(super) async fn take(&mut self, uri: &Uri) -> Option<Box<dyn Transport>> {
        let host = self.host.take()?;
        let mut state = std::mem::replace(&mut self.state, State::None);
        if (host.scheme(), host.authority()) != (uri.scheme(), uri.authority()) {
            debug!("the StreamUrl leads elsewhere than expected");
            return None;
        }
        if let State::Connecting(connecting) = state {
            state = known(connecting.await);
        }
        match state {
            State::Made(transport, made) if made.elapsed() < FRESH => Some(transport),
            _ => None,
        }
    }
}

impl fmt::Debug for Ahead<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ahead").field("host", &self.host).finish_non_exhaustive()
    }
}

fn known(made: Result<Box<dyn Transport>, OpenError>) -> State<'static> {
    match made {
        Ok(transport) => State::Made(transport, Instant::now()),
        Err(error) => {
            debug!(%error, "no connection ahead of the StreamUrl");
            State::None
        }
    }
}

/// For how long a connection may lie unused. Gateways and NATs close such ones sooner or later, some without a
/// word.
const FRESH: Duration = Duration::from_secs(5);
