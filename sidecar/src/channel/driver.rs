//! The loop around the state machine: one WebSocket after another.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::{
    ChannelEnd, Outage, PathLoss, Reconnect,
    socket_loop::{SocketEnd, SocketLoop},
    state::{State, Termination},
    websocket::{OpeningSignature, WebSocket},
};
use crate::runtime::{clock::now, shared::Shared};

pub(super) struct Driver<R> {
    shared: Arc<Shared<State>>,
    path_changed: Arc<Notify>,
    reconnect: R,
}

impl<R: Reconnect> Driver<R> {
    pub(super) fn new(shared: Arc<Shared<State>>, path_changed: Arc<Notify>, reconnect: R) -> Self {
        Self { shared, path_changed, reconnect }
    }

    /// Runs until the channel is over.
    pub(super) async fn run(mut self, mut socket: WebSocket) {
        let end = loop {
            let (opened, received) = (now(), self.shared.lock().messages_received());
            let signed = socket.signature() == OpeningSignature::Signed;
            let (loss, reason) = match SocketLoop::new(&self.shared, socket).run().await {
                SocketEnd::ChannelEnded(end) => break end,
                SocketEnd::Closed(reason) => {
                    (PathLoss::ClosedByService { age: now() - opened }, reason)
                }
                SocketEnd::Disconnected(reason) => (PathLoss::Broken, reason),
            };
            if self.shared.lock().termination != Termination::None {
                // Many agents answer the flag without `channel_closed`: only the WebSocket closes.
                break ChannelEnd::Terminated;
            }
            // How long channels of either kind live is not documented by AWS.
            let seconds = (now() - opened).as_secs();
            warn!(reason, seconds, signed, "WebSocket lost, resuming the session");
            let made_progress =
                self.shared.lock().messages_received() > received || now() - opened >= STABLE_AFTER;
            let outage = if made_progress { Outage::New } else { Outage::Ongoing };
            match self.resume(outage, loss, reason).await {
                Ok(resumed) => socket = resumed,
                Err(end) => break end,
            }
        };
        match &end {
            ChannelEnd::Terminated => debug!("data channel closed"),
            // Where that is not in order, the lane's loss is logged with the same reason.
            other => info!(reason = %other, "data channel ended"),
        }
        if matches!(end, ChannelEnd::Closed(_)) && self.shared.lock().is_congested() {
            info!("{CONGESTED}");
        }
        self.shared.lock().on_end(end);
        self.shared.notify();
    }

    /// Resumes the session. The error is the end of the channel: resuming has failed, or meanwhile the channel was
    /// abandoned or terminated.
    async fn resume(
        &mut self,
        outage: Outage,
        loss: PathLoss,
        reason: String,
    ) -> Result<WebSocket, ChannelEnd> {
        let congested = {
            let mut state = self.shared.lock();
            state.on_disconnected(outage, loss, reason);
            state.is_congested()
        };
        if congested {
            info!("{CONGESTED}");
        }
        self.shared.notify();
        self.path_changed.notify_one();
        let shared = Arc::clone(&self.shared);
        let opening_message = |token: &str| shared.lock().channel.opening(token);
        let socket = tokio::select! {
            outcome = self.reconnect.reconnect(outage, &opening_message) => outcome?,
            () = unwanted(&shared) => {
                // There was no WebSocket to send the flag on.
                shared.lock().termination = Termination::None;
                return Err(ChannelEnd::Terminated);
            }
        };
        info!("session resumed");
        self.shared.lock().on_resumed();
        self.shared.notify();
        self.path_changed.notify_one();
        Ok(socket)
    }
}

/// Completes when the channel is to end. Cancel-safe.
async fn unwanted(shared: &Shared<State>) {
    std::future::poll_fn(|context| {
        let mut state = shared.lock();
        if state.abandoned || state.termination != Termination::None {
            return std::task::Poll::Ready(());
        }
        state.driver.register(context);
        std::task::Poll::Pending
    })
    .await;
}

/// Logged beside the loss of a WebSocket or a channel.
const CONGESTED: &str =
    "it was lost during a fast upload or soon after a pause: the next one is filled slowly";

/// A WebSocket that was open for this long counts as progress even if it carried nothing.
const STABLE_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::future::ready;

    use data_channel::{Config, DataChannel};
    use futures_util::future::BoxFuture;
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::channel::{Reports, spawn, websocket::tests::open_pair};

    /// Where `ssm:ResumeSession` is denied.
    struct Denied;

    impl Reconnect for Denied {
        fn reconnect<'a>(
            &'a mut self,
            _: Outage,
            _: &'a (dyn Fn(&str) -> String + Sync),
        ) -> BoxFuture<'a, Result<WebSocket, ChannelEnd>> {
            Box::pin(ready(Err(ChannelEnd::Lost("denied".to_owned()))))
        }
    }

    #[tokio::test]
    async fn only_an_orderly_close_is_one_that_lanes_learn_from() {
        let cases = [
            ("after an hour", Some((1000, "Bye")), true),
            ("server goes away", Some((1001, "")), false),
            ("error", Some((1008, "policy")), false),
            ("without a close frame", None, false),
        ];
        for (name, close, in_order) in cases {
            let (socket, mut peer) = open_pair().await;
            let (channel, began) = (DataChannel::new(Config::default(), now(), 0, 1), now());
            let (handle, _stream) =
                spawn(channel, socket, Denied, Reports::default(), &TaskTracker::new());
            if let Some((code, reason)) = close {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                peer.close(Some(frame)).await.unwrap();
            }
            drop(peer);
            let end = handle.ended().await;
            assert!(matches!(end, ChannelEnd::Lost(_)), "case: {name}: {end}");
            match handle.disconnected().unwrap().loss {
                PathLoss::ClosedByService { age } => {
                    assert!(in_order && age <= now() - began, "case: {name}: {age:?}");
                }
                PathLoss::Broken => assert!(!in_order, "case: {name}"),
            }
        }
    }
}
