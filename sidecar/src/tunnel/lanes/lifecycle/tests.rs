//! Lanes of paper and a clock that jumps from one thing that happens to the next.

mod random;

use std::collections::BTreeMap;

use super::*;
use crate::{aws::ApiError, channel::driver::Ended};

/// What the state machine asks for is noted and done at once; what becomes of it is up to the test.
#[derive(Debug)]
struct Desk {
    now: Instant,
    upkeep: Upkeep,
    lanes: BTreeMap<u64, Paper>,
    underway: bool,
    asking: Option<u64>,
    answer: Answer,
    last_number: u64,
    noted: Vec<String>,
    gave_up: Option<LaneError>,
}

#[derive(Clone, Copy, Debug)]
struct Paper {
    opened: Instant,
    broken: Option<Instant>,
    leaving: bool,
    connections: usize,
}

impl Desk {
    /// With one lane, just opened.
    fn new(sessions: usize) -> Self {
        let mut desk = Self::with(Limits { sessions, reconnect: RECONNECT, channel_life: LIFE }, 1);
        desk.work();
        desk
    }

    fn with(limits: Limits, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            upkeep: Upkeep::new(now, limits, seed, [(1, now)]),
            lanes: BTreeMap::from([(1, Paper::new(now))]),
            underway: false,
            asking: None,
            answer: Answer::Allowed,
            last_number: 1,
            noted: Vec::new(),
            gave_up: None,
        }
    }

    /// As [`new`](Self::new), where it is known what there is to know about resumption.
    fn answered(sessions: usize, answer: Answer) -> Self {
        let mut desk = Self::new(sessions);
        desk.answer(answer);
        assert_eq!(desk.noted(), ["ask 1"]);
        desk
    }

    /// Does all that is to be done now.
    fn work(&mut self) {
        while let Some(action) = self.upkeep.poll_action(self.now, &self.path()) {
            assert!(self.gave_up.is_none(), "{action:?} after the tunnel was given up");
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let note = match action {
            Action::Open => {
                assert!(!self.underway, "one after another");
                self.underway = true;
                "open".to_owned()
            }
            Action::Ask(number) => {
                assert!(self.lanes.contains_key(&number), "asked about {number}, which is gone");
                self.asking = Some(number);
                format!("ask {number}")
            }
            Action::Tell(Change::Degraded(reason)) => format!("degraded: {reason}"),
            Action::Tell(Change::Recovered) => "recovered".to_owned(),
            Action::Leave(number) => {
                let age = self.now - self.lane(number).opened;
                assert!(self.answer == Answer::Refused && age >= LIFE * 5 / 6, "{number}: {age:?}");
                self.lane(number).leaving = true;
                assert!(self.staying() > 0, "{number} has no successor");
                format!("leave {number}")
            }
            Action::Linger(number) => format!("linger {number}"),
            Action::Return(number) => {
                self.lane(number).leaving = false;
                format!("return {number}")
            }
            Action::Retire(number) => {
                let lane = self.lanes.remove(&number).unwrap();
                assert!(lane.leaving && self.staying() > 0, "{number} has no successor");
                let is_over = self.now - lane.opened >= LIFE * 59 / 60;
                assert!(is_over || lane.connections == 0, "{number} is in use");
                format!("retire {number}")
            }
            Action::GiveUp(error) => {
                let note = format!("give up: {error}");
                self.gave_up = Some(error);
                note
            }
        };
        self.noted.push(note);
    }

    fn path(&self) -> Path {
        if self.lanes.values().any(|lane| lane.broken.is_none()) {
            return Path::Whole;
        }
        Path::Broken((!self.lanes.is_empty()).then(|| "cable cut".to_owned()))
    }

    fn lane(&mut self, number: u64) -> &mut Paper {
        self.lanes.get_mut(&number).unwrap()
    }

    fn staying(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.leaving).count()
    }

    /// What was done since the last call.
    fn noted(&mut self) -> Vec<String> {
        mem::take(&mut self.noted)
    }

    /// Lets time pass, and the clock have its say whenever it wants to.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.gave_up.is_none()
            && let Some(turn) = self.upkeep.poll_timeout(self.now).filter(|turn| *turn <= until)
        {
            assert!(turn > self.now, "a clock that is due is heard");
            self.now = turn;
            self.work();
        }
        self.now = until;
        let before = self.noted.len();
        self.work();
        assert_eq!(self.noted.len(), before, "no turn was asked for: {:?}", self.noted);
    }

    /// The lane that was asked for is open.
    fn opened(&mut self) -> u64 {
        assert!(mem::take(&mut self.underway), "no lane is being opened");
        self.last_number += 1;
        self.lanes.insert(self.last_number, Paper::new(self.now));
        self.upkeep.on_opened(self.now, self.last_number, self.now);
        self.work();
        self.last_number
    }

    fn open_failed(&mut self, error: LaneError) {
        assert!(mem::take(&mut self.underway), "no lane is being opened");
        self.upkeep.on_open_failed(self.now, error);
        self.work();
    }

    fn answer(&mut self, answer: Answer) {
        assert!(self.asking.take().is_some(), "nothing was asked");
        self.answer = answer;
        self.upkeep.on_answer(answer);
        self.work();
    }

    fn broke(&mut self, number: u64) {
        let now = self.now;
        self.lane(number).broken.get_or_insert(now);
        self.work();
    }

    fn resumed(&mut self, number: u64) {
        self.lane(number).broken = None;
        self.work();
    }

    fn ended(&mut self, number: u64) {
        let lane = self.lanes.remove(&number).unwrap();
        self.upkeep.on_ended(self.now, number, lane.broken, passing());
        self.work();
    }

    fn wanted(&mut self) {
        self.upkeep.on_wanted();
        self.work();
    }

    /// A lane says that it was empty; `connections` have come since.
    fn emptied(&mut self, number: u64, connections: usize) {
        self.lane(number).connections = connections;
        self.upkeep.on_emptied(self.now, number, connections);
        self.work();
    }
}

