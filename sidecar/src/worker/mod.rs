//! The worker: the process that holds the SSH key and parses what the network sends, and nothing else.
//!
//! It is the same program as the monitor, started anew, so that nothing of the monitor's memory is in it. It
//! locks itself up before it reads its document: no file, no new connection, no other process, no key of
//! AWS. What it needs of these it asks the monitor for over its stdin, see [`Remote`]. When the monitor has
//! gone, however it did, it ends its sessions through their channels, and itself.

pub mod check;
mod monitor_client;
pub mod sandbox;

use std::{convert::Infallible, net::TcpListener, os::fd::OwnedFd, sync::Arc, time::Duration};

use runner_protocol::{ExitStatus, Failure, Request};
use tokio::{
    runtime::{self, Runtime},
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{debug, warn};

use crate::{
    commands::error::Error,
    config::ConfigError,
    ipc::{
        Frame, Inbox, Link,
        message::{Begin, Stop, Task, ToMonitor, ToWorker, decode, encode},
    },
    net::{proxy::Proxy, tls::Trust},
    runner::stdout::Output,
    runtime::{
        hardening::{self, Unprotected},
        panics::Panics,
        phase::Phase,
        telemetry::Telemetry,
        terminal,
    },
    tunnel::{self, Orders, Surroundings, listener::Bound},
};

pub use monitor_client::Remote;

/// What the worker has made while it still could, and what it could not give up.
#[derive(Debug)]
pub struct Prepared {
    trust: Trust,
    refused: Vec<Unprotected>,
}

/// Reads the files that will be needed, and gives up files and rights. To be called before there is another
/// thread: what is given up is given up by this one, and by those that it starts.
pub fn prepare() -> Prepared {
    sandbox::leave_stopping_to_the_monitor();
    // Before anything that takes its time: until then others of this user may look into this process.
    let mut refused = hardening::apply();
    sandbox::close_inherited();
    #[cfg(target_os = "linux")]
    {
        // A name of its own in `ps`, so that whoever signals the sidecar by name finds the monitor alone.
        let _unnamed = nix::sys::prctl::set_name(NAME);
        warm_up();
    }
    let trust = Trust::load();
    refused.extend(sandbox::drop_rights());
    Prepared { trust, refused }
}

/// Does what the monitor says, to its end. Blocks.
pub fn run(prepared: Prepared, telemetry: &Telemetry) -> ExitStatus {
    let panics = Panics::watch();
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return misused(&error),
    };
    let status = serve(prepared, telemetry, &panics, &runtime);
    runtime.shutdown_background();
    status
}

fn serve(
    prepared: Prepared,
    telemetry: &Telemetry,
    panics: &Panics,
    runtime: &Runtime,
) -> ExitStatus {
    let link = {
        let _entered = runtime.enter();
        match Link::inherited() {
            Ok(link) => link,
            Err(error) => return misused(&error),
        }
    };
    let Prepared { trust, mut refused } = prepared;
    refused.extend(sandbox::filter_calls());
    let (outbox, queue) = mpsc::channel(QUEUE);
    let (stopper, stop) = oneshot::channel();
    let (beginner, begin) = oneshot::channel();
    let remote = Arc::new(Remote::new(outbox.clone()));
    let post = Post { link, queue, remote: Arc::clone(&remote), stop: Some(stopper) };
    let work = async {
        say(&outbox, &ToMonitor::Hello(refused)).await;
        let Ok((begin, document)) = begin.await else {
            debug!("the monitor went before it said what to do");
            return;
        };
        let stop = async { stop.await.unwrap_or(Stop::MonitorGone) };
        let office = Office { remote, trust, outbox: &outbox, panics, telemetry };
        let last = office.work(begin, document, stop).await;
        say(&outbox, &last).await;
    };
    runtime.block_on(async {
        tokio::select! {
            () = work => (),
            never = post.deliver(beginner) => match never {},
        }
    });
    ExitStatus::Ended
}

/// Whatever was said is sent when this returns, or there is nobody to hear it.
async fn say(outbox: &mpsc::Sender<Frame>, message: &ToMonitor) {
    let (sent, sending) = oneshot::channel();
    let Ok(frame) = encode(message) else { return };
    if outbox.send(Frame { sent: Some(sent), ..frame }).await.is_ok() {
        // Not sent, there was nobody any more to send to.
        let _sent = sending.await;
    }
}

fn misused(error: &std::io::Error) -> ExitStatus {
    terminal::say(&format!(
        "ssm-sidecar worker: it is for the sidecar itself to start this: {error}"
    ));
    ExitStatus::Usage
}

/// What the task is done with.
struct Office<'a> {
    remote: Arc<Remote>,
    trust: Trust,
    outbox: &'a mpsc::Sender<Frame>,
    panics: &'a Panics,
    telemetry: &'a Telemetry,
}

