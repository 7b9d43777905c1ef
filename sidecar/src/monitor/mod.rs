//! The monitor: the process that the runner has started. It holds the keys of AWS, and parses nothing that
//! comes from the customer's side.
//!
//! It starts the worker, hands it the document without those keys, and does for it what it cannot do by
//! itself: start, resume and end sessions, sign, connect. It alone writes to stdout. However the worker ends,
//! the monitor ends what sessions are left; however the monitor ends, the worker does.

mod broker;
mod sessions;
mod worker_config;

use std::{
    ffi::OsString,
    future::Future,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use runner_protocol::{Failure, Line, Request};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::{debug, warn};

use self::{broker::Clerk, sessions::Wards};
use crate::{
    aws::{ControlPlane, settings},
    channel::websocket::Settings,
    commands::error::{Error, REPORT},
    config::Aws,
    ipc::{
        Frame, Inbox, Link,
        message::{Begin, Stop, ToMonitor, ToWorker, decode, encode},
    },
    net::{proxy::Proxy, tls::Trust},
    runtime::{hardening::Unprotected, memory, phase::Phase, shutdown::Shutdown},
    session::terminate_with_retries,
};

/// The worker, as its monitor sees it. Killed when dropped.
#[derive(Debug)]
pub struct Monitor {
    process: Child,
    link: Link,
    inbox: Inbox,
    outbox: mpsc::Sender<Frame>,
    queue: mpsc::Receiver<Frame>,
    phase: Phase,
}

/// How the worker ended as it should.
#[derive(Debug)]
pub enum Ended {
    /// The tunnel, with or without a failure.
    Tunnel(Option<Failure>),
    /// The check, with this status and, where a step has failed, by what.
    Check(u8, Option<Failure>),
}

/// How it did not.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// It is gone, by a signal or of itself.
    #[error("the worker process has gone{0}")]
    Gone(Manner),
    /// It sent what it may not, or cannot be heard.
    #[error("the worker process broke its protocol: {0}")]
    Protocol(String),
    /// It did not end when it was asked to.
    #[error("the worker process did not end in time")]
    Stuck,
}

/// How a process ended, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner(Option<ExitStatus>);

impl std::fmt::Display for Manner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(status) => write!(formatter, ": {status}"),
            None => Ok(()),
        }
    }
}

impl Lost {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Gone(Manner(Some(status))) if status.signal() == Some(KILLED) => {
                "give the sidecar more memory, if the kernel's log says that it ran out; if not, find out who kills \
                 processes on this host"
            }
            Self::Gone(_) | Self::Protocol(_) | Self::Stuck => REPORT,
        }
    }
}

/// What the worker is to do.
#[derive(Debug)]
pub struct Orders {
    /// What goes along, see [`Begin`].
    pub begin: Begin,
    /// In the order of [`Begin`].
    pub descriptors: Vec<OwnedFd>,
}

