//! Connects to the expected stream host while StartSession is in flight: saves the TCP and TLS round trips.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::time::Instant;
use tracing::debug;

use super::{StreamEndpoint, stream_url};
use crate::net::dial::{ConnectError, Transport};

/// A connection to the expected stream host, open or being opened. If the `StreamUrl` leads elsewhere, or the
/// connection fails, a new one is opened once the URL is known.
pub(crate) struct Preconnect<'a> {
    /// `None` where the host cannot be predicted.
    host: Option<Uri>,
    state: State<'a>,
}

enum State<'a> {
    Connecting(BoxFuture<'a, Result<Box<dyn Transport>, ConnectError>>),
    Connected(Box<dyn Transport>, Instant),
    None,
}

impl<'a> Preconnect<'a> {
    /// Sends nothing before the first [`drive_while`](Self::drive_while).
    pub(crate) fn new(endpoint: &'a StreamEndpoint) -> Self {
        let host = stream_url::expected_host(endpoint);
        let state = match host.clone() {
            Some(uri) => {
                State::Connecting(Box::pin(async move { endpoint.connector.connect(&uri).await }))
            }
            None => State::None,
        };
        Self { host, state }
    }

    /// No early connection.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self { host: None, state: State::None }
    }

    /// Continues to connect until `other` completes; returns its output. Cancel-safe if `other` is.
    pub(crate) async fn drive_while<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            let State::Connecting(connecting) = &mut self.state else { return other.await };
            let outcome = tokio::select! {
                output = &mut other => return output,
                outcome = connecting => outcome,
            };
            self.state = State::of(outcome);
        }
    }

    /// Returns the connection if it is to the host of `uri` and younger than [`FRESH`]; waits for one that is being
    /// opened. Cancel-safe: the connection is dropped.
    pub(super) async fn take(&mut self, uri: &Uri) -> Option<Box<dyn Transport>> {
        let host = self.host.take()?;
        let mut state = std::mem::replace(&mut self.state, State::None);
        if (host.scheme(), host.authority()) != (uri.scheme(), uri.authority()) {
            debug!("the StreamUrl has another host than expected");
            return None;
        }
        if let State::Connecting(connecting) = state {
            state = State::of(connecting.await);
        }
        match state {
            State::Connected(transport, since) if since.elapsed() < FRESH => Some(transport),
            _ => None,
        }
    }
}

impl State<'static> {
    fn of(outcome: Result<Box<dyn Transport>, ConnectError>) -> Self {
        match outcome {
            Ok(transport) => Self::Connected(transport, Instant::now()),
            Err(error) => {
                debug!(%error, "no early connection to the stream host");
                Self::None
            }
        }
    }
}

impl fmt::Debug for Preconnect<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Preconnect").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Age from which an idle connection is not used: gateways and NATs close idle ones, some silently.
const FRESH: Duration = Duration::from_secs(5);
