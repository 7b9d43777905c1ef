//! Stdout, the sidecar's side of the contract: few lines, each flushed, and its loss noticed.
//!
//! The monitor alone writes there; the worker tells it what there is to say.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use runner_protocol::Line;
use tokio::{io::Interest, sync::mpsc};
use tracing::warn;

use crate::{
    lease::watch,
    link::{
        Frame,
        wire::{ToMonitor, encode},
    },
    progress::Phase,
};

/// Writes a line to stdout.
///
/// # Errors
///
/// When stdout is gone, which ends the lease.
pub fn print(line: &Line) -> io::Result<()> {
    let text = format!("{line}\n");
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What the worker has to say on stdout, by way of the monitor.
#[derive(Debug)]
pub struct Output {
    /// Whether the runner asked for the further lines (`"events": true`).
    events: bool,
    outbox: mpsc::Sender<Frame>,
}

impl Output {
    /// `events`: whether lines other than `ready` and `failed` are wanted.
    pub fn new(events: bool, outbox: mpsc::Sender<Frame>) -> Self {
        Self { events, outbox }
    }

    /// Says a line that every runner gets.
    pub fn line(&self, line: &Line) {
        self.tell(&ToMonitor::Line(line.to_string()));
    }

    /// Says a line that only a runner which asked for events gets.
    pub fn event(&self, line: &Line) {
        if self.events {
            self.line(line);
        }
    }

    /// Says that a phase has begun, which is an event and what a failure of the monitor's names.
    pub fn phase(&self, phase: Phase) {
        self.tell(&ToMonitor::Phase(phase.name().to_owned()));
    }

    fn tell(&self, message: &ToMonitor) {
        let sent = encode(message).map(|frame| self.outbox.try_send(frame).is_ok());
        if !matches!(sent, Ok(true)) {
            warn!(?message, "the monitor was not told");
        }
    }
}

/// Completes when nobody reads stdout any more; never, when it is a file or a terminal. Cancel-safe.
pub async fn closed() {
    let watched = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|copy| watch(copy, Interest::ERROR).map_err(|refused| refused.into_parts().1));
    match watched {
        Ok(watched) => {
            if watched.ready(Interest::ERROR).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Err(_) => std::future::pending().await,
    }
}
