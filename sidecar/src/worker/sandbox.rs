//! The worker's sandbox, complete before it reads the first byte from outside.
//!
//! Three steps: descriptors and privileges while there is one thread, so that later threads lack them as well; system
//! calls last, when the runtime has what it needs. Each protection is independent: where a host refuses one, the others
//! hold.

#[cfg(target_os = "linux")]
mod seccomp;

use std::fs;

use crate::runtime::hardening::MissingProtection;

/// Blocks the signals that request a stop, in this thread and those that it starts. Terminals and service
/// managers send them to both processes; the monitor then sends `Stop`, and a worker that was killed before that could
/// not end its sessions.
pub(crate) fn block_stop_signals() {
    use nix::sys::signal::{SigSet, Signal};

    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    // Cannot fail for valid signals.
    let _held_back = SigSet::from_iter(signals).thread_block();
}

/// Closes all inherited descriptors but the standard streams: a runner may leak descriptors of its own.
pub(crate) fn close_inherited() {
    let numbers: Vec<i32> = fs::read_dir(DESCRIPTORS)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // One of them was the directory's, and is closed already.
        let _closed = nix::unistd::close(number);
    }
}

/// Gives up every capability and all access to files, for this thread and those that it starts. Returns the protections
/// that the host refused.
#[cfg(target_os = "linux")]
pub(crate) fn drop_privileges() -> Vec<MissingProtection> {
    let steps = [
        ("no capability", drop_capabilities().map_err(|error| error.to_string())),
        ("no file system (Landlock)", restrict_files()),
    ];
    let refused = steps.into_iter().filter_map(|(protection, outcome)| {
        outcome.err().map(|cause| MissingProtection::new(protection, cause))
    });
    refused.collect()
}

/// Limits all threads to the system calls of [`seccomp::GROUPS`]. Returns the protection if the host refused it.
#[cfg(target_os = "linux")]
pub(crate) fn filter_system_calls() -> Vec<MissingProtection> {
    let refused = seccomp::apply().err();
    refused
        .map(|cause| MissingProtection::new("system call filter (seccomp)", cause))
        .into_iter()
        .collect()
}

/// Other systems have neither capabilities nor Landlock.
#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_privileges() -> Vec<MissingProtection> {
    vec![MissingProtection::new("no file system (Landlock)", "it exists on Linux only")]
}

/// Other systems have no such filter.
#[cfg(not(target_os = "linux"))]
pub(crate) fn filter_system_calls() -> Vec<MissingProtection> {
    vec![MissingProtection::new("system call filter (seccomp)", "it exists on Linux only")]
}

#[cfg(target_os = "linux")]
fn drop_capabilities() -> rustix::io::Result<()> {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    };

    for capability in CapabilitySet::all().iter() {
        // Fails without CAP_SETPCAP, which does no harm: the bounding set matters only at an exec, and none follows.
        let _kept = remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// No rule is added, so nothing is allowed: no path, no address to bind or connect to, no process to signal.
#[cfg(target_os = "linux")]
fn restrict_files() -> Result<(), String> {
    use landlock::{
        Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetStatus, Scope,
    };

    let restrict = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .restrict_self()
    };
    match restrict() {
        // Partly enforced is enough: older kernels restrict the file system only, which matters most.
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Ok(()),
        Ok(_) => Err("this kernel has none, or it is switched off".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The version of Landlock that is requested; an older kernel enforces a part of it.
#[cfg(target_os = "linux")]
const NEWEST: landlock::ABI = landlock::ABI::V6;

#[cfg(target_os = "linux")]
const DESCRIPTORS: &str = "/proc/self/fd";

#[cfg(not(target_os = "linux"))]
const DESCRIPTORS: &str = "/dev/fd";
