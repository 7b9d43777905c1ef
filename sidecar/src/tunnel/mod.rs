//! The tunnel, from the settings to the end of the last session.
//!
//! A stop drops the future that serves; no flag is passed through the steps. Every way out is the same: stop accepting,
//! reset open connections, end every session, report why.

mod error;
mod forward;
pub(crate) mod health;
pub(crate) mod lanes;
pub(crate) mod listener;
mod metrics;
pub(crate) mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::FutureExt as _;
use runner_protocol::{Failure, PhaseTimes, Summary};
use tokio::time::{Instant, error::Elapsed, timeout_at};
use tracing::{info, warn};

use self::{
    forward::{ConnectionStats, Limits},
    lanes::{Lane, LaneConfig, LaneError, LaneEvent, LaneObserver, LanePool, PathChange},
    listener::{Bound, Listener},
    metrics::Metrics,
};
use crate::{
    config::Settings,
    net::dial::Connector,
    runtime::{
        event::Event,
        failure::{InternalError, ToFailure as _},
        memory,
        panics::Panics,
        phase::{Phase, Progress},
        shutdown::Shutdown,
        stop::{self, StopReason},
        telemetry::DroppedLines,
    },
    session::SessionApi,
};

pub(crate) use error::TunnelError;

/// Reports to the runner. Must not block.
pub(crate) trait Events: Send + Sync + 'static {
    /// A phase of the start has begun.
    fn phase(&self, phase: Phase);

    /// The tunnel is up, on this port.
    fn ready(&self, port: u16);

    /// An event other than a phase; for the runner only with `"events": true`.
    fn event(&self, event: Event);
}

/// What the process provides to a tunnel.
#[derive(Debug)]
pub(crate) struct Dependencies {
    /// Starts, resumes and terminates sessions.
    pub(crate) api: Arc<dyn SessionApi>,
    /// Connects to the stream host.
    pub(crate) connector: Connector,
    pub(crate) panics: Panics,
    pub(crate) dropped_lines: DroppedLines,
}

/// The sockets and times of a tunnel.
#[derive(Debug)]
pub(crate) struct TunnelOptions {
    /// When the config was received: `timeouts.ready_s` counts from then on.
    pub(crate) received: Instant,
    pub(crate) listener: Bound,
    pub(crate) health: Option<std::net::TcpListener>,
}

/// Opens the tunnel and serves it until `stop` completes or the tunnel fails. `progress` times the phases.
///
/// # Errors
///
/// The content of the `failed` line.
pub(crate) async fn run(
    settings: Settings,
    options: TunnelOptions,
    dependencies: Dependencies,
    progress: Progress,
    events: impl Events,
    stop: impl Future<Output = StopReason>,
) -> Result<(), Failure> {
    let Dependencies { api, connector, panics, dropped_lines } = dependencies;
    let TunnelOptions { received, listener, health } = options;
    let internal =
        |error: std::io::Error| InternalError::new(error.to_string()).to_failure(progress.phase());
    let listener = Listener::new(listener, settings.allowed_uids.clone()).map_err(internal)?;
    let shutdown = Shutdown::default();
    let config = LaneConfig::new(&settings, api, connector, shutdown.clone());
    let config = Arc::new(config);
    let tunnel = Tunnel {
        lanes: Arc::new(LanePool::new(Arc::clone(&config))),
        config,
        settings,
        events: Arc::new(events),
        progress: progress.clone(),
        shutdown,
        connections: Arc::default(),
    };
    health::start(health, tunnel.metrics(dropped_lines), &tunnel.shutdown).map_err(internal)?;
    info!("started");

    let stop = async {
        tokio::select! {
            stop = stop => stop,
            () = panics.occurred() => StopReason::Panic,
        }
    };
    let outcome = tokio::select! {
        // A panic is caught here: the sessions are still to be ended.
        served = AssertUnwindSafe(tunnel.serve(listener, received)).catch_unwind() => {
            served.map_or(Ok(StopReason::Panic), Err)
        }
        stop = stop => Ok(stop),
    };
    // `serve` is dropped by now; tasks that run to their end go on.
    let phase = progress.phase();
    let unfinished = tunnel.end().await;
    let outcome = match panics.first() {
        Some(location) => Err(InternalError::from(location).into()),
        None => outcome,
    };
    tunnel.summarize(&outcome, unfinished);
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_failure(phase)),
    }
}

struct Tunnel<E> {
    settings: Settings,
    config: Arc<LaneConfig>,
    lanes: Arc<LanePool>,
    events: Arc<E>,
    progress: Progress,
    shutdown: Shutdown,
    connections: Arc<ConnectionStats>,
}

impl<E: Events> Tunnel<E> {
    fn metrics(&self, dropped_lines: DroppedLines) -> Metrics {
        Metrics {
            job_id: self.settings.job_id.clone(),
            progress: self.progress.clone(),
            connections: Arc::clone(&self.connections),
            lanes: Arc::clone(&self.lanes),
            dropped_lines,
        }
    }

