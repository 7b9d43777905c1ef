//! What a check tells, step by step: text for people, JSON lines for machines.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use runner_protocol::{ExitStatus, Failure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    commands::cli::OutputFormat,
    runtime::{phase::Phase, terminal},
};

/// A step of the check, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Step {
    Document,
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
            Self::Document => "document",
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

/// Tells each step when it is done, and on a terminal which one is under way.
pub(super) struct Report {
    format: OutputFormat,
    terminal: bool,
    coloured: bool,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// The step under way; done with once it was told.
    running: Option<(Step, Instant)>,
    last: Option<Step>,
}

impl Report {
    pub(super) fn to_stdout(format: OutputFormat) -> Self {
        let stdout = io::stdout();
        let terminal = format == OutputFormat::Text && io::IsTerminal::is_terminal(&stdout);
        let coloured = terminal && terminal::is_coloured(&stdout);
        let state = State { out: Box::new(stdout), running: None, last: None };
        Self { format, terminal, coloured, state: Mutex::new(state) }
    }

    /// Begins a step; one that is past is not begun again, as when a lane is opened in a second way.
    pub(super) fn begin(&self, step: Step) {
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

    pub(super) fn begin_phase(&self, phase: Phase) {
        match phase {
            Phase::StartSession => self.begin(Step::StartSession),
            Phase::Session => self.begin(Step::Session),
            Phase::Ssh => self.begin(Step::Ssh),
            Phase::Config | Phase::Target | Phase::Tunnel => (),
        }
    }

    /// Whether this step is under way.
    pub(super) fn is_at(&self, step: Step) -> bool {
        self.lock().running.is_some_and(|(running, _)| running == step)
    }

    /// The phase of the start that the last step belongs to.
    pub(super) fn phase(&self) -> Phase {
        match self.lock().last {
            None | Some(Step::Document | Step::Identity) => Phase::Config,
            Some(Step::StartSession) => Phase::StartSession,
            Some(Step::Session) => Phase::Session,
            Some(Step::Ssh | Step::Login) => Phase::Ssh,
            Some(Step::Target | Step::Database) => Phase::Target,
            Some(Step::Permissions) => Phase::Tunnel,
        }
    }

    /// Ends the running step well.
    pub(super) fn found(&self, finding: impl Into<String>) {
        self.tell("ok", GREEN, &finding.into(), None);
    }

    /// Ends the running step with something to improve; `json`: the piece to add.
    pub(super) fn warn(&self, finding: impl Into<String>, json: Option<Value>) {
        self.tell("warning", YELLOW, &finding.into(), json);
    }

    /// Ends the check at the running step, or at the last one; returns the exit status.
    pub(super) fn fail(&self, failure: &Failure, statement: Option<Value>) -> u8 {
        let status = failure.exit_status().code();
        let Failure { code, message, hint, .. } = failure;
        {
            let mut state = self.lock();
            let last = state.last.unwrap_or(Step::Document);
            state.running.get_or_insert_with(|| (last, Instant::now()));
        }
        self.tell("failed", RED, &format!("{code}: {message}"), None);
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
    pub(super) fn succeed(&self) -> u8 {
        let mut state = self.lock();
        match self.format {
            OutputFormat::Text => state.write("\nthe tunnel works\n"),
            OutputFormat::Json => {
                let line = json!({ "result": "ok", "exit_status": 0 });
                state.write(&format!("{line}\n"));
            }
        }
        ExitStatus::Ended.code()
    }

    /// Notes that the check was given up.
    pub(super) fn stopped(&self, signal: &str) {
        self.tell("stopped", YELLOW, signal, None);
    }

    fn tell(&self, status: &str, colour: &str, finding: &str, piece: Option<Value>) {
        let mut state = self.lock();
        let Some((step, since)) = state.running.take() else { return };
        let ms = since.elapsed().as_millis();
        // Texts of peers are in it.
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whoever has closed our stdout is told by the exit status alone.
    fn write(&mut self, text: &str) {
        drop(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()));
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Report").field("format", &self.format).finish_non_exhaustive()
    }
}

const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";
const PLAIN: &str = "\u{1b}[0m";
