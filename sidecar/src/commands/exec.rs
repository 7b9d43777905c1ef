//! `exec`: the tunnel for as long as a command runs.
//!
//! A runner in front of the same binary: it starts a sidecar with a pipe as stdin, waits for `ready` on its stdout,
//! starts the command, and closes the pipe when the command has ended. So the command is no child of the process that
//! holds the secrets, inherits none of its restrictions, and has stdout for itself; and if this process is killed, the
//! pipe closes and the sidecar ends the session.

mod reaper;
mod signals;

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    panic::resume_unwind,
    path::PathBuf,
    process::{ExitStatus as Ended, Stdio},
    time::Duration,
};

use clap::error::ErrorKind;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runner_protocol::{Failure, Line};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{cli, error::Error};
use crate::{
    runner::{config_reader, termination_log},
    runtime::{
        executor,
        failure::{InternalError, ToFailure as _},
        hardening,
        phase::Phase,
        resources::{self, MissingResource},
        stop,
        telemetry::{self, LEVEL},
        terminal,
    },
};

use reaper::Reaper;
use signals::Signals;

/// Runs the command with the tunnel up; returns the exit status: the command's own, 128 and the number of the signal
/// that ended it, or that of the tunnel's failure, which is printed on stderr. Blocks.
pub fn command(arguments: cli::Exec) -> u8 {
    let cli::Exec { config, log_format, command } = arguments;
    let Some(config) = config else {
        let message = "`exec` needs `--config FILE`: stdin is the command's own";
        return cli::usage_error(ErrorKind::MissingRequiredArgument, message).code();
    };
    let format = log_format.map(|format| ["--log-format", format.name()].map(Into::into));
    let options = format.into_iter().flatten().collect();
    let exec = Exec { config, command, options };
    hardening::disable_dump();
    let outcome = match resources::check().map(|()| executor::block_on(supervise(&exec))) {
        Ok(Ok(Ok(outcome))) => outcome,
        Ok(Ok(Err(panic))) => resume_unwind(panic),
        Ok(Err(error)) => Err(Error::no_runtime(&error).into_failure(Phase::Config)),
        Err(missing) => Err(missing.to_failure(Phase::Config)),
    };
    outcome.unwrap_or_else(|failure| {
        terminal::print_failure(&failure);
        termination_log::write(&failure);
        failure.exit_status().code()
    })
}

/// What to run, and with what tunnel.
struct Exec {
    config: PathBuf,
    /// Program and arguments; `{port}` in them becomes the tunnel's port.
    command: Vec<OsString>,
    /// Options for the sidecar, such as `--log-format json`.
    options: Vec<OsString>,
}

async fn supervise(exec: &Exec) -> Result<u8, Failure> {
    let mut signals = Signals::listen().map_err(|error| internal(&error.to_string()))?;
    let reaper = Reaper::start();
    let config =
        config_reader::read_bytes(&exec.config).map_err(|error| error.to_failure(Phase::Config))?;
    let mut tunnel =
        Tunnel::start(&exec.options).map_err(|error| {
            match MissingResource::of_process(&error) {
                Some(missing) => missing.to_failure(Phase::Config),
                None => internal(&error.to_string()),
            }
        })?;
    reaper.leave(&tunnel.process);
    tokio::select! {
        // A sidecar that has ended reports why on its stdout.
        _ = tunnel.send_config(&config) => (),
        signal = signals.next() => return Ok(tunnel.end_after(signal).await),
    }
    drop(config);
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

/// Waits for the command; ends it when the tunnel is lost, since the command cannot succeed then.
async fn attend(
    mut command: Child,
    tunnel: &mut Tunnel,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let failure = loop {
        tokio::select! {
            biased;
            ended = command.wait() => return ended.map(status_of).map_err(|error| internal(&error.to_string())),
            signal = signals.next() => forward(&command, signal),
            failure = tunnel.lost() => break failure,
        }
    };
    forward(&command, Signal::SIGTERM);
    if timeout(AFTER_LOSS, command.wait()).await.is_err() {
        forward(&command, Signal::SIGKILL);
        // Its status does not matter: the loss is reported.
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

/// The status of `env` and shells: 127 where there is no such program, 126 where it cannot be run.
fn not_started(command: &[OsString], error: &io::Error) -> u8 {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    terminal::print_line(&format!("ssm-sidecar: `{program}` cannot be started: {error}"));
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

fn status_of(ended: Ended) -> u8 {
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn forward(command: &Child, signal: Signal) {
    let Some(pid) = command.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // Fails if it has just ended.
    let _gone = kill(Pid::from_raw(pid), signal);
}

fn internal(what: &str) -> Failure {
    InternalError::new(what).to_failure(Phase::Config)
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
        let ignored = telemetry::ignored_level();
        if let Some(reason) = &ignored {
            terminal::print_line(&format!("ssm-sidecar exec: `RUST_LOG` is ignored: {reason}"));
        }
        if ignored.is_some() || env::var_os(LEVEL).is_none_or(|level| level.is_empty()) {
            // The sidecar shares stderr with the command: no more than warnings there.
            command.env(LEVEL, "warn");
        }
        let mut process = command.spawn()?;
        let lease = process.stdin.take();
        let lines = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, lease, lines: BufReader::new(lines).lines() })
    }

    async fn send_config(&mut self, config: &[u8]) -> io::Result<()> {
        let lease = self.lease.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        lease.write_all(config).await?;
        // An incomplete config is reported at the end of input.
        if !config.trim_ascii_end().ends_with(b"}") {
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
                None => return Err(self.exited().await),
            }
        }
    }

    /// Completes when the tunnel has failed. Cancel-safe.
    async fn lost(&mut self) -> Failure {
        loop {
            match self.line().await {
                Some(Line::Failed(failure)) => return failure,
                Some(_) => (),
                None => return self.exited().await,
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

    async fn exited(&mut self) -> Failure {
        match self.process.wait().await {
            Ok(ended) => internal(&format!("the tunnel's process has ended: {ended}")),
            Err(error) => internal(&error.to_string()),
        }
    }

    /// Ends the lease, and waits at most [`stop::EXEC`] for the sidecar to exit.
    async fn end(&mut self) {
        self.lease = None;
        if timeout(stop::EXEC, self.process.wait()).await.is_err() {
            terminal::print_line("ssm-sidecar: the tunnel did not end in time and is killed");
        }
    }

    /// Does the same for a `signal` before the command was started; returns the exit status.
    async fn end_after(&mut self, signal: Signal) -> u8 {
        self.end().await;
        u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
    }
}

/// Environment variable of the command with the port.
const PORT: &str = "SSM_SIDECAR_PORT";

/// Replaced by the port in the command's arguments.
const PLACE: &[u8] = b"{port}";

/// Time for the command to end after SIGTERM when its tunnel is lost; then it gets SIGKILL.
const AFTER_LOSS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_replaces_every_placeholder() {
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
