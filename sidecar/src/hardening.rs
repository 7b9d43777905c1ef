//! What this process gives up before it holds a secret.

use std::borrow::Cow;

use runner_protocol::request::Hardening;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

/// A protection that this host refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{protection} is not to be had: {cause}")]
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

#[cfg(target_os = "linux")]
fn protections() -> [(&'static str, nix::Result<()>); 3] {
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
    ]
}

#[cfg(not(target_os = "linux"))]
fn protections() -> [(&'static str, nix::Result<()>); 1] {
    use nix::sys::resource::{Resource, setrlimit};
    [("no core dump", setrlimit(Resource::RLIMIT_CORE, 0, 0))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_protection_fails_only_where_it_is_required() {
        let refused = || vec![Unprotected::new("not dumpable", "EPERM")];
        assert!(enforce(Hardening::BestEffort, refused()).is_ok());
        let error = enforce(Hardening::Required, refused()).unwrap_err();
        assert_eq!(error.to_string(), "not dumpable is not to be had: EPERM");
    }
}
