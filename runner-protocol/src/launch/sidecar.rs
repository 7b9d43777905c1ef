//! A running sidecar.

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
    isolation::MissingProtection,
    metrics::{self, Metrics},
    output::Output,
    supervisor::{Child, GRACE, TERMINATE_GRACE},
};
use crate::{
    failure::{ExitStatus, Failure},
    line::{Line, Summary},
    secret::Secret,
};

/// A sidecar, and the job's lease on it.
///
/// When this is dropped the lease ends: the sidecar terminates its sessions and exits within 5 s. If it does not,
/// it gets SIGTERM and then SIGKILL. A thread waits for it in the background, so this works without an async
/// runtime.
#[derive(Debug)]
pub struct Sidecar {
    stdin: Option<pipe::Sender>,
    output: Output,
    child: Child,
    missing_protections: Vec<MissingProtection>,
}

/// The tunnel is up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ready {
    /// The port that clients connect to, in the network namespace of the listener.
    pub port: u16,
}

/// Why the tunnel did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The sidecar reported the reason, and exits.
    #[error("{}", .0.message)]
    Failed(Box<Failure>),
    /// It exited without a `failed` line.
    #[error("the sidecar exited {0}")]
    Exited(Exit),
    /// It cannot be waited for.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How a sidecar exited.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exit {
    /// The exit status; `None` after a signal, and for a code that is not in the contract.
    pub status: Option<ExitStatus>,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The signal that was needed after the end of the lease, if any.
    pub force: Option<Force>,
    /// Its `failed` line.
    pub failure: Option<Box<Failure>>,
    /// Its `closed` line, if the config has `"events": true`.
    pub summary: Option<Summary>,
}

/// The last signal sent to a sidecar that did not exit at the end of its lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Force {
    /// SIGTERM.
    Terminated,
    /// SIGKILL. Sessions may stay open until their idle time-out.
    Killed,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(formatter, "with status {code}"),
            (None, Some(signal)) => write!(formatter, "by signal {signal}"),
            (None, None) => formatter.write_str("with an unknown status"),
        }
    }
}

impl Sidecar {
    pub(super) fn new(
        child: Child,
        stdin: pipe::Sender,
        output: Output,
        missing_protections: Vec<MissingProtection>,
    ) -> Self {
        Self { stdin: Some(stdin), output, child, missing_protections }
    }

    /// Waits until the tunnel is up. The sidecar itself fails after `timeouts.ready_s`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`NotReady`] if the sidecar fails or exits.
    pub async fn ready(&mut self) -> Result<Ready, NotReady> {
        let decided = self
            .output
            .stdout
            .wait_for(|state| state.is_closed || state.ready.is_some() || state.failure.is_some());
        let (ready, failure) = match decided.await {
            Ok(state) => (state.ready, state.failure.clone()),
            Err(_) => (None, None),
        };
        if let Some(failure) = failure {
            return Err(NotReady::Failed(Box::new(failure)));
        }
        match ready {
            Some(port) => Ok(Ready { port }),
            None => Err(NotReady::Exited(self.wait().await?)),
        }
    }

    /// Waits for the next line other than `ready` and `failed`; there are such lines if the config has
    /// `"events": true`. `None` once stdout is closed. At most 256 lines are queued, further ones are dropped.
    /// Cancel-safe.
    pub async fn event(&mut self) -> Option<Line> {
        self.output.events.recv().await
    }

    /// Waits until the sidecar exits by itself, which means that the tunnel has failed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        // Subscribed first, so that an exit between the check and the wait is not missed.
        let mut children = signal(SignalKind::child())?;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            children.recv().await;
        };
        // Its last lines may still be in the pipe. With a limit: a process that it has left behind keeps the pipe
        // open.
        drop(timeout(DRAIN_TIMEOUT, self.output.stdout.wait_for(|state| state.is_closed)).await);
        let state = self.output.stdout.borrow().clone();
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (Some(code), None),
            WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        let status = code.and_then(ExitStatus::from_code);
        let failure = state.failure.map(Box::new);
        Ok(Exit { status, code, signal, force: None, failure, summary: state.summary })
    }

    /// Stops the sidecar: ends the lease and waits 6 s for it to terminate its sessions and exit; then SIGTERM and
    /// 2 s; then SIGKILL.
    ///
    /// Cancel-safe: if dropped, the same continues in the background.
    ///
    /// # Errors
    ///
    /// If it cannot be signalled or waited for.
    pub async fn stop(mut self) -> io::Result<Exit> {
        drop(self.stdin.take());
        let mut force = None;
        for (grace, next, signal) in [
            (GRACE, Force::Terminated, Signal::SIGTERM),
            (TERMINATE_GRACE, Force::Killed, Signal::SIGKILL),
        ] {
            if let Ok(exit) = timeout(grace, self.wait()).await {
                return exit.map(|exit| Exit { force, ..exit });
            }
            self.child.signal(signal)?;
            force = Some(next);
        }
        self.wait().await.map(|exit| Exit { force, ..exit })
    }

    /// Replaces the AWS keys, for a job that runs longer than its temporary keys are valid. Not cancel-safe: if
    /// dropped, part of the line may have been written, and the sidecar then ignores it together with the next
    /// line.
    ///
    /// # Errors
    ///
    /// If the sidecar has closed its stdin.
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

    /// Its current resource usage.
    ///
    /// # Errors
    ///
    /// If it has been waited for, or `/proc` cannot be read.
    pub fn metrics(&self) -> io::Result<Metrics> {
        metrics::of(self.child.id().ok_or(io::ErrorKind::NotFound)?)
    }

    /// The protections that this host does not support; empty with
    /// [`Isolation::Required`](super::Isolation::Required).
    pub fn missing_protections(&self) -> &[MissingProtection] {
        &self.missing_protections
    }

    /// The process id in the runner's PID namespace; `None` once it has been waited for.
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
            for part in [",\"", name, "\":", &text] {
                line.push_str(part);
            }
        }
    }
    line.push_str("}\n");
    Ok(line)
}

/// How long the last lines may take to be read once the process has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Capacity of the line: enough that it never grows, which would leave copies in memory that are not wiped.
const LINE_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, MessageReader};

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
