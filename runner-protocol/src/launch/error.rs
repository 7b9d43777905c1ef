//! Why no sidecar was started.

use std::{io, net::SocketAddr, path::PathBuf};

use super::isolation::MissingProtection;

/// Why no sidecar was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// This host does not support every protection, and [`Isolation::Required`](super::Isolation::Required) is
    /// set.
    #[error("this host does not support: {}", joined(.0))]
    MissingProtections(Vec<MissingProtection>),
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Network {
        /// Path of the namespace.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        cause: io::Error,
    },
    /// The port in `listen.netns` cannot be bound.
    #[error("cannot listen on {at} in `listen.netns`")]
    Listen {
        /// Address and port.
        at: SocketAddr,
        /// The error of the kernel.
        #[source]
        cause: io::Error,
    },
    /// The program does not exist or cannot be executed, or its user or limits cannot be set.
    #[error("the sidecar {what}")]
    Start {
        /// What failed.
        what: &'static str,
        /// The error of the kernel.
        #[source]
        cause: io::Error,
    },
    /// A path, argument or variable contains a zero byte.
    #[error("a zero byte in the sidecar's path, arguments or environment")]
    ZeroByte,
    /// This process has no descriptors or threads left.
    #[error("cannot prepare the start of a sidecar")]
    Io(#[from] io::Error),
}

fn joined(missing: &[MissingProtection]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
