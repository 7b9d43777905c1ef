//! Random events, and what must hold whatever happens.

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Time(Duration),
    Opened,
    OpenFailed(Failure),
    Probed(bool),
    /// An event of one of the open lanes.
    Lane(usize, LaneStep),
    Connected,
    /// An event of one of the connections.
    Connection(usize, ConnectionStep),
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    Transient,
    Permanent,
    Expired,
}

#[derive(Clone, Copy, Debug)]
enum LaneStep {
    Disconnected,
    Resumed,
    Ended,
    /// The service closes its channel, and the session cannot be resumed.
    ClosedByService,
    /// It carried no connection for a moment; this many were opened since.
    Drained(usize),
}

#[derive(Clone, Copy, Debug)]
enum ConnectionStep {
    /// The client has closed its half.
    Finished,
    Disconnected,
    /// Its lane was lost before its SSH channel was open.
    LaneMissed,
}

fn step() -> impl Strategy<Value = Step> {
    let time = prop_oneof![
        3 => (0_u64..3_000).prop_map(Duration::from_millis),
        2 => (0_u64..15_000).prop_map(Duration::from_millis),
        1 => (0_u64..15).prop_map(Duration::from_mins),
    ];
    let failure = prop_oneof![
        8 => Just(Failure::Transient),
        1 => Just(Failure::Permanent),
        1 => Just(Failure::Expired),
    ];
    let step = prop_oneof![
        3 => Just(LaneStep::Disconnected),
        2 => Just(LaneStep::Resumed),
        3 => Just(LaneStep::Ended),
        2 => Just(LaneStep::ClosedByService),
        2 => (0_usize..2).prop_map(LaneStep::Drained),
    ];
    let connection_step = prop_oneof![
        1 => Just(ConnectionStep::Finished),
        2 => Just(ConnectionStep::Disconnected),
        1 => Just(ConnectionStep::LaneMissed),
    ];
    prop_oneof![
        6 => time.prop_map(Step::Time),
        5 => Just(Step::Opened),
        3 => failure.prop_map(Step::OpenFailed),
        2 => prop::bool::weighted(0.3).prop_map(Step::Probed),
        5 => (0_usize..4, step).prop_map(|(lane, step)| Step::Lane(lane, step)),
        4 => Just(Step::Connected),
        3 => (0_usize..6, connection_step).prop_map(|(index, step)| Step::Connection(index, step)),
    ]
}

/// Checks the state machine against an account of its own.
struct Auditor {
    harness: Harness,
    limits: Limits,
    /// What was reported to the runner.
    degraded: bool,
    /// Whether the reason for resets was reported since then.
    reason_reported: bool,
    outage: Option<Account>,
    connections: Vec<Client>,
    /// The last attempt to open a lane failed now.
    failed: Option<Failure>,
}

/// An open connection.
struct Client {
    id: ConnectionId,
    finished: bool,
    /// When it came, or when there was a lane again.
    since: Instant,
}

/// Time without a lane.
struct Account {
    used: Duration,
    budget: Duration,
    /// How long there were lanes since.
    carried: Option<Duration>,
}

impl Auditor {
    fn apply(&mut self, step: Step) {
        self.failed = None;
        match step {
            Step::Time(time) => self.pass(time),
            Step::Opened if self.harness.underway => {
                if let Some(account) = &mut self.outage {
                    account.carried.get_or_insert_default();
                }
                if self.harness.lanes.is_empty() {
                    let now = self.harness.now;
                    self.connections.iter_mut().for_each(|client| client.since = now);
                }
                self.harness.opened();
            }
            Step::OpenFailed(failure) if self.harness.underway => {
                self.failed = Some(failure);
                self.harness.open_failed(match failure {
                    Failure::Transient => transient(),
                    Failure::Permanent => permanent(),
                    Failure::Expired => expired(),
                });
            }
            Step::Probed(refused) if self.harness.probing.is_some() => {
                self.harness.answer_probe(if refused {
                    ResumePermission::Denied
                } else {
                    ResumePermission::Granted
                });
            }
            Step::Lane(index, step) => {
                let Some((number, lane)) = self.harness.lanes.iter().nth(index) else { return };
                let (number, lane) = (*number, *lane);
                match step {
                    LaneStep::Disconnected => self.harness.disconnect(number),
                    LaneStep::Resumed => self.harness.resumed(number),
                    LaneStep::Ended => {
                        if self.harness.lanes.len() == 1 {
                            self.lose(lane);
                        }
                        self.harness.ended(number);
                    }
                    LaneStep::ClosedByService if lane.disconnected.is_none() => {
                        if self.harness.lanes.len() == 1 {
                            self.lose(lane);
                        }
                        self.harness.closed_by_service(number);
                    }
                    LaneStep::Drained(connections) if lane.draining => {
                        self.harness.drained(number, connections);
                        if let Some(lane) = self.harness.lanes.get(&number) {
                            assert!(
                                !lane.draining || connections > 0 || self.harness.active() == 0,
                                "an unused replaced lane is kept"
                            );
                        }
                    }
                    LaneStep::ClosedByService | LaneStep::Drained(_) => (),
                }
            }
            Step::Connected => {
                let (id, _) = self.harness.connect();
                // It may ask for its lane at once, or late.
                if self.connections.len().is_multiple_of(2) {
                    let _lane = self.harness.lifecycle.lane_for(id);
                }
                let since = self.harness.now;
                self.connections.push(Client { id, finished: false, since });
            }
            Step::Connection(index, step) if index < self.connections.len() => match step {
                ConnectionStep::Finished => {
                    self.connections[index].finished = true;
                    self.harness.finish(self.connections[index].id);
                }
                ConnectionStep::Disconnected => {
                    self.harness.hang_up(self.connections.remove(index).id);
                }
                ConnectionStep::LaneMissed => {
                    let id = self.connections[index].id;
                    if self.harness.lifecycle.lane_of(id).is_none() {
                        self.harness.miss_lane(id);
                    }
                }
            },
            Step::Connection(..) | Step::Opened | Step::OpenFailed(_) | Step::Probed(_) => (),
        }
        self.audit();
    }

