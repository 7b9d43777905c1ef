//! As process 1 of a container `exec` inherits whoever lost their parent, and must wait for them.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::{Pid, getpid},
};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// Waits for processes that are none of ours; the runtime waits for its own.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    own: Arc<Mutex<Vec<i32>>>,
    reaping: JoinSet<()>,
}

impl Reaper {
    /// Begins, where this is process 1.
    pub(super) fn start() -> Self {
        let mut reaper = Self::default();
        if getpid().as_raw() == 1
            && let Ok(mut ended) = signal(SignalKind::child())
        {
            let own = Arc::clone(&reaper.own);
            reaper.reaping.spawn(async move {
                while ended.recv().await.is_some() {
                    reap(&own.lock().unwrap_or_else(PoisonError::into_inner));
                }
            });
        }
        reaper
    }

    /// Leaves `child` to whoever holds it. Call before anything is awaited after its start.
    pub(super) fn leave(&self, child: &Child) {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.own.lock().unwrap_or_else(PoisonError::into_inner).extend(pid);
    }
}

fn reap(own: &[i32]) {
    let children = fs::read_to_string(CHILDREN).unwrap_or_default();
    let strangers = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    for stranger in strangers.filter(|pid| !own.contains(pid)) {
        // One that still runs is asked again when it has ended.
        let _running = waitpid(Pid::from_raw(stranger), Some(WaitPidFlag::WNOHANG));
    }
}

/// Those of process 1's first thread, which is where orphans go (Linux).
const CHILDREN: &str = "/proc/1/task/1/children";
