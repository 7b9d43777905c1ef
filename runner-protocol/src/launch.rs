//! Starts sidecars from a runner, each locked up by itself (feature `launch`, Linux).
//!
//! A [`Launcher`] starts a sidecar in fresh user, mount, PID, IPC and UTS namespaces: the sidecar is process 1
//! of its own, sees no other process, has no capability and gains none. It inherits no descriptor but its
//! three streams and its listener, no environment but what is listed, no signal that is blocked or ignored, and
//! no terminal; it can write no core, and no file unless its log goes to one. It gets SIGTERM when the runner dies, however that dies.
//!
//! ```no_run
//! use runner_protocol::launch::{Isolation, Launcher, NotReady, Stderr};
//!
//! # async fn job(document: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let launcher = Launcher::new("/usr/bin/ssm-sidecar").isolation(Isolation::Required).inherit("SSL_CERT_FILE");
//! let mut sidecar = launcher.launch(document, Stderr::Inherit).await?;
//! match sidecar.ready().await {
//!     Ok(ready) => println!("the transfer connects to 127.0.0.1:{}", ready.port),
//!     Err(NotReady::Failed(failure)) => println!("tell the customer: {}", failure.hint),
//!     Err(other) => return Err(other.into()),
//! }
//! // … the transfer runs; meanwhile `sidecar.ended()` completes if the tunnel is lost …
//! let ended = sidecar.end().await?;
//! assert_eq!(ended.status, Some(runner_protocol::ExitStatus::Ok));
//! # Ok(())
//! # }
//! ```
//!
//! # Networks
//!
//! The sidecar needs a network that leads to AWS ([`Launcher::network`]); the transfer needs none but the port.
//! So where the document names a `listen.netns`, the launcher makes the listener in there and hands it to the
//! sidecar, which stays outside, and needs no right to enter. `listen.allowed_uids` holds there too.
//!
//! # Ends
//!
//! Dropping anything, at any await, ends the lease: the sidecar terminates its sessions and is waited for, in
//! the background, by a thread of this process. No sidecar outlives its runner; none becomes a zombie.

mod child;
mod isolation;
mod listener;
mod metrics;
mod output;
mod sidecar;
mod supervisor;

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe};

pub use isolation::{Isolation, Limits, Network, Protection, Refused};
pub use metrics::Metrics;
pub use output::Stderr;
pub use sidecar::{Ended, Force, NotReady, Ready, Sidecar};

use child::Plan;
use listener::Inherited;
use output::Output;
use supervisor::Order;

/// How to start sidecars; one serves for many.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    isolation: Isolation,
    network: Network,
    limits: Limits,
    user: Option<(u32, u32)>,
    hidden: Vec<PathBuf>,
}

