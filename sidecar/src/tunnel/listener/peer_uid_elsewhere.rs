//! Who has connected cannot be asked on this system: a document that wants to know is refused.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

#[derive(Debug)]
pub(super) struct Peers {}

/// Why a client is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The system does not tell whose it is.
    #[error("its user cannot be told: {0}")]
    Unknown(io::Error),
}

pub(super) fn diagnosis() -> io::Result<OwnedFd> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "`listen.allowed_uids` works on Linux only"))
}

impl Peers {
    pub(super) fn new(_: Vec<u32>, _: OwnedFd) -> Self {
        Self {}
    }

    #[expect(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn admit(&self, _: SocketAddr, _: SocketAddr) -> Result<(), Refusal> {
        Err(Refusal::Unknown(io::ErrorKind::Unsupported.into()))
    }
}
