//! Decides how often and for how long it is tried to resume a session: what happens and the time come in, what
//! to do comes out. No IO and no clock.

use std::time::{Duration, Instant};

use crate::{channel::driver::Trouble, runtime::backoff::Pauses};

/// The state machine.
#[derive(Debug)]
pub(super) struct Patience {
    budget: Duration,
    deadline: Instant,
    pauses: Pauses,
    /// For the pauses of the next trouble.
    seed: u64,
    /// Openings in a row that the service has refused though it had just named the way.
    refusals: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Make an attempt at once.
    Try,
    /// Make an attempt after a pause.
    TryAfter(Duration),
    /// The session is not resumed.
    GiveUp,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The service named no way into the session, but may do so later; or it did not answer in time.
    NoWay,
    /// The service named a way, and refused to let us in.
    Refused,
    /// The service named a way, and it led nowhere.
    Unopened,
    /// There will never be one.
    Final,
}

impl Patience {
    /// `budget` is for each trouble; `seed` draws the pauses.
    pub(super) fn new(now: Instant, budget: Duration, seed: u64) -> Self {
        let pauses = Pauses::seeded(FIRST_PAUSE, seed);
        Self { budget, deadline: now + budget, pauses, seed, refusals: 0 }
    }

    /// A socket was lost.
    pub(super) fn on_lost(&mut self, now: Instant, trouble: Trouble) -> Verdict {
        match trouble {
            Trouble::New => {
                *self = Self::new(now, self.budget, self.seed.wrapping_add(1));
                Verdict::Try
            }
            // The first attempt of the trouble was made at once; this is a further one.
            Trouble::Same => self.pause(now),
        }
    }

    /// An attempt has led to an open socket.
    pub(super) fn on_opened(&mut self) {
        self.refusals = 0;
    }

    /// An attempt has failed.
    pub(super) fn on_failed(&mut self, now: Instant, failure: Failure) -> Verdict {
        match failure {
            Failure::NoWay => (),
            Failure::Refused => self.refusals += 1,
            Failure::Unopened => self.refusals = 0,
            Failure::Final => return Verdict::GiveUp,
        }
        if self.refusals >= MAXIMUM_REFUSALS {
            return Verdict::GiveUp;
        }
        self.pause(now)
    }

    /// When an attempt that is not answered has failed.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn pause(&mut self, now: Instant) -> Verdict {
        let pause = self.pauses.next_pause();
        if now + pause >= self.deadline { Verdict::GiveUp } else { Verdict::TryAfter(pause) }
    }
}

