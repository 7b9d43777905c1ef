//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

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
pub struct Exec {
    /// Read the config from this file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The form of the sidecar's log lines on stderr; warnings only, unless `RUST_LOG` asks for more.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
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