impl Paper {
    fn new(opened: Instant) -> Self {
        Self { opened, broken: None, leaving: false, connections: 1 }
    }
}

fn just_before(time: Duration) -> Duration {
    time.saturating_sub(MOMENT)
}

/// Something that may be over the next time.
fn passing() -> LaneError {
    Ended::Lost("no way".to_owned()).into()
}

/// Something that stays.
fn lasting() -> LaneError {
    LaneError::NotSsh { port: 22 }
}

fn expired() -> LaneError {
    ApiError::new(ApiErrorKind::CredentialsExpired, "expired", "").into()
}

const RECONNECT: Duration = Duration::from_mins(1);
const LIFE: Duration = Duration::from_hours(1);
const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);
const LOST: &str = "the data channel was lost: no way";
/// With what is added by chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[test]
fn whether_sessions_may_be_resumed_is_asked_at_the_start() {
    let mut desk = Desk::new(1);
    assert_eq!(desk.noted(), ["ask 1"]);
    desk.answer(Answer::Allowed);
    desk.pass(24 * LIFE);
    assert!(desk.noted().is_empty(), "a session that may be resumed needs no successor");
}

#[test]
fn runner_hears_when_the_last_path_breaks_and_when_bytes_are_carried_again() {
    let mut desk = Desk::answered(2, Answer::Allowed);
    desk.wanted();
    let second = desk.opened();
    assert_eq!(desk.noted(), ["open"]);
    desk.broke(1);
    assert!(desk.noted().is_empty(), "another lane carries bytes");
    desk.broke(second);
    assert_eq!(desk.noted(), ["degraded: cable cut"]);
    desk.resumed(1);
    assert_eq!(desk.noted(), ["recovered"]);
}

#[test]
fn last_lane_is_replaced_at_once_when_it_is_lost() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    assert_eq!(desk.noted(), [&format!("degraded: {LOST}"), "open"]);
    desk.opened();
    // What could be resumed would not have been lost.
    assert_eq!(desk.noted(), ["ask 2", "recovered"]);
}

#[test]
fn runner_hears_why_connections_are_cut_after_a_pause() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.broke(1);
    desk.pass(5 * SECOND);
    desk.ended(1);
    assert_eq!(desk.noted(), ["degraded: cable cut", &format!("degraded: {LOST}"), "open"]);
}

#[test]
fn lost_lane_is_not_replaced_beside_another_that_nobody_misses_it_on() {
    let mut desk = Desk::answered(2, Answer::Allowed);
    desk.wanted();
    desk.opened();
    desk.ended(1);
    desk.pass(LIFE);
    assert_eq!(desk.noted(), ["open"]);
}

#[test]
fn outage_is_given_up_when_its_time_is_over_counted_from_the_break() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.broke(1);
    desk.pass(20 * SECOND);
    desk.ended(1);
    desk.pass(just_before(RECONNECT.saturating_sub(20 * SECOND)));
    assert!(desk.gave_up.is_none(), "its time is not over yet");
    desk.pass(MOMENT);
    let Some(LaneError::NotReplaced(cause)) = &desk.gave_up else { panic!("{desk:?}") };
    assert_eq!(cause.to_string(), LOST);
}

