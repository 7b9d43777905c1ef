//! The phases of the start: which one runs, and how long each took.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

pub(crate) use runner_protocol::Phase;

/// Times the phases of the start. Clones share it.
#[derive(Clone)]
pub(crate) struct Progress {
    state: Arc<Mutex<State>>,
    on_begin: Arc<dyn Fn(Phase) + Send + Sync>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    took: Vec<(Phase, Duration)>,
}

impl Progress {
    /// Begins with [`Phase::Config`]; `on_begin` is called once for each later phase.
    pub(crate) fn new(started: Instant, on_begin: impl Fn(Phase) + Send + Sync + 'static) -> Self {
        let state = State { phase: Phase::Config, since: started, took: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), on_begin: Arc::new(on_begin) }
    }

    /// Ends the running phase and begins `phase`. An earlier phase than the running one is ignored: a lane that is
    /// opened a second time does not begin the start again.
    pub(crate) fn begin(&self, phase: Phase) {
        {
            let mut state = self.lock();
            if phase <= state.phase {
                return;
            }
            let now = Instant::now();
            let finished = (state.phase, now - state.since);
            state.took.push(finished);
            (state.phase, state.since) = (phase, now);
        }
        (self.on_begin)(phase);
    }

    /// The running phase.
    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// How long a finished phase took, if it was reached.
    pub(crate) fn took(&self, phase: Phase) -> Option<Duration> {
        self.lock().took.iter().find(|(each, _)| *each == phase).map(|(_, took)| *took)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Progress").field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_phase_is_timed_and_reported_once() {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&reported);
        let progress = Progress::new(Instant::now(), move |phase| record.lock().push(phase));
        tokio::time::advance(Duration::from_millis(3)).await;
        progress.begin(Phase::StartSession);
        tokio::time::advance(Duration::from_millis(40)).await;
        progress.begin(Phase::Session);
        progress.begin(Phase::StartSession);
        assert_eq!(progress.phase(), Phase::Session);
        assert_eq!(progress.took(Phase::Config), Some(Duration::from_millis(3)));
        assert_eq!(progress.took(Phase::StartSession), Some(Duration::from_millis(40)));
        assert_eq!(progress.took(Phase::Session), None);
        assert_eq!(*reported.lock(), [Phase::StartSession, Phase::Session]);
    }
}
