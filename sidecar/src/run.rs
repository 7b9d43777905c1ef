//! The whole job, top to bottom.
//!
//! Stopping is dropping: no flag is threaded through the steps. Whatever ends the job, the same way leads
//! out: stop accepting, reset what is open, end every session, say why, exit.

mod document;
pub(crate) mod identity;
mod panics;

use std::{
    fs::OpenOptions,
    future::pending,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use runner_protocol::{ExitStatus, Failure, Line, PhaseTimes, Request, Summary};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};
use tracing::{debug, error, info, warn};

use self::panics::Panics;
use crate::{
    aws::ControlPlane,
    config::Config,
    error::{Error, TargetCause, TargetError},
    forward::{self, Limits, Traffic},
    hardening::{self, Unprotected},
    health,
    http_proxy::Proxy,
    lanes::{Change, Lane, Lanes, Needs, Target},
    lease::Stdin,
    listen::{self, Listener},
    metrics::Figures,
    output::{self, Output},
    progress::{Phase, Progress},
    session::SessionApi,
    shutdown::Shutdown,
    ssh::{Channel, OpenError},
    telemetry::{LostLines, Telemetry},
    tls::Trust,
    websocket,
};

/// Where the document comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Stdin, which is the lease from then on.
    Stdin,
    /// A file; signals end the tunnel.
    File(PathBuf),
}

/// Reads the whole document from stdin or from `file`, for commands that open no tunnel. Blocks.
///
/// # Errors
///
/// [`Error::File`] and [`Error::Config`].
pub fn read_document(file: Option<&Path>) -> Result<Request, Error> {
    document::read_whole(file)
}

/// Does the job and says how it ended, on stdout and as exit status. `channel_life`: for how long the service
/// leaves a data channel open, [`CHANNEL_LIFE`]; `started`: when the process did.
pub fn run(
    source: &Source,
    channel_life: Duration,
    telemetry: &Telemetry,
    started: Instant,
) -> ExitStatus {
    let refused = hardening::apply();
    let panics = Panics::watch();
    let outcome = runtime::Builder::new_current_thread().enable_all().build().map(|runtime| {
        let job = job(source, channel_life, refused, started, &panics, telemetry.lost_lines());
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(job)));
        // Threads that look up names must not hold up the exit.
        runtime.shutdown_background();
        // Before there was a session, or after the sessions were ended.
        outcome.unwrap_or_else(|_| {
            let error = panics.error().unwrap_or_else(|| Error::Internal("panic".to_owned()));
            Err(error.into_failure(Phase::Config))
        })
    });
    let lost_lines = telemetry.lost_lines().count();
    if lost_lines > 0 {
        warn!(lost_lines, "log lines were dropped because nobody read stderr");
    }
    match outcome {
        Ok(Ok(())) => ExitStatus::Ended,
        Ok(Err(failure)) => fail(source, &failure),
        Err(error) => {
            let error = Error::Internal(format!("no runtime: {error}"));
            fail(source, &error.into_failure(Phase::Config))
        }
    }
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
    if let Err(error) = Output::new(true).line(&Line::Failed(failure.clone())) {
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

/// What a stop was asked by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    StdinClosed,
    StdoutClosed,
    Signal(&'static str),
    Panic,
}

impl Stop {
    const fn reason(self) -> &'static str {
        match self {
            Self::StdinClosed => "stdin closed",
            Self::StdoutClosed => "stdout closed",
            Self::Signal(name) => name,
            Self::Panic => "panic",
        }
    }
}

