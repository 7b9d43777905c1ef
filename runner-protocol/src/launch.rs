//! Starts sidecars from a runner, each isolated from the host and from the others (feature `launch`, Linux).
//!
//! A [`Launcher`] starts a sidecar in fresh user, mount, PID, IPC and UTS namespaces: the sidecar is process 1 of
//! its PID namespace, sees no other process, has no capability and gains none. It inherits no descriptors but its
//! three streams and its listener, no environment variables but those listed, no blocked or ignored signals, and
//! no terminal. It can write no core dump, and no file except its log. It gets SIGTERM when the runner dies for
//! any reason.
//!
//! ```no_run
//! use runner_protocol::launch::{Isolation, Launcher, NotReady, Stderr};
//!
//! # async fn job(config: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let launcher = Launcher::new("/usr/bin/ssm-sidecar").isolation(Isolation::Required).inherit("SSL_CERT_FILE");
//! let mut sidecar = launcher.launch(config, Stderr::Inherit).await?;
//! match sidecar.ready().await {
//!     Ok(ready) => println!("the transfer connects to 127.0.0.1:{}", ready.port),
//!     Err(NotReady::Failed(failure)) => println!("tell the customer: {}", failure.hint),
//!     Err(other) => return Err(other.into()),
//! }
//! // … the transfer runs; meanwhile `sidecar.wait()` completes if the tunnel fails …
//! let exit = sidecar.stop().await?;
//! assert_eq!(exit.status, Some(runner_protocol::ExitStatus::Ok));
//! # Ok(())
//! # }
//! ```
//!
//! # Networks
//!
//! The sidecar needs a network from which AWS can be reached ([`Launcher::network`]); the transfer needs only the
//! port. If the config has a `listen.netns`, the launcher binds the listener in that namespace and passes it to
//! the sidecar, which stays outside and needs no right to enter. `listen.allowed_uids` applies there too.
//!
//! # Lifetime
//!
//! Dropping a future or value of this module, at any await, ends the lease: the sidecar terminates its sessions,
//! and a thread of this process waits for it in the background. No sidecar outlives its runner, and none becomes a
//! zombie.

mod child;
mod error;
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
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe};

pub use error::LaunchError;
pub use isolation::{Isolation, Limits, MissingProtection, Network, Protection};
pub use metrics::Metrics;
pub use output::Stderr;
pub use sidecar::{Exit, Force, NotReady, Ready, Sidecar};

use child::ChildSpec;
use listener::Inherited;
use output::Output;
use supervisor::StartRequest;

/// The settings for starting sidecars; can be used for any number of them.
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

impl Launcher {
    /// Uses the program at this path; `PATH` is not searched.
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

    /// Sets an environment variable. The sidecar has only those that are set here or inherited by name.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Passes on a variable of this process if it is set, such as `SSL_CERT_FILE` or `HTTPS_PROXY`.
    #[must_use]
    pub fn inherit(self, name: impl AsRef<OsStr>) -> Self {
        match std::env::var_os(name.as_ref()) {
            Some(value) => self.variable(name.as_ref(), value),
            None => self,
        }
    }

    /// What to do if the host does not support a protection; [`Isolation::BestEffort`] by default.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// The network from which the sidecar reaches AWS; the runner's own by default.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Resource limits of the sidecar.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// User and group that the sidecar runs as; the runner's by default. Needs root.
    #[must_use]
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.user = Some((user, group));
        self
    }

    /// Hides the content of this directory from the sidecar. It needs its program, its libraries and `/etc`.
    #[must_use]
    pub fn hide(mut self, directory: impl Into<PathBuf>) -> Self {
        self.hidden.push(directory.into());
        self
    }

    /// Starts a sidecar and writes the config to its stdin. Cancel-safe: if dropped, no process is left.
    ///
    /// A wrong config is not an error here: the sidecar refuses it, and [`Sidecar::ready`] returns the reason.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]; no process is left then.
    pub async fn launch(&self, config: &str, stderr: Stderr) -> Result<Sidecar, LaunchError> {
        let inherited = listener::inherit(config, STREAMS).await?;
        let (stdin, mut lease) = pipe_to_child()?;
        let (lines, stdout) = pipe_from_child()?;
        let (stderr, log) = match stderr {
            Stderr::Inherit => (io::stderr().as_fd().try_clone_to_owned()?, None),
            Stderr::Discard => (OpenOptions::new().write(true).open("/dev/null")?.into(), None),
            Stderr::Sink(sink) => {
                let (log, stderr) = pipe_from_child()?;
                (stderr, Some((log, sink)))
            }
        };
        let Inherited { descriptors, config: rewritten } = inherited;
        let logs_to_file = File::from(stderr.try_clone()?).metadata()?.is_file();
        let descriptors = [stdin, stdout, stderr].into_iter().chain(descriptors);
        let spec = self.child_spec(descriptors, logs_to_file)?;
        let request =
            StartRequest { spec, isolation: self.isolation, network: self.network.clone() };
        let (child, missing) = supervisor::start(request).await?;
        let output = Output::read(lines, log);
        let text = rewritten.as_ref().map_or(config, |text| text.as_str());
        // A write fails if the sidecar exits before it has read everything; its `failed` line then has the reason.
        drop(lease.write_all(text.as_bytes()).await);
        Ok(Sidecar::new(child, lease, output, missing))
    }

    fn child_spec(
        &self,
        descriptors: impl Iterator<Item = OwnedFd>,
        logs_to_file: bool,
    ) -> Result<ChildSpec, LaunchError> {
        let variable = |(name, value): &(OsString, OsString)| {
            text([name.as_bytes(), value.as_bytes()].join(&b'='))
        };
        let program = text(self.program.as_os_str().as_bytes())?;
        let arguments = self.arguments.iter().map(|argument| text(argument.as_bytes()));
        let hidden = self.hidden.iter().map(|path| text(path.as_os_str().as_bytes()));
        Ok(ChildSpec {
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
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((read_end, pipe::Sender::from_owned_fd(write_end)?))
}

fn pipe_from_child() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read_end)?, write_end))
}

/// Number of standard streams: the first descriptor after them is the listener.
const STREAMS: i32 = 3;
