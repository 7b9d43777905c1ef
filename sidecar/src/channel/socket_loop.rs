//! One WebSocket, until it or the channel ends: frames and time in, frames out.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::time::{Sleep, sleep_until};

use super::{
    ChannelEnd, Quoted,
    liveness::{Action, Liveness},
    state::State,
    websocket::{Frame, WebSocket},
};
use crate::runtime::{clock::now, shared::Shared};

pub(super) struct SocketLoop<'a> {
    shared: &'a Shared<State>,
    socket: WebSocket,
    timer: Pin<Box<Sleep>>,
    liveness: Liveness,
}

impl<'a> SocketLoop<'a> {
    pub(super) fn new(shared: &'a Shared<State>, socket: WebSocket) -> Self {
        let liveness = Liveness::new(now());
        let timer = Box::pin(sleep_until(liveness.poll_timeout().into()));
        Self { shared, socket, timer, liveness }
    }

    pub(super) async fn run(mut self) -> SocketEnd {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<SocketEnd> {
        for _ in 0..ROUNDS {
            let received = match self.poll_incoming(context) {
                Ok(received) => received,
                Err(done) => return Poll::Ready(done),
            };
            if let Err(done) = self.poll_outgoing(context) {
                return Poll::Ready(done);
            }
            match self.poll_timer(context) {
                Err(done) => return Poll::Ready(done),
                Ok(true) => continue,
                Ok(false) => (),
            }
            if !received {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Receives up to [`BATCH`] frames, so that their acknowledgements share one write; false when there was none.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Result<bool, SocketEnd> {
        let mut received = false;
        for _ in 0..BATCH {
            let message = match Pin::new(&mut self.socket).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    return Err(SocketEnd::Disconnected(
                        "the service closed the WebSocket".to_owned(),
                    ));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Err(SocketEnd::Disconnected(error.to_string()));
                }
                Poll::Ready(Some(Ok(Frame::Close { code, reason }))) => {
                    let quoted = Quoted(&reason);
                    let reason = format!("the service closed the WebSocket ({code}){quoted}");
                    return Err(match code {
                        NORMAL_CLOSE => SocketEnd::Closed(reason),
                        _ => SocketEnd::Disconnected(reason),
                    });
                }
                Poll::Ready(Some(Ok(Frame::Message(message)))) => Some(message),
                Poll::Ready(Some(Ok(_))) => None,
            };
            received = true;
            let now = now();
            self.liveness.on_received(now);
            let Some(message) = message else { continue };
            let mut state = self.shared.lock();
            let outcome = state.channel.handle_message(now, message);
            let opened = state.agent_version.is_none();
            let end = state.take_events();
            let opened = opened && state.agent_version.is_some();
            drop(state);
            if opened {
                self.shared.notify();
            }
            if let Some(end) = end {
                return Err(SocketEnd::ChannelEnded(end));
            }
            if let Err(error) = outcome {
                return Err(SocketEnd::ChannelEnded(ChannelEnd::Protocol(Arc::new(error))));
            }
        }
        if received {
            let mut state = self.shared.lock();
            state.heard_at = now();
            state.wake_stream();
        }
        Ok(received)
    }

    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Result<(), SocketEnd> {
        let lost = |error: &dyn fmt::Display| SocketEnd::Disconnected(error.to_string());
        loop {
            match Pin::new(&mut self.socket).poll_ready(context) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(lost(&error)),
                Poll::Ready(Ok(())) => (),
            }
            let frame = {
                let mut state = self.shared.lock();
                if state.abandoned {
                    return Err(SocketEnd::ChannelEnded(ChannelEnd::Terminated));
                }
                state.driver.register(context);
                state.channel.poll_transmit(now())
            };
            let Some(frame) = frame else { break };
            self.feed(Frame::Message(frame))?;
        }
        let mut state = self.shared.lock();
        // What was sent may have made room in the channel.
        state.wake_stream();
        state.note_limits();
        drop(state);
        match Pin::new(&mut self.socket).poll_flush(context) {
            Poll::Ready(Err(error)) => Err(lost(&error)),
            _ => Ok(()),
        }
    }

    /// Handles what is due: the channel's timers, our ping, and the time limit of a silent path. Returns true when there
    /// may be something to send.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Result<bool, SocketEnd> {
        let now = now();
        let mut sendable = false;
        match self.liveness.poll_action(now) {
            Action::None => (),
            Action::GiveUp(silence) => {
                let seconds = silence.as_secs_f32();
                return Err(SocketEnd::Disconnected(format!(
                    "nothing received for {seconds:.1} s"
                )));
            }
            Action::Ping => {
                if let Poll::Ready(Ok(())) = Pin::new(&mut self.socket).poll_ready(context) {
                    self.feed(Frame::Ping(Bytes::from_static(b"keepalive")))?;
                    sendable = true;
                }
            }
        }
        let mut state = self.shared.lock();
        if state.channel.poll_timeout().is_some_and(|due| due <= now) {
            state.channel.handle_timeout(now);
            if let Some(ended) = state.take_events() {
                return Err(SocketEnd::ChannelEnded(ended));
            }
            sendable = true;
        }
        let channel_due = state.channel.poll_timeout();
        drop(state);
        let own_due = self.liveness.poll_timeout();
        let due = channel_due.map_or(own_due, |due| due.min(own_due));
        self.timer.as_mut().reset(due.into());
        Ok(self.timer.as_mut().poll(context).is_ready() || sendable)
    }

    fn feed(&mut self, frame: Frame) -> Result<(), SocketEnd> {
        Pin::new(&mut self.socket)
            .start_send(frame)
            .map_err(|error| SocketEnd::Disconnected(error.to_string()))
    }
}

/// How the loop of one WebSocket ended.
pub(super) enum SocketEnd {
    /// The service has closed the WebSocket in order; the session may be resumed.
    Closed(String),
    /// The WebSocket is lost in another way; the session may be resumed.
    Disconnected(String),
    /// The channel is over.
    ChannelEnded(ChannelEnd),
}

/// RFC 6455, section 7.4.1: the purpose is fulfilled. The code of the close after about an hour; others mean an error or
/// a server that goes away.
const NORMAL_CLOSE: u16 = 1000;

/// Frames received before their acknowledgements are written.
const BATCH: usize = 64;

/// Rounds of the loop before other tasks run.
const ROUNDS: usize = 8;
