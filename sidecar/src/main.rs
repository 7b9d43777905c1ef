//! The process: command line → run → failure line → exit status; nothing else.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use runner_protocol::ExitStatus;
use ssm_sidecar::{
    run::{self, Source},
    telemetry::{LogFormat, Telemetry},
};
use tokio::time::Instant;

/// Reaches a database in a private subnet through an AWS Systems Manager session.
///
/// Reads one JSON document on stdin, prints `ready <port>` when the tunnel is up, and ends it when stdin closes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open the tunnel and keep it until stdin closes (the default).
    Run(Run),
    /// Print the JSON Schema of the document.
    Schema,
}

#[derive(Args, Clone, Debug, Default)]
struct Run {
    /// Take the document from this file; then stdin is not looked at, and signals end the tunnel.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines on stderr look; by default text on a terminal, JSON otherwise.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Seconds for which the service leaves a data channel open; where sessions cannot be resumed a
    /// successor is ready after five sixths of them. An hour by default, as observed.
    #[arg(long, value_name = "SECONDS", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    channel_life: Option<u64>,
}

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Ended };
            // Help that cannot be printed has nobody to read it.
            drop(error.print());
            return status.into();
        }
    };
    match arguments.command {
        Some(Command::Schema) => print_schema(),
        Some(Command::Run(options)) => {
            let outer = arguments.run;
            run(
                Run {
                    config: options.config.or(outer.config),
                    log_format: options.log_format.or(outer.log_format),
                    channel_life: options.channel_life.or(outer.channel_life),
                },
                started,
            )
        }
        None => run(arguments.run, started),
    }
}

fn run(options: Run, started: Instant) -> ExitCode {
    let telemetry = Telemetry::start(options.log_format);
    let source = options.config.map_or(Source::Stdin, Source::File);
    let channel_life = options.channel_life.map_or(run::CHANNEL_LIFE, Duration::from_secs);
    let status = run::run(&source, channel_life, &telemetry, started);
    drop(telemetry);
    status.into()
}

#[expect(clippy::print_stdout, reason = "stdout is where a command's result goes")]
fn print_schema() -> ExitCode {
    println!("{}", runner_protocol::schema().trim_end());
    ExitStatus::Ended.into()
}
