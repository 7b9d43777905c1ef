//! The worker's job: the tunnel from the document to the last session's end.
//!
//! Stopping is dropping: no flag is threaded through the steps. Whatever ends the job, the same way leads
//! out: stop accepting, reset what is open, end every session, say why.

pub mod forward;
pub mod health;
pub mod lanes;
pub mod listener;
pub mod metrics;
pub(crate) mod target;

use self::forward::{Limits, Traffic};

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt as _;
use runner_protocol::{Failure, Line, PhaseTimes, Request, Summary};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::{
    channel::websocket,
    commands::error::Error,
    config::Config,
    ipc::message::Stop,
    net::{dial::Dial, proxy::Proxy, tls::Trust},
    runner::stdout::Output,
    runtime::{
        memory,
        panics::Panics,
        phase::{Phase, Progress},
        shutdown::Shutdown,
        telemetry::LostLines,
    },
    session::SessionApi,
    ssh::Channel,
    tunnel::{
        lanes::{Change, Lane, Lanes, Needs, Target},
        listener::{Bound, Listener},
        metrics::Figures,
    },
};

/// What a job is given by the process around it.
#[derive(Debug)]
pub struct Surroundings {
    /// Starts, resumes and ends sessions.
    pub api: Arc<dyn SessionApi>,
    /// Makes connections.
    pub dial: Arc<dyn Dial>,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// The way out.
    pub proxy: Proxy,
}

/// What a tunnel is opened with.
#[derive(Debug)]
pub struct Orders {
    /// For how long the service leaves a data channel open, [`CHANNEL_LIFE`].
    pub channel_life: Duration,
    /// When the monitor, which the runner has started, began.
    pub started: Instant,
    /// Where clients arrive.
    pub listener: Bound,
    /// Where probes do.
    pub health: Option<std::net::TcpListener>,
}

/// Opens the tunnel that `request` asks for and serves it until `stop` completes, or until it fails.
///
/// # Errors
///
/// What the `failed` line says.
pub async fn run(
    request: Request,
    orders: Orders,
    surroundings: Surroundings,
    output: Arc<Output>,
    panics: &Panics,
    lost_lines: LostLines,
    stop: impl Future<Output = Stop>,
) -> Result<(), Failure> {
    // The document is there. That its key may be slow to open counts, not that the runner was slow to write.
    let begun = Instant::now();
    let told = Arc::clone(&output);
    let progress = Progress::new(orders.started, move |phase| told.phase(phase));
    let failed = |error: Error| error.into_failure(progress.phase());
    let config = Config::from_request(request).map_err(|error| failed(error.into()))?;
    let Orders { channel_life, listener, health, .. } = orders;
    let job = Job::new(config, channel_life, surroundings, Arc::clone(&output), progress.clone());
    let internal = |error: std::io::Error| failed(Error::Internal(error.to_string()));
    let listener = Listener::new(listener, job.config.allowed_uids.clone()).map_err(internal)?;
    health::start(health, job.figures(lost_lines), &job.shutdown).map_err(internal)?;
    info!(name = job.config.name, job_id = job.config.job_id, "started");

    let stop = async {
        tokio::select! {
            stop = stop => stop,
            () = panics.noticed() => Stop::Panic,
        }
    };
    let outcome = tokio::select! {
        // Not unwound through here: the sessions are still to be ended.
        served = AssertUnwindSafe(job.serve(listener, begun)).catch_unwind() => served.map_or(Ok(Stop::Panic), Err),
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
        surroundings: Surroundings,
        output: Arc<Output>,
        progress: Progress,
    ) -> Self {
        let shutdown = Shutdown::default();
        let needs = needs(&config, surroundings, shutdown.clone());
        let needs = Arc::new(Needs { channel_life, ..needs });
        let traffic = Arc::default();
        let lanes = Arc::default();
        Self { config, needs, output, progress, shutdown, traffic, lanes }
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
    async fn serve(&self, listener: Listener, begun: Instant) -> Error {
        match self.start(listener.port(), begun).await {
            Ok((lanes, proof)) => self.forward(listener, lanes, proof).await,
            Err(error) => error,
        }
    }

    async fn start(&self, port: u16, begun: Instant) -> Result<(Arc<Lanes>, Proof), Error> {
        let limit = self.config.timeouts.ready;
        let opened = timeout_at(begun + limit, self.open()).await;
        let (lanes, proof) = opened.map_err(|_| Error::NotReady { seconds: limit.as_secs() })??;
        self.progress.begin(Phase::Tunnel);
        info!(port, "ready");
        self.output.line(&Line::Ready(port));
        memory::shrink();
        Ok((lanes, proof))
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
        info!(agent = lane.agent_version(), sshd = found.server, "lane open");
        let lane = Arc::new(lane);
        let lanes = Arc::new(Lanes::new(Arc::clone(&self.needs), Arc::clone(&lane)));
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&lanes));
        self.progress.begin(Phase::Target);
        let (limit, ssh_port) = (self.config.timeouts.connect, self.config.bastion.ssh_port);
        let channel = target::reach(&lane, &self.needs.target, limit, ssh_port).await?;
        Ok((lanes, (channel, Instant::now())))
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
            && timeout_at(deadline, lanes.terminate(FLAG_BOUND)).await.is_err()
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
pub(crate) fn needs(config: &Config, surroundings: Surroundings, shutdown: Shutdown) -> Needs {
    let Surroundings { api, dial, trust, proxy } = surroundings;
    let stream = websocket::Settings { dial, ..websocket::Settings::of(&config.aws, trust, proxy) };
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

/// From the stop to the exit; the contract allows 5 s.
const GRACE: Duration = Duration::from_millis(4500);

/// For an agent to acknowledge the TerminateSession flag and to close.
const FLAG_BOUND: Duration = Duration::from_secs(2);

/// Silence after which sshd is asked for a sign of life. It is input for the session, too, whose idle
/// time-out may be as short as a minute.
const SSH_KEEPALIVE: Duration = Duration::from_secs(20);
