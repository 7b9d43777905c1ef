//! The monitor: the process that the runner starts. It holds the AWS keys, and parses nothing that comes from the
//! customer's side.
//!
//! It starts the worker and does for it what the sandbox forbids: start, resume and terminate sessions, sign, connect.
//! It alone writes to stdout. However the worker ends, the monitor terminates the sessions that are left; however the
//! monitor ends, the worker ends its sessions.
//!
//! Call order: [`Monitor::start`], [`Monitor::sandboxed`], [`Monitor::send_task`], [`Monitor::run`],
//! [`Monitor::finish`]; the last one after any of them.

mod broker;
mod error;
mod service;
mod sessions;
mod stop_state;
mod worker_config;

use std::{
    ffi::OsString,
    future::{Future, pending},
    io,
    os::fd::OwnedFd,
    pin::pin,
    process::Stdio,
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, FusedFuture as _, join_all},
    stream::FuturesUnordered,
};
use runner_protocol::{Config, Line};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    time::{Duration, Instant, sleep_until, timeout, timeout_at},
};
use tracing::{debug, warn};

use self::{
    service::MAX_REQUESTS,
    stop_state::{Action, StopState},
};
use crate::{
    ipc::{
        Frame, IpcSocket, ReceiveBuffer,
        message::{StartMessage, ToMonitor, ToWorker, decode, encode},
    },
    runtime::{
        clock::now,
        failure::InternalError,
        hardening::MissingProtection,
        stop::{self, StopReason},
    },
};

pub(crate) use error::{ExitInfo, WorkerFailure};
pub(crate) use service::{RequestHandler, WorkerOutcome};

/// The worker process and the socket to it. Dropping it kills the worker.
#[derive(Debug)]
pub(crate) struct Monitor {
    process: Child,
    socket: IpcSocket,
    buffer: ReceiveBuffer,
    outbox: mpsc::Sender<Frame>,
    queue: mpsc::Receiver<Frame>,
}

