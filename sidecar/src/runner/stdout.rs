//! Stdout, the sidecar's side of the contract: few lines, each flushed, and its loss noticed.
//!
//! The monitor alone writes there; the worker tells it what there is to say.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        mpsc::{self as mpsc_sync, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use runner_protocol::Line;
use tokio::{io::Interest, sync::mpsc};
use tracing::{debug, warn};

use crate::{
    ipc::{
        Frame,
        message::{ToMonitor, encode},
    },
    runner::stdin::watch,
    runtime::phase::Phase,
};

/// Has a line written to stdout, after those before it.
///
/// Never waits: a runner that does not read must not hold up the lease and the end of its sessions.
///
/// # Errors
///
/// When stdout is gone, which ends the lease, or when nobody has read it for so long that the line is dropped.
pub fn print(line: &Line) -> io::Result<()> {
    let writer = &*WRITER;
    *writer.lock() += 1;
    writer.queue.try_send(format!("{line}\n")).or_else(|refused| {
        *writer.lock() -= 1;
        match refused {
            TrySendError::Full(_) => Err(io::ErrorKind::WouldBlock.into()),
            // There is no thread to be had; what is said matters more than that it may wait.
            TrySendError::Disconnected(text) => write(&text),
        }
    })
}

/// Waits until every line is written, or `limit` has passed. Blocks.
pub fn flush(limit: Duration) {
    let writer = &*WRITER;
    let waited = writer.written.wait_timeout_while(writer.lock(), limit, |lines| *lines > 0);
    if waited.is_ok_and(|(_, outcome)| outcome.timed_out()) {
        warn!("nobody reads stdout, lines are lost");
    }
}

/// A thread that writes, as stdout cannot be made non-blocking: others may share its description.
struct Writer {
    queue: SyncSender<String>,
    /// Lines that are not written yet.
    unwritten: Mutex<usize>,
    written: Condvar,
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static WRITER: LazyLock<Writer> = LazyLock::new(|| {
    let (queue, lines) = mpsc_sync::sync_channel::<String>(QUEUE);
    let written = thread::Builder::new().name("stdout".to_owned()).spawn(move || {
        for line in lines {
            if let Err(error) = write(&line) {
                // `closed` ends the job.
                debug!(%error, "nobody reads stdout");
            }
            *WRITER.lock() -= 1;
            WRITER.written.notify_all();
        }
    });
    if let Err(error) = written {
        warn!(%error, "no thread for stdout: a runner that does not read it holds up the end");
    }
    Writer { queue, unwritten: Mutex::new(0), written: Condvar::new() }
});

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Lines that wait for a runner which does not read at the moment.
const QUEUE: usize = 1024;

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
        .and_then(|copy| watch(copy, INTEREST).map_err(|refused| refused.into_parts().1));
    if let Ok(watched) = watched {
        while let Ok(mut guard) = watched.ready(INTEREST).await {
            let ready = guard.ready();
            if ready.is_error() || ready.is_write_closed() {
                return;
            }
            // There is room, which is no news until there was none.
            guard.clear_ready();
        }
    }
    std::future::pending::<()>().await;
}

/// A pipe without a reader is an error, a socket without one only closed: some runners, such as Node's, make
/// sockets of a child's streams.
const INTEREST: Interest = Interest::WRITABLE.add(Interest::ERROR);
