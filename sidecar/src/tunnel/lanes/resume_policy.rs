//! Decides when a session is tried to be resumed, and when that is given up. No IO and no clock.

use std::time::{Duration, Instant};

use crate::{channel::Outage, runtime::backoff::Backoff};

/// The state machine.
#[derive(Debug)]
pub(super) struct ResumePolicy {
    budget: Duration,
    deadline: Instant,
    delays: Backoff,
    /// For the delays of the next outage.
    seed: u64,
    /// Attempts in a row in which the service refused the WebSocket after it had given a token.
    refusals: u32,
}

/// When the next attempt is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decision {
    Now,
    After(Duration),
    /// No attempt: the session counts as lost.
    GiveUp,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attempt {
    /// ResumeSession gave no token, but may do so later; or it did not answer in time.
    Unavailable,
    /// ResumeSession gave a token, and the service refused the WebSocket.
    Rejected,
    /// ResumeSession gave a token, but the WebSocket could not be opened.
    ConnectFailed,
    /// `ssm:ResumeSession` is not allowed.
    Denied,
    /// The session cannot be resumed.
    Permanent,
}

impl ResumePolicy {
    /// `budget`: the time limit of each outage. `seed`: of the random part of the delays.
    pub(super) fn new(now: Instant, budget: Duration, seed: u64) -> Self {
        let delays = Backoff::seeded(FIRST_DELAY, seed);
        Self { budget, deadline: now + budget, delays, seed, refusals: 0 }
    }

    /// The WebSocket was lost.
    pub(super) fn on_disconnected(&mut self, now: Instant, outage: Outage) -> Decision {
        match outage {
            Outage::New => {
                *self = Self::new(now, self.budget, self.seed.wrapping_add(1));
                Decision::Now
            }
            // The first attempt of the outage was made at once.
            Outage::Ongoing => self.delay(now),
        }
    }

    /// An attempt has opened a WebSocket.
    pub(super) fn on_opened(&mut self) {
        self.refusals = 0;
    }

    /// An attempt has failed.
    pub(super) fn on_failed(&mut self, now: Instant, attempt: Attempt) -> Decision {
        match attempt {
            Attempt::Unavailable => (),
            Attempt::Rejected => self.refusals += 1,
            Attempt::ConnectFailed => self.refusals = 0,
            Attempt::Denied | Attempt::Permanent => return Decision::GiveUp,
        }
        if self.refusals >= MAXIMUM_REFUSALS {
            return Decision::GiveUp;
        }
        self.delay(now)
    }

    /// When an unanswered attempt has failed.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn delay(&mut self, now: Instant) -> Decision {
        let delay = self.delays.next_delay();
        if now + delay >= self.deadline { Decision::GiveUp } else { Decision::After(delay) }
    }
}

/// Before the second attempt, as in the official plugin.
const FIRST_DELAY: Duration = Duration::from_millis(150);