    /// In steps from deadline to deadline, so that each is within an outage or outside.
    fn pass(&mut self, time: Duration) {
        let until = self.harness.now + time;
        while self.harness.now < until && self.harness.gave_up.is_none() {
            let before = self.harness.now;
            let deadline = self
                .harness
                .lifecycle
                .poll_timeout(before)
                .map_or(until, |deadline| deadline.min(until));
            let had_lanes = !self.harness.lanes.is_empty();
            if let Some(account) = &mut self.outage {
                match &mut account.carried {
                    Some(carried) => *carried += deadline - before,
                    None => account.used += deadline - before,
                }
                assert_eq!(had_lanes, account.carried.is_some());
            }
            self.harness.pass(deadline - before);
            self.audit();
        }
    }

    /// The last lane is about to end.
    fn lose(&mut self, lane: FakeLane) {
        match &mut self.outage {
            Some(account) if account.carried.is_none_or(|carried| carried < STABLE_AFTER) => {
                account.carried = None;
            }
            outage => {
                let used = lane
                    .disconnected
                    .map_or(Duration::ZERO, |disconnected| self.harness.now - disconnected);
                let reconnect = self.limits.reconnect;
                // A new session has its share in any case.
                let budget = reconnect.max(used + reconnect / 6);
                *outage = Some(Account { used, budget, carried: None });
            }
        }
    }

    fn audit(&mut self) {
        for note in self.harness.notes() {
            self.read(&note);
        }
        let harness = &self.harness;
        if harness.gave_up.is_some() {
            return;
        }
        assert_eq!(
            self.degraded,
            matches!(harness.path(), PathHealth::Down { .. }),
            "the report to the runner"
        );
        let active = self.harness.active();
        assert!(active <= self.limits.sessions, "{active} lanes");
        self.audit_connections();
        let deadline = harness.lifecycle.poll_timeout(harness.now);
        assert!(
            deadline.is_none_or(|deadline| deadline > harness.now),
            "a deadline that has passed"
        );
        if active == 0 {
            assert!(harness.underway || deadline.is_some(), "nothing is done for new connections");
        }
        if let Some(account) = self.outage.as_ref().filter(|account| account.carried.is_none()) {
            assert!(account.used < account.budget, "not given up in time");
        }
    }

    /// One that waits does so for a lane to come, for a bounded time, and for a reason.
    fn audit_connections(&self) {
        let harness = &self.harness;
        let place = |client: &Client| Some(harness.lifecycle.lane_of(client.id)?.number);
        let waits = |client: &&Client| harness.lifecycle.demand.waiting.contains(&client.id);
        let waiting: Vec<&Client> = self.connections.iter().filter(waits).collect();
        if harness.lanes.is_empty() || waiting.is_empty() {
            return;
        }
        assert!(harness.underway, "{} wait for nothing", waiting.len());
        assert!(self.limits.sessions > 1, "a wait for a lane of its own");
        let longest = SECOND * u32::try_from(self.limits.sessions).unwrap();
        for client in waiting {
            assert!(!client.finished, "it needs no lane of its own");
            assert!(harness.now - client.since < longest, "it waits longer than it may");
        }
        let sending = self.connections.iter().filter(|client| !client.finished);
        let taken: Vec<u64> = sending.filter_map(place).collect();
        for (number, lane) in &harness.lanes {
            assert!(lane.draining || taken.contains(number), "{number} is empty, and one waits");
        }
    }

    fn read(&mut self, note: &str) {
        match note.split(' ').next().unwrap_or_default() {
            "degraded:" => {
                // A pause first, then the resets.
                assert!(!self.degraded || !self.reason_reported, "reported twice: {note}");
                self.reason_reported = self.harness.lanes.is_empty();
                self.degraded = true;
            }
            "recovered" => {
                assert!(self.degraded, "recovered from nothing");
                (self.degraded, self.reason_reported) = (false, false);
            }
            "give" => self.check_give_up(),
            _ => (),
        }
    }

    fn check_give_up(&self) {
        let account = self.outage.as_ref().expect("an outage to give up");
        assert!(account.carried.is_none(), "there is a lane");
        let is_permanent = matches!(self.failed, Some(Failure::Permanent));
        // After a failed attempt, if the delay before the next one would exceed the budget.
        let delay = if self.failed.is_some() { LONGEST_DELAY } else { Duration::ZERO };
        let Account { used, budget, .. } = account;
        assert!(is_permanent || *used + delay >= *budget, "given up after {used:?} of {budget:?}");
    }
}

proptest! {
    /// The tunnel is given up when its time without lanes is over, and never before; each change is reported once;
    /// lanes are opened, replaced and closed within their bounds.
    #[test]
    fn whatever_happens_the_promises_hold(
        sessions in 1_usize..4,
        reconnect in prop_oneof![Just(5), Just(60), Just(600)],
        seed: u64,
        steps in vec(step(), 0..150),
    ) {
        let reconnect = Duration::from_secs(reconnect);
        let limits = Limits { sessions, reconnect };
        let mut harness = Harness::with(limits, seed);
        harness.work();
        let mut auditor = Auditor {
            harness,
            limits,
            degraded: false,
            reason_reported: false,
            outage: None,
            connections: Vec::new(),
            failed: None,
        };
        for step in steps {
            if auditor.harness.gave_up.is_some() {
                break;
            }
            auditor.apply(step);
        }
    }
}
