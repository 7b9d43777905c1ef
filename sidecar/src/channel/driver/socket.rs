//! Frames and time in and out of one WebSocket, until it is done with.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::time::{Sleep, sleep_until};

use super::{
    Ended, Said, Shared,
    liveness::{Liveness, Verdict},
};
use crate::{
    channel::websocket::{Frame, WebSocket},
    runtime::clock::now,
};

/// The life of one socket.
pub(super) struct Exchange<'a> {
    shared: &'a Shared,
    socket: WebSocket,
    timer: Pin<Box<Sleep>>,
    liveness: Liveness,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(shared: &'a Shared, socket: WebSocket) -> Self {
        let liveness = Liveness::new(now());
        let timer = Box::pin(sleep_until(liveness.due().into()));
        Self { shared, socket, timer, liveness }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Done> {
        for _ in 0..ROUNDS {
            let received = match self.poll_incoming(context) {
                Ok(received) => received,
                Err(done) => return Poll::Ready(done),
            };
            if let Err(done) = self.poll_outgoing(context) {
                return Poll::Ready(done);
            }
            match self.poll_clock(context) {
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

    /// Takes up to a batch of frames, so that their acknowledgements share one write; false when there
    /// was none.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Result<bool, Done> {
        let mut received = false;
        for _ in 0..BATCH {
            let message = match Pin::new(&mut self.socket).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    return Err(Done::Lost("the service closed the socket".to_owned()));
                }
                Poll::Ready(Some(Err(error))) => return Err(Done::Lost(error.to_string())),
                Poll::Ready(Some(Ok(Frame::Close { code, reason }))) => {
                    let said = Said(&reason);
                    return Err(Done::Lost(format!(
                        "the service closed the socket ({code}){said}"
                    )));
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
            if let Some(ended) = state.take_events() {
                return Err(Done::Over(ended));
            }
            if let Err(error) = outcome {
                return Err(Done::Over(Ended::Protocol(Arc::new(error))));
            }
        }
        if received {
            self.shared.lock().wake_stream();
        }
        Ok(received)
    }

    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Result<(), Done> {
        let lost = |error: &dyn fmt::Display| Done::Lost(error.to_string());
        loop {
            match Pin::new(&mut self.socket).poll_ready(context) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(lost(&error)),
                Poll::Ready(Ok(())) => (),
            }
            let frame = {
                let mut state = self.shared.lock();
                if state.abandoned {
                    return Err(Done::Over(Ended::Terminated));
                }
                state.driver.register(context);
                state.channel.poll_transmit(now())
            };
            let Some(frame) = frame else { break };
            self.feed(Frame::Message(frame))?;
        }
        // Room for more in the channel may have come with what was sent.
        self.shared.lock().wake_stream();
        match Pin::new(&mut self.socket).poll_flush(context) {
            Poll::Ready(Err(error)) => Err(lost(&error)),
            _ => Ok(()),
        }
    }

    /// Runs what is due: the channel's timers, our ping, and the verdict over a silent path.
    /// True when something may have become sendable.
    fn poll_clock(&mut self, context: &mut Context<'_>) -> Result<bool, Done> {
        let now = now();
        let mut sendable = false;
        match self.liveness.judge(now) {
            Verdict::Alive => (),
            Verdict::Dead(silence) => {
                let seconds = silence.as_secs_f32();
                return Err(Done::Lost(format!("nothing received for {seconds:.1} s")));
            }
            Verdict::Ask => {
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
                return Err(Done::Over(ended));
            }
            sendable = true;
        }
        let channel_due = state.channel.poll_timeout();
        drop(state);
        let own_due = self.liveness.due();
        let due = channel_due.map_or(own_due, |due| due.min(own_due));
        self.timer.as_mut().reset(due.into());
        Ok(self.timer.as_mut().poll(context).is_ready() || sendable)
    }

    fn feed(&mut self, frame: Frame) -> Result<(), Done> {
        Pin::new(&mut self.socket).start_send(frame).map_err(|error| Done::Lost(error.to_string()))
    }
}

/// Why one socket is done with.
pub(super) enum Done {
    /// The socket is lost; the session may live on.
    Lost(String),
    /// The session is over.
    Over(Ended),
}

/// Frames taken before their acknowledgements are written.
const BATCH: usize = 64;

/// Turns of the loop before other tasks get theirs.
const ROUNDS: usize = 8;
