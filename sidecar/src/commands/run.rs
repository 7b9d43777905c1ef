//! The process that the runner starts: the document, the worker, the end, top to bottom.
//!
//! What the worker does is in [`job`](crate::tunnel). Here is what it must not have a hand in: the lease, stdout, the
//! exit status, the keys of AWS, and that every session is ended, however the worker does.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    future::pending,
    io::Write as _,
    net::TcpListener,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use runner_protocol::{ExitStatus, Failure, Line, Request};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tracing::{debug, error, info, warn};
use zeroize::Zeroizing;

use crate::{
    commands::error::Error,
    ipc::message::{Begin, Stop, Task},
    monitor::{Ended, GRACE, Monitor, Orders, Service},
    net::{proxy::Proxy, tls::Trust},
    runner::{config_reader, stdin::Stdin, stdout},
    runtime::{
        hardening::{self, Unprotected},
        panics::Panics,
        phase::Phase,
        telemetry::Telemetry,
    },
    tunnel::{health, listener},
};

pub use crate::tunnel::CHANNEL_LIFE;

/// Where the document comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Stdin, which is the lease from then on.
    Stdin,
    /// A file; signals end the tunnel.
    File(PathBuf),
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the document comes from.
    pub source: Source,
    /// For how long the service leaves a data channel open, [`CHANNEL_LIFE`].
    pub channel_life: Duration,
    /// The arguments with which this program runs as a worker.
    pub worker: Vec<OsString>,
    /// When the process began.
    pub started: Instant,
}

/// Reads the whole document from stdin or from `file`, for commands that open no tunnel. Blocks.
///
/// # Errors
///
/// [`Error::File`], [`Error::Stdin`] and [`Error::Config`].
pub fn read_document(file: Option<&Path>) -> Result<Request, Error> {
    config_reader::read_whole(file)
}

/// Reads what stands in the file of `--config`, unexamined, to be handed on. Blocks.
///
/// # Errors
///
/// [`Error::File`].
pub fn read_document_bytes(file: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    config_reader::read_bytes(file)
}

/// Does the job and says how it ended, on stdout and as exit status. Blocks.
pub fn run(options: &Options, telemetry: &Telemetry) -> ExitStatus {
    let refused = hardening::apply();
    let panics = Panics::watch();
    let outcome = runtime::Builder::new_current_thread().enable_all().build().map(|runtime| {
        let job = supervise(options, refused, &panics);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(job)));
        // Threads that look up names must not hold up the exit.
        runtime.shutdown_background();
        // Before there was a session, or after the sessions were ended.
        outcome.unwrap_or_else(|_| Err(defect(&panics).into_failure(Phase::Config)))
    });
    let lost_lines = telemetry.lost_lines().count();
    if lost_lines > 0 {
        warn!(lost_lines, "log lines were dropped because nobody read stderr");
    }
    let status = match outcome {
        Ok(Ok(())) => ExitStatus::Ended,
        Ok(Err(failure)) => fail(&options.source, &failure),
        Err(error) => {
            let error = Error::Internal(format!("no runtime: {error}"));
            fail(&options.source, &error.into_failure(Phase::Config))
        }
    };
    stdout::flush(LAST_LINES);
    status
}

fn defect(panics: &Panics) -> Error {
    panics.error().unwrap_or_else(|| Error::Internal("panic".to_owned()))
}

fn fail(source: &Source, failure: &Failure) -> ExitStatus {
    error!(
        code = failure.code.as_str(),
        phase = failure.phase,
        hint = failure.hint,
        "{}",
        failure.message
    );
    if let Source::File(_) = source {
        write_termination_log(failure);
    }
    if let Err(error) = stdout::print(&Line::Failed(failure.clone())) {
        warn!(%error, "nobody reads stdout");
    }
    failure.exit_status()
}

/// Leaves `failure` where Kubernetes takes the reason of a container's end from; not everywhere is there
/// such a file.
pub fn write_termination_log(failure: &Failure) {
    if let Ok(json) = serde_json::to_string(failure)
        && let Err(error) = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(TERMINATION_LOG)
            .and_then(|mut file| file.write_all(json.as_bytes()))
    {
        debug!(%error, "no termination message");
    }
}

