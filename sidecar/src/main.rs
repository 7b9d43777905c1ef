//! The process: command line → command → exit status; nothing else.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser as _};
use runner_protocol::{ExitStatus, Failure};
use ssm_sidecar::{
    commands::{
        cli::{Arguments, Check, Command, Exec, Policy, Run, Worker},
        exec, probe,
        run::{self, Source},
    },
    runtime::{hardening, phase::Phase, telemetry::Telemetry, terminal},
    session::iam_policy::Scope,
    worker::{self, check},
};
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;

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
    let outer = arguments.run;
    match arguments.command {
        None => run(outer, started),
        Some(Command::Run(options)) => run(options.or(outer), started),
        Some(Command::Exec(options)) => exec(options),
        Some(Command::Check(options)) => {
            check(&Check { config: options.config.or(outer.config), ..options })
        }
        Some(Command::Policy(options)) => {
            policy(&Policy { config: options.config.or(outer.config), ..options })
        }
        Some(Command::Probe { url }) => match probe::run(&url) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                terminal::say(&format!("ssm-sidecar probe: {url}: {error}"));
                ExitCode::FAILURE
            }
        },
        Some(Command::Worker(options)) => be_worker(options),
        Some(Command::Schema) => print(runner_protocol::schema().trim_end()),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Some(Command::Man) => print_manual(),
    }
}

fn run(options: Run, started: Instant) -> ExitCode {
    let telemetry = Telemetry::start(options.log_format);
    let source = options.config.map_or(Source::Stdin, Source::File);
    let channel_life = options.channel_life.map_or(run::CHANNEL_LIFE, Duration::from_secs);
    let worker = Worker { log_format: options.log_format, quiet: false }.arguments();
    let status = run::run(&run::Options { source, channel_life, worker, started }, &telemetry);
    drop(telemetry);
    status.into()
}

fn be_worker(options: Worker) -> ExitCode {
    let prepared = worker::prepare();
    let telemetry = if options.quiet {
        Telemetry::start_at(LevelFilter::OFF, options.log_format)
    } else {
        Telemetry::start(options.log_format)
    };
    let status = worker::run(prepared, &telemetry);
    drop(telemetry);
    status.into()
}

fn check(options: &Check) -> ExitCode {
    let telemetry = Telemetry::start_at(LevelFilter::OFF, None);
    let worker = Worker { log_format: None, quiet: true }.arguments();
    let status = check::run(options.config.as_deref(), options.output, &worker);
    drop(telemetry);
    status.into()
}

fn exec(options: Exec) -> ExitCode {
    let Exec { config, log_format, command } = options;
    let format = log_format.map(|format| ["--log-format", format.name()].map(Into::into));
    let options = format.into_iter().flatten().collect();
    exec::run(&exec::Exec { config, command, options }).into()
}

fn policy(options: &Policy) -> ExitCode {
    hardening::hide();
    let request = match run::read_document(options.config.as_deref()) {
        Ok(request) => request,
        Err(error) => return fail(&error.into_failure(Phase::Config)),
    };
    let scope = Scope::of(&request);
    let policy = if options.caller { scope.caller_policy() } else { Some(scope.session_policy()) };
    let Some(policy) = policy else {
        terminal::say(
            "ssm-sidecar policy: the document has no `aws.assume_role`, so its keys need no more than `policy` prints",
        );
        return ExitStatus::Usage.into();
    };
    print(&format!("{policy:#}"))
}

fn fail(failure: &Failure) -> ExitCode {
    terminal::print(failure);
    failure.exit_status().into()
}

fn print_manual() -> ExitCode {
    let mut page = Vec::new();
    match clap_mangen::Man::new(Arguments::command()).render(&mut page) {
        Ok(()) => print(&String::from_utf8_lossy(&page)),
        Err(_) => ExitStatus::Defect.into(),
    }
}

/// Writes a command's result, which nobody is bound to read to its end.
fn print(text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Ok(()) => ExitStatus::Ended.into(),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Ended.into(),
        Err(_) => ExitStatus::Host.into(),
    }
}

const NAME: &str = "ssm-sidecar";
