//! On systems other than Linux the user of a client's socket is not looked up: `listen.allowed_uids` is refused.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

#[derive(Debug)]
pub(super) struct AllowedUsers {}

/// Why a client is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its user is unknown: {0}")]
    Unknown(io::Error),
}

pub(super) fn sock_diag() -> io::Result<OwnedFd> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "`listen.allowed_uids` works on Linux only"))
}

impl AllowedUsers {
    pub(super) fn new(_: Vec<u32>, _: OwnedFd) -> Self {
        Self {}
    }

    #[expect(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn check(&self, _: SocketAddr, _: SocketAddr) -> Result<(), Refusal> {
        Err(Refusal::Unknown(io::ErrorKind::Unsupported.into()))
    }
}
