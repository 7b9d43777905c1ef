//! `run`: the process that the runner starts. Reads the config, starts the worker, and ends it.
//!
//! This process has what the worker must not control: the lease, stdout, the exit status and the AWS keys. It also ends
//! every session, however the worker ends. What the worker does is in `tunnel`.

use std::{
    ffi::OsString, future::pending, net::TcpListener, panic::AssertUnwindSafe, path::PathBuf,
    pin::pin, process::Stdio,
};

use futures_util::FutureExt as _;
use runner_protocol::{Config, ExitStatus, Failure, Line};
use tokio::time::Instant;
use tracing::{error, info, level_filters::LevelFilter, warn};

use super::{cli, error::Error, supervise::prepare, worker};
use crate::{
    aws::to_keys,
    ipc::message::{StartMessage, WorkerTask},
    monitor::{Monitor, WorkerOutcome},
    runner::{
        config_reader,
        signals::stop_signal,
        stdin::{Stdin, StdinKind},
        stdout, termination_log,
    },
    runtime::{
        executor,
        failure::InternalError,
        hardening::{self, MissingProtection},
        panics::Panics,
        phase::Phase,
        resources,
        stop::{self, StopReason},
        telemetry::{self, LogFormat, Telemetry},
    },
    tunnel::{health, listener},
};

/// Where the config comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Stdin, which is the lease from then on.
    Stdin,
    /// A file; signals end the tunnel.
    File(PathBuf),
}

/// The options of [`run`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the config comes from.
    pub source: Source,
    /// The arguments with which this program runs as the worker.
    pub worker: Vec<OsString>,
    /// The form of log lines; `None`: text on a terminal, JSON otherwise.
    pub log_format: Option<LogFormat>,
    /// When the process began.
    pub started: Instant,
}

/// Runs the command of the command line. Blocks. `started`: when the process began.
pub fn command(arguments: cli::Run, started: Instant) -> ExitStatus {
    run(&Options {
        source: arguments.config.map_or(Source::Stdin, Source::File),
        worker: worker::arguments(arguments.log_format, false),
        log_format: arguments.log_format,
        started,
    })
}

/// Does the job, and reports how it ended on stdout and as exit status. Blocks.
pub fn run(options: &Options) -> ExitStatus {
    if let Err(missing) = resources::check() {
        // Without a thread there is no log either.
        let status = report(&options.source, &Error::from(missing).into_failure(Phase::Config));
        stdout::flush(stop::STDOUT_FLUSH);
        return status;
    }
    let telemetry = Telemetry::start(LevelFilter::INFO, options.log_format);
    if let Some(reason) = telemetry::ignored_level() {
        warn!(%reason, "`RUST_LOG` is ignored, the level is `info`");
    }
    let missing = hardening::apply();
    let panics = Panics::watch();
    let outcome = executor::block_on(supervise(options, &telemetry, missing, &panics));
    let dropped_lines = telemetry.dropped_lines().count();
    if dropped_lines > 0 {
        warn!(dropped_lines, "log lines were dropped because stderr was not read");
    }
    let internal = |error: InternalError| Err(Error::from(error).into_failure(Phase::Config));
    let outcome = match outcome {
        Ok(Ok(outcome)) => outcome,
        // A panic before there was a session, or after the sessions were ended.
        Ok(Err(_)) => internal(first_panic(&panics)),
        Err(error) => Err(Error::no_runtime(&error).into_failure(Phase::Config)),
    };
    let status = match outcome {
        Ok(()) => ExitStatus::Ok,
        Err(failure) => fail(&options.source, &failure),
    };
    stdout::flush(stop::STDOUT_FLUSH);
    status
}

fn first_panic(panics: &Panics) -> InternalError {
    panics.first().map_or_else(|| InternalError::new("panic"), InternalError::from)
}

fn fail(source: &Source, failure: &Failure) -> ExitStatus {
    error!(
        code = failure.code.as_str(),
        phase = failure.phase,
        hint = failure.hint,
        "{}",
        failure.message
    );
    report(source, failure)
}

/// Tells the runner of `failure`; returns its status.
fn report(source: &Source, failure: &Failure) -> ExitStatus {
    if let Source::File(_) = source {
        termination_log::write(failure);
    }
    print(&Line::Failed(failure.clone()));
    failure.exit_status()
}

fn print(line: &Line) {
    if let Err(error) = stdout::print(line) {
        warn!(%error, "stdout is not read, a line is lost");
    }
}

