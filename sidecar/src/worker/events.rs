//! The worker's lines for stdout: sent to the monitor, which writes them.

use tokio::sync::mpsc;
use tracing::warn;

use crate::{
    ipc::{
        Frame,
        message::{ToMonitor, encode},
    },
    runtime::{event::Event, phase::Phase},
    tunnel::Events,
};

/// [`Events`] over the socket to the monitor.
#[derive(Clone, Debug)]
pub(super) struct MonitorEvents {
    /// `"events": true` of the config: more lines than `ready` and `failed`.
    all: bool,
    outbox: mpsc::Sender<Frame>,
}

impl MonitorEvents {
    pub(super) fn new(all: bool, outbox: mpsc::Sender<Frame>) -> Self {
        Self { all, outbox }
    }

    fn send(&self, message: &ToMonitor) {
        let sent = encode(message).map(|frame| self.outbox.try_send(frame).is_ok());
        if !matches!(sent, Ok(true)) {
            warn!(?message, "a message to the monitor is lost");
        }
    }
}

impl Events for MonitorEvents {
    fn ready(&self, port: u16) {
        self.send(&ToMonitor::TunnelReady(port));
    }

    fn event(&self, event: Event) {
        if self.all {
            self.send(&ToMonitor::Event(event));
        }
    }

    fn phase(&self, phase: Phase) {
        self.send(&ToMonitor::Phase(phase));
    }
}