impl Monitor {
    /// Starts the worker: this program anew, with `arguments`, and of the environment what is listed here.
    ///
    /// # Errors
    ///
    /// What keeps the host from starting it.
    pub fn start(arguments: &[OsString], stdout: Stdio) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let mut command = Command::new(program()?);
        command.arg0(NAME).args(arguments).env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::from(theirs)).stdout(stdout).kill_on_drop(true);
        let process = command.spawn()?;
        let (outbox, queue) = mpsc::channel(QUEUE);
        Ok(Self { process, link, inbox: Inbox::default(), outbox, queue, phase: Phase::Config })
    }

    /// The phase of the start that the worker has reached.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Waits until the worker has locked itself up; returns what it could not do.
    ///
    /// # Errors
    ///
    /// [`Lost`] when it ends first. Cancel-safe.
    pub async fn locked_up(&mut self) -> Result<Vec<Unprotected>, Lost> {
        let Ok(received) = timeout(LOCK_UP, self.link.receive(&mut self.inbox)).await else {
            return Err(Lost::Stuck);
        };
        match received {
            Ok(Some(frame)) => match decode(&frame) {
                Ok(ToMonitor::Hello(refused)) => Ok(refused),
                Ok(other) => Err(Lost::Protocol(format!("{other:?} came first"))),
                Err(error) => Err(Lost::Protocol(error.to_string())),
            },
            Ok(None) | Err(_) => Err(Lost::Gone(manner(&mut self.process).await)),
        }
    }

    /// Hands over the document and what else `orders` say.
    ///
    /// # Errors
    ///
    /// Where the worker is gone.
    pub fn begin(&mut self, orders: Orders, request: &Request) -> Result<(), Error> {
        let internal = |error: serde_json::Error| Error::Internal(error.to_string());
        let document = worker_config::document(request).map_err(internal)?;
        let begin = encode(&ToWorker::Begin(orders.begin)).map_err(internal)?;
        for frame in [Frame { descriptors: orders.descriptors, ..begin }, document] {
            self.outbox
                .try_send(frame)
                .map_err(|_| Error::Internal("the worker's queue is full".to_owned()))?;
        }
        Ok(())
    }

    /// Does what the worker asks for until it ends, and passes on what it says to `say`; once `stop`
    /// completes, the worker is to end within [`GRACE`]. One that is busy with its document then, which may take
    /// seconds, is not waited for.
    ///
    /// # Errors
    ///
    /// [`Lost`] when it does not end as it should.
    pub async fn attend(
        &mut self,
        service: &mut Service,
        stop: impl Future<Output = Stop>,
        mut say: impl FnMut(&Line),
    ) -> Result<Ended, Lost> {
        let Self { process, link, inbox, outbox, queue, phase } = self;
        let mut stop = pin!(stop);
        let mut sending = pin!(link.send_all(queue));
        let mut asked: Option<Instant> = None;
        let mut helped = false;
        let mut deaf = false;
        let mut endings: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let lost = loop {
            let far = Instant::now() + FAR;
            let (take_over, give_up) =
                asked.map_or((far, far), |asked| (asked + PATIENCE, asked + GRACE));
            tokio::select! {
                received = link.receive(inbox) => match received {
                    Ok(Some(frame)) => {
                        let message = match decode(&frame) {
                            Ok(message) => message,
                            Err(error) => break Lost::Protocol(error.to_string()),
                        };
                        match service.take(message, phase, &mut say) {
                            Ok(Some(ended)) => return Ok(ended),
                            Ok(None) => (),
                            Err(lost) => break lost,
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        break Lost::Protocol(error.to_string());
                    }
                    Ok(None) | Err(_) => break Lost::Gone(Manner::default()),
                },
                Some(answer) = service.calls.next() => {
                    if outbox.try_send(answer).is_err() {
                        break Lost::Protocol("it does not read".to_owned());
                    }
                    if service.ready.is_none() && asked.is_none() && service.calls.is_empty() {
                        // The next call may come in an hour.
                        memory::shrink();
                    }
                }
                // Just gone it may have said its last word before, which `receive` comes to.
                _ = &mut sending, if !deaf => deaf = true,
                reason = &mut stop, if asked.is_none() => {
                    debug!(reason = reason.reason(), "the worker is asked to end");
                    let frame = encode(&ToWorker::Stop(reason)).unwrap_or_default();
                    if outbox.try_send(frame).is_err() {
                        break Lost::Protocol("it does not read".to_owned());
                    }
                    asked = Some(Instant::now());
                }
                () = sleep_until(take_over), if asked.is_some() && !helped => {
                    if *phase == Phase::Config && service.has_begun_nothing() {
                        debug!("the worker still decodes its key, which nobody needs any more");
                        drop(process.start_kill());
                        return Ok(Ended::Tunnel(None));
                    }
                    // It may be stuck: what it was to end is ended from here, and its own try does no harm.
                    helped = true;
                    endings.extend(service.endings());
                }
                Some(()) = endings.next() => (),
                () = sleep_until(give_up), if asked.is_some() => break Lost::Stuck,
            }
        };
        Err(match lost {
            Lost::Gone(_) => Lost::Gone(manner(process).await),
            lost => {
                // Nothing that it does from now on is wanted. Just gone, it needs no killing.
                drop(process.start_kill());
                lost
            }
        })
    }

    /// Sees to it that no worker and no session is left. Whatever is still open is ended by API until
    /// `deadline`.
    pub async fn finish(self, service: Option<Service>, deadline: Instant) {
        let Self { mut process, link, .. } = self;
        // It has said its last word, or is not to be heard any more; without this it ends.
        drop(link);
        let leaving = async move {
            let gone = timeout(LEAVING, process.wait()).await;
            if gone.is_err() {
                debug!("the worker is killed");
                // Just gone, it needs no killing.
                drop(process.kill().await);
            }
        };
        let ending = async {
            let Some(mut service) = service else { return };
            let seen_through = async {
                while service.clerk.wards().is_starting() && service.calls.next().await.is_some() {}
            };
            if timeout_at(deadline, seen_through).await.is_err() {
                warn!(
                    "StartSession is not answered yet: a session may be left to its idle time-out"
                );
            }
            drop(timeout_at(deadline, join_all(service.endings())).await);
        };
        tokio::join!(leaving, ending);
    }
}

/// What is done for the worker.
#[derive(Debug)]
pub struct Service {
    clerk: Clerk,
    calls: FuturesUnordered<BoxFuture<'static, Frame>>,
    /// Whether the runner wants more lines than `ready` and `failed`.
    events: bool,
    /// The port of that line, until it was said.
    ready: Option<u16>,
}

