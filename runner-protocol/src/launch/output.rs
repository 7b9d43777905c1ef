//! What a sidecar says, read as it comes, so that it never waits for its runner.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::unix::pipe,
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{Failure, Line, Summary};

/// Where a sidecar's log goes. Nothing of it ever waits: what is not taken in time is lost.
#[derive(Default)]
pub enum Stderr {
    /// To the runner's own stderr.
    #[default]
    Inherit,
    /// Nowhere.
    Discard,
    /// To this writer, in pieces as they come; 512 KiB wait for it at most.
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

/// What was said on stdout so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) ready: Option<u16>,
    pub(super) failure: Option<Failure>,
    pub(super) summary: Option<Summary>,
    /// Whether nothing more will come.
    pub(super) is_over: bool,
}

/// Readers of both pipes; they end with this.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) said: watch::Receiver<Said>,
    pub(super) events: mpsc::Receiver<Line>,
    _readers: JoinSet<()>,
}

impl Output {
    pub(super) fn read(
        stdout: pipe::Receiver,
        stderr: Option<(pipe::Receiver, Box<dyn AsyncWrite + Send + Unpin>)>,
    ) -> Self {
        let (teller, said) = watch::channel(Said::default());
        let (sender, events) = mpsc::channel(EVENTS);
        let mut readers = JoinSet::new();
        readers.spawn(async move {
            // A pipe that cannot be read says no more either.
            drop(read_lines(stdout, |line| note(line, &teller, &sender)).await);
            teller.send_modify(|said| said.is_over = true);
        });
        if let Some((pipe, sink)) = stderr {
            let (pieces, taken) = mpsc::channel(PIECES);
            readers.spawn(write_pieces(taken, sink));
            readers.spawn(async move { drop(read_pieces(pipe, pieces).await) });
        }
        Self { said, events, _readers: readers }
    }
}

fn note(line: &str, teller: &watch::Sender<Said>, events: &mpsc::Sender<Line>) {
    let Some(line) = Line::parse(line) else { return };
    teller.send_modify(|said| match &line {
        Line::Ready(port) => said.ready = said.ready.or(Some(*port)),
        Line::Failed(failure) => said.failure = Some(failure.clone()),
        Line::Closed(summary) => said.summary = Some(summary.clone()),
        _ => {}
    });
    if !matches!(line, Line::Ready(_) | Line::Failed(_)) {
        // A runner that asks for none gets those that fit.
        drop(events.try_send(line));
    }
}

/// Gives each line that is not longer than [`LINE_BYTES`] to `take`.
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
        for piece in buffer.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == b'\n')
        {
            too_long |= line.len() + piece.len() > LINE_BYTES;
            if !too_long {
                line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !too_long && let Ok(text) = std::str::from_utf8(&line) {
                    take(text);
                }
                line.clear();
                too_long = false;
            }
        }
    }
}

async fn read_pieces(mut pipe: pipe::Receiver, pieces: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if pipe.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        // Where it does not fit it is lost: the sidecar must not wait.
        drop(pieces.try_send(piece));
    }
}

async fn write_pieces(
    mut pieces: mpsc::Receiver<Vec<u8>>,
    mut sink: Box<dyn AsyncWrite + Send + Unpin>,
) {
    while let Some(piece) = pieces.recv().await {
        if sink.write_all(&piece).await.is_err() {
            // Goes on to be emptied by the reader, which finds the queue closed.
            return;
        }
        // As with the write.
        drop(sink.flush().await);
    }
}

/// Far above any line of the contract.
const LINE_BYTES: usize = 64 << 10;

/// Events that wait for a runner to ask.
const EVENTS: usize = 256;

const PIECE_BYTES: usize = 8 << 10;
const PIECES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_found_in_pieces_and_giants_are_skipped() {
        let mut bytes = b"ready 1\nhalf".to_vec();
        bytes.extend_from_slice(b" and half\n");
        bytes.extend(std::iter::repeat_n(b'x', 3 * LINE_BYTES));
        bytes.extend_from_slice(b"\n\xff\xfe\nlast\nwithout end");
        let mut lines = Vec::new();
        read_lines(bytes.as_slice(), |line| lines.push(line.trim_end().to_owned())).await.unwrap();
        assert_eq!(lines, ["ready 1", "half and half", "last"]);
    }
}