/// Before the second attempt; the plugin's own figure.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// A new session is worth more than a further attempt once the service has refused so many openings in a row.
const MAXIMUM_REFUSALS: u32 = 5;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// With what is added by chance.
    const LONGEST_PAUSE: Duration = Duration::from_secs(10);
    const BUDGET: Duration = Duration::from_mins(1);

    /// Patience whose first attempt is being made.
    fn tried(now: Instant) -> Patience {
        let mut patience = Patience::new(now, BUDGET, 1);
        assert_eq!(patience.on_lost(now, Trouble::New), Verdict::Try);
        patience
    }

    /// Fails until patience ends, each attempt at once; returns when that was, and the pauses before.
    fn exhaust(
        patience: &mut Patience,
        mut now: Instant,
        failures: &[Failure],
    ) -> (Instant, Vec<Duration>) {
        let mut pauses = Vec::new();
        for failure in failures.iter().cycle() {
            match patience.on_failed(now, *failure) {
                Verdict::Try => unreachable!("without a pause"),
                Verdict::TryAfter(pause) => pauses.push(pause),
                Verdict::GiveUp => break,
            }
            now += *pauses.last().unwrap();
        }
        (now, pauses)
    }

    #[test]
    fn attempts_go_on_with_growing_pauses_for_as_long_as_there_is_time() {
        let start = Instant::now();
        let mut patience = tried(start);
        let (end, pauses) = exhaust(&mut patience, start, &[Failure::NoWay]);
        assert!(end < patience.deadline() && end + LONGEST_PAUSE >= start + BUDGET);
        let mut least = FIRST_PAUSE;
        for pause in pauses {
            assert!((least..2 * least).contains(&pause), "{pause:?} instead of {least:?} and more");
            least = (2 * least).min(LONGEST_PAUSE / 2);
        }
    }

    #[test]
    fn sockets_that_come_to_nothing_get_no_further_time_and_new_trouble_does() {
        let start = Instant::now();
        let mut patience = tried(start);
        patience.on_opened();
        assert!(matches!(patience.on_lost(start, Trouble::Same), Verdict::TryAfter(_)));
        let late = start + BUDGET;
        assert_eq!(patience.on_lost(late, Trouble::Same), Verdict::GiveUp);
        assert_eq!(patience.on_lost(late, Trouble::New), Verdict::Try);
        assert_eq!(patience.deadline(), late + BUDGET);
        let Verdict::TryAfter(pause) = patience.on_failed(late, Failure::NoWay) else { panic!() };
        assert!(pause < 2 * FIRST_PAUSE, "pauses are short again");
    }

    #[test]
    fn a_session_that_cannot_be_resumed_is_given_up_at_once() {
        let start = Instant::now();
        assert_eq!(tried(start).on_failed(start, Failure::Final), Verdict::GiveUp);
    }

    #[test]
    fn openings_that_are_refused_again_and_again_end_patience_early() {
        use Failure::{NoWay, Refused, Unopened};
        let cases: [(&str, &[Failure], Option<usize>); 3] = [
            ("in a row", &[Refused], Some(4)),
            ("without being asked between", &[Refused, NoWay], Some(8)),
            (
                "with an honest failure between",
                &[Refused, Refused, Refused, Refused, Unopened],
                None,
            ),
        ];
        for (name, failures, attempts) in cases {
            let start = Instant::now();
            let (_, pauses) = exhaust(&mut tried(start), start, failures);
            match attempts {
                Some(attempts) => assert_eq!(pauses.len(), attempts, "case: {name}"),
                None => assert!(pauses.len() > 9, "case: {name}"),
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Failed(Failure),
        /// The socket is open for so long, and lost again.
        Opened(Duration, Trouble),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let failure = prop_oneof![
            5 => Just(Failure::NoWay),
            3 => Just(Failure::Refused),
            3 => Just(Failure::Unopened),
            1 => Just(Failure::Final),
        ];
        let trouble = prop_oneof![1 => Just(Trouble::New), 3 => Just(Trouble::Same)];
        let open = (0_u64..20_000).prop_map(Duration::from_millis);
        prop_oneof![
            5 => failure.prop_map(Happening::Failed),
            1 => (open, trouble).prop_map(|(open, trouble)| Happening::Opened(open, trouble)),
        ]
    }

    proptest! {
        /// No attempt begins when the time of its trouble is over, and until then none is left out but for the
        /// reasons there are.
        #[test]
        fn whatever_happens_patience_lasts_for_its_time(
            budget in 5_u64..120,
            seed: u64,
            happenings in vec((0_u64..3_000, happening()), 0..100),
        ) {
            let budget = Duration::from_secs(budget);
            let mut now = Instant::now();
            let mut patience = Patience::new(now, budget, seed);
            let (mut began, mut in_a_row) = (now, 0);
            for (attempt_ms, happening) in happenings {
                // An attempt is cut at the deadline, and counts as one without an answer.
                let answered = now + Duration::from_millis(attempt_ms);
                let is_cut = answered > patience.deadline();
                now = answered.min(patience.deadline().max(now));
                let (verdict, mut may_give_up) = match happening {
                    Happening::Failed(failure) => {
                        let failure = if is_cut { Failure::NoWay } else { failure };
                        match failure {
                            Failure::Refused => in_a_row += 1,
                            Failure::Unopened => in_a_row = 0,
                            Failure::NoWay | Failure::Final => (),
                        }
                        let is_over = failure == Failure::Final || in_a_row == 5;
                        (patience.on_failed(now, failure), is_over)
                    }
                    Happening::Opened(open, trouble) => {
                        patience.on_opened();
                        in_a_row = 0;
                        now += open;
                        if trouble == Trouble::New {
                            began = now;
                        }
                        (patience.on_lost(now, trouble), false)
                    }
                };
                may_give_up |= now + LONGEST_PAUSE >= began + budget;
                match verdict {
                    Verdict::Try => assert_eq!(began, now, "at once, but not in the same trouble"),
                    Verdict::TryAfter(pause) => {
                        now += pause;
                        assert!(now < began + budget, "an attempt after the time is over");
                    }
                    Verdict::GiveUp => {
                        assert!(may_give_up, "after {:?} of {budget:?}", now - began);
                        break;
                    }
                }
                assert!(in_a_row < 5, "refused {in_a_row} times");
            }
        }
    }
}
