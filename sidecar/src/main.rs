//! The process: command line, command, exit status.

use std::process::ExitCode;

use clap::Parser as _;
use runner_protocol::ExitStatus;
use ssm_sidecar::commands::{
    check,
    cli::{Arguments, Check, Command, Policy},
    exec, policy, print, probe, run, worker,
};
use tokio::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed stdout or stderr is ignored.
            drop(error.print());
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Ok };
            return status.into();
        }
    };
    // For `run`, `check` and `policy`: an option before the subcommand holds unless it is given again behind it.
    let outer = arguments.run;
    match arguments.command {
        None => run::command(outer, started).into(),
        Some(Command::Run(options)) => run::command(options.or(outer), started).into(),
        Some(Command::Exec(options)) => exec::command(options).into(),
        Some(Command::Check(options)) => {
            check::command(&Check { config: options.config.or(outer.config), ..options }).into()
        }
        Some(Command::Policy(options)) => {
            policy::command(&Policy { config: options.config.or(outer.config), ..options }).into()
        }
        Some(Command::Probe { url }) => probe::command(&url),
        Some(Command::Worker(options)) => worker::command(options).into(),
        Some(Command::Schema) => print::schema().into(),
        Some(Command::Completions { shell }) => print::completions(shell).into(),
        Some(Command::Man) => print::manual().into(),
    }
}
