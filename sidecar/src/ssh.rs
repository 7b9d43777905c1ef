//! The SSH connection: the only loop around [`ssh_client::Client`], over any byte stream.
//!
//! The state machine sits behind a mutex that the loop and the channels share, as in quinn: a channel
//! reads and writes its own buffers directly, and wakes the loop only when there is something to send.
//! Window credit goes back to sshd when a channel's bytes were *consumed*, so a connection whose client
//! does not read stalls itself alone.

mod channel;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    mem,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use ssh_client::{ChannelId, Client, Config, Error, Event};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep_until},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::wakers::{Waiter, Waiters};

pub use channel::{Channel, ChannelError, OpenError};

/// A handle on the connection; clones share it. The connection ends when the last one is dropped, or
/// with [`disconnect`](Self::disconnect).
#[derive(Clone, Debug)]
pub struct Ssh {
    shared: Arc<Shared>,
    /// Ends the loop when the last handle or channel is gone.
    _alive: Arc<Alive>,
}

/// What the key exchange found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connected {
    /// `SHA256:…` of the host key that the server proved to have.
    pub fingerprint: String,
    /// Whether the document pinned it.
    pub pinned: bool,
    /// The server's identification, such as `SSH-2.0-OpenSSH_9.2`.
    pub server: String,
}

/// Why the connection is over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SshError {
    /// The state machine found an end: a refusal, a violation, a disconnect.
    #[error(transparent)]
    Protocol(Arc<Error>),
    /// The byte stream below ended.
    #[error("the byte stream to sshd ended")]
    StreamEnded,
}

/// Begins to speak SSH over `stream`, on a task of `tasks` that ends with the last handle.
///
/// A stream whose flush is pending carries nothing at present: meanwhile the server's silence is not held
/// against it. `round_trip` says what a round trip on the path takes at most, once that is known.
pub fn start<S>(
    stream: S,
    config: Config,
    round_trip: impl Fn() -> Option<Duration> + Send + 'static,
    tasks: &TaskTracker,
) -> Ssh
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared { state: Mutex::new(State::new(Client::new(config, now()))) });
    let ssh = Ssh {
        shared: Arc::clone(&shared),
        _alive: Arc::new(Alive { shared: Arc::clone(&shared) }),
    };
    let connection = Connection {
        shared,
        stream,
        round_trip,
        outgoing: BytesMut::new(),
        incoming: vec![0; READ_BYTES].into_boxed_slice(),
        timer: Box::pin(sleep_until(now().into())),
    };
    tasks.spawn(connection.run().instrument(info_span!("ssh")));
    ssh
}

impl Ssh {
    /// Completes when the server has sent its identification, with that line. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the connection ends first.
    pub async fn identified(&self) -> Result<String, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Silent | Handshake::Speaking => None,
            Handshake::Identified { server } => Some(server.clone()),
            Handshake::KeyExchanged(found) | Handshake::Authenticated(found) => {
                Some(found.server.clone())
            }
        })
        .await
    }

    /// Completes when the server has proved its host key. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the connection ends first.
    pub async fn key_exchanged(&self) -> Result<Connected, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::KeyExchanged(found) | Handshake::Authenticated(found) => Some(found.clone()),
            _ => None,
        })
        .await
    }

    /// Completes when the server has accepted the user's key. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the server refuses, breaks the protocol or goes away first.
    pub async fn authenticated(&self) -> Result<Connected, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Authenticated(found) => Some(found.clone()),
            _ => None,
        })
        .await
    }

    /// Opens a channel to `host:port` as the bastion resolves it. Where there are as many as may be, since the server
    /// has not answered the close of some yet, it waits for that.
    ///
    /// Cancel-safe: a channel whose future was dropped is closed when the server confirms it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the server refuses, or the connection is over.
    pub async fn open(
        &self,
        host: &str,
        port: u16,
        originator: SocketAddr,
    ) -> Result<Channel, OpenError> {
        let id = poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Life::Ended(error) = &state.life {
                return Poll::Ready(Err(error.clone()));
            }
            match state.client.open_direct_tcpip(host, port, originator) {
                Err(Error::ChannelsExhausted { .. }) => {
                    state.watchers.register(context);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error.into())),
                Ok(id) => {
                    state.channels.insert(id, ChannelState::default());
                    state.wake_loop();
                    Poll::Ready(Ok(id))
                }
            }
        })
        .await?;
        // Made before the confirmation, so that its drop closes a channel that nobody waits for.
        let channel = Channel::new(self.clone(), id);
        channel.opened().await?;
        Ok(channel)
    }

    /// Says goodbye to the server; the loop ends after that was written.
    pub fn disconnect(&self) {
        self.shared.lock().leave();
    }

    /// Completes when the connection is over, with the reason. Cancel-safe.
    pub async fn ended(&self) -> SshError {
        match self.wait_for(|_| None::<Infallible>).await {
            Err(error) => error,
        }
    }

    /// Whether the far end has sent anything at all.
    pub fn has_received(&self) -> bool {
        !matches!(self.shared.lock().handshake, Handshake::Silent)
    }

    /// Channels that are open or being opened.
    pub fn channels(&self) -> usize {
        self.shared.lock().channels.len()
    }

    /// Those among them that carry data in bulk at this time.
    pub fn channels_in_bulk(&self) -> usize {
        self.shared.lock().client.channels_in_bulk(now())
    }

    /// Completes when no channel is open or being opened. Cancel-safe.
    pub async fn emptied(&self) {
        // A connection that is over has none either.
        drop(self.wait_for(|state| state.channels.is_empty().then_some(())).await);
    }

    async fn wait_for<T>(&self, found: impl Fn(&State) -> Option<T>) -> Result<T, SshError> {
        poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Some(found) = found(&state) {
                return Poll::Ready(Ok(found));
            }
            if let Life::Ended(error) = &state.life {
                return Poll::Ready(Err(error.clone()));
            }
            state.watchers.register(context);
            Poll::Pending
        })
        .await
    }
}

