//! `exec`: the tunnel for as long as a command runs.
//!
//! A runner like any other, in front of the same binary: it starts a sidecar with a pipe on its stdin, waits
//! for `ready` on its stdout, starts the command, and closes the pipe when that has ended. So the command is no
//! child of the process that holds the secrets, inherits none of its restrictions, and its stdout is its own;
//! and should this process be killed, the pipe closes and the sidecar ends the session.

mod reaper;
mod signals;

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{ExitStatus as Ended, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runner_protocol::{Failure, Line};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    runtime,
    time::timeout,
};

use crate::{
    commands::{
        error::Error,
        run::{read_document_bytes, write_termination_log},
    },
    runtime::{hardening, phase::Phase, terminal},
};

use reaper::Reaper;
use signals::Signals;

/// What to run, and with what tunnel.
#[derive(Clone, Debug)]
pub struct Exec {
    /// The document.
    pub config: PathBuf,
    /// Program and arguments; `{port}` in them becomes the tunnel's port.
    pub command: Vec<OsString>,
    /// For the sidecar's own command line, such as `--log-format json`.
    pub options: Vec<OsString>,
}

/// Runs the command with the tunnel up and returns the status to exit with: the command's own, 128 and the
/// number of the signal that ended it, or that of the tunnel's failure, which is told on stderr. Blocks.
pub fn run(exec: &Exec) -> u8 {
    hardening::hide();
    let outcome = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(supervise(exec));
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(defect(&format!("no runtime: {error}"))),
    };
    outcome.unwrap_or_else(|failure| {
        terminal::print(&failure);
        write_termination_log(&failure);
        failure.exit_status().code()
    })
}

async fn supervise(exec: &Exec) -> Result<u8, Failure> {
    let mut signals = Signals::listen().map_err(|error| defect(&error.to_string()))?;
    let reaper = Reaper::start();
    let document =
        read_document_bytes(&exec.config).map_err(|error| error.into_failure(Phase::Config))?;
    let mut tunnel = Tunnel::start(&exec.options).map_err(|error| defect(&error.to_string()))?;
    reaper.leave(&tunnel.process);
    tokio::select! {
        // A sidecar that is gone says why on its stdout.
        _ = tunnel.give(&document) => (),
        signal = signals.next() => return Ok(tunnel.end_after(signal).await),
    }
    drop(document);
    let port = tokio::select! {
        port = tunnel.ready() => port?,
        signal = signals.next() => return Ok(tunnel.end_after(signal).await),
    };
    let status = match start(&exec.command, port) {
        Ok(command) => {
            reaper.leave(&command);
            attend(command, &mut tunnel, &mut signals).await
        }
        Err(error) => Ok(not_started(&exec.command, &error)),
    };
    tunnel.end().await;
    status
}

/// Waits for the command; ends it when the tunnel is lost, since nothing that it could still do would succeed.
async fn attend(
    mut command: Child,
    tunnel: &mut Tunnel,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let failure = loop {
        tokio::select! {
            biased;
            ended = command.wait() => return ended.map(status_of).map_err(|error| defect(&error.to_string())),
            signal = signals.next() => forward(&command, signal),
            failure = tunnel.lost() => break failure,
        }
    };
    forward(&command, Signal::SIGTERM);
    if timeout(AFTER_LOSS, command.wait()).await.is_err() {
        forward(&command, Signal::SIGKILL);
        // Whatever it ended with, the loss is what there is to tell.
        let _ended = command.wait().await;
    }
    Err(failure)
}

fn start(command: &[OsString], port: u16) -> io::Result<Child> {
    let port = port.to_string();
    let mut words = command.iter().map(|word| with_port(word, &port));
    let program = words.next().unwrap_or_default();
    Command::new(program).args(words).env(PORT, &port).spawn()
}

fn with_port(word: &OsStr, port: &str) -> OsString {
    let mut result = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some(at) = rest.windows(PLACE.len()).position(|window| window == PLACE) {
        let (before, behind) = rest.split_at(at);
        result.extend_from_slice(before);
        result.extend_from_slice(port.as_bytes());
        rest = behind.get(PLACE.len()..).unwrap_or_default();
    }
    result.extend_from_slice(rest);
    OsStr::from_bytes(&result).to_owned()
}

