//! Stdout: one line of the contract at a time, each flushed; a reader that is gone ends the lease.
//!
//! The monitor alone writes here. Lines go through a queue to a thread, since stdout cannot be made
//! non-blocking: other processes may share its open file description.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        LazyLock,
        mpsc::{self, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use runner_protocol::Line;
use tokio::io::Interest;
use tracing::{debug, warn};

use super::stdin::watch;

/// Queues a line for stdout, behind those before it. Never waits: a runner that does not read must not delay the
/// end of the lease and of the sessions.
///
/// # Errors
///
/// When stdout is closed, which ends the lease, or when [`QUEUE`] lines are unread, so that this one is dropped.
pub(crate) fn print(line: &Line) -> io::Result<()> {
    let writer = &*WRITER;
    *writer.unwritten.lock() += 1;
    writer.queue.try_send(format!("{line}\n")).or_else(|refused| {
        *writer.unwritten.lock() -= 1;
        match refused {
            TrySendError::Full(_) => Err(io::ErrorKind::WouldBlock.into()),
            // The thread could not be started: write here, although that may block.
            TrySendError::Disconnected(text) => write(&text),
        }
    })
}

/// Waits until every line is written, or `limit` has passed. Blocks.
pub(crate) fn flush(limit: Duration) {
    let writer = &*WRITER;
    let mut unwritten = writer.unwritten.lock();
    if writer.written.wait_while_for(&mut unwritten, |lines| *lines > 0, limit).timed_out() {
        warn!("stdout is not read, lines are lost");
    }
}

/// Completes when the reader of stdout has closed it; never where stdout is a file or a terminal. Cancel-safe.
pub(crate) async fn closed() {
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
            // Writable: wait for the next change.
            guard.clear_ready();
        }
    }
    std::future::pending::<()>().await;
}

struct Writer {
    queue: SyncSender<String>,
    /// Lines in the queue and the one being written.
    unwritten: Mutex<usize>,
    written: Condvar,
}

static WRITER: LazyLock<Writer> = LazyLock::new(|| {
    let (queue, lines) = mpsc::sync_channel::<String>(QUEUE);
    let thread = thread::Builder::new().name("stdout".to_owned()).spawn(move || {
        for line in lines {
            if let Err(error) = write(&line) {
                // `closed` ends the job.
                debug!(%error, "stdout cannot be written");
            }
            *WRITER.unwritten.lock() -= 1;
            WRITER.written.notify_all();
        }
    });
    if let Err(error) = thread {
        warn!(%error, "no thread for stdout: a runner that does not read it delays the end");
    }
    Writer { queue, unwritten: Mutex::new(0), written: Condvar::new() }
});

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Lines that may wait for a runner that does not read.
const QUEUE: usize = 1024;

/// For a pipe without a reader the kernel reports an error, for a socket only that it is closed for writing. Runners on
/// Node.js give their children sockets.
const INTEREST: Interest = Interest::WRITABLE.add(Interest::ERROR);
