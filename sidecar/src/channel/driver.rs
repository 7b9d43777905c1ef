//! The only loop around [`DataChannel`]: frames and time in, frames out, a byte stream upwards.
//!
//! The WebSocket is always read, whatever the stream above does: acknowledgements, pongs and the end of
//! the session come the same way. When the socket is lost the same session is resumed on a new one, and
//! the stream only pauses.

mod liveness;
mod socket;
mod stream;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use data_channel::{DataChannel, Event, ProtocolError, Statistics};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::{
    channel::websocket::WebSocket,
    runtime::{
        clock::now,
        wakers::{Waiter, Waiters},
    },
};

pub use stream::SessionStream;

use socket::{Done, Exchange};

/// Opens a new WebSocket for the same session, until one is open or the session is known to be over.
pub trait Reconnect: Send + 'static {
    /// `channel_opening` makes the first message of the new socket from its token; `trouble` says
    /// whether patience begins anew.
    fn reconnect<'a>(
        &'a mut self,
        trouble: Trouble,
        channel_opening: &'a (dyn Fn(&str) -> String + Sync),
    ) -> Pin<Box<dyn Future<Output = Result<WebSocket, Ended>> + Send + 'a>>;
}

/// What the loss of a socket belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// The socket had carried messages, or had lasted a while.
    New,
    /// The socket came to nothing: the trouble before it goes on.
    Same,
}

/// Why a data channel is over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// The service closed it and said so; the text is its reason, often empty.
    #[error("the service ended the session{}", Said(.0))]
    Closed(String),
    /// The path broke, and the session could not be resumed.
    #[error("the data channel was lost: {0}")]
    Lost(String),
    /// The agent broke the protocol, or asked for what this client does not do.
    #[error(transparent)]
    Protocol(Arc<ProtocolError>),
    /// We terminated it.
    #[error("the session was terminated")]
    Terminated,
}

/// A peer's words behind ours, on one line; nothing where it has none.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(formatter, ": `{}`", self.0.escape_debug()) }
    }
}

/// A handle on the loop; clones share it.
#[derive(Clone, Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    began: Instant,
}

/// Starts the loop on an open socket whose opening message has been sent; notifies `path_changed` whenever
/// the socket is lost and when the session goes on with another.
pub fn spawn(
    channel: DataChannel,
    socket: WebSocket,
    reconnect: impl Reconnect,
    path_changed: Arc<Notify>,
    tasks: &TaskTracker,
) -> (Driver, SessionStream) {
    let shared = Arc::new(Shared { state: Mutex::new(State::new(channel)) });
    let driver = Driver { shared: Arc::clone(&shared), began: now() };
    let task = Task { shared: Arc::clone(&shared), path_changed };
    tasks.spawn(task.drive(socket, reconnect).instrument(info_span!("data_channel")));
    (driver, SessionStream::new(shared))
}

impl Driver {
    /// Completes when the handshake is done, with the agent's version. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Ended`] when the channel ends first.
    pub async fn opened(&self) -> Result<String, Ended> {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Some(ended) = &state.ended {
                return Poll::Ready(Err(ended.clone()));
            }
            if let Some(agent_version) = &state.agent_version {
                return Poll::Ready(Ok(agent_version.clone()));
            }
            state.watchers.register(context);
            Poll::Pending
        })
        .await
    }

    /// Completes when the channel is over. Cancel-safe.
    pub async fn ended(&self) -> Ended {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Some(ended) = &state.ended {
                return Poll::Ready(ended.clone());
            }
            state.watchers.register(context);
            Poll::Pending
        })
        .await
    }

    /// Why the channel is over, once it is.
    pub fn try_ended(&self) -> Option<Ended> {
        self.shared.lock().ended.clone()
    }

    /// Sends the TerminateSession flag and waits until the service has closed the channel.
    ///
    /// Returns whether the agent acknowledged the flag or the service closed the channel within `bound`;
    /// false where the channel was not open yet, or was being resumed. Cancel-safe.
    pub async fn terminate(&self, bound: Duration) -> bool {
        {
            let mut state = self.shared.lock();
            if state.ended.is_some() || !state.channel.terminate() {
                return matches!(state.ended, Some(Ended::Closed(_) | Ended::Terminated));
            }
            state.farewell = Farewell::Said;
            state.wake_loop();
        }
        // Acknowledging goes on until channel_closed: the agent then ends at once instead of in 2 s.
        let _closed = tokio::time::timeout(bound, self.ended()).await;
        let state = self.shared.lock();
        let closed = matches!(state.ended, Some(Ended::Closed(_) | Ended::Terminated));
        match state.farewell {
            Farewell::Heard => true,
            Farewell::Said => closed,
            Farewell::Unsaid => false,
        }
    }

    /// Ends the loop without a word to the service.
    pub fn abandon(&self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        state.wake_loop();
    }

    /// When the loop began, with the channel's first socket.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Whether there is a socket that carries bytes, rather than a session that is being resumed.
    pub fn is_up(&self) -> bool {
        let state = self.shared.lock();
        state.broken.is_none() && state.ended.is_none()
    }

    /// Since when and why there is no socket, while the session is being resumed and after that was given up.
    pub fn broken(&self) -> Option<Broken> {
        self.shared.lock().broken.clone()
    }

    /// Completes when the path has carried bytes for `time` without a break; never once the channel is over.
    /// Cancel-safe.
    pub async fn up_for(&self, time: Duration) {
        loop {
            self.path_is(true).await;
            if tokio::time::timeout(time, self.path_is(false)).await.is_err() {
                return;
            }
        }
    }

    async fn path_is(&self, up: bool) {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if up == (state.broken.is_none() && state.ended.is_none()) {
                return Poll::Ready(());
            }
            state.watchers.register(context);
            Poll::Pending
        })
        .await;
    }

    /// What a round trip to the agent takes at most, but for one in many; `None` while that is not known.
    pub fn round_trip_bound(&self) -> Option<Duration> {
        self.shared.lock().channel.round_trip_bound()
    }

    /// Counters of the channel since it was opened, over all its sockets.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().channel.statistics()
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