impl Monitor {
    /// Starts the worker: this program again, with `arguments`, and with no environment variables but [`ENVIRONMENT`].
    ///
    /// # Errors
    ///
    /// When the host does not start it.
    pub(crate) fn start(arguments: &[OsString], stdout: Stdio) -> io::Result<Self> {
        let (socket, theirs) = IpcSocket::pair()?;
        let mut command = Command::new(program()?);
        command.arg0(NAME).args(arguments).env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::from(theirs)).stdout(stdout).kill_on_drop(true);
        Ok(Self::new(command.spawn()?, socket))
    }

    fn new(process: Child, socket: IpcSocket) -> Self {
        let (outbox, queue) = mpsc::channel(QUEUE);
        Self { process, socket, buffer: ReceiveBuffer::default(), outbox, queue }
    }

    /// Waits until the worker is sandboxed; returns the protections that are missing. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`WorkerFailure`] when it ends first, sends something else, or takes longer than [`SANDBOX_TIMEOUT`].
    pub(crate) async fn sandboxed(&mut self) -> Result<Vec<MissingProtection>, WorkerFailure> {
        let receiving = self.socket.receive(&mut self.buffer);
        let Ok(received) = timeout(SANDBOX_TIMEOUT, receiving).await else {
            return Err(WorkerFailure::Stuck);
        };
        match received {
            Ok(Some(frame)) => match decode(&frame) {
                Ok(ToMonitor::Sandboxed(missing)) => Ok(missing),
                Ok(other) => Err(WorkerFailure::Protocol(format!("{other:?} came first"))),
                Err(error) => Err(WorkerFailure::Protocol(error.to_string())),
            },
            Ok(None) | Err(_) => Err(exit_info(&mut self.process).await.before_sandbox()),
        }
    }

    /// Sends the task, with its `descriptors` in the order of [`WorkerTask`](crate::ipc::message::WorkerTask), and the
    /// config.
    ///
    /// # Errors
    ///
    /// [`InternalError`] when the messages cannot be queued.
    pub(crate) fn send_task(
        &mut self,
        message: StartMessage,
        descriptors: Vec<OwnedFd>,
        config: &Config,
    ) -> Result<(), InternalError> {
        let internal = |error: serde_json::Error| InternalError::new(error.to_string());
        let config = worker_config::frame(config).map_err(internal)?;
        let start = encode(&ToWorker::Start(message)).map_err(internal)?;
        for frame in [Frame { descriptors, ..start }, config] {
            self.outbox
                .try_send(frame)
                .map_err(|_| InternalError::new("the worker's queue is full"))?;
        }
        Ok(())
    }

    /// Handles the worker's messages until it ends; `on_line` gets the lines for stdout. Once `stop` completes, the
    /// worker is to end within [`stop::MONITOR`].
    ///
    /// # Errors
    ///
    /// [`WorkerFailure`].
    pub(crate) async fn run(
        &mut self,
        handler: &mut RequestHandler,
        stop: impl Future<Output = StopReason>,
        mut on_line: impl FnMut(&Line),
    ) -> Result<WorkerOutcome, WorkerFailure> {
        let Self { process, socket, buffer, outbox, queue } = self;
        let mut stop = pin!(stop.fuse());
        let mut sending = pin!(socket.send_all(queue).fuse());
        let mut state = StopState::Running;
        let mut terminations: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let does_not_read = || WorkerFailure::Protocol("it does not read".to_owned());
        let failure = loop {
            tokio::select! {
                received = socket.receive(buffer) => match received {
                    Ok(Some(frame)) => {
                        let message = match decode(&frame) {
                            Ok(message) => message,
                            Err(error) => break WorkerFailure::Protocol(error.to_string()),
                        };
                        match handler.handle_message(message, &mut on_line) {
                            Ok(Some(outcome)) => return Ok(outcome),
                            Ok(None) => (),
                            Err(failure) => break failure,
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        break WorkerFailure::Protocol(error.to_string());
                    }
                    Ok(None) | Err(_) => {
                        return Err(WorkerFailure::Exited(exit_info(process).await));
                    }
                },
                Some(response) = handler.next_response() => {
                    if outbox.try_send(response).is_err() {
                        break does_not_read();
                    }
                }
                // The worker may have exited after sending its final message; keep receiving until EOF.
                _ = &mut sending, if !sending.is_terminated() => (),
                reason = &mut stop, if !stop.is_terminated() => {
                    debug!(reason = reason.as_str(), "the worker is asked to stop");
                    let frame = encode(&ToWorker::Stop(reason)).unwrap_or_default();
                    if outbox.try_send(frame).is_err() {
                        break does_not_read();
                    }
                    state.on_stop(now());
                }
                Some(()) = terminations.next() => (),
                () = until(state.poll_timeout()) => match state.on_timeout(handler.has_begun()) {
                    Action::TakeOver => terminations.extend(handler.terminations()),
                    Action::Abandon => {
                        debug!("the worker still opens its key, which is not needed any more");
                        drop(process.start_kill());
                        return Ok(WorkerOutcome::Tunnel(None));
                    }
                    Action::GiveUp => break WorkerFailure::Stuck,
                },
            }
        };
        // If it has just exited, this fails.
        drop(process.start_kill());
        Err(failure)
    }

    /// Ends the worker, and terminates the sessions that are left, until `deadline`.
    pub(crate) async fn finish(self, handler: Option<RequestHandler>, deadline: Instant) {
        let Self { mut process, socket, .. } = self;
        // The worker has sent its last message, or is not read any more; the closed socket makes it exit.
        drop(socket);
        let exit = async move {
            if timeout(stop::WORKER_EXIT, process.wait()).await.is_err() {
                debug!("the worker is killed");
                // If it has just exited, this fails.
                drop(process.kill().await);
            }
        };
        let sessions = async {
            let Some(mut handler) = handler else { return };
            if timeout_at(deadline, handler.starts_finished()).await.is_err() {
                warn!(
                    "StartSession is not answered yet: a session may be left to its idle time-out"
                );
            }
            drop(timeout_at(deadline, join_all(handler.terminations())).await);
        };
        tokio::join!(exit, sessions);
    }
}

/// Completes at `deadline`; never without one.
async fn until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// Returns how the worker has exited, after its socket was closed. If it does not exit within [`stop::WORKER_EXIT`], it
/// is killed, and its status is unknown.
async fn exit_info(process: &mut Child) -> ExitInfo {
    if let Ok(status) = timeout(stop::WORKER_EXIT, process.wait()).await {
        return ExitInfo(status.ok());
    }
    // The status would be that of this kill.
    drop(process.kill().await);
    ExitInfo::default()
}

#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_wraps, reason = "the same signature as on other systems")]
fn program() -> io::Result<std::path::PathBuf> {
    // The file that runs, even if another one is at its path by now.
    Ok("/proc/self/exe".into())
}

#[cfg(not(target_os = "linux"))]
fn program() -> io::Result<std::path::PathBuf> {
    std::env::current_exe()
}

/// Time for the worker to be sandboxed; most of it goes into reading root certificates.
const SANDBOX_TIMEOUT: Duration = Duration::from_secs(20);

/// Most frames queued for the worker: more than the responses to all requests at once.
const QUEUE: usize = 2 * MAX_REQUESTS;

/// The worker's `argv[0]`.
const NAME: &str = "ssm-sidecar";

/// The environment variables that the worker gets: none of AWS.
const ENVIRONMENT: &[&str] = &[
    "RUST_LOG",
    "NO_COLOR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

#[cfg(test)]
mod tests;