impl From<Error> for SshError {
    fn from(error: Error) -> Self {
        Self::Protocol(Arc::new(error))
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held ends the process with `internal`; until then the bytes are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the loop that nobody holds the connection any more.
#[derive(Debug)]
struct Alive {
    shared: Arc<Shared>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.lock().leave();
    }
}

#[derive(Debug)]
struct State {
    client: Client,
    channels: HashMap<ChannelId, ChannelState>,
    /// The loop, when it waits for something to send.
    driver: Waiter,
    /// Whoever waits for a step of the handshake, for room for a channel or for the end.
    watchers: Waiters,
    handshake: Handshake,
    life: Life,
}

/// How far client and server have come with each other.
#[derive(Debug)]
enum Handshake {
    /// Nothing has come from the far end.
    Silent,
    /// Something has, which is no identification yet.
    Speaking,
    /// The server has sent its identification.
    Identified { server: String },
    /// It has proved its host key.
    KeyExchanged(Connected),
    /// It has accepted the user's key.
    Authenticated(Connected),
}

/// How far the connection is from its end.
#[derive(Debug)]
enum Life {
    Running,
    /// It ends once all is written.
    Leaving,
    Ended(SshError),
}

#[derive(Debug, Default)]
struct ChannelState {
    phase: Phase,
    reader: Waiter,
    writer: Waiter,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Opening,
    Refused(OpenError),
    Open,
    /// The server sends no more.
    HalfClosed,
    /// It is over in both directions; `complete` unless the server closed it amid its data.
    Closed {
        complete: bool,
    },
}

impl ChannelState {
    fn wake(&mut self) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl State {
    fn new(client: Client) -> Self {
        Self {
            client,
            channels: HashMap::new(),
            driver: Waiter::default(),
            watchers: Waiters::default(),
            handshake: Handshake::Silent,
            life: Life::Running,
        }
    }

    fn wake_loop(&mut self) {
        self.driver.wake();
    }

    fn leave(&mut self) {
        self.client.disconnect();
        if let Life::Running = self.life {
            self.life = Life::Leaving;
        }
        self.wake_loop();
    }

    fn end(&mut self, error: SshError) {
        self.life = Life::Ended(error);
        self.watchers.wake();
        self.channels.values_mut().for_each(ChannelState::wake);
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::ServerIdentified(server) => {
                self.handshake = Handshake::Identified { server };
                self.watchers.wake();
            }
            Event::HostKey { fingerprint, pinned } => {
                self.step(|handshake| handshake.on_host_key(fingerprint, pinned));
            }
            Event::Banner(text) => info!(text, "banner of the bastion"),
            Event::Authenticated(details) => {
                info!(?details, "authenticated");
                self.step(Handshake::on_authenticated);
            }
            Event::ChannelOpened(id) => self.with_channel(id, |channel| {
                channel.phase = Phase::Open;
            }),
            Event::ChannelRefused { id, reason, description } => self.with_channel(id, |channel| {
                channel.phase = Phase::Refused(OpenError::Refused { reason, description });
            }),
            Event::Readable(id) => self.with_channel(id, |_| ()),
            Event::Writable(id) => self.with_channel(id, |_| ()),
            Event::Eof(id) => self.with_channel(id, |channel| channel.phase = Phase::HalfClosed),
            Event::Closed(id) => {
                self.with_channel(id, |channel| {
                    let complete = matches!(channel.phase, Phase::HalfClosed);
                    channel.phase = Phase::Closed { complete };
                });
                // There is room for another one.
                self.watchers.wake();
            }
        }
    }

    fn step(&mut self, next: impl FnOnce(Handshake) -> Handshake) {
        self.handshake = next(mem::replace(&mut self.handshake, Handshake::Silent));
        self.watchers.wake();
    }