async fn job(
    source: &Source,
    channel_life: Duration,
    refused: Vec<Unprotected>,
    started: Instant,
    panics: &Panics,
    lost_lines: LostLines,
) -> Result<(), Failure> {
    let mut signals = pin!(stopping_signal());
    let mut lease = None;
    let document = async {
        match source {
            Source::File(path) => document::read_file(path),
            Source::Stdin => {
                let mut stdin =
                    Stdin::open().map_err(|error| Error::Internal(error.to_string()))?;
                let (request, rest) = document::read(&mut stdin).await?;
                lease = Some((stdin, rest));
                Ok(request)
            }
        }
    };
    let request = tokio::select! {
        request = document => request.map_err(|error| error.into_failure(Phase::Config))?,
        signal = &mut signals => {
            info!(signal, "stopped before there was a document");
            return Ok(());
        }
    };
    let output = Arc::new(Output::new(request.events));
    let told = Arc::clone(&output);
    let progress = Progress::new(started, move |phase| {
        told.event(&Line::Phase(phase.name().to_owned()));
    });
    let failed = |error: Error| error.into_failure(progress.phase());
    let config = Config::from_request(request).map_err(|error| failed(error.into()))?;
    hardening::enforce(config.hardening, refused).map_err(|error| failed(error.into()))?;
    let job =
        Job::new(config, channel_life, Arc::clone(&output), progress.clone()).map_err(failed)?;
    let figures = job.figures(lost_lines);
    health::start(job.config.health, figures, &job.shutdown)
        .await
        .map_err(|error| failed(error.into()))?;
    info!(name = job.config.name, job_id = job.config.job_id, "started");

    let stop = async {
        tokio::select! {
            () = document::watch(lease, &*job.needs.api) => Stop::StdinClosed,
            () = output::closed() => Stop::StdoutClosed,
            signal = &mut signals => Stop::Signal(signal),
            () = panics.noticed() => Stop::Panic,
        }
    };
    let outcome = tokio::select! {
        // Not unwound through here: the sessions are still to be ended.
        served = AssertUnwindSafe(job.serve()).catch_unwind() => served.map_or(Ok(Stop::Panic), Err),
        stop = stop => Ok(stop),
    };
    // What was open in `serve` is dropped by now; what must be seen through runs on.
    let phase = progress.phase();
    let unfinished = job.end().await;
    let outcome = panics.error().map_or(outcome, Err);
    job.sum_up(&outcome, unfinished);
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_failure(phase)),
    }
}

/// Completes with the name of the first signal that asks to stop. A closed terminal and Ctrl-\ ask as well:
/// by default they would end the process and leave its sessions.
pub(crate) async fn stopping_signal() -> &'static str {
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
    match asked.next().await {
        Some(name) => name,
        None => pending().await,
    }
}

/// What the job works with once its document is accepted.
struct Job {
    config: Config,
    needs: Arc<Needs>,
    output: Arc<Output>,
    progress: Progress,
    shutdown: Shutdown,
    traffic: Arc<Traffic>,
    /// Set once the first lane is open.
    lanes: Arc<Mutex<Option<Arc<Lanes>>>>,
}

/// The first connection to the target, which proved that it can be reached.
type Proof = (Channel, Instant);

impl Job {
    fn new(
        config: Config,
        channel_life: Duration,
        output: Arc<Output>,
        progress: Progress,
    ) -> Result<Self, Error> {
        let shutdown = Shutdown::default();
        let trust = Trust::load();
        let proxy = Proxy::from_env()?;
        let api: Arc<dyn SessionApi> =
            Arc::new(ControlPlane::new(identity::settings(&config), &trust, &proxy));
        let needs = Needs { channel_life, ..needs(&config, api, trust, proxy, shutdown.clone()) };
        let needs = Arc::new(needs);
        let traffic = Arc::default();
        let lanes = Arc::default();
        Ok(Self { config, needs, output, progress, shutdown, traffic, lanes })
    }

    /// What `/metrics` reads.
    fn figures(&self, lost_lines: LostLines) -> Figures {
        Figures {
            progress: self.progress.clone(),
            traffic: Arc::clone(&self.traffic),
            lanes: Arc::clone(&self.lanes),
            lost_lines,
        }
    }

    /// Opens the tunnel and serves it; returns only when that fails.
    async fn serve(&self) -> Error {
        match self.start().await {
            Ok((listener, lanes, proof)) => self.forward(listener, lanes, proof).await,
            Err(error) => error,
        }
    }

