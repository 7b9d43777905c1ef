//! `check`: starts a worker that tries each step, and prints the failure if the worker cannot begin.

use std::{ffi::OsString, path::Path, pin::pin, process::Stdio, time::Duration};

use runner_protocol::{Config, Failure};
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;

use super::{cli, error::Error, supervise::prepare, worker};
use crate::{
    ipc::message::{OutputFormat, StartMessage, WorkerTask},
    monitor::{Monitor, WorkerOutcome},
    runner::{config_reader::read_blocking, signals::stop_signal, termination_log},
    runtime::{
        executor,
        failure::InternalError,
        hardening,
        phase::Phase,
        resources,
        stop::{self, StopReason},
        telemetry::{self, Telemetry},
        terminal,
    },
    worker::report::{Report, Step, status_of_signal},
};

/// Runs the command of the command line; returns the exit status. Blocks.
pub fn command(arguments: &cli::Check) -> u8 {
    if let Err(missing) = resources::check() {
        let failure = Error::from(missing).into_failure(Phase::Config);
        return finish(arguments.config.as_deref(), not_begun(failure, arguments.output));
    }
    run(arguments.config.as_deref(), arguments.output, &worker::arguments(None, true))
}

/// Checks the config of `file`, or of stdin; returns the exit status. `worker`: the arguments with which this program
/// runs as the worker. Blocks.
///
/// With a `file`, a failure is also written to the termination log, as by [`run`](super::run).
pub fn run(file: Option<&Path>, format: OutputFormat, worker: &[OsString]) -> u8 {
    let telemetry = Telemetry::start(LevelFilter::OFF, None);
    if let Some(reason) = telemetry::ignored_level() {
        terminal::print_line(&format!("ssm-sidecar check: `RUST_LOG` is ignored: {reason}"));
    }
    // Ignore missing protections: `check` does not enforce `hardening`.
    drop(hardening::apply());
    let ended = read_blocking(file)
        .map_err(Error::from)
        .and_then(|config| {
            telemetry.set_job(&config.name, config.job_id.as_deref());
            let outcome = executor::block_on(supervise(&config, format, worker));
            let outcome = outcome.map_err(|error| Error::no_runtime(&error))?;
            outcome.map_err(|_| InternalError::new("panic"))?
        })
        .unwrap_or_else(|error| not_begun(error.into_failure(Phase::Config), format));
    finish(file, ended)
}

/// Returns the status; where the config is a file, also writes the failure to the termination log.
fn finish(file: Option<&Path>, (status, failure): (u8, Option<Failure>)) -> u8 {
    if let (Some(_), Some(failure)) = (file, failure) {
        termination_log::write(&failure);
    }
    status
}

/// Runs the steps in a worker, which prints them on the stdout that it inherits.
async fn supervise(
    config: &Config,
    format: OutputFormat,
    worker: &[OsString],
) -> Result<(u8, Option<Failure>), Error> {
    let mut signals = pin!(stop_signal());
    let mut monitor = Monitor::start(worker, Stdio::inherit()).map_err(Error::no_worker)?;
    // Ignore missing protections: `check` does not enforce `hardening`.
    let (mut handler, _client, _missing) = prepare(&mut monitor, config, None).await?;
    let message = StartMessage { task: WorkerTask::Check(format), elapsed: Duration::ZERO };
    monitor.send_task(message, Vec::new(), config)?;
    let mut stopped = None;
    let stop = async {
        let signal = signals.as_mut().await;
        stopped = Some((Instant::now(), signal));
        StopReason::Signal(signal.into())
    };
    let outcome = monitor.run(&mut handler, stop, |_| ()).await;
    let (since, signal) = stopped.unzip();
    let deadline = since.unwrap_or_else(Instant::now) + stop::MONITOR;
    monitor.finish(Some(handler), deadline).await;
    match outcome {
        Ok(WorkerOutcome::Check(status, failure)) => Ok((status, failure)),
        Ok(WorkerOutcome::Tunnel(None)) if let Some(signal) = signal => {
            Ok((status_of_signal(signal), None))
        }
        // The worker could not begin with the first step.
        Ok(WorkerOutcome::Tunnel(Some(failure))) => Ok(not_begun(failure, format)),
        Ok(WorkerOutcome::Tunnel(None)) => Err(InternalError::new("no check was made").into()),
        Err(failure) => Err(failure.into()),
    }
}

/// Prints a failure before the first step.
fn not_begun(failure: Failure, format: OutputFormat) -> (u8, Option<Failure>) {
    let report = Report::to_stdout(format);
    report.begin(Step::Config);
    (report.fail(&failure, None), Some(failure))
}
