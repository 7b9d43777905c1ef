//! The load: clients read, write, query, and compare every byte.

use std::{
    io,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::{Instant, sleep, timeout},
};

/// Results of all clients of a customer so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<Mutex<Counts>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) compared: u64,
    pub(super) differing: Vec<String>,
    pub(super) transfers: u64,
    pub(super) transactions: u64,
    pub(super) cut: u64,
}

impl Tally {
    pub(super) fn note(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads with `command` repeatedly until `end`, and expects all of `expected`, or its beginning if the
/// client was cut off.
pub(super) async fn read_again_and_again(
    what: &str,
    command: impl Fn() -> Command,
    expected: &[u8],
    tally: &Tally,
    end: Instant,
) {
    while Instant::now() < end {
        match read_once(command(), expected).await {
            Ok(Read::Whole) => tally.note(|counts| {
                counts.transfers += 1;
                counts.compared += expected.len() as u64;
            }),
            Ok(Read::Cut(bytes)) => {
                tally.note(|counts| {
                    counts.cut += 1;
                    counts.compared += bytes as u64;
                });
                sleep(BEFORE_AGAIN).await;
            }
            Ok(Read::Differs(at)) => tally.note(|counts| {
                counts.differing.push(format!("{what}: differs at byte {at}"));
            }),
            Err(error) => tally.note(|counts| counts.differing.push(format!("{what}: {error}"))),
        }
    }
}

enum Read {
    Whole,
    /// The client failed after this many correct bytes.
    Cut(usize),
    Differs(usize),
}

async fn read_once(mut command: Command, expected: &[u8]) -> io::Result<Read> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let Some(mut stdout) = child.stdout.take() else { return Err(io::ErrorKind::Other.into()) };
    let mut buffer = vec![0; 1 << 16];
    let mut rest = expected;
    let reading = async {
        loop {
            let count = stdout.read(&mut buffer).await?;
            let got = buffer.get(..count).unwrap_or_default();
            if count == 0 {
                return Ok(None);
            }
            match rest.split_at_checked(count) {
                Some((next, after)) if next == got => rest = after,
                _ => return Ok(Some(expected.len() - rest.len())),
            }
        }
    };
    let Ok(outcome) = timeout(STUCK, reading).await else {
        return Err(io::Error::other(format!("stuck after {} bytes", expected.len() - rest.len())));
    };
    let outcome: io::Result<Option<usize>> = outcome;
    if let Some(at) = outcome? {
        return Ok(Read::Differs(at));
    }
    let read = expected.len() - rest.len();
    let status = child.wait().await?;
    Ok(match (status.success(), rest.is_empty()) {
        (true, true) => Read::Whole,
        (true, false) => Read::Differs(read),
        (false, _) => Read::Cut(read),
    })
}

/// Writes `bytes` with `command` repeatedly until `end`, and compares what `direct` then reads without the
/// tunnel.
pub(super) async fn write_again_and_again(
    what: &str,
    command: impl Fn() -> Command,
    direct: impl Fn() -> Command,
    bytes: &[u8],
    tally: &Tally,
    end: Instant,
) {
    while Instant::now() < end {
        match write_once(command(), bytes).await {
            Ok(true) => match read_once(direct(), bytes).await {
                Ok(Read::Whole) => tally.note(|counts| {
                    counts.transfers += 1;
                    counts.compared += bytes.len() as u64;
                }),
                Ok(Read::Differs(at) | Read::Cut(at)) => tally.note(|counts| {
                    counts.differing.push(format!("{what}: what was written differs at byte {at}"));
                }),
                Err(error) => {
                    tally.note(|counts| counts.differing.push(format!("{what}: {error}")));
                }
            },
            Ok(false) => {
                tally.note(|counts| counts.cut += 1);
                sleep(BEFORE_AGAIN).await;
            }
            Err(error) => tally.note(|counts| counts.differing.push(format!("{what}: {error}"))),
        }
    }
}

/// Whether the client reported that everything was written.
async fn write_once(mut command: Command, bytes: &[u8]) -> io::Result<bool> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let Some(mut stdin) = child.stdin.take() else { return Err(io::ErrorKind::Other.into()) };
    let writing = async {
        // A client that was cut off stops reading; its exit status shows that.
        drop(stdin.write_all(bytes).await);
        drop(stdin);
        child.wait().await
    };
    match timeout(STUCK, writing).await {
        Ok(status) => Ok(status?.success()),
        Err(_) => Err(io::Error::other("stuck")),
    }
}

/// Runs `command` repeatedly until `end`; `count` evaluates its stdout.
pub(super) async fn run_again_and_again(
    command: impl Fn() -> Command,
    count: impl Fn(&str, &mut Counts),
    tally: &Tally,
    end: Instant,
) {
    while Instant::now() < end {
        let output = timeout(STUCK, command().stdin(Stdio::null()).output()).await;
        match output {
            Ok(Ok(output)) => {
                let text = String::from_utf8_lossy(&output.stdout);
                tally.note(|counts| {
                    counts.cut += u64::from(!output.status.success());
                    count(&text, counts);
                });
                if !output.status.success() {
                    sleep(BEFORE_AGAIN).await;
                }
            }
            Ok(Err(error)) => tally.note(|counts| counts.differing.push(error.to_string())),
            Err(_) => tally.note(|counts| counts.differing.push("a client is stuck".to_owned())),
        }
    }
}

/// Longer than any transfer of this size takes under all faults.
const STUCK: Duration = Duration::from_mins(4);

/// Pause of a client that was cut off.
const BEFORE_AGAIN: Duration = Duration::from_millis(300);
