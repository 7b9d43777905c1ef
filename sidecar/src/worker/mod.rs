//! The worker: the process that holds the SSH key and parses what the network sends.
//!
//! It is the same program as the monitor, executed again, so that nothing of the monitor's memory is in it. It is
//! sandboxed before it reads its config: no file, no new connection, no other process, no AWS key. Calls to AWS and new
//! connections are requested from the monitor, over the socket that is the worker's stdin, see [`monitor_client`]. When
//! the monitor has ended, the worker ends its sessions through their data channels, and exits.

mod check;
mod events;
mod monitor_client;
mod sandbox;

use std::{
    convert::Infallible, io, net::TcpListener, os::fd::OwnedFd, panic::resume_unwind, sync::Arc,
};

use runner_protocol::{Config, Failure};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{debug, warn};

use self::{events::MonitorEvents, monitor_client::MonitorClient};
use crate::{
    config::{Settings, SettingsError},
    ipc::{
        Frame, IpcSocket, ReceiveBuffer,
        message::{StartMessage, ToMonitor, ToWorker, WorkerTask, decode, encode},
    },
    net::{dial::Connector, proxy::Proxy, tls::RootCertificates},
    runtime::{
        executor,
        failure::{InternalError, ToFailure as _},
        hardening::{self, MissingProtection},
        panics::Panics,
        phase::{Phase, Progress},
        stop::StopReason,
        telemetry::Telemetry,
    },
    tunnel::{self, Dependencies, Events as _, TunnelOptions, listener::Bound},
};

pub(crate) use check::report;

/// What the worker has read before it was sandboxed, and the protections that are missing.
#[derive(Debug)]
pub(crate) struct Setup {
    roots: RootCertificates,
    missing: Vec<MissingProtection>,
}

/// Reads the files that will be needed, and gives up files and privileges. To be called before there is another thread:
/// it affects the calling thread, and the threads that it starts.
pub(crate) fn set_up() -> Setup {
    sandbox::block_stop_signals();
    // Before anything that takes time: until then other processes of this user can read this one's memory.
    let mut missing = hardening::apply();
    sandbox::close_inherited();
    #[cfg(target_os = "linux")]
    {
        // A name of its own, so that a signal sent by name (pkill) reaches the monitor only.
        let _unnamed = nix::sys::prctl::set_name(PROCESS_NAME);
        warm_up();
    }
    let roots = RootCertificates::load();
    missing.extend(sandbox::drop_privileges());
    Setup { roots, missing }
}

/// Runs the worker's task until its end. Blocks.
///
/// # Errors
///
/// When stdin is not the socket to a monitor.
pub(crate) fn run(setup: Setup, telemetry: &Telemetry) -> io::Result<()> {
    let panics = Panics::watch();
    // A panic of this function's own future ends the process, which the monitor reports.
    executor::block_on(serve(setup, telemetry, &panics))?
        .unwrap_or_else(|panic| resume_unwind(panic))
}

async fn serve(setup: Setup, telemetry: &Telemetry, panics: &Panics) -> io::Result<()> {
    let socket = IpcSocket::inherited()?;
    let Setup { roots, mut missing } = setup;
    // Last, when the runtime has made the system calls that only its start needs.
    missing.extend(sandbox::filter_system_calls());
    let (outbox, queue) = mpsc::channel(QUEUE);
    let (stop_tx, stop) = oneshot::channel();
    let (start_tx, start) = oneshot::channel();
    let client = Arc::new(MonitorClient::new(outbox.clone()));
    let pump = MessagePump { socket, queue, client: Arc::clone(&client), stop_tx: Some(stop_tx) };
    let work = async {
        send(&outbox, &ToMonitor::Sandboxed(missing)).await;
        let Ok(start) = start.await else {
            debug!("the monitor ended before it sent a task");
            return;
        };
        let stop = async { stop.await.unwrap_or(StopReason::MonitorGone) };
        let task = Task { client, roots, outbox: &outbox, panics, telemetry };
        let last = task.run(start, stop).await;
        send(&outbox, &last).await;
    };
    tokio::select! {
        () = work => Ok(()),
        never = pump.run(start_tx) => match never {},
    }
}

/// Returns when the message is sent, or cannot be sent any more.
async fn send(outbox: &mpsc::Sender<Frame>, message: &ToMonitor) {
    let (sent, sending) = oneshot::channel();
    let Ok(frame) = encode(message) else { return };
    if outbox.send(Frame { sent: Some(sent), ..frame }).await.is_ok() {
        // An error means that the monitor has ended.
        let _sent = sending.await;
    }
}

/// The first message, its descriptors, and the frame with the config.
struct Start {
    message: StartMessage,
    descriptors: Vec<OwnedFd>,
    config: Frame,
}

/// The worker's task and its dependencies.
struct Task<'a> {
    client: Arc<MonitorClient>,
    roots: RootCertificates,
    outbox: &'a mpsc::Sender<Frame>,
    panics: &'a Panics,
    telemetry: &'a Telemetry,
}