impl Office<'_> {
    /// Does the task and returns how it ended.
    async fn work(
        self,
        (begin, descriptors): (Begin, Vec<OwnedFd>),
        document: Frame,
        stop: impl Future<Output = Stop>,
    ) -> ToMonitor {
        let started = Instant::now() - Duration::from_millis(begin.elapsed_ms);
        let outcome = self.surroundings(document);
        match begin.task {
            Task::Check(format) => match outcome {
                Ok((request, surroundings)) => {
                    let checking = check::work(request, surroundings, format, self.panics, stop);
                    let (status, failure) = checking.await;
                    ToMonitor::Checked { status, failure }
                }
                Err(failure) => ToMonitor::Ended(Some(failure)),
            },
            Task::Run { channel_life_s, diagnosis, health } => {
                let ended = match (outcome, Self::take(diagnosis, health, descriptors)) {
                    (Err(failure), _) | (_, Err(failure)) => Err(failure),
                    (Ok((request, surroundings)), Ok((listener, health))) => {
                        let channel_life = Duration::from_secs(channel_life_s);
                        let orders = Orders { channel_life, started, listener, health };
                        let output = Arc::new(Output::new(request.events, self.outbox.clone()));
                        let lost_lines = self.telemetry.lost_lines();
                        let (panics, output) = (self.panics, output);
                        tunnel::run(request, orders, surroundings, output, panics, lost_lines, stop)
                            .await
                    }
                };
                let lost_lines = self.telemetry.lost_lines().count();
                if lost_lines > 0 {
                    warn!(lost_lines, "log lines were dropped because nobody read stderr");
                }
                ToMonitor::Ended(ended.err())
            }
        }
    }

    fn surroundings(&self, document: Frame) -> Result<(Request, Surroundings), Failure> {
        let failed = |error: Error| error.into_failure(Phase::Config);
        let request = Request::from_slice(&document.bytes)
            .map_err(|error| failed(ConfigError::from(error).into()))?;
        // Wiped: the key stands in it.
        drop(document);
        let proxy = Proxy::from_env().map_err(|error| failed(error.into()))?;
        let surroundings = Surroundings {
            api: Arc::<Remote>::clone(&self.remote),
            dial: Arc::<Remote>::clone(&self.remote),
            trust: self.trust.clone(),
            proxy,
        };
        Ok((request, surroundings))
    }

    fn take(
        diagnosis: bool,
        health: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Bound, Option<TcpListener>), Failure> {
        let mut descriptors = descriptors.into_iter();
        let listener = descriptors.next();
        let mut next = |is_there: bool| if is_there { descriptors.next() } else { None };
        let diagnosis = next(diagnosis);
        let health = next(health).map(TcpListener::from);
        let Some(listener) = listener else {
            let error = Error::Internal("the listener was not handed over".to_owned());
            return Err(error.into_failure(Phase::Config));
        };
        Ok((Bound { socket: TcpListener::from(listener), diagnosis }, health))
    }
}

/// Carries messages both ways.
struct Post {
    link: Link,
    queue: mpsc::Receiver<Frame>,
    remote: Arc<Remote>,
    stop: Option<oneshot::Sender<Stop>>,
}

type Beginning = ((Begin, Vec<OwnedFd>), Frame);

impl Post {
    async fn deliver(mut self, beginner: oneshot::Sender<Beginning>) -> Infallible {
        let sending = self.link.send_all(&mut self.queue);
        let receiving = receive(&self.link, &self.remote, beginner, &mut self.stop);
        let error = tokio::select! {
            error = sending => Some(error),
            error = receiving => error,
        };
        let cause = error.map_or_else(|| "it has closed the link".to_owned(), |e| e.to_string());
        debug!(cause, "the monitor has gone");
        // Nobody is left to send to, who could answer, or who could ask for the stop.
        drop(self.queue);
        self.remote.hang_up();
        if let Some(stop) = self.stop.take() {
            // The job may be over.
            let _over = stop.send(Stop::MonitorGone);
        }
        std::future::pending().await
    }
}

/// Completes when the monitor has gone, with the error if there is one.
async fn receive(
    link: &Link,
    remote: &Remote,
    beginner: oneshot::Sender<Beginning>,
    stopper: &mut Option<oneshot::Sender<Stop>>,
) -> Option<std::io::Error> {
    let mut inbox = Inbox::default();
    let mut beginner = Some(beginner);
    loop {
        let mut frame = match link.receive(&mut inbox).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(error) => return Some(error),
        };
        match decode(&frame) {
            Ok(ToWorker::Begin(begin)) => {
                let document = match link.receive(&mut inbox).await {
                    Ok(Some(document)) => document,
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                };
                let descriptors = std::mem::take(&mut frame.descriptors);
                if let Some(beginner) = beginner.take() {
                    // Whoever waits for it lives as long as this does.
                    let _received = beginner.send(((begin, descriptors), document)).is_ok();
                }
            }
            Ok(ToWorker::Answer { number, answer }) => {
                remote.answered(number, answer, frame.descriptors.pop());
            }
            Ok(ToWorker::Stop(stop)) => {
                if let Some(stopper) = stopper.take() {
                    let _over = stopper.send(stop);
                }
            }
            Err(error) => return Some(error.into()),
        }
    }
}

/// Makes what can be made only with a file system: the libraries look once for where randomness comes from.
#[cfg(target_os = "linux")]
fn warm_up() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Without randomness nothing below works, which then says so.
    let _filled = provider.secure_random.fill(&mut [0; 16]);
    // In a program that is linked statically `getrandom` reads a file, which it opens once and keeps open.
    let _random = uuid::Uuid::new_v4();
}

/// As `ps` shows it.
#[cfg(target_os = "linux")]
const NAME: &std::ffi::CStr = c"ssm-worker";

/// Messages that wait to be sent.
const QUEUE: usize = 256;