    /// Opens the tunnel and serves it; returns only when that fails.
    async fn serve(&self, listener: Listener, received: Instant) -> TunnelError {
        match self.start(listener.port(), received).await {
            Ok(()) => self.forward(listener).await,
            Err(error) => error,
        }
    }

    /// Opens the first lane and connects to the target, within `timeouts.ready_s`.
    async fn start(&self, port: u16, received: Instant) -> Result<(), TunnelError> {
        let limit = self.settings.timeouts.ready;
        let deadline = received + limit;
        let not_ready =
            |_| TunnelError::NotReady { seconds: limit.as_secs(), phase: self.progress.phase() };
        let lane = self.open(deadline).await.map_err(not_ready)??;
        let connected = timeout_at(deadline, self.connect(&lane)).await;
        connected.map_err(not_ready)??;
        self.progress.begin(Phase::Tunnel);
        info!(port, "ready");
        self.events.ready(port);
        memory::release_startup_pages();
        Ok(())
    }

    /// Opens the first lane until `deadline`.
    async fn open(&self, deadline: Instant) -> Result<Result<Arc<Lane>, LaneError>, Elapsed> {
        let progress = self.progress.clone();
        let observer: LaneObserver = Arc::new(move |event| {
            if let LaneEvent::Phase(phase) = event {
                progress.begin(phase);
            }
        });
        let lane = match lanes::open_first(&self.config, &observer, deadline).await? {
            Ok(lane) => Arc::new(lane),
            Err(error) => return Ok(Err(error)),
        };
        let server = &lane.server;
        self.events.event(Event::HostKey(server.fingerprint.clone()));
        if server.pinned {
            info!(fingerprint = server.fingerprint, "host key is the pinned one");
        } else {
            warn!(
                fingerprint = server.fingerprint,
                "host key accepted unseen: pin it in `bastion.ssh_host_key`"
            );
        }
        info!(agent = lane.agent_version(), sshd = server.server, "lane open");
        self.lanes.add_first(&lane);
        Ok(Ok(lane))
    }

    /// Connects to the target, and keeps the connection for the first client.
    async fn connect(&self, lane: &Arc<Lane>) -> Result<(), TunnelError> {
        self.progress.begin(Phase::Target);
        let requested = Instant::now();
        let channel = target::connect(lane, &self.config, self.settings.timeouts.connect).await?;
        self.lanes.keep(Arc::clone(lane), channel, requested);
        Ok(())
    }

    /// Forwards connections; returns only when that fails.
    async fn forward(&self, listener: Listener) -> TunnelError {
        let limits = Limits {
            max_connections: self.settings.tunnel.max_connections,
            connect: self.settings.timeouts.connect,
        };
        let on_change = |change| {
            self.events.event(match change {
                PathChange::Degraded(reason) => Event::Degraded(reason),
                PathChange::Recovered => Event::Recovered,
            });
        };
        let (lanes, connections) = (Arc::clone(&self.lanes), Arc::clone(&self.connections));
        let serving = forward::serve(listener, lanes, limits, connections, &self.shutdown);
        tokio::select! {
            error = self.lanes.supervise(on_change) => error.into(),
            () = serving => InternalError::new("the listener ended").into(),
            () = self.lanes.expire_kept_connection() => {
                InternalError::new("the kept connection's timer ended").into()
            }
        }
    }

    /// Ends every session and waits for every task; returns how many did not end in time.
    async fn end(&self) -> usize {
        let deadline = Instant::now() + stop::WORKER;
        self.shutdown.stop();
        if timeout_at(deadline, self.lanes.terminate(stop::TERMINATE_FLAG)).await.is_err() {
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

    /// Writes the last log line, and sends the `closed` event of a job that was stopped on request.
    fn summarize(&self, outcome: &Result<StopReason, TunnelError>, unfinished: usize) {
        let totals = self.lanes.totals();
        let phases =
            [Phase::Config, Phase::StartSession, Phase::Session, Phase::Ssh, Phase::Target];
        let took = phases.iter().filter_map(|phase| {
            let took = self.progress.took(*phase)?;
            Some((phase.name().to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX)))
        });
        let reason = match outcome {
            Ok(stop) => stop.as_str().to_owned(),
            Err(error) => error.to_string(),
        };
        let summary = Summary {
            job_id: self.settings.job_id.clone(),
            reason,
            bytes_to_target: self.connections.bytes_up.load(Relaxed),
            bytes_from_target: self.connections.bytes_down.load(Relaxed),
            connections: self.connections.connections.load(Relaxed),
            sessions: totals.sessions,
            resumes: totals.resumes,
            retransmissions: totals.retransmissions,
            phases_ms: PhaseTimes(took.collect()),
        };
        // In tenths: what is finer is noise.
        let took_ms = |phase| {
            let took = self.progress.took(phase)?;
            Some((took.as_secs_f64() * 1e4).round() / 10.0)
        };
        info!(
            reason = summary.reason,
            bytes_to_target = summary.bytes_to_target,
            bytes_from_target = summary.bytes_from_target,
            connections = summary.connections,
            resets = self.connections.resets.load(Relaxed),
            refused = self.connections.refused.load(Relaxed),
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
            self.events.event(Event::Closed(summary));
        }
    }
}