impl Service {
    /// Makes ready to do what `request` will take, for a tunnel whose clients arrive at `port`. Connects to
    /// nobody, and takes milliseconds: best done while the worker locks itself up.
    ///
    /// # Errors
    ///
    /// Where the document cannot be used.
    pub fn new(
        request: &Request,
        port: Option<u16>,
        trust: Trust,
        proxy: Proxy,
    ) -> Result<Self, Error> {
        let aws = Aws::from_request(request.aws.clone())?;
        let plane = ControlPlane::new(settings::settings(request, &aws), &trust, &proxy);
        let wards = Wards::new(Settings::of(&aws, trust, proxy));
        Ok(Self {
            clerk: Clerk::new(Arc::new(plane), wards),
            calls: FuturesUnordered::new(),
            events: request.events,
            ready: port,
        })
    }

    /// The way to AWS, for keys that are renewed.
    pub fn plane(&self) -> Arc<ControlPlane> {
        Arc::clone(self.clerk.plane())
    }

    /// Whether no session is there to be ended, and none on its way.
    fn has_begun_nothing(&self) -> bool {
        let wards = self.clerk.wards();
        !wards.is_starting() && wards.open().is_empty()
    }

    /// Takes a message; returns how the worker ended, if it has.
    fn take(
        &mut self,
        message: ToMonitor,
        phase: &mut Phase,
        say: &mut impl FnMut(&Line),
    ) -> Result<Option<Ended>, Lost> {
        let broken = |what: &str| Err(Lost::Protocol(what.to_owned()));
        match message {
            ToMonitor::Hello(_) => return broken("a second greeting"),
            ToMonitor::Call { number, call } => {
                if self.calls.len() >= MAX_CALLS {
                    return broken("too many calls at once");
                }
                self.calls.push(Box::pin(self.clerk.clone().answer(number, call)));
            }
            ToMonitor::Over { session } => self.clerk.wards().close(&session),
            ToMonitor::Phase(name) => {
                let Some(begun) = Phase::from_name(&name) else { return broken("unknown phase") };
                *phase = begun;
                if self.events {
                    say(&Line::Phase(name));
                }
            }
            ToMonitor::Line(text) => match Line::parse(&text) {
                // At the listener that was made here: no other may be given out as the tunnel.
                Some(line @ Line::Ready(port)) if self.ready == Some(port) => {
                    self.ready = None;
                    say(&line);
                    memory::shrink();
                }
                Some(Line::Ready(_) | Line::Failed(_) | Line::Phase(_)) | None => {
                    return broken("a line that is not its to say");
                }
                Some(line) if self.events => say(&line),
                Some(_) => (),
            },
            ToMonitor::Ended(failure) => return Ok(Some(Ended::Tunnel(failure))),
            ToMonitor::Checked { status, failure } => {
                return Ok(Some(Ended::Check(status, failure)));
            }
        }
        Ok(None)
    }

    /// Ends every session that is open, each tried again while that may help, for seconds.
    fn endings(&self) -> impl Iterator<Item = BoxFuture<'static, ()>> + use<> {
        let shutdown = Shutdown::default();
        shutdown.stop();
        let clerk = self.clerk.clone();
        let open = clerk.wards().open();
        open.into_iter().map(move |id| {
            let (clerk, shutdown) = (clerk.clone(), shutdown.clone());
            let ending: BoxFuture<'static, ()> = Box::pin(async move {
                match terminate_with_retries(&**clerk.plane(), &shutdown, &id).await {
                    Ok(()) => debug!(session = id, "session terminated"),
                    Err(error) => warn!(session = id, %error, "session left to its idle time-out"),
                }
                clerk.wards().close(&id);
            });
            ending
        })
    }
}

/// How the worker has ended, which was noticed by its socket; killed if it has not.
async fn manner(process: &mut Child) -> Manner {
    if let Ok(status) = timeout(LEAVING, process.wait()).await {
        return Manner(status.ok());
    }
    // What it ends with then says nothing.
    drop(process.kill().await);
    Manner::default()
}

#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as elsewhere")]
fn program() -> io::Result<std::path::PathBuf> {
    // The file that runs, even where another stands at its path by now.
    Ok("/proc/self/exe".into())
}

#[cfg(not(target_os = "linux"))]
fn program() -> io::Result<std::path::PathBuf> {
    std::env::current_exe()
}

/// From a stop to the end of the worker; it gives itself 4.5 s.
pub const GRACE: Duration = Duration::from_millis(4700);

/// From a stop to where its sessions are ended from here.
const PATIENCE: Duration = Duration::from_secs(3);

/// From its last word to its end.
const LEAVING: Duration = Duration::from_millis(500);

/// For a worker to start; most of it is the loading of root certificates.
const LOCK_UP: Duration = Duration::from_secs(20);

/// While nothing is asked.
const FAR: Duration = Duration::from_hours(1);

/// More than the answers to all calls.
const QUEUE: usize = 2 * MAX_CALLS;

/// At once; sixteen lanes that all open, close and resume need fewer.
const MAX_CALLS: usize = 128;

/// SIGKILL.
const KILLED: i32 = 9;

/// The worker's name for itself, the first of its arguments.
const NAME: &str = "ssm-sidecar";

/// What of the environment the worker gets: nothing of AWS is among it.
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
