//! The phases of the start: which one runs, how long each took, and who hears of it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A phase of the start, in order; the last one lasts until the end.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Reading and checking the document, binding the listener.
    Config,
    /// StartSession, until the API has answered.
    StartSession,
    /// The data channel: WebSocket, opening message, handshake.
    Session,
    /// Key exchange and authentication with the bastion's sshd.
    Ssh,
    /// The first connection to the target.
    Target,
    /// Up and serving.
    Tunnel,
}

impl Phase {
    /// The name on the wire, in `phase` lines, in the `failed` line and in the logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::StartSession => "start_session",
            Self::Session => "session",
            Self::Ssh => "ssh",
            Self::Target => "target",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Phase {
    /// The phase of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::Config,
            Self::StartSession,
            Self::Session,
            Self::Ssh,
            Self::Target,
            Self::Tunnel,
        ];
        all.into_iter().find(|phase| phase.name() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Follows the start; clones share it.
#[derive(Clone)]
pub struct Progress {
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
    /// Begins with [`Phase::Config`]; `on_begin` hears of each later phase once.
    pub fn new(started: Instant, on_begin: impl Fn(Phase) + Send + Sync + 'static) -> Self {
        let state = State { phase: Phase::Config, since: started, took: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), on_begin: Arc::new(on_begin) }
    }

    /// Ends the running phase and begins `phase`; one that is past already is not begun again.
    pub fn begin(&self, phase: Phase) {
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
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// How long a finished phase took, if it was reached.
    pub fn took(&self, phase: Phase) -> Option<Duration> {
        self.lock().took.iter().find(|(each, _)| *each == phase).map(|(_, took)| *took)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn each_phase_is_timed_and_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&told);
        let progress =
            Progress::new(Instant::now(), move |phase| hears.lock().unwrap().push(phase));
        tokio::time::advance(Duration::from_millis(3)).await;
        progress.begin(Phase::StartSession);
        tokio::time::advance(Duration::from_millis(40)).await;
        progress.begin(Phase::Session);
        progress.begin(Phase::StartSession);
        assert_eq!(progress.phase(), Phase::Session);
        assert_eq!(progress.took(Phase::Config), Some(Duration::from_millis(3)));
        assert_eq!(progress.took(Phase::StartSession), Some(Duration::from_millis(40)));
        assert_eq!(progress.took(Phase::Session), None);
        assert_eq!(*told.lock().unwrap(), [Phase::StartSession, Phase::Session]);
    }
}
