//! Reads stdout and stderr of a sidecar as they arrive, so that the sidecar never blocks on its runner.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::unix::pipe,
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    failure::Failure,
    line::{Line, Summary},
};

/// Where a sidecar's log goes. The sidecar never waits for it: what is not consumed in time is dropped.
#[derive(Default)]
pub enum Stderr {
    /// To the runner's own stderr.
    #[default]
    Inherit,
    /// Nowhere.
    Discard,
    /// To this writer, in chunks as they arrive; at most 512 KiB are queued.
    Sink(Box<dyn AsyncWrite + Send + Unpin>),
}

impl std::fmt::Debug for Stderr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Inherit => "Inherit",
            Self::Discard => "Discard",
            Self::Sink(_) => "Sink(..)",
        })
    }
}

/// What has been read from stdout so far.
#[derive(Clone, Debug, Default)]
pub(super) struct StdoutState {
    pub(super) ready: Option<u16>,
    pub(super) failure: Option<Failure>,
    pub(super) summary: Option<Summary>,
    /// Whether stdout is closed.
    pub(super) is_closed: bool,
}

/// The tasks that read both pipes; they stop when this is dropped.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) stdout: watch::Receiver<StdoutState>,
    pub(super) events: mpsc::Receiver<Line>,
    _readers: JoinSet<()>,
}

impl Output {
    pub(super) fn read(
        stdout: pipe::Receiver,
        stderr: Option<(pipe::Receiver, Box<dyn AsyncWrite + Send + Unpin>)>,
    ) -> Self {
        let (state_sender, state) = watch::channel(StdoutState::default());
        let (sender, events) = mpsc::channel(EVENTS);
        let mut readers = JoinSet::new();
        readers.spawn(async move {
            // A read error counts as the end of stdout.
            drop(read_lines(stdout, |line| handle_line(line, &state_sender, &sender)).await);
            state_sender.send_modify(|state| state.is_closed = true);
        });
        if let Some((pipe, sink)) = stderr {
            let (sender, chunks) = mpsc::channel(CHUNKS);
            readers.spawn(write_chunks(chunks, sink));
            readers.spawn(async move { drop(read_chunks(pipe, sender).await) });
        }
        Self { stdout: state, events, _readers: readers }
    }
}

fn handle_line(line: &str, state: &watch::Sender<StdoutState>, events: &mpsc::Sender<Line>) {
    let Some(line) = Line::parse(line) else { return };
    state.send_modify(|state| match &line {
        Line::Ready(port) => state.ready = state.ready.or(Some(*port)),
        Line::Failed(failure) => state.failure = Some(failure.clone()),
        Line::Closed(summary) => state.summary = Some(summary.clone()),
        _ => {}
    });
    if !matches!(line, Line::Ready(_) | Line::Failed(_)) {
        // If the runner does not read events, those beyond the queue's capacity are dropped.
        drop(events.try_send(line));
    }
}

/// Calls `take` for each line; lines longer than [`LINE_BYTES`] are skipped.
async fn read_lines(
    mut pipe: impl AsyncRead + Unpin,
    mut take: impl FnMut(&str),
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut buffer = [0; 4096];
    loop {
        let length = pipe.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        for part in buffer.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == b'\n')
        {
            too_long |= line.len() + part.len() > LINE_BYTES;
            if !too_long {
                line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                if !too_long && let Ok(text) = std::str::from_utf8(&line) {
                    take(text);
                }
                line.clear();
                too_long = false;
            }
        }
    }
}

async fn read_chunks(mut pipe: pipe::Receiver, chunks: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if pipe.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        // Dropped if the queue is full: the sidecar must not block.
        drop(chunks.try_send(chunk));
    }
}

async fn write_chunks(
    mut chunks: mpsc::Receiver<Vec<u8>>,
    mut sink: Box<dyn AsyncWrite + Send + Unpin>,
) {
    while let Some(chunk) = chunks.recv().await {
        if sink.write_all(&chunk).await.is_err() {
            // The reader continues to drain the pipe; its sends fail, since the queue is closed.
            return;
        }
        // A failed flush shows as an error of the next write.
        drop(sink.flush().await);
    }
}

/// Longest line that is read; far above any line of the contract.
const LINE_BYTES: usize = 64 << 10;

/// Events that are queued until the runner reads them.
const EVENTS: usize = 256;

/// Largest chunk of the log.
const CHUNK_BYTES: usize = 8 << 10;

/// Chunks of the log that are queued for the sink.
const CHUNKS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_assembled_and_overlong_ones_skipped() {
        let mut bytes = b"ready 1\nhalf".to_vec();
        bytes.extend_from_slice(b" and half\n");
        bytes.extend(std::iter::repeat_n(b'x', 3 * LINE_BYTES));
        bytes.extend_from_slice(b"\n\xff\xfe\nlast\nwithout end");
        let mut lines = Vec::new();
        read_lines(bytes.as_slice(), |line| lines.push(line.trim_end().to_owned())).await.unwrap();
        assert_eq!(lines, ["ready 1", "half and half", "last"]);
    }
}
