//! What the worker gives up for good before it reads the first byte that somebody else has sent.
//!
//! Three steps, since each has its time: descriptors and rights while there is one thread alone, which later
//! threads then lack as well; the system calls at last, once the runtime has what it needs. Each protection
//! stands by itself, so that a host that refuses one leaves the others.

#[cfg(target_os = "linux")]
pub mod seccomp;

use std::fs;

use crate::runtime::hardening::Unprotected;

/// Holds back the signals that ask to stop, for this thread and those that it starts. Terminals and service
/// managers send them to both processes; the monitor asks for an orderly end then, and a worker that was
/// gone by that time could not end its sessions.
pub fn leave_stopping_to_the_monitor() {
    use nix::sys::signal::{SigSet, Signal};

    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    // It fails for no signal that there is.
    let _held_back = SigSet::from_iter(signals).thread_block();
}

/// Closes whatever was inherited but the standard streams: a runner may leak descriptors of its own.
pub fn close_inherited() {
    let numbers: Vec<i32> = fs::read_dir(DESCRIPTORS)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // One of them was the directory's own and is closed already.
        let _closed = nix::unistd::close(number);
    }
}

/// Gives up every capability and every right over files, of this thread and of those that it starts. What
/// is refused comes back.
#[cfg(target_os = "linux")]
pub fn drop_rights() -> Vec<Unprotected> {
    let steps = [
        ("no capability", drop_capabilities().map_err(|error| error.to_string())),
        ("no file system (Landlock)", restrict_files()),
    ];
    let refused = steps.into_iter().filter_map(|(protection, outcome)| {
        outcome.err().map(|cause| Unprotected::new(protection, cause))
    });
    refused.collect()
}

/// Leaves all threads the system calls of [`seccomp::GROUPS`] and no other. What is refused comes back.
#[cfg(target_os = "linux")]
pub fn filter_calls() -> Vec<Unprotected> {
    let refused = seccomp::apply().err();
    refused
        .map(|cause| Unprotected::new("system call filter (seccomp)", cause))
        .into_iter()
        .collect()
}

/// Elsewhere there is neither.
#[cfg(not(target_os = "linux"))]
pub fn drop_rights() -> Vec<Unprotected> {
    vec![Unprotected::new("no file system (Landlock)", "it exists on Linux only")]
}

/// Elsewhere there is no such filter.
#[cfg(not(target_os = "linux"))]
pub fn filter_calls() -> Vec<Unprotected> {
    vec![Unprotected::new("system call filter (seccomp)", "it exists on Linux only")]
}

#[cfg(target_os = "linux")]
fn drop_capabilities() -> rustix::io::Result<()> {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    };

    for capability in CapabilitySet::all().iter() {
        // Without the right to do so there is nothing to bound: no exec will come, and no new privilege.
        let _kept = remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// No rule is added, so nothing is left: no path, no address to bind or connect to, nobody to signal.
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
        // In part: an older kernel knows the file system alone, which is what counts.
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Ok(()),
        Ok(_) => Err("this kernel has none, or it is switched off".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Rights that are known to this program; the kernel may know fewer.
#[cfg(target_os = "linux")]
const NEWEST: landlock::ABI = landlock::ABI::V6;

#[cfg(target_os = "linux")]
const DESCRIPTORS: &str = "/proc/self/fd";

#[cfg(not(target_os = "linux"))]
const DESCRIPTORS: &str = "/dev/fd";