    async fn start(&self) -> Result<(Listener, Arc<Lanes>, Proof), Error> {
        let limit = self.config.timeouts.ready;
        let listener = listen::bind(&self.config.listen).await?;
        let port = listener.port();
        let opened = timeout(limit, self.open()).await;
        let (lanes, proof) = opened.map_err(|_| Error::NotReady { seconds: limit.as_secs() })??;
        self.progress.begin(Phase::Tunnel);
        info!(port, "ready");
        if let Err(error) = self.output.line(&Line::Ready(port)) {
            // `output::closed` ends the job.
            warn!(%error, "nobody reads stdout");
        }
        Ok((listener, lanes, proof))
    }

    async fn open(&self) -> Result<(Arc<Lanes>, Proof), Error> {
        let progress = self.progress.clone();
        let lane = Lane::open(1, &self.needs, move |phase| progress.begin(phase)).await?;
        let found = &lane.connected;
        self.output.event(&Line::HostKey(found.fingerprint.clone()));
        if found.pinned {
            info!(fingerprint = found.fingerprint, "host key is the pinned one");
        } else {
            warn!(
                fingerprint = found.fingerprint,
                "host key accepted unseen: pin it in `bastion.ssh_host_key`"
            );
        }
        info!(agent = lane.agent_version, sshd = found.server, "lane open");
        let lanes = Arc::new(Lanes::new(Arc::clone(&self.needs), lane));
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&lanes));
        self.progress.begin(Phase::Target);
        let proof = self.reach_target(&lanes).await?;
        Ok((lanes, proof))
    }

    async fn reach_target(&self, lanes: &Lanes) -> Result<Proof, Error> {
        let limit = self.config.timeouts.connect;
        let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let cause = tokio::select! {
            opened = timeout(limit, lanes.try_open(own)) => match opened {
                Ok(Ok(channel)) => return Ok((channel, Instant::now())),
                Ok(Err(OpenError::Lost(error))) => return Err(lanes.explain(error).await.into()),
                Ok(Err(error)) => TargetCause::Open(error),
                Err(_) => TargetCause::TimedOut { seconds: limit.as_secs() },
            },
        };
        let Target { host, port } = self.needs.target.clone();
        Err(TargetError { host, port, cause }.into())
    }

    async fn forward(&self, listener: Listener, lanes: Arc<Lanes>, proof: Proof) -> Error {
        let limits = Limits {
            max_connections: self.config.tunnel.max_connections,
            connect: self.config.timeouts.connect,
        };
        lanes.keep(proof.0, proof.1);
        let announce = |change| {
            self.output.event(&match change {
                Change::Degraded(reason) => Line::Degraded(reason),
                Change::Recovered => Line::Recovered,
            });
        };
        let serving = forward::serve(
            listener,
            Arc::clone(&lanes),
            limits,
            Arc::clone(&self.traffic),
            &self.shutdown,
        );
        tokio::select! {
            error = lanes.supervise(announce) => error.into(),
            () = serving => Error::Internal("the listener ended".to_owned()),
            () = lanes.forget_proof() => Error::Internal("the proof's clock ended".to_owned()),
        }
    }

    /// Ends every session and waits for every task; returns how many did not end in time.
    async fn end(&self) -> usize {
        let deadline = Instant::now() + GRACE;
        self.shutdown.stop();
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(lanes) = lanes
            && tokio::time::timeout_at(deadline, lanes.terminate(FLAG_BOUND)).await.is_err()
        {
            warn!("sessions did not end in time");
        }
        match self.shutdown.finish(deadline - Instant::now()).await {
            Ok(()) => 0,
            Err(error) => {
                warn!(%error, "a session may be left to its idle time-out");
                error.unfinished
            }
        }
    }

    /// The last log line, and the `closed` line of a job that ended as it should.
    fn sum_up(&self, outcome: &Result<Stop, Error>, unfinished: usize) {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let totals = lanes.map(|lanes| lanes.totals()).unwrap_or_default();
        let phases =
            [Phase::Config, Phase::StartSession, Phase::Session, Phase::Ssh, Phase::Target];
        let took = phases.iter().filter_map(|phase| {
            let took = self.progress.took(*phase)?;
            Some((phase.name().to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX)))
        });
        let reason = match outcome {
            Ok(stop) => stop.reason().to_owned(),
            Err(error) => error.to_string(),
        };
        let summary = Summary {
            reason,
            bytes_to_target: self.traffic.bytes_up.load(Relaxed),
            bytes_from_target: self.traffic.bytes_down.load(Relaxed),
            connections: self.traffic.connections.load(Relaxed),
            sessions: totals.sessions,
            resumes: totals.resumes,
            retransmissions: totals.retransmissions,
            phases_ms: PhaseTimes(took.collect()),
        };
        let took_ms = |phase| self.progress.took(phase).map(|took| took.as_secs_f64() * 1e3);
        info!(
            reason = summary.reason,
            bytes_to_target = summary.bytes_to_target,
            bytes_from_target = summary.bytes_from_target,
            connections = summary.connections,
            resets = self.traffic.resets.load(Relaxed),
            refused = self.traffic.refused.load(Relaxed),
            sessions = summary.sessions,
            resumes = summary.resumes,
            retransmissions = summary.retransmissions,
            unfinished,
            config_ms = took_ms(Phase::Config),
            start_session_ms = took_ms(Phase::StartSession),
            session_ms = took_ms(Phase::Session),
            ssh_ms = took_ms(Phase::Ssh),
            target_ms = took_ms(Phase::Target),
            "closed"
        );
        if outcome.is_ok() {
            self.output.event(&Line::Closed(summary));
        }
    }
}

