//! Protections of the process and its memory, applied before it holds a secret.

use std::borrow::Cow;

use runner_protocol::{ErrorCode, config::Hardening};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::failure::ToFailure;

/// A protection that this host refuses.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("this host does not give the protection `{protection}`: {cause}")]
pub(crate) struct MissingProtection {
    protection: Cow<'static, str>,
    cause: String,
}

impl MissingProtection {
    pub(crate) fn new(protection: &'static str, cause: impl Into<String>) -> Self {
        Self { protection: protection.into(), cause: cause.into() }
    }
}

impl ToFailure for MissingProtection {
    fn code(&self) -> ErrorCode {
        ErrorCode::LocalHardening
    }

    fn hint(&self) -> String {
        "let the host give this protection, or set `hardening` to `best_effort`".to_owned()
    }
}

/// Applies every protection. Call it before a secret is read.
///
/// Returns those that are missing, for [`enforce`]: the config that says whether they are required is not read yet.
pub(crate) fn apply() -> Vec<MissingProtection> {
    let mut refused = Vec::new();
    for (protection, outcome) in protections() {
        match outcome {
            Ok(()) => debug!(protection, "applied"),
            Err(cause) => refused.push(MissingProtection::new(protection, cause.to_string())),
        }
    }
    refused
}

/// Makes this process undumpable, so that other processes of the same user cannot read its memory while it passes
/// a config on. Unlike [`apply`] it restricts no child process.
#[cfg(target_os = "linux")]
pub(crate) fn disable_dump() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        debug!(%error, "the process stays dumpable");
    }
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
pub(crate) fn disable_dump() {}

/// Logs missing protections, or fails where the config requires all of them.
///
/// # Errors
///
/// The first [`MissingProtection`], when `hardening` is `required`.
pub(crate) fn enforce(
    hardening: Hardening,
    refused: Vec<MissingProtection>,
) -> Result<(), MissingProtection> {
    for missing in refused {
        if hardening == Hardening::Required {
            return Err(missing);
        }
        warn!(%missing, "continuing without this protection");
    }
    Ok(())
}

/// Locks the pages that hold `secrets`, so that they are not written to swap for as long as they are mapped.
///
/// Only those pages: locking all memory needs a limit that few hosts give, and keeps the allocator from returning
/// memory, since locked pages cannot be discarded. The first refusal is logged, and the rest is left out: whether the
/// host gives this protection at all is known from [`apply`], and [`enforce`] decides about it.
pub(crate) fn keep_from_swap<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) {
    for secret in secrets {
        if let Err(cause) = lock(secret) {
            warn!(missing = %MissingProtection::new(UNSWAPPED, cause.to_string()), "continuing without this protection");
            return;
        }
    }
}

#[expect(unsafe_code, reason = "the system call takes an address")]
fn lock(secret: &[u8]) -> rustix::io::Result<()> {
    // SAFETY: the range is mapped, since `secret` is borrowed; a lock changes nothing that can be read or written.
    unsafe { rustix::mm::mlock(secret.as_ptr().cast_mut().cast(), secret.len()) }
}

/// Tries the lock on a page without secrets.
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
    // The lease does the same reliably: stdin closes when the runner dies.
    [
        // A core would hold the customer's keys.
        ("no core dump", setrlimit(Resource::RLIMIT_CORE, 0, 0)),
        // Otherwise another process of the same user could read the keys, by a debugger or /proc/PID/mem.
        ("not dumpable", prctl::set_dumpable(false)),
        // No child process can gain privileges.
        ("no new privileges", prctl::set_no_new_privs()),
        // Keep secrets out of swap.
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
    fn a_missing_protection_fails_only_where_it_is_required() {
        let refused = || vec![MissingProtection::new("not dumpable", "EPERM")];
        assert!(enforce(Hardening::BestEffort, refused()).is_ok());
        let error = enforce(Hardening::Required, refused()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this host does not give the protection `not dumpable`: EPERM"
        );
    }
}