impl Task<'_> {
    /// Runs the task; returns the last message.
    async fn run(self, start: Start, stop: impl Future<Output = StopReason>) -> ToMonitor {
        let received = Instant::now();
        let Start { message: StartMessage { task, elapsed }, descriptors, config } = start;
        let prepared = self.prepare(config);
        match task {
            WorkerTask::Check(format) => match prepared {
                Ok((config, dependencies)) => {
                    let (status, failure) = check::run(config, dependencies, format, stop).await;
                    ToMonitor::Checked { status, failure }
                }
                Err(failure) => ToMonitor::Finished(Some(failure)),
            },
            WorkerTask::Run { sock_diag, health } => {
                let began = received - elapsed;
                let sockets = take_sockets(sock_diag, health, descriptors);
                let outcome = match (prepared, sockets) {
                    (Err(failure), _) | (_, Err(failure)) => Err(failure),
                    (Ok((config, dependencies)), Ok((listener, health))) => {
                        let options = TunnelOptions { received, listener, health };
                        self.run_tunnel(config, options, dependencies, began, stop).await
                    }
                };
                let dropped_lines = self.telemetry.dropped_lines().count();
                if dropped_lines > 0 {
                    warn!(dropped_lines, "log lines were dropped because stderr was not read");
                }
                ToMonitor::Finished(outcome.err())
            }
        }
    }

    /// `began`: when the monitor was started.
    async fn run_tunnel(
        &self,
        config: Config,
        options: TunnelOptions,
        dependencies: Dependencies,
        began: Instant,
        stop: impl Future<Output = StopReason>,
    ) -> Result<(), Failure> {
        let events = MonitorEvents::new(config.events, self.outbox.clone());
        let phases = events.clone();
        let progress = Progress::new(began, move |phase| phases.phase(phase));
        let settings =
            Settings::from_config(config).map_err(|error| error.to_failure(Phase::Config))?;
        tunnel::run(settings, options, dependencies, progress, events, stop).await
    }

    fn prepare(&self, config: Frame) -> Result<(Config, Dependencies), Failure> {
        let parsed = Config::from_slice(&config.bytes)
            .map_err(|error| SettingsError::from(error).to_failure(Phase::Config))?;
        // Wiped here: it holds the SSH key.
        drop(config);
        self.telemetry.set_job(&parsed.name, parsed.job_id.as_deref());
        let proxy = Proxy::from_env().map_err(|error| error.to_failure(Phase::Config))?;
        let dependencies = Dependencies {
            api: Arc::<MonitorClient>::clone(&self.client),
            connector: Connector {
                roots: self.roots.clone(),
                proxy,
                dial: Arc::<MonitorClient>::clone(&self.client),
            },
            panics: self.panics.clone(),
            dropped_lines: self.telemetry.dropped_lines(),
        };
        Ok((parsed, dependencies))
    }
}

/// Takes the sockets of [`WorkerTask::Run`] from its descriptors.
fn take_sockets(
    sock_diag: bool,
    health: bool,
    descriptors: Vec<OwnedFd>,
) -> Result<(Bound, Option<TcpListener>), Failure> {
    let mut descriptors = descriptors.into_iter();
    let listener = descriptors.next();
    let mut next_if = |is_there: bool| if is_there { descriptors.next() } else { None };
    let sock_diag = next_if(sock_diag);
    let health = next_if(health).map(TcpListener::from);
    let Some(listener) = listener else {
        return Err(InternalError::new("the listener is missing").to_failure(Phase::Config));
    };
    Ok((Bound { socket: TcpListener::from(listener), sock_diag }, health))
}

/// Sends queued messages, and delivers received ones.
struct MessagePump {
    socket: IpcSocket,
    queue: mpsc::Receiver<Frame>,
    client: Arc<MonitorClient>,
    stop_tx: Option<oneshot::Sender<StopReason>>,
}

impl MessagePump {
    async fn run(mut self, start_tx: oneshot::Sender<Start>) -> Infallible {
        let sending = self.socket.send_all(&mut self.queue);
        let receiving = receive(&self.socket, &self.client, start_tx, &mut self.stop_tx);
        let error = tokio::select! {
            error = sending => Some(error),
            error = receiving => error,
        };
        let cause = error.map_or_else(|| "it has closed the socket".to_owned(), |e| e.to_string());
        debug!(cause, "the monitor has ended");
        // Requests fail from now on, and the stop cannot come any more.
        drop(self.queue);
        self.client.close();
        if let Some(stop_tx) = self.stop_tx.take() {
            // The task may be over.
            let _received = stop_tx.send(StopReason::MonitorGone);
        }
        std::future::pending().await
    }
}

/// Completes when the monitor has ended, with the error if there is one.
async fn receive(
    socket: &IpcSocket,
    client: &MonitorClient,
    start_tx: oneshot::Sender<Start>,
    stop_tx: &mut Option<oneshot::Sender<StopReason>>,
) -> Option<io::Error> {
    let mut buffer = ReceiveBuffer::default();
    let mut start_tx = Some(start_tx);
    loop {
        let mut frame = match socket.receive(&mut buffer).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(error) => return Some(error),
        };
        match decode(&frame) {
            Ok(ToWorker::Start(message)) => {
                let config = match socket.receive(&mut buffer).await {
                    Ok(Some(config)) => config,
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                };
                let descriptors = std::mem::take(&mut frame.descriptors);
                if let Some(start_tx) = start_tx.take() {
                    // The receiver lives as long as this does.
                    let _received = start_tx.send(Start { message, descriptors, config }).is_ok();
                }
            }
            Ok(ToWorker::Response { id, response }) => {
                client.complete(id, response, frame.descriptors.pop());
            }
            Ok(ToWorker::Stop(reason)) => {
                if let Some(stop_tx) = stop_tx.take() {
                    let _received = stop_tx.send(reason);
                }
            }
            Err(error) => return Some(error.into()),
        }
    }
}

/// Initializes what needs the file system: the libraries open the source of random numbers once.
#[cfg(target_os = "linux")]
fn warm_up() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Without random numbers every later step fails with an error.
    let _filled = provider.secure_random.fill(&mut [0; 16]);
    // In a statically linked program `getrandom` opens a file once, and keeps it open.
    let _random = uuid::Uuid::new_v4();
}

/// As `ps` shows it.
#[cfg(target_os = "linux")]
const PROCESS_NAME: &std::ffi::CStr = c"ssm-worker";

/// Most messages that wait to be sent.
const QUEUE: usize = 256;