/// After this many refused `WebSockets` in a row, a new session is more promising than a further attempt.
const MAXIMUM_REFUSALS: u32 = 5;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// With its random part.
    const LONGEST_DELAY: Duration = Duration::from_secs(10);
    const BUDGET: Duration = Duration::from_mins(1);

    /// A policy whose first attempt is being made.
    fn tried(now: Instant) -> ResumePolicy {
        let mut policy = ResumePolicy::new(now, BUDGET, 1);
        assert_eq!(policy.on_disconnected(now, Outage::New), Decision::Now);
        policy
    }

    /// Lets every attempt fail at once until the policy gives up; returns when that was, and the delays.
    fn exhaust(
        policy: &mut ResumePolicy,
        mut now: Instant,
        attempts: &[Attempt],
    ) -> (Instant, Vec<Duration>) {
        let mut delays = Vec::new();
        for attempt in attempts.iter().cycle() {
            match policy.on_failed(now, *attempt) {
                Decision::Now => unreachable!("without a delay"),
                Decision::After(delay) => delays.push(delay),
                Decision::GiveUp => break,
            }
            now += *delays.last().unwrap();
        }
        (now, delays)
    }

    #[test]
    fn attempts_go_on_with_growing_delays_within_the_budget() {
        let start = Instant::now();
        let mut policy = tried(start);
        let (end, delays) = exhaust(&mut policy, start, &[Attempt::Unavailable]);
        assert!(end < policy.deadline() && end + LONGEST_DELAY >= start + BUDGET);
        let mut least = FIRST_DELAY;
        for delay in delays {
            assert!((least..2 * least).contains(&delay), "{delay:?} instead of {least:?} and more");
            least = (2 * least).min(LONGEST_DELAY / 2);
        }
    }

    #[test]
    fn ongoing_outage_gets_no_further_time_and_a_new_one_does() {
        let start = Instant::now();
        let mut policy = tried(start);
        policy.on_opened();
        assert!(matches!(policy.on_disconnected(start, Outage::Ongoing), Decision::After(_)));
        let late = start + BUDGET;
        assert_eq!(policy.on_disconnected(late, Outage::Ongoing), Decision::GiveUp);
        assert_eq!(policy.on_disconnected(late, Outage::New), Decision::Now);
        assert_eq!(policy.deadline(), late + BUDGET);
        let Decision::After(delay) = policy.on_failed(late, Attempt::Unavailable) else { panic!() };
        assert!(delay < 2 * FIRST_DELAY, "delays are short again");
    }

    #[test]
    fn a_session_that_cannot_be_resumed_is_given_up_at_once() {
        let start = Instant::now();
        for attempt in [Attempt::Denied, Attempt::Permanent] {
            assert_eq!(tried(start).on_failed(start, attempt), Decision::GiveUp);
        }
    }

    #[test]
    fn websockets_refused_in_a_row_end_the_attempts_early() {
        use Attempt::{ConnectFailed, Rejected, Unavailable};
        let cases: [(&str, &[Attempt], Option<usize>); 3] = [
            ("in a row", &[Rejected], Some(4)),
            ("with an unavailable session between", &[Rejected, Unavailable], Some(8)),
            (
                "with a failed connection between",
                &[Rejected, Rejected, Rejected, Rejected, ConnectFailed],
                None,
            ),
        ];
        for (name, attempts, count) in cases {
            let start = Instant::now();
            let (_, delays) = exhaust(&mut tried(start), start, attempts);
            match count {
                Some(count) => assert_eq!(delays.len(), count, "case: {name}"),
                None => assert!(delays.len() > 9, "case: {name}"),
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Failed(Attempt),
        /// A WebSocket is open for this long, and lost again.
        Opened(Duration, Outage),
    }

    fn step() -> impl Strategy<Value = Step> {
        let attempt = prop_oneof![
            5 => Just(Attempt::Unavailable),
            3 => Just(Attempt::Rejected),
            3 => Just(Attempt::ConnectFailed),
            1 => Just(Attempt::Permanent),
            1 => Just(Attempt::Denied),
        ];
        let outage = prop_oneof![1 => Just(Outage::New), 3 => Just(Outage::Ongoing)];
        let open = (0_u64..20_000).prop_map(Duration::from_millis);
        prop_oneof![
            5 => attempt.prop_map(Step::Failed),
            1 => (open, outage).prop_map(|(open, outage)| Step::Opened(open, outage)),
        ]
    }

    proptest! {
        /// No attempt begins after the budget of its outage, and attempts end before that only for the two reasons.
        #[test]
        fn whatever_happens_attempts_last_for_the_budget(
            budget in 5_u64..120,
            seed: u64,
            steps in vec((0_u64..3_000, step()), 0..100),
        ) {
            let budget = Duration::from_secs(budget);
            let mut now = Instant::now();
            let mut policy = ResumePolicy::new(now, budget, seed);
            let (mut began, mut in_a_row) = (now, 0);
            for (attempt_ms, step) in steps {
                // An attempt is cancelled at the deadline, and counts as unanswered.
                let answered = now + Duration::from_millis(attempt_ms);
                let is_cut = answered > policy.deadline();
                now = answered.min(policy.deadline().max(now));
                let (verdict, mut may_give_up) = match step {
                    Step::Failed(attempt) => {
                        let attempt = if is_cut { Attempt::Unavailable } else { attempt };
                        match attempt {
                            Attempt::Rejected => in_a_row += 1,
                            Attempt::ConnectFailed => in_a_row = 0,
                            Attempt::Unavailable | Attempt::Denied | Attempt::Permanent => (),
                        }
                        let is_over = matches!(attempt, Attempt::Denied | Attempt::Permanent)
                            || in_a_row == 5;
                        (policy.on_failed(now, attempt), is_over)
                    }
                    Step::Opened(open, outage) => {
                        policy.on_opened();
                        in_a_row = 0;
                        now += open;
                        if outage == Outage::New {
                            began = now;
                        }
                        (policy.on_disconnected(now, outage), false)
                    }
                };
                may_give_up |= now + LONGEST_DELAY >= began + budget;
                match verdict {
                    Decision::Now => assert_eq!(began, now, "at once, but not in the same outage"),
                    Decision::After(delay) => {
                        now += delay;
                        assert!(now < began + budget, "an attempt after the budget");
                    }
                    Decision::GiveUp => {
                        assert!(may_give_up, "after {:?} of {budget:?}", now - began);
                        break;
                    }
                }
                assert!(in_a_row < 5, "refused {in_a_row} times");
            }
        }
    }
}
