//! Signals that end the job.

use std::future::pending;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// Handles the signals that request a stop, from the call on; the future completes with the name of the first one. A
/// closed terminal (SIGHUP) and Ctrl-\\ (SIGQUIT) are among them: by default they would end the process
/// and leave its sessions.
pub(crate) fn stop_signal() -> impl Future<Output = &'static str> {
    let signals = [
        ("SIGTERM", SignalKind::terminate()),
        ("SIGINT", SignalKind::interrupt()),
        ("SIGHUP", SignalKind::hangup()),
        ("SIGQUIT", SignalKind::quit()),
    ];
    let mut received = FuturesUnordered::new();
    for (name, kind) in signals {
        match signal(kind) {
            Ok(mut signal) => received.push(async move {
                match signal.recv().await {
                    Some(()) => name,
                    None => pending().await,
                }
            }),
            Err(error) => warn!(signal = name, %error, "the signal cannot be handled"),
        }
    }
    async move {
        match received.next().await {
            Some(name) => name,
            None => pending().await,
        }
    }
}
