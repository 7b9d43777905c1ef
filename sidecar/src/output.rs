//! Stdout, the sidecar's side of the contract: few lines, each flushed, and its loss noticed.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use runner_protocol::Line;
use tokio::io::Interest;
use tracing::warn;

use crate::lease::watch;

/// Writes contract lines to stdout.
#[derive(Debug)]
pub struct Output {
    /// Whether the runner asked for the further lines (`"events": true`).
    events: bool,
}

impl Output {
    /// `events`: whether lines other than `ready` and `failed` are wanted.
    pub fn new(events: bool) -> Self {
        Self { events }
    }

    /// Writes a line that every runner gets.
    ///
    /// # Errors
    ///
    /// When stdout is gone, which ends the lease.
    pub fn line(&self, line: &Line) -> io::Result<()> {
        let text = format!("{line}\n");
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Writes a line that only a runner which asked for events gets; a failure shows at
    /// [`closed`] anyway.
    pub fn event(&self, line: &Line) {
        if self.events
            && let Err(error) = self.line(line)
        {
            warn!(%error, "stdout refused an event");
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
