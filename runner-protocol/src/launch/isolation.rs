//! The protections of a sidecar, and those that a host does not support.

use std::{fmt, io, path::PathBuf};

/// What to do if the host does not support a protection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Isolation {
    /// Continue without it; [`super::Sidecar::missing_protections`] lists the missing ones.
    #[default]
    BestEffort,
    /// Start nothing: [`super::LaunchError::MissingProtections`].
    Required,
}

/// The network from which the sidecar reaches AWS. Its listener may be in another one: see
/// [`super::Launcher::launch`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Network {
    /// The runner's own.
    #[default]
    Host,
    /// The network namespace at this path, such as one from which only AWS can be reached. Needs `CAP_SYS_ADMIN`.
    At(PathBuf),
    /// A new network namespace without interfaces.
    Fresh,
}

/// A protection: isolates the sidecar from a part of the host, or takes a right from it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protection {
    /// A user namespace: no rights outside it.
    UserNamespace,
    /// Mount, PID, IPC and UTS namespaces, and a network namespace with [`Network::Fresh`].
    Namespaces,
    /// Mounts and unmounts outside are not visible.
    PrivateMounts,
    /// A `/proc` that shows no other process.
    OwnProc,
    /// An empty directory mounted over a hidden one.
    HiddenDirectory,
    /// A neutral host name.
    HostName,
    /// No capabilities, also after an exec.
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

/// A protection that this host does not support.
#[derive(Debug, thiserror::Error)]
#[error("{protection}: {cause}")]
pub struct MissingProtection {
    /// The protection.
    pub protection: Protection,
    /// The error of the kernel.
    pub cause: io::Error,
}

/// Resource limits of a sidecar (`setrlimit(2)`). Core dumps are never allowed, and files only if its stderr is
/// one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Descriptors; 1,024 by default. A tunnel needs one per connection and about twenty more.
    pub open_files: u64,
    /// Bytes of address space; no limit by default. A sidecar reserves much more than it uses.
    pub address_space: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open_files: 1024, address_space: None }
    }
}