    fn with_channel(&mut self, id: ChannelId, change: impl FnOnce(&mut ChannelState)) {
        if let Some(channel) = self.channels.get_mut(&id) {
            change(channel);
            channel.wake();
        }
    }
}

impl Handshake {
    fn on_received(&mut self) {
        if let Self::Silent = self {
            *self = Self::Speaking;
        }
    }

    fn on_host_key(self, fingerprint: String, pinned: bool) -> Self {
        match self {
            Self::Identified { server } => {
                Self::KeyExchanged(Connected { fingerprint, pinned, server })
            }
            other => {
                unreachable!("a host key is told of once, behind the identification: {other:?}")
            }
        }
    }

    fn on_authenticated(self) -> Self {
        match self {
            Self::KeyExchanged(found) => Self::Authenticated(found),
            other => unreachable!("keys are exchanged before the login: {other:?}"),
        }
    }
}

/// The loop: what arrived, what is to be sent, and the clock, until nothing moves.
struct Connection<S, R> {
    shared: Arc<Shared>,
    stream: S,
    round_trip: R,
    outgoing: BytesMut,
    incoming: Box<[u8]>,
    timer: Pin<Box<Sleep>>,
}

impl<S, R> Connection<S, R>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn() -> Option<Duration>,
{
    async fn run(mut self) {
        let error = poll_fn(|context| self.poll(context)).await;
        if let Some(error) = &error {
            warn!(%error, "connection to the bastion ended");
        } else {
            debug!("connection to the bastion closed");
        }
        self.shared.lock().end(error.unwrap_or(SshError::StreamEnded));
    }

    /// Ready with the error, or with nothing after a goodbye of ours.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<SshError>> {
        for _ in 0..ROUNDS {
            let received = match self.poll_incoming(context) {
                Ok(received) => received,
                Err(error) => {
                    // The reason for a refusal of ours is still worth sending.
                    if let Err(error) = self.poll_outgoing(context) {
                        debug!(%error, "no farewell");
                    }
                    return Poll::Ready(Some(error));
                }
            };
            match self.poll_outgoing(context) {
                Ok(Poll::Ready(())) if matches!(self.shared.lock().life, Life::Leaving) => {
                    return Poll::Ready(None);
                }
                Ok(_) => (),
                Err(error) => return Poll::Ready(Some(error)),
            }
            if let Err(error) = self.handle_timer(context) {
                return Poll::Ready(Some(error));
            }
            if !received {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what has arrived; false when nothing has.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Result<bool, SshError> {
        let mut buffer = ReadBuf::new(&mut self.incoming);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(_)) => Err(SshError::StreamEnded),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(SshError::StreamEnded),
            Poll::Ready(Ok(())) => {
                let round_trip = (self.round_trip)();
                let mut state = self.shared.lock();
                state.handshake.on_received();
                state.client.set_round_trip(round_trip);
                let outcome = state.client.handle_input(now(), buffer.filled());
                while let Some(event) = state.client.poll_event() {
                    state.handle_event(event);
                }
                outcome?;
                Ok(true)
            }
        }
    }

    /// Writes all there is; pending when the stream takes no more for now.
    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, SshError> {
        loop {
            if self.outgoing.is_empty() {
                let mut state = self.shared.lock();
                state.driver.register(context);
                let more = state.client.poll_transmit(now(), &mut self.outgoing, WRITE_BYTES)?;
                while let Some(event) = state.client.poll_event() {
                    state.handle_event(event);
                }
                if !more {
                    return Ok(Poll::Ready(()));
                }
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.outgoing) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0) | Err(_)) => return Err(SshError::StreamEnded),
                Poll::Ready(Ok(written)) => self.outgoing.advance(written),
            }
        }
    }

    fn handle_timer(&mut self, context: &mut Context<'_>) -> Result<(), SshError> {
        loop {
            let due = {
                let mut state = self.shared.lock();
                match state.client.poll_timeout() {
                    None => return Ok(()),
                    Some(due) if due <= now() => {
                        if Pin::new(&mut self.stream).poll_flush(context).is_pending() {
                            // The session is being resumed: for how long is for the lane to say.
                            state.client.excuse_silence(now());
                        }
                        state.client.handle_timeout(now())?;
                        // What that made us say goes out in the next round.
                        context.waker().wake_by_ref();
                        match state.client.poll_timeout() {
                            Some(next) if next > now() => next,
                            _ => return Ok(()),
                        }
                    }
                    Some(due) => due,
                }
            };
            if self.timer.deadline().into_std() != due {
                self.timer.as_mut().reset(due.into());
            }
            if self.timer.as_mut().poll(context).is_pending() {
                return Ok(());
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Taken from the stream at once; a few messages of the data channel.
const READ_BYTES: usize = 32 * 1024;

/// Asked of the state machine at once.
const WRITE_BYTES: usize = 32 * 1024;

/// Turns of the loop before other tasks get theirs.
const ROUNDS: usize = 16;

#[cfg(test)]
mod tests;
