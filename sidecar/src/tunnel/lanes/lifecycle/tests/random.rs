//! Anything may happen to the lanes at any time; what must hold whatever does.

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Happening {
    Time(Duration),
    /// The lane that is being opened is open.
    Opened,
    OpenFailed(Failure),
    Answered(bool),
    /// What befalls one of those that are open.
    Lane(usize, Fate),
    Wanted,
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    Passing,
    Lasting,
    Expired,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Broken,
    Resumed,
    Ended,
    /// Says that it was empty; so many connections have come since.
    Emptied(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let time = prop_oneof![
        3 => (0_u64..3_000).prop_map(Duration::from_millis),
        2 => (0_u64..15_000).prop_map(Duration::from_millis),
        1 => (0_u64..15).prop_map(Duration::from_mins),
    ];
    let failure = prop_oneof![
        8 => Just(Failure::Passing),
        1 => Just(Failure::Lasting),
        1 => Just(Failure::Expired),
    ];
    let fate = prop_oneof![
        3 => Just(Fate::Broken),
        2 => Just(Fate::Resumed),
        4 => Just(Fate::Ended),
        2 => (0_usize..2).prop_map(Fate::Emptied),
    ];
    prop_oneof![
        6 => time.prop_map(Happening::Time),
        5 => Just(Happening::Opened),
        3 => failure.prop_map(Happening::OpenFailed),
        2 => prop::bool::weighted(0.3).prop_map(Happening::Answered),
        5 => (0_usize..4, fate).prop_map(|(lane, fate)| Happening::Lane(lane, fate)),
        3 => Just(Happening::Wanted),
    ]
}

/// Keeps accounts of its own, in other terms than the state machine.
struct Auditor {
    desk: Desk,
    limits: Limits,
    /// What the runner has heard.
    degraded: bool,
    /// Whether the runner was told since then why connections were cut.
    told_why: bool,
    outage: Option<Account>,
    /// The last attempt to open a lane failed now.
    failed: Option<Failure>,
}

/// Time without a lane.
struct Account {
    used: Duration,
    budget: Duration,
    /// How long there have been lanes since.
    carried: Option<Duration>,
}

impl Auditor {
    fn happen(&mut self, happening: Happening) {
        self.failed = None;
        match happening {
            Happening::Time(time) => self.pass(time),
            Happening::Opened if self.desk.underway => {
                if let Some(account) = &mut self.outage {
                    account.carried.get_or_insert_default();
                }
                self.desk.opened();
            }
            Happening::OpenFailed(failure) if self.desk.underway => {
                self.failed = Some(failure);
                self.desk.open_failed(match failure {
                    Failure::Passing => passing(),
                    Failure::Lasting => lasting(),
                    Failure::Expired => expired(),
                });
            }
            Happening::Answered(refused) if self.desk.asking.is_some() => {
                self.desk.answer(if refused { Answer::Refused } else { Answer::Allowed });
            }
            Happening::Lane(index, fate) => {
                let Some((number, lane)) = self.desk.lanes.iter().nth(index) else { return };
                let (number, lane) = (*number, *lane);
                match fate {
                    Fate::Broken => self.desk.broke(number),
                    Fate::Resumed => self.desk.resumed(number),
                    Fate::Ended => {
                        if self.desk.lanes.len() == 1 {
                            self.lose(lane);
                        }
                        self.desk.ended(number);
                    }
                    Fate::Emptied(connections) if lane.leaving => {
                        self.desk.emptied(number, connections);
                        if let Some(lane) = self.desk.lanes.get(&number) {
                            assert!(
                                !lane.leaving || connections > 0 || self.desk.staying() == 0,
                                "an unused lane that has a successor is kept"
                            );
                        }
                    }
                    Fate::Emptied(_) => (),
                }
            }
            Happening::Wanted => self.desk.wanted(),
            Happening::Opened | Happening::OpenFailed(_) | Happening::Answered(_) => (),
        }
        self.audit();
    }

    /// In steps, so that each stretch belongs to an outage as a whole or not at all.
    fn pass(&mut self, time: Duration) {
        let until = self.desk.now + time;
        while self.desk.now < until && self.desk.gave_up.is_none() {
            let before = self.desk.now;
            let turn = self.desk.upkeep.poll_timeout(before).map_or(until, |turn| turn.min(until));
            let had_lanes = !self.desk.lanes.is_empty();
            if let Some(account) = &mut self.outage {
                match &mut account.carried {
                    Some(carried) => *carried += turn - before,
                    None => account.used += turn - before,
                }
                assert_eq!(had_lanes, account.carried.is_some());
            }
            self.desk.pass(turn - before);
            self.audit();
        }
    }

    /// The last lane is about to end.
    fn lose(&mut self, lane: Paper) {
        match &mut self.outage {
            Some(account) if account.carried.is_none_or(|carried| carried < STEADY) => {
                account.carried = None;
            }
            outage => {
                let used = lane.broken.map_or(Duration::ZERO, |broken| self.desk.now - broken);
                let reconnect = self.limits.reconnect;
                // A new session gets a chance in any case.
                let budget = reconnect.max(used + reconnect / 6);
                *outage = Some(Account { used, budget, carried: None });
            }
        }
    }

    fn audit(&mut self) {
        for note in self.desk.noted() {
            self.read(&note);
        }
        let desk = &self.desk;
        if desk.gave_up.is_some() {
            return;
        }
        assert_eq!(self.degraded, matches!(desk.path(), Path::Broken(_)), "the runner knows");
        let staying = self.desk.staying();
        assert!(staying <= self.limits.sessions, "{staying} lanes");
        for (number, lane) in &desk.lanes {
            let overdue = desk.now >= lane.opened + LIFE * 59 / 60;
            assert!(!lane.leaving || !overdue, "the close comes upon {number}");
        }
        let turn = desk.upkeep.poll_timeout(desk.now);
        assert!(turn.is_none_or(|turn| turn > desk.now), "a turn that has come is due no more");
        if staying == 0 {
            assert!(desk.underway || turn.is_some(), "nothing is done for new connections");
        }
        if let Some(account) = self.outage.as_ref().filter(|account| account.carried.is_none()) {
            assert!(account.used < account.budget, "not given up in time");
        }
    }

    fn read(&mut self, note: &str) {
        match note.split(' ').next().unwrap_or_default() {
            "degraded:" => {
                // A pause first, then the cut.
                assert!(!self.degraded || !self.told_why, "told again: {note}");
                self.told_why = self.desk.lanes.is_empty();
                self.degraded = true;
            }
            "recovered" => {
                assert!(self.degraded, "recovered from nothing");
                (self.degraded, self.told_why) = (false, false);
            }
            "give" => self.judge(),
            _ => (),
        }
    }

    fn judge(&self) {
        let account = self.outage.as_ref().expect("an outage to give up");
        assert!(account.carried.is_none(), "there is a lane");
        let cannot_pass = matches!(self.failed, Some(Failure::Lasting));
        // After a failed attempt, where the pause before the next one would last for too long.
        let pause = if self.failed.is_some() { LONGEST_PAUSE } else { Duration::ZERO };
        let Account { used, budget, .. } = account;
        assert!(cannot_pass || *used + pause >= *budget, "given up after {used:?} of {budget:?}");
    }
}

proptest! {
    /// The tunnel is given up when its time without lanes is over, and never before; the runner hears of each
    /// change once; lanes are opened, succeeded and ended within their bounds.
    #[test]
    fn whatever_happens_the_promises_hold(
        sessions in 1_usize..4,
        reconnect in prop_oneof![Just(5), Just(60), Just(600)],
        seed: u64,
        happenings in vec(happening(), 0..150),
    ) {
        let reconnect = Duration::from_secs(reconnect);
        let limits = Limits { sessions, reconnect, channel_life: LIFE };
        let mut desk = Desk::with(limits, seed);
        desk.work();
        let mut auditor = Auditor {
            desk,
            limits,
            degraded: false,
            told_why: false,
            outage: None,
            failed: None,
        };
        for happening in happenings {
            if auditor.desk.gave_up.is_some() {
                break;
            }
            auditor.happen(happening);
        }
    }
}
