//! `worker`: the process that a monitor starts.

use std::ffi::OsString;

use runner_protocol::ExitStatus;
use tracing::level_filters::LevelFilter;

use super::cli;
use crate::{
    runtime::{
        failure::ToFailure as _,
        resources,
        telemetry::{LogFormat, Telemetry},
        terminal,
    },
    worker,
};

/// Runs the worker's task until its end. Blocks.
pub fn command(arguments: cli::Worker) -> ExitStatus {
    let setup = worker::set_up();
    if let Err(missing) = resources::check() {
        // The monitor recognizes the status; there is no log yet.
        return missing.code().exit_status();
    }
    // The log thread is started after the privileges were dropped, so that it lacks them as well.
    let level = if arguments.quiet { LevelFilter::OFF } else { LevelFilter::INFO };
    let telemetry = Telemetry::start(level, arguments.log_format);
    match worker::run(setup, &telemetry) {
        Ok(()) => ExitStatus::Ok,
        Err(error) => {
            terminal::print_line(&format!(
                "ssm-sidecar worker: only the sidecar itself can start this: {error}"
            ));
            ExitStatus::Usage
        }
    }
}

/// The arguments of a worker process. `quiet`: no logs, unless `RUST_LOG` sets a level.
pub(super) fn arguments(log_format: Option<LogFormat>, quiet: bool) -> Vec<OsString> {
    let format = log_format.map(|format| ["--log-format", format.name()]);
    let quiet = quiet.then_some("--quiet");
    let words = ["worker"].into_iter().chain(format.into_iter().flatten()).chain(quiet);
    words.map(OsString::from).collect()
}
