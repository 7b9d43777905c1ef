//! The loop around the state machine: what was received, what is to be sent, and the timers.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{
    SshError,
    state::{ConnectionState, State},
};
use crate::runtime::{clock::now, shared::Shared};

pub(super) struct Driver<S, R> {
    shared: Arc<Shared<State>>,
    stream: S,
    round_trip: R,
    outgoing: BytesMut,
    incoming: Box<[u8]>,
    timer: Pin<Box<Sleep>>,
}

impl<S, R> Driver<S, R>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn() -> Option<Duration>,
{
    pub(super) fn new(shared: Arc<Shared<State>>, stream: S, round_trip: R) -> Self {
        Self {
            shared,
            stream,
            round_trip,
            outgoing: BytesMut::new(),
            incoming: vec![0; READ_BYTES].into_boxed_slice(),
            timer: Box::pin(sleep_until(now().into())),
        }
    }

    /// Runs until the connection is over.
    pub(super) async fn run(mut self) {
        let error = poll_fn(|context| self.poll(context)).await;
        match &error {
            // The data channel below has ended, and logs why, unless this process has ended it.
            None | Some(SshError::StreamEnded) => debug!("connection to the bastion closed"),
            Some(error) => warn!(%error, "connection to the bastion ended"),
        }
        self.shared.lock().on_end(error.unwrap_or(SshError::StreamEnded));
        self.shared.notify();
    }

    /// Ready with the error, or with `None` after a disconnect by this process.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<SshError>> {
        for _ in 0..ROUNDS {
            let received = match self.poll_incoming(context) {
                Ok(received) => received,
                Err(error) => {
                    // Our disconnect message, with the reason, is still to be sent.
                    if let Err(error) = self.poll_outgoing(context) {
                        debug!(%error, "the disconnect message was not sent");
                    }
                    return Poll::Ready(Some(error));
                }
            };
            match self.poll_outgoing(context) {
                Ok(Poll::Ready(()))
                    if matches!(self.shared.lock().connection, ConnectionState::Closing) =>
                {
                    return Poll::Ready(None);
                }
                Ok(_) => (),
                Err(error) => return Poll::Ready(Some(error)),
            }
            if let Err(error) = self.poll_timer(context) {
                return Poll::Ready(Some(error));
            }
            if !received {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Receives what is available; false when there is nothing.
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
                let changed = take_events(&mut state);
                drop(state);
                if changed {
                    self.shared.notify();
                }
                outcome?;
                Ok(true)
            }
        }
    }

    /// Writes what there is to send; pending when the stream accepts no more.
    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, SshError> {
        loop {
            if self.outgoing.is_empty() {
                let mut state = self.shared.lock();
                state.driver.register(context);
                let more = state.client.poll_transmit(now(), &mut self.outgoing, WRITE_BYTES)?;
                let changed = take_events(&mut state);
                drop(state);
                if changed {
                    self.shared.notify();
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

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Result<(), SshError> {
        loop {
            let due = {
                let mut state = self.shared.lock();
                match state.client.poll_timeout() {
                    None => return Ok(()),
                    Some(due) if due <= now() => {
                        if Pin::new(&mut self.stream).poll_flush(context).is_pending() {
                            // The stream carries nothing at present, since the session is being resumed. The
                            // lane limits for how long.
                            state.client.excuse_silence(now());
                        }
                        state.client.handle_timeout(now())?;
                        // The next round sends what the timeout has queued.
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

/// Applies all events; returns whether handles may wait for one of them.
fn take_events(state: &mut State) -> bool {
    let mut changed = false;
    while let Some(event) = state.client.poll_event() {
        changed |= state.handle_event(event);
    }
    changed
}

/// Read from the stream at once, in bytes: a few messages of the data channel.
const READ_BYTES: usize = 32 * 1024;

/// Taken from the state machine at once, in bytes.
const WRITE_BYTES: usize = 32 * 1024;

/// Rounds of the loop before other tasks run.
const ROUNDS: usize = 16;
