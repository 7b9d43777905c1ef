//! The monitor's side of the messages: what the worker may request and report.

use std::sync::Arc;

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use runner_protocol::{Failure, Line};
use tracing::{debug, warn};

use super::{broker::Broker, error::WorkerFailure, sessions::SessionRegistry};
use crate::{
    channel::websocket::StreamEndpoint,
    ipc::{Frame, message::ToMonitor},
    runtime::{memory, phase::Phase, shutdown::Shutdown},
    session::{SessionApi, terminate_with_retries},
};

/// Handles the worker's messages.
#[derive(Debug)]
pub(crate) struct RequestHandler {
    broker: Broker,
    /// Requests in flight.
    requests: FuturesUnordered<BoxFuture<'static, Frame>>,
    /// `"events": true` of the config: more lines than `ready` and `failed`.
    events: bool,
    phase: Phase,
    tunnel: TunnelPort,
}

/// Which port the worker may report as the tunnel's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TunnelPort {
    /// None: a check.
    None,
    /// The listener's, which was created by this process.
    Expected(u16),
    /// The port was reported. A second report breaks the protocol.
    Reported,
}

/// How the worker ended.
#[derive(Debug)]
pub(crate) enum WorkerOutcome {
    /// The tunnel has ended, with or without a failure.
    Tunnel(Option<Failure>),
    /// The check has ended, with the status to exit with and the failure that was printed.
    Check(u8, Option<Failure>),
}

impl RequestHandler {
    /// `port`: of the clients' listener; `None` for a check. `events`: whether to pass events on to the runner.
    pub(crate) fn new(
        api: Arc<dyn SessionApi>,
        endpoint: StreamEndpoint,
        events: bool,
        port: Option<u16>,
    ) -> Self {
        Self {
            broker: Broker::new(api, SessionRegistry::new(endpoint)),
            requests: FuturesUnordered::new(),
            events,
            phase: Phase::Config,
            tunnel: port.map_or(TunnelPort::None, TunnelPort::Expected),
        }
    }

    /// The phase of the start that the worker has reached.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Handles a message; returns how the worker ended, if it was the last one.
    ///
    /// # Errors
    ///
    /// [`WorkerFailure::Protocol`] for a message that the worker may not send.
    pub(super) fn handle_message(
        &mut self,
        message: ToMonitor,
        on_line: &mut impl FnMut(&Line),
    ) -> Result<Option<WorkerOutcome>, WorkerFailure> {
        let broken = |what: &str| Err(WorkerFailure::Protocol(what.to_owned()));
        match message {
            ToMonitor::Sandboxed(_) => return broken("a second first message"),
            ToMonitor::Request { id, request } => {
                if self.requests.len() >= MAX_REQUESTS {
                    return broken("too many requests at once");
                }
                self.requests.push(Box::pin(self.broker.clone().respond(id, request)));
            }
            ToMonitor::SessionEnded { session_id } => {
                self.broker.sessions().mark_ended(&session_id);
            }
            ToMonitor::Phase(phase) => {
                self.phase = phase;
                if self.events {
                    on_line(&Line::Phase(phase.name().to_owned()));
                }
            }
            ToMonitor::TunnelReady(port) => {
                // A compromised worker must not report another port, such as one of another process.
                if self.tunnel != TunnelPort::Expected(port) {
                    return broken("another port than the listener's");
                }
                self.tunnel = TunnelPort::Reported;
                on_line(&Line::Ready(port));
                memory::release_startup_pages();
            }
            ToMonitor::Event(event) => {
                if self.events {
                    on_line(&event.into());
                }
            }
            ToMonitor::Finished(failure) => return Ok(Some(WorkerOutcome::Tunnel(failure))),
            ToMonitor::Checked { status, failure } => {
                return Ok(Some(WorkerOutcome::Check(status, failure)));
            }
        }
        Ok(None)
    }

    /// Returns the next response; `None` while no request is in flight. Cancel-safe.
    pub(super) async fn next_response(&mut self) -> Option<Frame> {
        let response = self.requests.next().await?;
        if self.requests.is_empty() && self.tunnel == TunnelPort::Reported {
            // No request is in flight, and there may be none for an hour.
            memory::release_startup_pages();
        }
        Some(response)
    }

    /// Whether the worker may have started a session; false while it still opens its key.
    pub(super) fn has_begun(&self) -> bool {
        let sessions = self.broker.sessions();
        self.phase != Phase::Config || sessions.is_starting() || !sessions.open().is_empty()
    }

    /// Waits until no StartSession is in flight. Cancel-safe.
    pub(super) async fn starts_finished(&mut self) {
        while self.broker.sessions().is_starting() && self.requests.next().await.is_some() {}
    }

    /// Returns a termination of each open session, with retries within [`stop::TERMINATE_API`].
    ///
    /// [`stop::TERMINATE_API`]: crate::runtime::stop::TERMINATE_API
    pub(super) fn terminations(&self) -> Vec<BoxFuture<'static, ()>> {
        let open = self.broker.sessions().open();
        let terminate = |id: String| -> BoxFuture<'static, ()> {
            let broker = self.broker.clone();
            Box::pin(async move {
                match terminate_with_retries(broker.api(), &Shutdown::stopped(), &id).await {
                    Ok(()) => debug!(session = id, "session terminated"),
                    Err(error) => warn!(session = id, %error, "session left to its idle time-out"),
                }
                broker.sessions().mark_ended(&id);
            })
        };
        open.into_iter().map(terminate).collect()
    }
}

/// Most requests in flight; sixteen lanes that all open, close and resume need fewer.
pub(super) const MAX_REQUESTS: usize = 128;
