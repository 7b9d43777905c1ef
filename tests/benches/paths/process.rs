//! Cost of processes as counted by the kernel: a program and everything it has started.

use std::{fs, time::Duration};

use nix::unistd::Pid;

/// The process and all its descendants.
fn family(pid: Pid) -> Vec<i32> {
    let mut found = vec![pid.as_raw()];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for task in tasks(pid) {
            let children = format!("/proc/{pid}/task/{task}/children");
            // A process that has exited meanwhile has no children.
            let children = fs::read_to_string(children).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found
}

fn tasks(pid: i32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.file_name().into_string().ok()).collect()
}

/// Whether a socket listens at this port of 127.0.0.1.
pub(crate) fn listens(port: u16) -> bool {
    // In the kernel's notation: the address in reverse byte order, and 0A for LISTEN.
    let local = format!(" 0100007F:{port:04X} 00000000:0000 0A ");
    fs::read_to_string("/proc/net/tcp").unwrap_or_default().contains(&local)
}

/// Processor time used so far.
pub(crate) fn cpu(pid: Pid) -> Duration {
    let nanoseconds = family(pid).into_iter().flat_map(|pid| {
        tasks(pid).into_iter().filter_map(move |task| {
            let statistics =
                fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")).ok()?;
            statistics.split(' ').next()?.parse::<u64>().ok()
        })
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Memory, in megabytes of 10^6 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident; pages shared by processes are counted once for each.
    pub(crate) resident: f64,
    /// Resident and private (anonymous).
    pub(crate) anonymous: f64,
    /// Resident; shared pages divided by the number of sharers.
    pub(crate) proportional: f64,
}

/// Current memory.
pub(crate) fn memory(pid: Pid) -> Memory {
    let mut memory = Memory::default();
    for pid in family(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        memory.resident += field(&status, "VmRSS:");
        memory.anonymous += field(&status, "RssAnon:");
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        memory.proportional += field(&maps, "Pss:");
    }
    memory
}

/// A field in kB of 1,024 bytes.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes =
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1.024e-3
}
