//! As process 1 of a container, `exec` inherits orphaned processes, and must reap them.

use parking_lot::Mutex;
use std::{fs, sync::Arc};

use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::{Pid, getpid},
};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// Reaps processes that this one has not started; the runtime reaps its own children.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    own: Arc<Mutex<Vec<i32>>>,
    reaping: JoinSet<()>,
}

impl Reaper {
    /// Starts, if this is process 1.
    pub(super) fn start() -> Self {
        let mut reaper = Self::default();
        if getpid().as_raw() == 1
            && let Ok(mut ended) = signal(SignalKind::child())
        {
            let own = Arc::clone(&reaper.own);
            reaper.reaping.spawn(async move {
                while ended.recv().await.is_some() {
                    reap(&own.lock());
                }
            });
        }
        reaper
    }

    /// Excludes `child`, which the runtime reaps. Call it before anything is awaited after the child's start.
    pub(super) fn leave(&self, child: &Child) {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.own.lock().extend(pid);
    }
}

fn reap(own: &[i32]) {
    let children = fs::read_to_string(CHILDREN).unwrap_or_default();
    let orphans = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    for orphan in orphans.filter(|pid| !own.contains(pid)) {
        // A running one is reaped at its own SIGCHLD.
        let _running = waitpid(Pid::from_raw(orphan), Some(WaitPidFlag::WNOHANG));
    }
}

/// The children of process 1's first thread, which inherits orphans (Linux).
const CHILDREN: &str = "/proc/1/task/1/children";
