//! What the monitor does from the stop on: waits for the worker, takes over the terminations, gives the worker up. No
//! IO and no clock.

use std::time::Instant;

use crate::runtime::stop;

/// The states from the start of the worker to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum StopState {
    /// No stop was requested.
    Running,
    /// `Stop` was sent to the worker at this time.
    Stopping { since: Instant },
    /// The monitor terminates the sessions itself, beside the worker.
    TakenOver { since: Instant },
}

/// What is to be done when a timeout is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Terminate the open sessions from here: the worker may be stuck, and its own attempts do no harm.
    TakeOver,
    /// Kill the worker: it is still opening its key, so there is no session yet.
    Abandon,
    /// Kill the worker: it is stuck.
    GiveUp,
}

impl StopState {
    /// The stop was requested. A second request changes nothing.
    pub(super) fn on_stop(&mut self, now: Instant) {
        if *self == Self::Running {
            *self = Self::Stopping { since: now };
        }
    }

    /// Returns when [`on_timeout`](Self::on_timeout) is due; `None` before the stop.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Stopping { since } => Some(*since + stop::MONITOR_TAKES_OVER),
            Self::TakenOver { since } => Some(*since + stop::MONITOR),
        }
    }

    /// The timeout is due. `has_begun`: whether the worker may have started a session.
    pub(super) fn on_timeout(&mut self, has_begun: bool) -> Action {
        match *self {
            Self::Stopping { .. } if !has_begun => Action::Abandon,
            Self::Stopping { since } => {
                *self = Self::TakenOver { since };
                Action::TakeOver
            }
            Self::Running | Self::TakenOver { .. } => Action::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_a_worker_that_does_not_stop_are_taken_over_and_then_it_is_given_up() {
        let start = Instant::now();
        let mut state = StopState::Running;
        assert_eq!(state.poll_timeout(), None);
        state.on_stop(start);
        state.on_stop(start + stop::WORKER);
        assert_eq!(state.poll_timeout(), Some(start + stop::MONITOR_TAKES_OVER));
        assert_eq!(state.on_timeout(true), Action::TakeOver);
        assert_eq!(state.poll_timeout(), Some(start + stop::MONITOR));
        assert_eq!(state.on_timeout(true), Action::GiveUp);
    }

    #[test]
    fn worker_that_has_begun_nothing_is_not_waited_for() {
        let mut state = StopState::Running;
        state.on_stop(Instant::now());
        assert_eq!(state.on_timeout(false), Action::Abandon);
    }
}