/// What every lane is made from, by `config`.
pub(crate) fn needs(
    config: &Config,
    api: Arc<dyn SessionApi>,
    trust: Trust,
    proxy: Proxy,
    shutdown: Shutdown,
) -> Needs {
    let mut stream = websocket::Settings::new(config.aws.region.clone(), trust, proxy);
    stream.stream_endpoint_url.clone_from(&config.aws.stream_endpoint_url);
    stream.allow_loopback = config.aws.is_loopback;
    let mut ssh =
        ssh_client::Config::new(&config.bastion.ssh_user, Arc::clone(&config.bastion.key));
    ssh.pins.clone_from(&config.bastion.pins);
    ssh.compression = config.tunnel.compression;
    ssh.keepalive_interval = Some(SSH_KEEPALIVE);
    // One more than clients can take: the proof may still be open.
    ssh.max_channels = config.tunnel.max_connections + 1;
    Needs {
        api,
        stream,
        message_bytes: config.tunnel.message_bytes,
        ssh,
        host_key_type: OnceLock::new(),
        ssh_port: config.bastion.ssh_port,
        target: Target { host: config.target.host.clone(), port: config.target.port },
        sessions: config.tunnel.sessions,
        reconnect: config.timeouts.reconnect,
        channel_life: CHANNEL_LIFE,
        start: config.timeouts.ready,
        path_changed: Arc::default(),
        observer: None,
        shutdown,
    }
}

/// The service closes every data channel after about 60 minutes, idle or not
/// (`aws/session-manager-plugin` #135, #136).
pub const CHANNEL_LIFE: Duration = Duration::from_hours(1);

/// Kubernetes shows what is written here as the reason of a container's end.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// From the stop to the exit; the contract allows 5 s.
const GRACE: Duration = Duration::from_millis(4500);

/// For an agent to acknowledge the TerminateSession flag and to close.
const FLAG_BOUND: Duration = Duration::from_secs(2);

/// Silence after which sshd is asked for a sign of life. It is input for the session, too, whose idle
/// time-out may be as short as a minute.
const SSH_KEEPALIVE: Duration = Duration::from_secs(20);