#[test]
fn new_session_gets_a_sixth_of_the_time_however_long_resumption_was_tried() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.broke(1);
    desk.pass(RECONNECT);
    desk.ended(1);
    desk.pass(just_before(RECONNECT / 6));
    assert!(desk.gave_up.is_none());
    desk.pass(MOMENT);
    assert!(desk.gave_up.is_some());
}

#[test]
fn openings_are_tried_again_with_growing_pauses_for_as_long_as_there_is_time() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    let began = desk.now;
    desk.ended(1);
    let mut least = FIRST_PAUSE;
    while desk.gave_up.is_none() {
        let failed = desk.now;
        desk.open_failed(passing());
        while !desk.underway && desk.gave_up.is_none() {
            desk.pass(SECOND / 100);
        }
        if desk.gave_up.is_none() {
            let pause = desk.now - failed;
            assert!((least..=2 * least + SECOND / 100).contains(&pause), "{pause:?} for {least:?}");
            least = (2 * least).min(LONGEST_PAUSE / 2);
        } else {
            assert_eq!(desk.now, failed, "nobody waits for a time in which nothing is tried");
        }
    }
    let took = desk.now - began;
    assert!(took + LONGEST_PAUSE >= RECONNECT && took <= RECONNECT, "given up after {took:?}");
}

#[test]
fn what_cannot_pass_ends_an_outage_at_once() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    desk.open_failed(lasting());
    assert!(matches!(desk.gave_up, Some(LaneError::NotSsh { port: 22 })), "{desk:?}");
}

#[test]
fn expired_credentials_are_waited_for_and_named_in_the_end() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    desk.open_failed(expired());
    assert!(desk.gave_up.is_none(), "renewed ones may be on their way");
    desk.pass(RECONNECT);
    let Some(LaneError::Api(error)) = &desk.gave_up else { panic!("{desk:?}") };
    assert_eq!(error.kind(), ApiErrorKind::CredentialsExpired);
}

#[test]
fn lane_that_is_soon_lost_again_has_mended_nothing_but_its_time_is_not_charged() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    for _ in 0..5 {
        desk.pass(LONGEST_PAUSE);
        let lane = desk.opened();
        desk.pass(just_before(STEADY));
        desk.ended(lane);
        assert!(!desk.underway, "not at once: the same may happen again");
    }
    // Five times ten seconds of sixty are used up.
    desk.pass(just_before(LONGEST_PAUSE));
    assert!(desk.gave_up.is_none());
    desk.pass(MOMENT);
    assert!(desk.gave_up.is_some());
}

#[test]
fn last_loss_is_named_when_the_tunnel_is_given_up() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    desk.open_failed(expired());
    desk.pass(SECOND);
    let lane = desk.opened();
    desk.ended(lane);
    desk.pass(RECONNECT);
    let Some(LaneError::NotReplaced(cause)) = &desk.gave_up else { panic!("{desk:?}") };
    assert_eq!(cause.to_string(), LOST);
}

#[test]
fn lane_that_lasts_a_while_has_ended_the_outage() {
    let mut desk = Desk::answered(1, Answer::Allowed);
    desk.ended(1);
    for _ in 0..5 {
        desk.pass(RECONNECT / 2);
        let lane = desk.opened();
        desk.pass(STEADY);
        desk.ended(lane);
        assert!(desk.underway, "a new outage, whose first attempt is made at once");
    }
    desk.pass(just_before(RECONNECT));
    assert!(desk.gave_up.is_none());
    desk.pass(MOMENT);
    assert!(desk.gave_up.is_some());
}

#[test]
fn lane_that_cannot_be_resumed_is_succeeded_in_good_time_and_ended_when_unused() {
    let mut desk = Desk::answered(1, Answer::Refused);
    desk.pass(just_before(LIFE * 5 / 6));
    assert!(desk.noted().is_empty());
    desk.pass(MOMENT);
    assert_eq!(desk.noted(), ["ask 1"], "the customer has had time to allow it");
    desk.answer(Answer::Refused);
    assert_eq!(desk.noted(), ["open"]);
    let successor = desk.opened();
    assert_eq!((successor, desk.noted()), (2, vec!["leave 1".to_owned()]));
    desk.pass(SECOND);
    desk.emptied(1, 0);
    assert_eq!(desk.noted(), ["retire 1"]);
    // The successor's turn comes, too.
    desk.pass(LIFE * 5 / 6);
    assert_eq!(desk.noted(), ["ask 2"]);
}

