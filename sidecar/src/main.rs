//! The process: command line, command, exit status.

use std::process::ExitCode;

use clap::Parser as _;
use ssm_sidecar::commands::{
    check,
    cli::{self, Arguments, Check, Command, Policy},
    exec, policy, print, probe, run, worker,
};
use tokio::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = match Arguments::try_parse().and_then(Arguments::checked) {
        Ok(arguments) => arguments,
        Err(error) => return cli::print_error(&error).into(),
    };
    // An option before the subcommand holds unless it is given again behind it.
    let outer = arguments.run;
    match arguments.command {
        None => run::command(outer, started).into(),
        Some(Command::Run(options)) => run::command(options.or(outer), started).into(),
        Some(Command::Exec(options)) => exec::command(options.or(outer)).into(),
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
