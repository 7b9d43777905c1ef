//! Whether the other end of the WebSocket still answers. No IO and no clock.
//!
//! | event | action |
//! | --- | --- |
//! | any frame | the path is alive |
//! | silence for 4 s | send a ping |
//! | no frame for 5 s after the ping | give the path up, 9 s after the last frame, idle or not |
//! | the same, but noticed [`SUSPENDED`] too late | send another ping: a process that was suspended (SIGSTOP, a frozen container, a closed laptop) did not receive, so silence proves nothing |

use std::time::{Duration, Instant};

/// Watches one WebSocket.
#[derive(Debug)]
pub(super) struct Liveness {
    last_received: Instant,
    /// When the unanswered ping was sent.
    pinged: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    None,
    Ping,
    /// Give up the path, silent for this long.
    GiveUp(Duration),
}

impl Liveness {
    pub(super) const fn new(now: Instant) -> Self {
        Self { last_received: now, pinged: None }
    }

    /// Any frame was received.
    pub(super) const fn on_received(&mut self, now: Instant) {
        self.last_received = now;
        self.pinged = None;
    }

    /// Returns what is to be done at `now`. Before it, call [`on_received`](Self::on_received) for frames that have
    /// arrived by then.
    pub(super) fn poll_action(&mut self, now: Instant) -> Action {
        let due = self.poll_timeout();
        if now < due {
            return Action::None;
        }
        if self.pinged.is_some() && now.saturating_duration_since(due) < SUSPENDED {
            return Action::GiveUp(now.saturating_duration_since(self.last_received));
        }
        self.pinged = Some(now);
        Action::Ping
    }

    /// Returns when [`poll_action`](Self::poll_action) is due.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.pinged.map_or(self.last_received + PING_AFTER, |pinged| pinged + ANSWER_WITHIN)
    }
}

/// Silence that tells of a broken path where pings are sent: longer than a ping and its answer take. Our choice.
pub(super) const SILENT: Duration = Duration::from_secs(6);

/// Silence after which a ping is sent. The official plugin's five minutes are too long for most proxies
/// (`aws/session-manager-plugin` #15).
const PING_AFTER: Duration = Duration::from_secs(4);

/// Time for the answer to a ping. With [`PING_AFTER`] 9 s: a dead path is to be noticed within 10 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A timeout that is noticed this late means that the process was suspended.
const SUSPENDED: Duration = Duration::from_millis(800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_followed_by_a_ping_after_4_seconds_and_given_up_after_9() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(start);
        assert_eq!((liveness.poll_action(at(3)), liveness.poll_timeout()), (Action::None, at(4)));
        assert_eq!((liveness.poll_action(at(4)), liveness.poll_timeout()), (Action::Ping, at(9)));
        assert_eq!(liveness.poll_action(at(8)), Action::None, "one ping");
        liveness.on_received(at(8));
        assert_eq!((liveness.poll_action(at(9)), liveness.poll_timeout()), (Action::None, at(12)));
        assert_eq!(liveness.poll_action(at(12)), Action::Ping);
        assert_eq!(liveness.poll_action(at(17)), Action::GiveUp(Duration::from_secs(9)));
    }

    #[test]
    fn a_suspended_process_pings_before_it_gives_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Suspended before the ping, and after it.
        for pings_first in [false, true] {
            let mut liveness = Liveness::new(start);
            if pings_first {
                assert_eq!(liveness.poll_action(at(4)), Action::Ping);
            }
            assert_eq!(
                (liveness.poll_action(at(600)), liveness.poll_timeout()),
                (Action::Ping, at(605))
            );
            assert_eq!(liveness.poll_action(at(605)), Action::GiveUp(Duration::from_secs(605)));
        }
    }
}