/// Why no sidecar was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// This host does not give every protection, and [`Isolation::Required`] asks for it.
    #[error("this host refuses: {}", joined(.0))]
    Refused(Vec<Refused>),
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Network {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The port cannot be had in `listen.netns`.
    #[error("cannot listen on {at} in `listen.netns`")]
    Listen {
        /// Address and port.
        at: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The program is not there or no program, or its user or limits are not to be had.
    #[error("the sidecar {what}")]
    Start {
        /// What went wrong.
        what: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A path, argument or variable holds a zero byte.
    #[error("a zero byte in the sidecar's path, arguments or environment")]
    ZeroByte,
    /// This process has no descriptors or threads left.
    #[error("cannot prepare the start of a sidecar")]
    Io(#[from] io::Error),
}

fn joined(refused: &[Refused]) -> String {
    refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Launcher {
    /// Starts the sidecar at this path, which is not searched for.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            isolation: Isolation::default(),
            network: Network::default(),
            limits: Limits::default(),
            user: None,
            hidden: Vec::new(),
        }
    }

    /// Adds an argument, such as `--log-format`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of the sidecar's environment, which has no others than these.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Passes on a variable of this process where it is set, such as `SSL_CERT_FILE` or `HTTPS_PROXY`.
    #[must_use]
    pub fn inherit(self, name: impl AsRef<OsStr>) -> Self {
        match std::env::var_os(name.as_ref()) {
            Some(value) => self.variable(name.as_ref(), value),
            None => self,
        }
    }

    /// What to do where the host refuses a protection; go on, if not set.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// The network that leads to AWS; the runner's own if not set.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// What the sidecar may use at most.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// User and group that the sidecar runs as; the runner's if not set. Needs root.
    #[must_use]
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.user = Some((user, group));
        self
    }

    /// Hides what is in this directory from the sidecar, which needs its program, its libraries and `/etc`.
    #[must_use]
    pub fn hide(mut self, directory: impl Into<PathBuf>) -> Self {
        self.hidden.push(directory.into());
        self
    }

    /// Starts a sidecar and writes it the document. Cancel-safe: when dropped, nothing is left.
    ///
    /// A document that is wrong is the sidecar's to refuse: [`Sidecar::ready`] tells.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]; nothing is left then either.
    pub async fn launch(&self, document: &str, stderr: Stderr) -> Result<Sidecar, LaunchError> {
        let inherited = listener::inherit(document, STREAMS).await?;
        let (stdin, mut lease) = pipe_to_child()?;
        let (said, stdout) = pipe_from_child()?;
        let (stderr, log) = match stderr {
            Stderr::Inherit => (io::stderr().as_fd().try_clone_to_owned()?, None),
            Stderr::Discard => (OpenOptions::new().write(true).open("/dev/null")?.into(), None),
            Stderr::Sink(sink) => {
                let (log, stderr) = pipe_from_child()?;
                (stderr, Some((log, sink)))
            }
        };
        let Inherited { descriptors, document: rewritten } = inherited;
        let logs_to_file = File::from(stderr.try_clone()?).metadata()?.is_file();
        let descriptors = [stdin, stdout, stderr].into_iter().chain(descriptors);
        let plan = self.plan(descriptors, logs_to_file)?;
        let order = Order { plan, isolation: self.isolation, network: self.network.clone() };
        let (child, refused) = supervisor::start(order).await?;
        let output = Output::read(said, log);
        let text = rewritten.as_ref().map_or(document, |text| text.as_str());
        // A sidecar that does not read its document to the end says why.
        drop(lease.write_all(text.as_bytes()).await);
        Ok(Sidecar::new(child, lease, output, refused))
    }

    fn plan(
        &self,
        descriptors: impl Iterator<Item = OwnedFd>,
        logs_to_file: bool,
    ) -> Result<Plan, LaunchError> {
        let variable = |(name, value): &(OsString, OsString)| {
            text([name.as_bytes(), value.as_bytes()].join(&b'='))
        };
        let program = text(self.program.as_os_str().as_bytes())?;
        let arguments = self.arguments.iter().map(|argument| text(argument.as_bytes()));
        let hidden = self.hidden.iter().map(|path| text(path.as_os_str().as_bytes()));
        Ok(Plan {
            arguments: [Ok(program.clone())]
                .into_iter()
                .chain(arguments)
                .collect::<Result<_, _>>()?,
            program,
            environment: self.environment.iter().map(variable).collect::<Result<_, _>>()?,
            descriptors: descriptors.collect(),
            hidden: hidden.collect::<Result<_, _>>()?,
            limits: self.limits,
            logs_to_file,
            user: self.user,
        })
    }
}

fn text(bytes: impl Into<Vec<u8>>) -> Result<CString, LaunchError> {
    CString::new(bytes).map_err(|_| LaunchError::ZeroByte)
}

fn pipe_to_child() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((theirs, pipe::Sender::from_owned_fd(ours)?))
}

fn pipe_from_child() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

/// The descriptors below what else the sidecar inherits.
const STREAMS: i32 = 3;