async fn supervise(
    options: &Options,
    mut refused: Vec<Unprotected>,
    panics: &Panics,
) -> Result<(), Failure> {
    let mut signals = pin!(stopping_signal());
    let at_first = |error: Error| error.into_failure(Phase::Config);
    // At once, so that it locks itself up while the document is on its way.
    let mut monitor = Monitor::start(&options.worker, Stdio::null())
        .map_err(|error| at_first(Error::NoWorker(error)))?;
    let mut lease = None;
    let document = async {
        match &options.source {
            Source::File(path) => config_reader::read_file(path),
            Source::Stdin => {
                let mut stdin = Stdin::open().map_err(Error::Stdin)?;
                let (request, rest) = config_reader::read(&mut stdin).await?;
                lease = Some((stdin, rest));
                Ok(request)
            }
        }
    };
    let begun = async {
        let request = document.await?;
        // Meanwhile the worker locks itself up.
        let doors = Doors::open(&request).await?;
        let service = Service::new(&request, Some(doors.port), Trust::load(), Proxy::from_env()?)?;
        refused.extend(monitor.locked_up().await?);
        hardening::enforce(request.hardening, refused)?;
        monitor.begin(doors.orders(options), &request)?;
        Ok(service)
    };
    let begun = tokio::select! {
        begun = begun => begun,
        signal = &mut signals => {
            info!(signal, "stopped before the worker could begin");
            monitor.finish(None, Instant::now() + GRACE).await;
            return Ok(());
        }
    };
    let mut service = match begun {
        Ok(service) => service,
        Err(error) => {
            monitor.finish(None, Instant::now() + GRACE).await;
            return Err(at_first(error));
        }
    };

    let plane = service.plane();
    let mut asked = None;
    let stop = async {
        let stop = tokio::select! {
            () = config_reader::watch(lease, &plane) => Stop::StdinClosed,
            () = stdout::closed() => Stop::StdoutClosed,
            signal = &mut signals => Stop::Signal(signal.into()),
            () = panics.noticed() => Stop::Panic,
        };
        asked = Some(Instant::now());
        stop
    };
    // Not unwound through here: the sessions are still to be ended.
    let attended = AssertUnwindSafe(monitor.attend(&mut service, stop, say)).catch_unwind().await;
    let attended = if let Ok(attended) = attended {
        attended
    } else {
        asked = Some(Instant::now());
        monitor.attend(&mut service, async { Stop::Panic }, say).await
    };
    let deadline = asked.map_or_else(|| Instant::now() + AFTER_LOSS, |asked| asked + GRACE);
    let phase = monitor.phase();
    monitor.finish(Some(service), deadline).await;
    if let Some(error) = panics.error() {
        return Err(error.into_failure(phase));
    }
    match attended {
        Ok(Ended::Tunnel(None)) => Ok(()),
        Ok(Ended::Tunnel(Some(failure))) => Err(failure),
        Ok(Ended::Check(..)) => {
            Err(Error::Internal("a check was not asked for".to_owned()).into_failure(phase))
        }
        Err(lost) => Err(Error::Worker(lost).into_failure(phase)),
    }
}

/// Where others arrive. The worker cannot open a door any more.
struct Doors {
    clients: listener::Bound,
    port: u16,
    probes: Option<TcpListener>,
}

impl Doors {
    async fn open(request: &Request) -> Result<Self, Error> {
        let clients = listener::bind(&request.listen).await?;
        let probes = request.health.listen.map(health::bind).transpose()?;
        let address = clients.socket.local_addr();
        let port = address.map_err(|error| Error::Internal(error.to_string()))?.port();
        Ok(Self { clients, port, probes })
    }

    /// Hands them to the worker.
    fn orders(self, options: &Options) -> Orders {
        let Self { clients, probes, .. } = self;
        let begin = Begin {
            task: Task::Run {
                channel_life_s: options.channel_life.as_secs(),
                diagnosis: clients.diagnosis.is_some(),
                health: probes.is_some(),
            },
            elapsed_ms: u64::try_from(options.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let descriptors = [Some(clients.socket.into()), clients.diagnosis, probes.map(Into::into)];
        Orders { begin, descriptors: descriptors.into_iter().flatten().collect() }
    }
}

fn say(line: &Line) {
    if let Err(error) = stdout::print(line) {
        warn!(%error, "nobody reads stdout, a line is lost");
    }
}

/// Handles the signals that ask to stop from now on, and completes with the name of the first. A closed terminal
/// and Ctrl-\ ask as well: by default they would end the process and leave its sessions.
pub(crate) fn stopping_signal() -> impl Future<Output = &'static str> {
    let signals = [
        ("SIGTERM", SignalKind::terminate()),
        ("SIGINT", SignalKind::interrupt()),
        ("SIGHUP", SignalKind::hangup()),
        ("SIGQUIT", SignalKind::quit()),
    ];
    let mut asked = FuturesUnordered::new();
    for (name, kind) in signals {
        match signal(kind) {
            Ok(mut signal) => asked.push(async move {
                match signal.recv().await {
                    Some(()) => name,
                    None => pending().await,
                }
            }),
            Err(error) => warn!(name, %error, "the signal cannot be handled"),
        }
    }
    async move {
        match asked.next().await {
            Some(name) => name,
            None => pending().await,
        }
    }
}

/// Kubernetes shows what is written here as the reason of a container's end.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// How long the exit waits for a runner to read what was said.
const LAST_LINES: Duration = Duration::from_millis(500);

/// From the loss of the worker to the exit: its sessions are ended in that time.
const AFTER_LOSS: Duration = Duration::from_secs(4);