async fn supervise(
    options: &Options,
    telemetry: &Telemetry,
    mut missing: Vec<MissingProtection>,
    panics: &Panics,
) -> Result<(), Failure> {
    let mut signals = pin!(stop_signal());
    let at_start = |error: Error| error.into_failure(Phase::Config);
    // First, so that the worker is sandboxed while the config is being read.
    let mut monitor = Monitor::start(&options.worker, Stdio::null())
        .map_err(|error| at_start(Error::no_worker(error)))?;
    let start = async {
        let (config, lease) = read_config(&options.source).await?;
        telemetry.set_job(&config.name, config.job_id.as_deref());
        let listeners = Listeners::bind(&config).await?;
        let (handler, client, worker_missing) =
            prepare(&mut monitor, &config, Some(listeners.port)).await?;
        missing.extend(worker_missing);
        hardening::enforce(config.hardening, missing)?;
        let (task, descriptors) = listeners.into_task();
        let message = StartMessage { task, elapsed: options.started.elapsed() };
        monitor.send_task(message, descriptors, &config)?;
        Ok((handler, client, lease))
    };
    let started = tokio::select! {
        started = start => started,
        signal = &mut signals => {
            info!(signal, "stopped before the worker was started");
            monitor.finish(None, Instant::now() + stop::MONITOR).await;
            return Ok(());
        }
    };
    let (mut handler, client, lease) = match started {
        Ok(started) => started,
        Err(error) => {
            monitor.finish(None, Instant::now() + stop::MONITOR).await;
            return Err(at_start(error));
        }
    };

    let mut stop_requested = None;
    let stop = async {
        let lease_ended = async {
            match lease {
                Some((stdin, rest)) => {
                    let replace = |keys| client.replace_credentials(&to_keys(keys));
                    config_reader::watch_lease(stdin, rest, replace).await;
                }
                None => pending().await,
            }
        };
        let reason = tokio::select! {
            () = lease_ended => StopReason::StdinClosed,
            () = stdout::closed() => StopReason::StdoutClosed,
            signal = &mut signals => StopReason::Signal(signal.into()),
            () = panics.occurred() => StopReason::Panic,
        };
        stop_requested = Some(Instant::now());
        reason
    };
    // A panic is caught here: the sessions are still to be ended.
    let running = AssertUnwindSafe(monitor.run(&mut handler, stop, print)).catch_unwind();
    let outcome = if let Ok(outcome) = running.await {
        outcome
    } else {
        stop_requested = Some(Instant::now());
        monitor.run(&mut handler, async { StopReason::Panic }, print).await
    };
    let deadline = match stop_requested {
        Some(requested) => requested + stop::MONITOR,
        None => Instant::now() + stop::AFTER_WORKER_LOST,
    };
    let phase = handler.phase();
    monitor.finish(Some(handler), deadline).await;
    let error = match (panics.first(), outcome) {
        (Some(location), _) => InternalError::from(location).into(),
        (None, Ok(WorkerOutcome::Tunnel(None))) => return Ok(()),
        (None, Ok(WorkerOutcome::Tunnel(Some(failure)))) => return Err(failure),
        (None, Ok(WorkerOutcome::Check(..))) => {
            Error::from(InternalError::new("a check was not asked for"))
        }
        (None, Err(failure)) => failure.into(),
    };
    Err(error.into_failure(phase))
}

/// The lease: stdin, and the bytes that came behind the config.
type Lease = (Stdin, zeroize::Zeroizing<Vec<u8>>);

async fn read_config(source: &Source) -> Result<(Config, Option<Lease>), Error> {
    match source {
        Source::File(path) => Ok((config_reader::read_file(path)?, None)),
        Source::Stdin => {
            let mut stdin = Stdin::open().map_err(config_reader::ReadError::Stdin)?;
            let (config, rest) = config_reader::read(&mut stdin, StdinKind::of_process()).await?;
            Ok((config, Some((stdin, rest))))
        }
    }
}

/// Listening sockets. Bound here, because the sandboxed worker may not bind.
struct Listeners {
    clients: listener::Bound,
    port: u16,
    health: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, Error> {
        let clients = listener::bind(&config.listen).await?;
        let health = config.health.listen.map(health::bind).transpose()?;
        let address = clients.socket.local_addr();
        let port = address.map_err(|error| InternalError::new(error.to_string()))?.port();
        Ok(Self { clients, port, health })
    }

    /// Returns the worker's task, and the sockets in its order.
    fn into_task(self) -> (WorkerTask, Vec<std::os::fd::OwnedFd>) {
        let Self { clients, health, .. } = self;
        let task =
            WorkerTask::Run { sock_diag: clients.sock_diag.is_some(), health: health.is_some() };
        let sockets = [Some(clients.socket.into()), clients.sock_diag, health.map(Into::into)];
        (task, sockets.into_iter().flatten().collect())
    }
}