struct State {
    channel: DataChannel,
    agent_version: Option<String>,
    ended: Option<Ended>,
    farewell: Farewell,
    /// Nobody wants the channel any more.
    abandoned: bool,
    /// There is no socket at present.
    broken: Option<Broken>,
    /// When the trouble began that may still go on.
    trouble_since: Instant,
    reader: Waiter,
    writer: Waiter,
    /// The loop, when it waits for something to send.
    driver: Waiter,
    watchers: Waiters,
}

/// How far the end of the session is that we ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Farewell {
    Unsaid,
    /// We have asked the agent to end.
    Said,
    /// The agent has acknowledged that.
    Heard,
}

/// A path that is being mended.
#[derive(Clone, Debug)]
pub struct Broken {
    /// When the trouble began.
    pub since: Instant,
    /// Why the socket was lost.
    pub reason: String,
}

impl State {
    fn new(channel: DataChannel) -> Self {
        Self {
            channel,
            agent_version: None,
            ended: None,
            farewell: Farewell::Unsaid,
            abandoned: false,
            broken: None,
            trouble_since: now(),
            reader: Waiter::default(),
            writer: Waiter::default(),
            driver: Waiter::default(),
            watchers: Waiters::default(),
        }
    }

    fn break_path(&mut self, trouble: Trouble, reason: String) {
        let now = now();
        self.channel.on_disconnected(now);
        if trouble == Trouble::New {
            self.trouble_since = now;
        }
        self.broken = Some(Broken { since: self.trouble_since, reason });
        self.watchers.wake();
    }

    fn restore_path(&mut self) {
        self.channel.on_resumed(now());
        self.broken = None;
        self.watchers.wake();
    }

    /// Stream messages that have come so far.
    fn received(&self) -> u64 {
        self.channel.statistics().messages_received
    }

    fn wake_loop(&mut self) {
        self.driver.wake();
    }

    fn wake_stream(&mut self) {
        self.reader.wake();
        if self.channel.writable() > 0 {
            self.writer.wake();
        }
    }

    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
        self.reader.wake();
        self.writer.wake();
        self.watchers.wake();
    }

    /// Takes the channel's events; an end when the service or the agent has ended it.
    fn take_events(&mut self) -> Option<Ended> {
        while let Some(event) = self.channel.poll_event() {
            match event {
                Event::Open { agent_version, customer_message } => {
                    if !customer_message.is_empty() {
                        info!(
                            text = customer_message,
                            "message of the customer's session preferences"
                        );
                    }
                    debug!(agent_version, "handshake complete");
                    self.agent_version = Some(agent_version);
                    self.watchers.wake();
                }
                Event::Terminated => self.farewell = Farewell::Heard,
                Event::Closed { reason } => {
                    return Some(match self.farewell {
                        Farewell::Unsaid => Ended::Closed(reason),
                        Farewell::Said | Farewell::Heard => Ended::Terminated,
                    });
                }
                Event::Failed(error) => return Some(Ended::Protocol(Arc::new(error))),
                other => debug!(event = ?other, "noted"),
            }
        }
        None
    }
}

struct Task {
    shared: Arc<Shared>,
    path_changed: Arc<Notify>,
}

impl Task {
    async fn drive(self, mut socket: WebSocket, mut reconnect: impl Reconnect) {
        let ended = loop {
            let (opened, received) = (now(), self.shared.lock().received());
            let mut exchange = Exchange::new(&self.shared, socket);
            let lost = match std::future::poll_fn(|context| exchange.poll(context)).await {
                Done::Over(ended) => break ended,
                Done::Lost(reason) => reason,
            };
            drop(exchange);
            if self.shared.lock().farewell != Farewell::Unsaid {
                // A bare close is how many agents end after the flag.
                break Ended::Terminated;
            }
            warn!(reason = lost, "data channel lost, resuming the session");
            let trouble = {
                let mut state = self.shared.lock();
                let came_to_something = state.received() > received || opened.elapsed() >= STEADY;
                let trouble = if came_to_something { Trouble::New } else { Trouble::Same };
                state.break_path(trouble, lost);
                trouble
            };
            self.path_changed.notify_one();
            let opening = |token: &str| self.shared.lock().channel.opening(token);
            socket = tokio::select! {
                outcome = reconnect.reconnect(trouble, &opening) => match outcome {
                    Ok(socket) => socket,
                    Err(ended) => break ended,
                },
                () = self.abandoned() => {
                    // There was no socket to say it on.
                    self.shared.lock().farewell = Farewell::Unsaid;
                    break Ended::Terminated;
                }
            };
            info!("session resumed");
            self.shared.lock().restore_path();
            self.path_changed.notify_one();
        };
        match &ended {
            Ended::Terminated => debug!("data channel closed"),
            other => warn!(reason = %other, "data channel ended"),
        }
        self.shared.lock().end(ended);
    }

    async fn abandoned(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if state.abandoned || state.farewell != Farewell::Unsaid {
                return Poll::Ready(());
            }
            state.driver.register(context);
            Poll::Pending
        })
        .await;
    }
}

/// A socket that lasts so long was worth opening, even if nothing was to be said on it.
const STEADY: Duration = Duration::from_secs(10);
