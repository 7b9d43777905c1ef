//! What this process gives up before it holds a secret.

use std::borrow::Cow;

use runner_protocol::request::Hardening;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

/// A protection that this host refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("this host does not give the protection `{protection}`: {cause}")]
pub struct Unprotected {
    protection: Cow<'static, str>,
    cause: String,
}

impl Unprotected {
    /// `protection` was refused for `cause`.
    pub fn new(protection: &'static str, cause: impl Into<String>) -> Self {
        Self { protection: protection.into(), cause: cause.into() }
    }
}

/// Applies every protection before a secret is read.
///
/// What is refused comes back, for [`enforce`] to judge by the document that is not read yet.
pub fn apply() -> Vec<Unprotected> {
    let mut refused = Vec::new();
    for (protection, outcome) in protections() {
        match outcome {
            Ok(()) => debug!(protection, "applied"),
            Err(cause) => refused.push(Unprotected::new(protection, cause.to_string())),
        }
    }
    refused
}

/// Keeps others of the same user from looking into this process while it passes a document on. Unlike [`apply`] it
/// binds nothing that is started from here.
#[cfg(target_os = "linux")]
pub fn hide() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        debug!(%error, "dumpable");
    }
}

/// Elsewhere there is no such call.
#[cfg(not(target_os = "linux"))]
pub fn hide() {}

/// Logs what was refused, or fails where the document wants every protection.
///
/// # Errors
///
/// The first [`Unprotected`], when `hardening` is `required`.
pub fn enforce(hardening: Hardening, refused: Vec<Unprotected>) -> Result<(), Unprotected> {
    for unprotected in refused {
        if hardening == Hardening::Required {
            return Err(unprotected);
        }
        warn!(%unprotected, "going on without it");
    }
    Ok(())
}

/// Keeps the pages in which `secrets` stand from being written to swap, for as long as they are mapped.
///
/// Those pages alone: to lock all memory takes a limit that few hosts give, and keeps the allocator from giving
/// any back, since locked pages cannot be discarded. What is refused is logged: whether the host gives this
/// at all was found out by [`apply`].
pub fn keep_from_swap<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) {
    for secret in secrets {
        if let Err(cause) = lock(secret) {
            warn!(unprotected = %Unprotected::new(UNSWAPPED, cause.to_string()), "going on without it");
            return;
        }
    }
}

#[expect(unsafe_code, reason = "the system call takes an address")]
fn lock(secret: &[u8]) -> rustix::io::Result<()> {
    // SAFETY: the range is mapped, since `secret` is borrowed; a lock changes nothing that can be read or written.
    unsafe { rustix::mm::mlock(secret.as_ptr().cast_mut().cast(), secret.len()) }
}

/// Locks a page as secrets will be.
fn try_lock() -> nix::Result<()> {
    let probe = Box::new([0; 1]);
    lock(&*probe).map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error()))
}

const UNSWAPPED: &str = "keys kept from swap";

#[cfg(target_os = "linux")]
fn protections() -> [(&'static str, nix::Result<()>); 4] {
    use nix::sys::{
        prctl,
        resource::{Resource, setrlimit},
    };
    // No parent-death signal: it follows the parent's *thread*, and runners spawn from threads that end.
    // The lease says the same, and says it reliably.
    [
        // A core would hold the customer's keys.
        ("no core dump", setrlimit(Resource::RLIMIT_CORE, 0, 0)),
        // Neither would a debugger or /proc/PID/mem of another process of the same user get at them.
        ("not dumpable", prctl::set_dumpable(false)),
        // Nothing started from here, which is nothing, could gain rights.
        ("no new privileges", prctl::set_no_new_privs()),
        // The disk would keep what memory forgets.
        (UNSWAPPED, try_lock()),
    ]
}

#[cfg(not(target_os = "linux"))]
fn protections() -> [(&'static str, nix::Result<()>); 2] {
    use nix::sys::resource::{Resource, setrlimit};
    [("no core dump", setrlimit(Resource::RLIMIT_CORE, 0, 0)), (UNSWAPPED, try_lock())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_protection_fails_only_where_it_is_required() {
        let refused = || vec![Unprotected::new("not dumpable", "EPERM")];
        assert!(enforce(Hardening::BestEffort, refused()).is_ok());
        let error = enforce(Hardening::Required, refused()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this host does not give the protection `not dumpable`: EPERM"
        );
    }
}
