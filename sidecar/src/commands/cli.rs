//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;
use runner_protocol::ExitStatus;

pub use crate::{ipc::message::OutputFormat, runtime::telemetry::LogFormat};

/// Reaches a database in a private subnet through an AWS Systems Manager session.
///
/// Reads one JSON config on stdin, prints `ready <port>` when the tunnel is up, and ends it when stdin
/// closes. A failure is one line, `failed {"code":…,"message":…,"hint":…}`, and an exit status: 65 the config
/// is wrong, 69 something on the customer's side is unavailable, 71 this host refuses, 75 try again, 76 a peer broke
/// its protocol, 77 refused.
#[derive(Debug, Parser)]
#[command(name = "ssm-sidecar", version, args_conflicts_with_subcommands = false)]
pub struct Arguments {
    /// Instead of `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// For `run`, which is the default.
    #[command(flatten)]
    pub run: Run,
}

impl Arguments {
    /// Refuses an option before a subcommand that has no such option, which would be ignored.
    ///
    /// # Errors
    ///
    /// A mistake on the command line.
    pub fn checked(self) -> Result<Self, clap::Error> {
        let (config, log_format) = match &self.command {
            None | Some(Command::Run(_) | Command::Exec(_)) => (true, true),
            Some(Command::Check(_) | Command::Policy(_)) => (true, false),
            Some(_) => (false, false),
        };
        if self.run.config.is_some() && !config {
            return Err(misplaced(
                "`--config` is an option of `run`, `exec`, `check` and `policy`",
            ));
        }
        if self.run.log_format.is_some() && !log_format {
            return Err(misplaced("`--log-format` is an option of `run` and `exec`"));
        }
        Ok(self)
    }
}

fn misplaced(message: &str) -> clap::Error {
    Arguments::command().error(ErrorKind::ArgumentConflict, message)
}

/// Prints a mistake on the command line, with the usage; returns the exit status.
pub(super) fn usage_error(kind: ErrorKind, message: &str) -> ExitStatus {
    print_error(&Arguments::command().error(kind, message))
}

/// Prints what the parser of the command line returns instead of arguments; returns the exit status.
pub fn print_error(error: &clap::Error) -> ExitStatus {
    // A closed stdout or stderr is ignored.
    drop(error.print());
    if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Ok }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Open the tunnel and keep it until stdin closes (the default).
    Run(Run),
    /// Run a command with the tunnel up, and end with its exit status.
    ///
    /// `{port}` in the command's arguments and `SSM_SIDECAR_PORT` in its environment are the tunnel's port;
    /// stdin, stdout and stderr are the command's own, and signals are passed on to it. When the tunnel is
    /// lost for good the command gets SIGTERM, and the exit status is that of the failure.
    ///
    /// Example: `ssm-sidecar exec --config c.json -- psql -h 127.0.0.1 -p {port} -U reader orders`
    Exec(Exec),
    /// Try each step in turn, and say what was found or what to change.
    ///
    /// Run it before opening a ticket. It ends every session that it starts, and its exit status is that of the
    /// first failure. With `--output json` each step is a JSON object on a line of its own, and the
    /// last line has `result` (`ok` or `failed`) and, after a failure, `failure`.
    Check(Check),
    /// Print the least-privilege IAM policy for a config.
    ///
    /// It is what the identity that starts the session needs: the role where `aws.assume_role` names one,
    /// else the user or role that the keys belong to. `ssm:StartSession` alone is enough to work; the
    /// statement `OwnSessions` lets a session outlive broken connections and its channel's hourly close.
    Policy(Policy),
    /// Ask a health endpoint once: exit 0 when it answers 200 within 3 s, else 1.
    ///
    /// For exec probes in an image without shell: `ssm-sidecar probe http://127.0.0.1:9090/readyz`
    Probe {
        /// Such as `http://127.0.0.1:9090/readyz`; http only.
        url: http::Uri,
    },
    /// The worker process; only the sidecar itself can start it.
    #[command(hide = true)]
    Worker(Worker),
    /// Print the JSON Schema of the config.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// How the tunnel is opened.
