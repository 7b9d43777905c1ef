//! Prints the steps of a check: text for people, JSON lines for machines.

use parking_lot::{Mutex, MutexGuard};
use std::io::{self, Write};

use runner_protocol::{ExitStatus, Failure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    ipc::message::OutputFormat,
    runtime::{phase::Phase, terminal},
};

/// A step of the check, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Step {
    Config,
    Identity,
    StartSession,
    Session,
    Ssh,
    Login,
    Target,
    Database,
    Permissions,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Identity => "identity",
            Self::StartSession => "start_session",
            Self::Session => "session",
            Self::Ssh => "ssh",
            Self::Login => "login",
            Self::Target => "target",
            Self::Database => "database",
            Self::Permissions => "permissions",
        }
    }
}

/// Prints each step when it is done, and on a terminal the one that is running.
pub(crate) struct Report {
    format: OutputFormat,
    terminal: bool,
    coloured: bool,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// The running step, until it is printed.
    running: Option<(Step, Instant)>,
    last: Option<Step>,
}

impl Report {
    pub(crate) fn to_stdout(format: OutputFormat) -> Self {
        let stdout = io::stdout();
        let terminal = format == OutputFormat::Text && io::IsTerminal::is_terminal(&stdout);
        let coloured = terminal && terminal::is_coloured(&stdout);
        let state = State { out: Box::new(stdout), running: None, last: None };
        Self { format, terminal, coloured, state: Mutex::new(state) }
    }

    /// Begins a step. An earlier step than the last one is ignored: a lane that is opened a second time does not begin
    /// the steps again.
    pub(crate) fn begin(&self, step: Step) {
        let mut state = self.lock();
        if state.last.is_some_and(|last| step <= last) {
            return;
        }
        state.last = Some(step);
        state.running = Some((step, Instant::now()));
        if self.terminal {
            state.write(&format!("{:<14}…", step.name()));
        }
    }

    pub(crate) fn begin_phase(&self, phase: Phase) {
        match phase {
            Phase::StartSession => self.begin(Step::StartSession),
            Phase::Session => self.begin(Step::Session),
            Phase::Ssh => self.begin(Step::Ssh),
            Phase::Config | Phase::Target | Phase::Tunnel => (),
        }
    }

    /// Whether this step is running.
    pub(crate) fn is_at(&self, step: Step) -> bool {
        self.lock().running.is_some_and(|(running, _)| running == step)
    }

    /// The phase of the start that the last step belongs to.
    pub(crate) fn phase(&self) -> Phase {
        match self.lock().last {
            None | Some(Step::Config | Step::Identity) => Phase::Config,
            Some(Step::StartSession) => Phase::StartSession,
            Some(Step::Session) => Phase::Session,
            Some(Step::Ssh | Step::Login) => Phase::Ssh,
            Some(Step::Target | Step::Database) => Phase::Target,
            Some(Step::Permissions) => Phase::Tunnel,
        }
    }

    /// Ends the running step with success.
    pub(crate) fn found(&self, finding: impl Into<String>) {
        self.print("ok", GREEN, &finding.into(), None);
    }

    /// Ends the running step with a warning; `json`: what to add to the config or the policy.
    pub(crate) fn warn(&self, finding: impl Into<String>, json: Option<Value>) {
        self.print("warning", YELLOW, &finding.into(), json);
    }

    /// Ends the check at the running step, or at the last one; returns the exit status.
    pub(crate) fn fail(&self, failure: &Failure, statement: Option<Value>) -> u8 {
        let status = failure.exit_status().code();
        let Failure { code, message, hint, .. } = failure;
        {
            let mut state = self.lock();
            let last = state.last.unwrap_or(Step::Config);
            state.running.get_or_insert_with(|| (last, Instant::now()));
        }
        self.print("failed", RED, &format!("{code}: {message}"), None);
        let mut state = self.lock();
        match self.format {
            OutputFormat::Text => {
                state.write(&format!("\nhint: {hint}\n"));
                if let Some(statement) = statement {
                    state.write(&format!("\nadd to the policy:\n{statement:#}\n"));
                }
            }
            OutputFormat::Json => {
                let mut line =
                    json!({ "result": "failed", "exit_status": status, "failure": failure });
                if let (Some(statement), Some(line)) = (statement, line.as_object_mut()) {
                    line.insert("statement".to_owned(), statement);
                }
                state.write(&format!("{line}\n"));
            }
        }
        status
    }

    /// Ends the check; returns the exit status.
    pub(crate) fn succeed(&self) -> u8 {
        let mut state = self.lock();
        match self.format {
            OutputFormat::Text => state.write("\nthe tunnel works\n"),
            OutputFormat::Json => {
                let line = json!({ "result": "ok", "exit_status": 0 });
                state.write(&format!("{line}\n"));
            }
        }
        ExitStatus::Ok.code()
    }

    /// Ends the running step: the check was stopped by `signal`.
    pub(crate) fn stopped(&self, signal: &str) {
        self.print("stopped", YELLOW, signal, None);
    }

    fn print(&self, status: &str, colour: &str, finding: &str, piece: Option<Value>) {
        let mut state = self.lock();
        let Some((step, since)) = state.running.take() else { return };
        let ms = since.elapsed().as_millis();
        // It may quote a peer's text.
        let finding: String =
            finding.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let name = step.name();
        if self.format == OutputFormat::Json {
            let mut line = json!({ "step": name, "status": status, "ms": ms, "found": finding });
            if let (Some(piece), Some(line)) = (piece, line.as_object_mut()) {
                line.insert("add".to_owned(), piece);
            }
            state.write(&format!("{line}\n"));
            return;
        }
        let back = if self.terminal { "\r\u{1b}[2K" } else { "" };
        let (colour, plain) = if self.coloured { (colour, PLAIN) } else { ("", "") };
        state.write(&format!("{back}{name:<14}{colour}{status:<8}{plain}{ms:>6} ms  {finding}\n"));
        if let Some(piece) = piece {
            for line in format!("{piece:#}").lines() {
                state.write(&format!("{:<34}{line}\n", ""));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Errors are ignored: a reader that has closed stdout still gets the exit status.
    fn write(&mut self, text: &str) {
        drop(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()));
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Report").field("format", &self.format).finish_non_exhaustive()
    }
}

/// The exit status of a stopped check: 128 plus the signal's number, as in shells.
pub(crate) fn status_of_signal(signal: &str) -> u8 {
    match signal {
        "SIGHUP" => 129,
        "SIGQUIT" => 131,
        "SIGTERM" => 143,
        _ => 130,
    }
}

const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";
const PLAIN: &str = "\u{1b}[0m";
