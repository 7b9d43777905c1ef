//! Whether agent and sshd of a lane still answer while its WebSocket is up. No IO and no clock.
//!
//! The gateway answers pings for an agent that is gone, and the agent acknowledges for an sshd that is stuck. So a lane
//! is *stalled* when one of them owes an answer for too long: the agent, while messages are in flight (and none is paused);
//! sshd, while a keepalive request is unanswered that was sent and that the agent has acknowledged. An idle lane sends such a request after
//! 20 s, one that has just sent something after 4 s.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Since when the other ends of a lane owe an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// Messages are in flight.
    pub(super) agent: Option<Instant>,
    /// A keepalive request is unanswered.
    pub(super) sshd: Option<Instant>,
}

/// A lane whose other end does not answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stall {
    pub(super) since: Instant,
    pub(super) silent: Silent,
}

/// What has become of a lane.
#[derive(Clone, Copy, Debug)]
pub(super) enum StallChange {
    Began(Stall),
    Ended,
}

/// Who does not answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Silent {
    Agent,
    Sshd,
}

impl Waiting {
    /// The stall at `now`, if there is one, and when to look again. `before`: what the last review has found.
    pub(super) fn review(self, before: Option<Stall>, now: Instant) -> (Option<Stall>, Instant) {
        if let Some(stall) = before
            && stall.silent == Silent::Sshd
            && self.sshd == Some(stall.since)
        {
            // Whatever is under way to the agent at the moment.
            return (Some(stall), now + REVIEW_STALLED);
        }
        let (stall, patience) = match (self.agent, self.sshd) {
            (Some(since), _) => (Stall { since, silent: Silent::Agent }, AGENT_PATIENCE),
            (None, Some(since)) => (Stall { since, silent: Silent::Sshd }, SSHD_PATIENCE),
            // Whatever is owed from now on is owed for less than the patience at that time.
            (None, None) => return (None, now + SSHD_PATIENCE),
        };
        let due = stall.since + patience;
        if due <= now { (Some(stall), now + REVIEW_STALLED) } else { (None, due) }
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Agent => "the SSM agent does not answer, though its session is open",
            Self::Sshd => "sshd does not answer, though the SSM agent does",
        })
    }
}

/// For the agent's answer. Our choice: more than the longest time between two sendings of a message, so that one was
/// repeated; and what is to be noticed within 10 s is.
const AGENT_PATIENCE: Duration = Duration::from_secs(8);

/// For sshd's answer to a keepalive request, which follows 4 s of silence at least. Our choice, for the same 10 s.
const SSHD_PATIENCE: Duration = Duration::from_secs(4);

/// Whether a stall is over is looked at so often.
const REVIEW_STALLED: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_has_8_seconds_and_sshd_4() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let agent = Waiting { agent: Some(start), sshd: None };
        assert_eq!(agent.review(None, at(7)), (None, at(8)));
        let stall = Stall { since: start, silent: Silent::Agent };
        assert_eq!(agent.review(None, at(8)), (Some(stall), at(8) + REVIEW_STALLED));
        let sshd = Waiting { agent: None, sshd: Some(start) };
        assert_eq!(sshd.review(None, at(3)), (None, at(4)));
        let stall = sshd.review(None, at(4)).0;
        assert!(stall.is_some());
        // What the agent has not acknowledged, sshd cannot have answered.
        let both = Waiting { agent: Some(at(3)), sshd: Some(start) };
        assert_eq!(both.review(None, at(4)), (None, at(11)));
        assert_eq!(both.review(stall, at(5)).0, stall, "it is over when sshd answers");
    }

    #[test]
    fn idle_lane_is_looked_at_before_anything_can_be_overdue() {
        let now = Instant::now();
        let (stall, next) = Waiting::default().review(None, now);
        assert!(stall.is_none() && next <= now + SSHD_PATIENCE);
    }
}