/// As `env` and shells say it: 127 where there is no such program, 126 where it cannot be run.
fn not_started(command: &[OsString], error: &io::Error) -> u8 {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    terminal::say(&format!("ssm-sidecar: `{program}` cannot be started: {error}"));
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

fn status_of(ended: Ended) -> u8 {
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn forward(command: &Child, signal: Signal) {
    let Some(pid) = command.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // It may just have ended.
    let _gone = kill(Pid::from_raw(pid), signal);
}

fn defect(what: &str) -> Failure {
    Error::Internal(what.to_owned()).into_failure(Phase::Config)
}

/// The sidecar that holds the tunnel.
struct Tunnel {
    process: Child,
    lease: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tunnel {
    fn start(options: &[OsString]) -> io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command
            .arg("run")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at a terminal is for the command, as when psql cancels a query.
            .process_group(0)
            .kill_on_drop(true);
        if env::var_os(LEVEL).is_none() {
            // The screen is the command's.
            command.env(LEVEL, "warn");
        }
        let mut process = command.spawn()?;
        let lease = process.stdin.take();
        let lines = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, lease, lines: BufReader::new(lines).lines() })
    }

    async fn give(&mut self, document: &[u8]) -> io::Result<()> {
        let lease = self.lease.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        lease.write_all(document).await?;
        // A document without its last brace is found out at the end of input.
        if !document.trim_ascii_end().ends_with(b"}") {
            self.lease = None;
        }
        Ok(())
    }

    async fn ready(&mut self) -> Result<u16, Failure> {
        loop {
            match self.line().await {
                Some(Line::Ready(port)) => return Ok(port),
                Some(Line::Failed(failure)) => return Err(failure),
                Some(_) => (),
                None => return Err(self.vanished().await),
            }
        }
    }

    /// Completes when the tunnel has failed. Cancel-safe.
    async fn lost(&mut self) -> Failure {
        loop {
            match self.line().await {
                Some(Line::Failed(failure)) => return failure,
                Some(_) => (),
                None => return self.vanished().await,
            }
        }
    }

    /// The next line of the contract; `None` at the end of its stdout. Cancel-safe.
    async fn line(&mut self) -> Option<Line> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            if let Some(line) = Line::parse(&line) {
                return Some(line);
            }
        }
    }

    async fn vanished(&mut self) -> Failure {
        match self.process.wait().await {
            Ok(ended) => defect(&format!("the tunnel's process has gone: {ended}")),
            Err(error) => defect(&error.to_string()),
        }
    }

    /// Ends the session and waits for that.
    async fn end(&mut self) {
        self.lease = None;
        if timeout(END, self.process.wait()).await.is_err() {
            terminal::say("ssm-sidecar: the tunnel did not end in time and is killed");
        }
    }

    /// The same when `signal` came before there was a command to have it.
    async fn end_after(&mut self, signal: Signal) -> u8 {
        self.end().await;
        u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
    }
}

/// Names the port to the command.
const PORT: &str = "SSM_SIDECAR_PORT";

/// Becomes the port in the command's arguments.
const PLACE: &[u8] = b"{port}";

/// Sets the level of the logs.
const LEVEL: &str = "RUST_LOG";

/// For the sidecar to end: its own limit is 5 s.
const END: Duration = Duration::from_secs(8);

/// For the command to end after SIGTERM when its tunnel is lost.
const AFTER_LOSS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_stands_wherever_the_place_does() {
        for (word, expected) in [
            ("{port}", "4711"),
            ("--port={port}", "--port=4711"),
            ("host=h port={port} {port}", "host=h port=4711 4711"),
            ("{Port}", "{Port}"),
            ("{port", "{port"),
            ("", ""),
        ] {
            assert_eq!(with_port(OsStr::new(word), "4711"), expected, "case: {word}");
        }
    }

    #[test]
    fn status_is_the_commands_own_or_names_its_signal() {
        assert_eq!(status_of(Ended::from_raw(3 << 8)), 3);
        assert_eq!(status_of(Ended::from_raw(15)), 143);
    }
}
