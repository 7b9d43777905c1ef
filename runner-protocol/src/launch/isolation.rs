//! What a sidecar is kept apart from, and what of it a host refuses.

use std::{fmt, io, path::PathBuf};

/// What to do where the host refuses a protection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Isolation {
    /// Go on with those that there are; [`super::Sidecar::refused`] names the others.
    #[default]
    BestEffort,
    /// Start nothing: [`super::LaunchError::Refused`].
    Required,
}

/// The network that the sidecar reaches AWS by. Its listener may be elsewhere: see [`super::Launcher`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Network {
    /// The runner's own.
    #[default]
    Host,
    /// The network namespace at this path, such as one that leads to AWS alone. Needs `CAP_SYS_ADMIN`.
    At(PathBuf),
    /// A new one, with nothing in it.
    Fresh,
}

/// Something that a sidecar is kept apart from or does without.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protection {
    /// A user namespace: no right over anything outside.
    UserNamespace,
    /// Mount, PID, IPC and UTS namespaces, and the network namespace if a fresh one is asked for.
    Namespaces,
    /// Mounts that come and go outside do not show.
    PrivateMounts,
    /// A `/proc` that shows no other process.
    OwnProc,
    /// An empty directory in place of one that is to be hidden.
    HiddenDirectory,
    /// A host name that says nothing.
    HostName,
    /// No capability, now or after an exec.
    NoCapabilities,
}

impl fmt::Display for Protection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::UserNamespace => "user namespace",
            Self::Namespaces => "mount, PID, IPC and UTS namespaces",
            Self::PrivateMounts => "private mounts",
            Self::OwnProc => "/proc of its own",
            Self::HiddenDirectory => "hidden directory",
            Self::HostName => "host name of its own",
            Self::NoCapabilities => "no capabilities",
        })
    }
}

/// A protection that this host does not give.
#[derive(Debug, thiserror::Error)]
#[error("{protection}: {cause}")]
pub struct Refused {
    /// Which.
    pub protection: Protection,
    /// What the kernel said.
    pub cause: io::Error,
}

/// What a sidecar may use at most (`setrlimit(2)`); it never writes a core, and no file but its log where
/// the runner's stderr is one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Descriptors; 1,024 by default. A tunnel needs one for each connection, and some twenty.
    pub open_files: u64,
    /// Bytes of address space; no limit by default. A sidecar reserves much more than it uses.
    pub address_space: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open_files: 1024, address_space: None }
    }
}
