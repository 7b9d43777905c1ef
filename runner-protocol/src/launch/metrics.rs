//! Resource usage of a sidecar, from `/proc`.

use std::{fs, io, time::Duration};

use nix::unistd::{Pid, SysconfVar, sysconf};

/// Resource usage of all processes of a sidecar.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Metrics {
    /// Number of processes.
    pub processes: usize,
    /// Resident memory in bytes; shared memory counts once per process.
    pub resident_bytes: u64,
    /// Sum of the peak resident memory of each process, in bytes.
    pub peak_bytes: u64,
    /// CPU time; the resolution is the kernel's clock tick, 10 ms.
    pub cpu: Duration,
}

/// Sums up the usage of `pid` and its descendants.
///
/// # Errors
///
/// If `/proc` cannot be read, as when the process has ended.
pub(super) fn of(pid: Pid) -> io::Result<Metrics> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
    let mut metrics = Metrics::default();
    add(pid.as_raw(), ticks.unwrap_or(100).max(1), &mut metrics)?;
    Ok(metrics)
}

fn add(pid: i32, ticks: u64, metrics: &mut Metrics) -> io::Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    metrics.processes += 1;
    metrics.resident_bytes += kibibytes(&status, "VmRSS:") << 10;
    metrics.peak_bytes += kibibytes(&status, "VmHWM:") << 10;
    metrics.cpu += Duration::from_millis(cpu_ticks(&stat) * 1000 / ticks);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Without CONFIG_PROC_CHILDREN this file does not exist; then only the process itself is counted.
        let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            // Fails for a process that has ended in the meantime, which uses nothing.
            drop(add(child, ticks, metrics));
        }
    }
    Ok(())
}

/// A value of `/proc/PID/status`; 0 for a zombie, which lacks these lines.
fn kibibytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// `utime` and `stime` of `/proc/PID/stat`, the 12th and 13th field after the name in parentheses.
fn cpu_ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_times() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 3 0 1";
        assert_eq!(cpu_ticks(stat), 42);
    }

    #[test]
    fn this_process_uses_memory() {
        let metrics = of(Pid::this()).unwrap();
        assert!(metrics.processes >= 1 && metrics.resident_bytes > 0, "{metrics:?}");
        assert!(metrics.peak_bytes >= metrics.resident_bytes, "{metrics:?}");
    }
}