#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// Read the config from this file; then stdin is not read, and signals end the tunnel.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The form of log lines on stderr; by default text on a terminal, JSON otherwise.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl Run {
    /// The options given here, else those of `outer`.
    #[must_use]
    pub fn or(self, outer: Self) -> Self {
        Self {
            config: self.config.or(outer.config),
            log_format: self.log_format.or(outer.log_format),
        }
    }
}

/// The logs of a worker.
#[derive(Args, Clone, Copy, Debug)]
pub struct Worker {
    /// The form of log lines, the same as the monitor's.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// No logs, unless `RUST_LOG` asks for them.
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// Read the config from this file instead of stdin.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The form of the steps.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// Options of `exec`.
#[derive(Args, Clone, Debug)]
#[command(override_usage = "ssm-sidecar exec --config <FILE> [OPTIONS] -- <COMMAND>...")]
pub struct Exec {
    /// Read the config from this file; required.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The form of the sidecar's log lines on stderr; warnings only, unless `RUST_LOG` asks for more.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Program and arguments; `--` may be left out where the program's name does not begin with a hyphen.
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl Exec {
    /// The options given here, else those of `outer`.
    #[must_use]
    pub fn or(self, outer: Run) -> Self {
        Self {
            config: self.config.or(outer.config),
            log_format: self.log_format.or(outer.log_format),
            command: self.command,
        }
    }
}

/// Options of `policy`.
#[derive(Args, Clone, Debug)]
pub struct Policy {
    /// Read the config from this file instead of stdin.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what the keys of the config need to assume `aws.assume_role`, instead of what the role needs.
    #[arg(long)]
    pub caller: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let words = ["ssm-sidecar"].into_iter().chain(line.split_whitespace());
        Arguments::try_parse_from(words).and_then(Arguments::checked)
    }

    #[test]
    fn command_of_exec_begins_at_its_first_word_with_or_without_hyphens() {
        for line in [
            "exec --config c.json -- psql -h 127.0.0.1 --config other -- -x",
            "exec --config c.json psql -h 127.0.0.1 --config other -- -x",
            "exec --config=c.json --log-format text psql -h 127.0.0.1 --config other -- -x",
        ] {
            let Some(Command::Exec(exec)) = parse(line).unwrap().command else { panic!("{line}") };
            let words = ["psql", "-h", "127.0.0.1", "--config", "other", "--", "-x"];
            assert_eq!(exec.command, words, "{line}");
            assert_eq!(exec.config.as_deref(), Some("c.json".as_ref()), "{line}");
        }
        for line in ["exec --config c.json", "exec --config c.json --", "exec --confg c.json psql"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn option_before_a_command_holds_for_it_or_is_refused() {
        let Arguments { command: Some(Command::Exec(exec)), run } =
            parse("--config c.json --log-format text exec -- psql").unwrap()
        else {
            panic!("no `exec`");
        };
        let exec = exec.or(run);
        assert_eq!(exec.config.as_deref(), Some("c.json".as_ref()));
        assert_eq!(exec.log_format, Some(LogFormat::Text));
        for accepted in
            ["--config c run", "--log-format json run", "--config c check", "--config c policy"]
        {
            assert!(parse(accepted).is_ok(), "{accepted}");
        }
        for (refused, option) in [
            ("--log-format text check", "`--log-format`"),
            ("--log-format text policy", "`--log-format`"),
            ("--config c schema", "`--config`"),
            ("--config c man", "`--config`"),
            ("--config c completions bash", "`--config`"),
            ("--config c probe http://127.0.0.1:1/livez", "`--config`"),
        ] {
            let error = parse(refused).unwrap_err();
            assert!(error.to_string().contains(option), "{refused}: {error}");
        }
    }
}