#[test]
fn permission_that_was_granted_meanwhile_makes_a_successor_needless() {
    let mut desk = Desk::answered(1, Answer::Refused);
    desk.pass(LIFE * 5 / 6);
    desk.answer(Answer::Allowed);
    desk.pass(24 * LIFE);
    assert_eq!(desk.noted(), ["ask 1"]);
}

#[test]
fn succeeded_lane_is_ended_before_the_close_whatever_it_carries() {
    let mut desk = succeeded();
    desk.pass(just_before((LIFE * 59 / 60).saturating_sub(LIFE * 5 / 6)));
    assert!(desk.noted().is_empty());
    desk.pass(MOMENT);
    assert_eq!(desk.noted(), ["retire 1"]);
}

#[test]
fn connection_that_chose_the_lane_just_before_its_succession_is_not_cut() {
    let mut desk = succeeded();
    desk.emptied(1, 1);
    assert_eq!(desk.noted(), ["linger 1"]);
    desk.emptied(1, 0);
    assert_eq!(desk.noted(), ["retire 1"]);
}

#[test]
fn lane_whose_successor_is_lost_takes_connections_again_until_it_is_succeeded_again() {
    let mut desk = succeeded();
    desk.ended(2);
    assert_eq!(desk.noted(), ["open"], "no lane is to stay");
    desk.emptied(1, 0);
    assert_eq!(desk.noted(), ["return 1"]);
    desk.emptied(1, 0);
    assert!(desk.noted().is_empty(), "it is to stay, used or not");
    desk.opened();
    assert_eq!(desk.noted(), ["leave 1"]);
}

#[test]
fn successor_that_cannot_be_opened_is_tried_again_and_costs_nothing() {
    let mut desk = Desk::answered(1, Answer::Refused);
    desk.pass(LIFE * 5 / 6);
    desk.answer(Answer::Refused);
    desk.noted();
    for _ in 0..20 {
        desk.open_failed(lasting());
        assert!(desk.noted().is_empty());
        desk.pass(ADD_PAUSE);
        assert_eq!(desk.noted(), ["open"]);
    }
}

#[test]
fn further_lanes_are_opened_when_wanted_one_after_another_up_to_the_number_allowed() {
    let mut desk = Desk::answered(3, Answer::Allowed);
    for _ in 2..=3 {
        desk.wanted();
        desk.wanted();
        assert_eq!(desk.noted(), ["open"]);
        desk.opened();
        assert!(desk.noted().is_empty());
    }
    desk.wanted();
    desk.pass(LIFE);
    assert!(desk.noted().is_empty());
}

#[test]
fn lane_that_could_not_be_added_is_not_tried_again_before_somebody_wants_it() {
    let mut desk = Desk::answered(2, Answer::Allowed);
    desk.wanted();
    desk.open_failed(lasting());
    desk.pass(LIFE);
    assert_eq!(desk.noted(), ["open"]);
    desk.wanted();
    desk.open_failed(passing());
    desk.wanted();
    desk.pass(just_before(ADD_PAUSE));
    assert_eq!(desk.noted(), ["open"]);
    desk.pass(MOMENT);
    assert_eq!(desk.noted(), ["open"]);
}

#[test]
fn oldest_lane_is_succeeded_first() {
    let mut desk = Desk::answered(2, Answer::Refused);
    desk.pass(LIFE / 2);
    desk.wanted();
    desk.opened();
    desk.pass(LIFE / 2);
    assert_eq!(desk.noted(), ["open", "ask 1"]);
    desk.answer(Answer::Refused);
    desk.opened();
    assert_eq!(desk.noted(), ["open", "leave 1", "retire 1"]);
    desk.pass(LIFE / 2);
    assert_eq!(desk.noted(), ["ask 2"]);
}

#[test]
fn lane_that_is_lost_while_another_is_opened_is_not_charged_twice() {
    let mut desk = Desk::answered(2, Answer::Allowed);
    desk.wanted();
    desk.ended(1);
    assert_eq!(desk.noted(), ["open", &format!("degraded: {LOST}")]);
    desk.opened();
    assert_eq!(desk.noted(), ["ask 2", "recovered"]);
}

/// Lane 1 has the successor 2.
fn succeeded() -> Desk {
    let mut desk = Desk::answered(1, Answer::Refused);
    desk.pass(LIFE * 5 / 6);
    desk.answer(Answer::Refused);
    desk.opened();
    assert_eq!(desk.noted(), ["ask 1", "open", "leave 1"]);
    desk
}
