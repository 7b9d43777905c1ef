//! Whether anybody is there at the other end of the WebSocket.
//!
//! | what is seen | what is done |
//! | --- | --- |
//! | any frame | the path lives |
//! | silence for 4 s | a ping asks |
//! | the ping is 5 s old, and still nothing | the path is dead, 9 s after it fell silent, idle or not |
//! | that verdict is due, but its time was slept through | a ping asks again: a process that was stopped (SIGSTOP, a frozen container, a laptop's lid) has not listened, so silence proves nothing |

use std::time::{Duration, Instant};

/// Watches one WebSocket.
#[derive(Debug)]
pub(super) struct Liveness {
    /// When the last frame came.
    heard: Instant,
    /// When the ping was sent that nothing has answered yet.
    asked: Option<Instant>,
}

/// What there is to do at a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing, until [`Liveness::due`].
    Alive,
    /// Send a ping.
    Ask,
    /// Give the path up, which has been silent for so long.
    Dead(Duration),
}

impl Liveness {
    pub(super) const fn new(now: Instant) -> Self {
        Self { heard: now, asked: None }
    }

    /// Takes note of a frame, whatever is in it.
    pub(super) const fn on_received(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// Judges the silence up to `now`; what had arrived by then was taken note of before.
    pub(super) fn judge(&mut self, now: Instant) -> Verdict {
        let due = self.due();
        if now < due {
            return Verdict::Alive;
        }
        if self.asked.is_some() && now.saturating_duration_since(due) < SLEPT {
            return Verdict::Dead(now.saturating_duration_since(self.heard));
        }
        self.asked = Some(now);
        Verdict::Ask
    }

    /// When to judge next.
    pub(super) fn due(&self) -> Instant {
        self.asked.map_or(self.heard + PING_AFTER, |asked| asked + ANSWER_WITHIN)
    }
}

/// Silence of the service after which a ping asks whether it is there. The official plugin's five
/// minutes lose to every proxy on the way (`aws/session-manager-plugin` #15).
const PING_AFTER: Duration = Duration::from_secs(4);

/// For the answer to a ping. Together with the time before it less than the 10 s in which a dead path is to
/// be noticed.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A verdict that comes so much too late was slept through.
const SLEPT: Duration = Duration::from_millis(800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_after_4_seconds_and_judged_after_9() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(start);
        assert_eq!((liveness.judge(at(3)), liveness.due()), (Verdict::Alive, at(4)));
        assert_eq!((liveness.judge(at(4)), liveness.due()), (Verdict::Ask, at(9)));
        assert_eq!(liveness.judge(at(8)), Verdict::Alive, "asked once");
        liveness.on_received(at(8));
        assert_eq!((liveness.judge(at(9)), liveness.due()), (Verdict::Alive, at(12)));
        assert_eq!(liveness.judge(at(12)), Verdict::Ask);
        assert_eq!(liveness.judge(at(17)), Verdict::Dead(Duration::from_secs(9)));
    }

    #[test]
    fn a_process_that_was_stopped_asks_before_it_judges() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Stopped before the ping, and behind it.
        for asks_first in [false, true] {
            let mut liveness = Liveness::new(start);
            if asks_first {
                assert_eq!(liveness.judge(at(4)), Verdict::Ask);
            }
            assert_eq!((liveness.judge(at(600)), liveness.due()), (Verdict::Ask, at(605)));
            assert_eq!(liveness.judge(at(605)), Verdict::Dead(Duration::from_secs(605)));
        }
    }
}
