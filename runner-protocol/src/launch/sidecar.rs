//! A sidecar that runs.

use std::{io, time::Duration};

use nix::{
    sys::{signal::Signal, wait::WaitStatus},
    unistd::Pid,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::{
    isolation::Refused,
    metrics::{self, Metrics},
    output::Output,
    supervisor::{Child, GRACE, TERMINATE_GRACE},
};
use crate::{ExitStatus, Failure, Line, Secret, Summary};

/// A sidecar, and the job's lease on it.
///
/// When this is dropped the lease ends: the sidecar terminates its sessions and exits, by itself within 5 s,
/// else by SIGTERM and SIGKILL; it is waited for in the background, by no task of this runtime.
#[derive(Debug)]
pub struct Sidecar {
    stdin: Option<pipe::Sender>,
    output: Output,
    child: Child,
    refused: Vec<Refused>,
}

/// The tunnel is up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ready {
    /// Where clients connect, in the network namespace of the listener.
    pub port: u16,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The sidecar said why, and ends.
    #[error("{}", .0.message)]
    Failed(Box<Failure>),
    /// It ended without a word.
    #[error("the sidecar ended {0}")]
    Ended(Ended),
    /// The kernel does not say how it ended.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How a sidecar ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its exit status; `None`: a signal, or a status that is not of the contract.
    pub status: Option<ExitStatus>,
    /// The code that it exited with; `None`: by a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What the runner did beyond ending the lease.
    pub force: Option<Force>,
    /// What it said on stdout at the end.
    pub failure: Option<Box<Failure>>,
    /// What it carried, where the document has `"events": true`.
    pub summary: Option<Summary>,
}

/// What it took to end a sidecar that did not when it was asked to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Force {
    /// SIGTERM.
    Terminated,
    /// SIGKILL: sessions may be left to their idle time-out.
    Killed,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(formatter, "with status {code}"),
            (None, Some(signal)) => write!(formatter, "by signal {signal}"),
            (None, None) => formatter.write_str("in an unknown way"),
        }
    }
}

impl Sidecar {
    pub(super) fn new(
        child: Child,
        stdin: pipe::Sender,
        output: Output,
        refused: Vec<Refused>,
    ) -> Self {
        Self { stdin: Some(stdin), output, child, refused }
    }

    /// Waits until the tunnel is up. The sidecar gives up by itself after `timeouts.ready_s`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`NotReady`] where it never will be.
    pub async fn ready(&mut self) -> Result<Ready, NotReady> {
        let over = self
            .output
            .said
            .wait_for(|said| said.is_over || said.ready.is_some() || said.failure.is_some());
        let (ready, failure) = match over.await {
            Ok(said) => (said.ready, said.failure.clone()),
            Err(_) => (None, None),
        };
        if let Some(failure) = failure {
            return Err(NotReady::Failed(Box::new(failure)));
        }
        match ready {
            Some(port) => Ok(Ready { port }),
            None => Err(NotReady::Ended(self.ended().await?)),
        }
    }

    /// The next line other than `ready` and `failed`, where the document has `"events": true`; `None` once
    /// there will be no more. Those beyond 256 that nobody asked for are lost. Cancel-safe.
    pub async fn event(&mut self) -> Option<Line> {
        self.output.events.recv().await
    }

    /// Waits until it ends of itself, which means that the tunnel is lost. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        // Listened to first, so that no end falls between look and wait.
        let mut children = signal(SignalKind::child())?;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            children.recv().await;
        };
        // What it said last is in the pipe; a process that it left there would keep that open.
        drop(timeout(LAST_WORDS, self.output.said.wait_for(|said| said.is_over)).await);
        let said = self.output.said.borrow().clone();
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (Some(code), None),
            WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        let status = code.and_then(ExitStatus::from_code);
        let failure = said.failure.map(Box::new);
        Ok(Ended { status, code, signal, force: None, failure, summary: said.summary })
    }

    /// Ends it: the lease, and 6 s to terminate its sessions; SIGTERM, and 2 s; SIGKILL.
    ///
    /// Cancel-safe: where this is dropped the same goes on in the background.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled or waited for.
    pub async fn end(mut self) -> io::Result<Ended> {
        drop(self.stdin.take());
        let mut force = None;
        for (grace, next, signal) in [
            (GRACE, Force::Terminated, Signal::SIGTERM),
            (TERMINATE_GRACE, Force::Killed, Signal::SIGKILL),
        ] {
            if let Ok(ended) = timeout(grace, self.ended()).await {
                return ended.map(|ended| Ended { force, ..ended });
            }
            self.child.signal(signal)?;
            force = Some(next);
        }
        self.ended().await.map(|ended| Ended { force, ..ended })
    }

    /// Replaces the AWS keys of a job that outlives them. Not cancel-safe: half a line is ignored, with the
    /// next one.
    ///
    /// # Errors
    ///
    /// When it no longer reads.
    pub async fn renew_keys(
        &mut self,
        access_key_id: &str,
        secret_access_key: &Secret,
        session_token: Option<&Secret>,
    ) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let line = keys_line(access_key_id, secret_access_key, session_token)?;
        stdin.write_all(line.as_bytes()).await
    }

    /// What it uses now.
    ///
    /// # Errors
    ///
    /// When it has ended, or `/proc` does not show it.
    pub fn metrics(&self) -> io::Result<Metrics> {
        metrics::of(self.child.id().ok_or(io::ErrorKind::NotFound)?)
    }

    /// The protections that this host does not give.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Its process id in the runner's PID namespace; `None` once it has been waited for.
    pub fn pid(&self) -> Option<i32> {
        self.child.id().map(Pid::as_raw)
    }
}

fn keys_line(
    access_key_id: &str,
    secret_access_key: &Secret,
    session_token: Option<&Secret>,
) -> io::Result<zeroize::Zeroizing<String>> {
    let mut line = zeroize::Zeroizing::new(String::with_capacity(LINE_BYTES));
    line.push_str(r#"{"type":"credentials""#);
    let fields = [
        ("access_key_id", Some(access_key_id)),
        ("secret_access_key", Some(secret_access_key.expose())),
        ("session_token", session_token.map(Secret::expose)),
    ];
    for (name, text) in fields {
        if let Some(text) = text {
            let text = zeroize::Zeroizing::new(serde_json::to_string(text)?);
            for piece in [",\"", name, "\":", &text] {
                line.push_str(piece);
            }
        }
    }
    line.push_str("}\n");
    Ok(line)
}

/// For the last lines to be read once the process has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Room enough that the line is not copied as it grows.
const LINE_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, MessageReader};

    #[test]
    fn renewed_keys_are_a_message() {
        let secret = Secret::new("a\"b\\".to_owned());
        for token in [None, Some(&secret)] {
            let line = keys_line("AKIAIOSFODNN7EXAMPLE", &secret, token).unwrap();
            let messages = MessageReader::new().push(line.as_bytes());
            let [Ok(Message::Credentials(keys))] = messages.as_slice() else { panic!() };
            assert_eq!(keys.secret_access_key.expose(), "a\"b\\");
            assert_eq!(keys.session_token.is_some(), token.is_some());
        }
    }
}
