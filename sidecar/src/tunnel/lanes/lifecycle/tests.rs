//! Fake lanes and a virtual clock.

mod demand;
mod random;
mod stall;

use std::collections::BTreeMap;

use super::*;
use crate::{channel::ChannelEnd, session::ApiError};

/// Carries out every action at once and notes it. What happens to the lanes is up to the test.
#[derive(Debug)]
struct Harness {
    now: Instant,
    lifecycle: Lifecycle<Handle>,
    lanes: BTreeMap<u64, FakeLane>,
    underway: bool,
    probing: Option<u64>,
    permission: ResumePermission,
    /// Whether the openings of new lanes are signed.
    signed: bool,
    /// Whether the service has closed the `WebSockets` that are lost in order.
    in_order: bool,
    last_number: u64,
    /// Those that use their lane as soon as they have it.
    connections: Vec<ConnectionId>,
    notes: Vec<String>,
    gave_up: Option<LaneError>,
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    number: u64,
    opened: Instant,
    signed: bool,
    /// SSH channels: of the first lane one, of the others none yet.
    channels: usize,
}

impl LaneHandle for Handle {
    fn number(&self) -> u64 {
        self.number
    }

    fn opened_at(&self) -> Instant {
        self.opened
    }

    fn is_signed(&self) -> bool {
        self.signed
    }

    fn is_up(&self) -> bool {
        true
    }

    fn is_over(&self) -> bool {
        false
    }

    fn transfers(&self) -> usize {
        0
    }

    fn channels(&self) -> usize {
        self.channels
    }
}

#[derive(Clone, Copy, Debug)]
struct FakeLane {
    opened: Instant,
    disconnected: Option<Instant>,
    draining: bool,
    connections: usize,
}

impl Harness {
    /// With one lane, just opened.
    fn new(sessions: usize) -> Self {
        let mut harness = Self::with(Limits { sessions, reconnect: RECONNECT }, 1);
        harness.work();
        harness
    }

    fn with(limits: Limits, seed: u64) -> Self {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(now, limits, seed);
        lifecycle.add_first(Handle { number: 1, opened: now, signed: true, channels: 1 });
        Self {
            now,
            lifecycle,
            lanes: BTreeMap::from([(1, FakeLane::new(now))]),
            underway: false,
            probing: None,
            permission: ResumePermission::Granted,
            signed: true,
            in_order: false,
            last_number: 1,
            connections: Vec::new(),
            notes: Vec::new(),
            gave_up: None,
        }
    }

    /// As [`new`](Self::new), and it is known whether sessions may be resumed.
    fn knowing(sessions: usize, permission: ResumePermission) -> Self {
        let mut harness = Self::new(sessions);
        harness.permission = permission;
        harness.lifecycle.on_probed(permission);
        harness.work();
        assert!(harness.notes().is_empty());
        harness
    }

    /// Carries out all actions that are due.
    fn work(&mut self) {
        while let Some(action) = self.lifecycle.poll_action(self.now, &self.path()) {
            assert!(self.gave_up.is_none(), "{action:?} after the tunnel was given up");
            self.carry_out(action);
        }
        for id in &self.connections {
            let _lane = self.lifecycle.lane_for(*id);
        }
    }

    fn carry_out(&mut self, action: Action<Handle>) {
        let note = match action {
            Action::Open => {
                assert!(!self.underway, "one after another");
                self.underway = true;
                "open".to_owned()
            }
            Action::ProbeResume(Handle { number, .. }) => {
                assert!(self.lanes.contains_key(&number), "{number} is probed after its end");
                self.probing = Some(number);
                format!("probe {number}")
            }
            Action::Notify(PathChange::Degraded(reason)) => format!("degraded: {reason}"),
            Action::Notify(PathChange::Recovered) => "recovered".to_owned(),
            Action::Drain(lane) => {
                let number = lane.number;
                let age = self.now - lane.opened;
                let is_due = age >= self.lifecycle.channel_life(&lane) * 5 / 6;
                assert!(self.permission == ResumePermission::Denied && is_due, "{number}: {age:?}");
                self.lane(number).draining = true;
                assert!(self.active() > 0, "{number} has no replacement");
                format!("drain {number}")
            }
            Action::KeepDraining(Handle { number, .. }) => format!("keep draining {number}"),
            Action::Undrain(Handle { number, .. }) => {
                self.lane(number).draining = false;
                format!("undrain {number}")
            }
            Action::Close(Handle { number, .. }) => {
                let lane = self.lanes.remove(&number).unwrap();
                assert!(lane.draining && self.active() > 0, "{number} has no replacement");
                assert_eq!(lane.connections, 0, "{number} is in use");
                format!("close {number}")
            }
            Action::Abandon(Handle { number, .. }) => {
                self.lanes.remove(&number).unwrap();
                format!("abandon {number}")
            }
            Action::GiveUp(error) => {
                let note = format!("give up: {error}");
                self.gave_up = Some(error);
                note
            }
        };
        self.notes.push(note);
    }

    fn path(&self) -> PathHealth {
        if self.lanes.values().any(|lane| lane.disconnected.is_none()) {
            return PathHealth::Up;
        }
        let lost = self.lanes.values().filter_map(|lane| lane.disconnected).max();
        PathHealth::Down {
            reason: (!self.lanes.is_empty()).then(|| "cable cut".to_owned()),
            closed_since: lost.filter(|_| self.in_order),
        }
    }

    /// For how long the service is expected to leave channels open.
    fn life(&self, signed: bool) -> Duration {
        self.lifecycle.channel_life(&Handle { number: 0, opened: self.now, signed, channels: 0 })
    }

    fn lane(&mut self, number: u64) -> &mut FakeLane {
        self.lanes.get_mut(&number).unwrap()
    }

    fn active(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.draining).count()
    }

    /// The notes since the last call.
    fn notes(&mut self) -> Vec<String> {
        mem::take(&mut self.notes)
    }

    /// Lets time pass, with every deadline on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.gave_up.is_none()
            && let Some(deadline) =
                self.lifecycle.poll_timeout(self.now).filter(|deadline| *deadline <= until)
        {
            assert!(deadline > self.now, "a deadline that has passed");
            self.now = deadline;
            self.work();
        }
        self.now = until;
        let before = self.notes.len();
        self.work();
        assert_eq!(self.notes.len(), before, "an action without a deadline: {:?}", self.notes);
    }

    /// The requested lane is open.
    fn opened(&mut self) -> u64 {
        assert!(mem::take(&mut self.underway), "no lane is being opened");
        self.last_number += 1;
        self.lanes.insert(self.last_number, FakeLane::new(self.now));
        let (opened, signed) = (self.now, self.signed);
        let lane = Handle { number: self.last_number, opened, signed, channels: 0 };
        self.lifecycle.on_opened(self.now, lane);
        self.work();
        self.last_number
    }

    fn open_failed(&mut self, error: LaneError) {
        assert!(mem::take(&mut self.underway), "no lane is being opened");
        self.lifecycle.on_open_failed(self.now, error);
        self.work();
    }

    fn answer_probe(&mut self, permission: ResumePermission) {
        assert!(self.probing.take().is_some(), "no probe is under way");
        self.permission = permission;
        self.lifecycle.on_probed(permission);
        self.work();
    }

    fn disconnect(&mut self, number: u64) {
        let now = self.now;
        self.lane(number).disconnected.get_or_insert(now);
        self.work();
    }

    fn resumed(&mut self, number: u64) {
        self.lane(number).disconnected = None;
        self.work();
    }

    fn ended(&mut self, number: u64) {
        let since = self.lane(number).disconnected;
        let reason = || "cable cut".to_owned();
        let loss = |since| Disconnected { since, loss: PathLoss::Broken, reason: reason() };
        self.ended_by(number, since.map(loss));
    }

    /// The service has closed the lane's channel, and the session cannot be resumed.
    fn closed_by_service(&mut self, number: u64) {
        let age = self.now - self.lane(number).opened;
        let loss = PathLoss::ClosedByService { age };
        let reason = "the service closed the WebSocket (1000): `Bye`".to_owned();
        self.ended_by(number, Some(Disconnected { since: self.now, loss, reason }));
    }

    fn ended_by(&mut self, number: u64, disconnected: Option<Disconnected>) {
        self.lanes.remove(&number);
        let ended = self.lifecycle.on_ended(self.now, number, disconnected, transient());
        assert!(ended.is_some(), "{number} was not open");
        self.work();
    }

    /// Clients connect until one finds no lane without a connection; they use their lanes at once.
    fn wanted(&mut self) {
        loop {
            let (id, found_empty) = self.connect();
            self.connections.push(id);
            if !found_empty {
                break;
            }
        }
        self.work();
    }

    /// A client connects; whether it found a lane without a connection.
    fn connect(&mut self) -> (ConnectionId, bool) {
        let calls = !self.lifecycle.has_empty_lane();
        let id = self.lifecycle.on_connected(self.now);
        self.work();
        (id, !calls)
    }

    /// A lane carried no connection for a moment; `connections` were opened since.
    fn drained(&mut self, number: u64, connections: usize) {
        self.lane(number).connections = connections;
        self.lifecycle.on_drained(number, connections);
        self.work();
    }
}

impl FakeLane {
    fn new(opened: Instant) -> Self {
        Self { opened, disconnected: None, draining: false, connections: 1 }
    }
}

fn just_before(time: Duration) -> Duration {
    time.saturating_sub(MOMENT)
}

/// An error after which another attempt makes sense.
fn transient() -> LaneError {
    ChannelEnd::Lost("no way".to_owned()).into()
}

/// An error that stays.
fn permanent() -> LaneError {
    LaneError::NotSsh { port: 22, received: None }
}

fn expired() -> LaneError {
    ApiError::new(ApiErrorKind::CredentialsExpired, "expired", "").into()
}

const RECONNECT: Duration = Duration::from_mins(1);
/// Of a data channel, as it is guessed first.
const LIFE: Duration = Duration::from_hours(1);
const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);
const LOST: &str = "the data channel was lost: no way";
/// With its random part.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

#[test]
fn whether_sessions_may_be_resumed_is_probed_only_before_a_replacement() {
    let mut harness = Harness::new(1);
    harness.pass(just_before(LIFE * 5 / 6));
    assert!(harness.notes().is_empty());
    harness.pass(MOMENT);
    assert_eq!(harness.notes(), ["probe 1"]);
    harness.answer_probe(ResumePermission::Granted);
    harness.pass(24 * LIFE);
    assert!(harness.notes().is_empty(), "a session that may be resumed needs no replacement");
}

#[test]
fn session_that_may_not_be_resumed_tells_so_for_all() {
    let mut harness = Harness::new(1);
    harness.lanes.clear();
    let refused = ChannelEnd::NotResumable("denied".to_owned()).into();
    harness.lifecycle.on_ended(harness.now, 1, None, refused);
    harness.permission = ResumePermission::Denied;
    harness.work();
    harness.opened();
    harness.notes();
    harness.pass(LIFE * 5 / 6);
    assert_eq!(harness.notes(), ["probe 2"], "the permission may have been granted");
    harness.answer_probe(ResumePermission::Denied);
    assert_eq!(harness.notes(), ["open"]);
}

#[test]
fn close_in_order_is_not_degraded_unless_it_lasts() {
    let mut harness = Harness::new(1);
    harness.in_order = true;
    harness.disconnect(1);
    harness.pass(just_before(RESUMED_WITHIN));
    assert!(harness.notes().is_empty() && !harness.lifecycle.is_degraded());
    harness.resumed(1);
    harness.pass(SECOND);
    harness.disconnect(1);
    harness.pass(RESUMED_WITHIN);
    assert_eq!(harness.notes(), ["degraded: cable cut"]);
    assert!(harness.lifecycle.is_degraded());
    harness.resumed(1);
    assert_eq!(harness.notes(), ["recovered"]);
}

#[test]
fn runner_is_notified_when_the_last_path_is_down_and_when_one_is_up_again() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    harness.wanted();
    let second = harness.opened();
    assert_eq!(harness.notes(), ["open"]);
    harness.disconnect(1);
    assert!(harness.notes().is_empty(), "another lane is up");
    harness.disconnect(second);
    assert_eq!(harness.notes(), ["degraded: cable cut"]);
    harness.resumed(1);
    assert_eq!(harness.notes(), ["recovered"]);
}

#[test]
fn last_lane_is_replaced_at_once_when_it_is_lost() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    assert_eq!(harness.notes(), [&format!("degraded: {LOST}"), "open"]);
    harness.opened();
    assert_eq!(harness.notes(), ["recovered"]);
}

#[test]
fn runner_is_notified_why_connections_are_reset_after_a_pause() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.disconnect(1);
    harness.pass(5 * SECOND);
    harness.ended(1);
    assert_eq!(harness.notes(), ["degraded: cable cut", &format!("degraded: {LOST}"), "open"]);
}

#[test]
fn lost_lane_beside_another_is_not_replaced_before_a_connection_wants_it() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    harness.wanted();
    harness.opened();
    harness.ended(1);
    harness.pass(LIFE / 2);
    assert_eq!(harness.notes(), ["open"]);
}

#[test]
fn outage_is_given_up_after_its_time_counted_from_the_disconnect() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.disconnect(1);
    harness.pass(20 * SECOND);
    harness.ended(1);
    harness.pass(just_before(RECONNECT.saturating_sub(20 * SECOND)));
    assert!(harness.gave_up.is_none(), "its time is not over");
    harness.pass(MOMENT);
    let Some(LaneError::NotReplaced(cause)) = &harness.gave_up else { panic!("{harness:?}") };
    assert_eq!(cause.to_string(), LOST);
}

#[test]
fn new_session_has_a_sixth_of_the_time_however_long_resuming_took() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.disconnect(1);
    harness.pass(RECONNECT);
    harness.ended(1);
    harness.pass(just_before(RECONNECT / 6));
    assert!(harness.gave_up.is_none());
    harness.pass(MOMENT);
    assert!(harness.gave_up.is_some());
}

#[test]
fn openings_are_retried_with_growing_delays_within_the_time() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    let began = harness.now;
    harness.ended(1);
    let mut least = FIRST_DELAY;
    while harness.gave_up.is_none() {
        let failed = harness.now;
        harness.open_failed(transient());
        while !harness.underway && harness.gave_up.is_none() {
            harness.pass(SECOND / 100);
        }
        if harness.gave_up.is_none() {
            let pause = harness.now - failed;
            assert!((least..=2 * least + SECOND / 100).contains(&pause), "{pause:?} for {least:?}");
            least = (2 * least).min(LONGEST_DELAY / 2);
        } else {
            assert_eq!(harness.now, failed, "no waiting for a time without attempts");
        }
    }
    let took = harness.now - began;
    assert!(took + LONGEST_DELAY >= RECONNECT && took <= RECONNECT, "given up after {took:?}");
}

#[test]
fn permanent_error_ends_an_outage_at_once() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    harness.open_failed(permanent());
    assert!(matches!(harness.gave_up, Some(LaneError::NotSsh { port: 22, .. })), "{harness:?}");
}

#[test]
fn expired_credentials_are_retried_and_reported_in_the_end() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    harness.open_failed(expired());
    assert!(harness.gave_up.is_none(), "new ones may arrive");
    harness.pass(RECONNECT);
    let Some(LaneError::Api(error)) = &harness.gave_up else { panic!("{harness:?}") };
    assert_eq!(error.kind(), ApiErrorKind::CredentialsExpired);
}

#[test]
fn lane_that_is_soon_lost_again_does_not_end_the_outage_but_its_time_does_not_count() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    for _ in 0..5 {
        harness.pass(LONGEST_DELAY);
        let lane = harness.opened();
        harness.pass(just_before(STABLE_AFTER));
        harness.ended(lane);
        assert!(!harness.underway, "not at once: the same may happen again");
    }
    // Five times ten of sixty seconds are used.
    harness.pass(just_before(LONGEST_DELAY));
    assert!(harness.gave_up.is_none());
    harness.pass(MOMENT);
    assert!(harness.gave_up.is_some());
}

#[test]
fn last_loss_is_reported_when_the_tunnel_is_given_up() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    harness.open_failed(expired());
    harness.pass(SECOND);
    let lane = harness.opened();
    harness.ended(lane);
    harness.pass(RECONNECT);
    let Some(LaneError::NotReplaced(cause)) = &harness.gave_up else { panic!("{harness:?}") };
    assert_eq!(cause.to_string(), LOST);
}

#[test]
fn lane_that_lasts_a_while_has_ended_the_outage() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.ended(1);
    for _ in 0..5 {
        harness.pass(RECONNECT / 2);
        let lane = harness.opened();
        harness.pass(STABLE_AFTER);
        harness.ended(lane);
        assert!(harness.underway, "a new outage, whose first attempt is made at once");
    }
    harness.pass(just_before(RECONNECT));
    assert!(harness.gave_up.is_none());
    harness.pass(MOMENT);
    assert!(harness.gave_up.is_some());
}

#[test]
fn lane_that_cannot_be_resumed_is_replaced_in_good_time_and_closed_when_unused() {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    harness.pass(just_before(LIFE * 5 / 6));
    assert!(harness.notes().is_empty());
    harness.pass(MOMENT);
    assert_eq!(harness.notes(), ["probe 1"], "the permission may have been granted");
    harness.answer_probe(ResumePermission::Denied);
    assert_eq!(harness.notes(), ["open"]);
    let replacement = harness.opened();
    assert_eq!((replacement, harness.notes()), (2, vec!["drain 1".to_owned()]));
    harness.pass(SECOND);
    harness.drained(1, 0);
    assert_eq!(harness.notes(), ["close 1"]);
    // The replacement is replaced, too.
    harness.pass(LIFE * 5 / 6);
    assert_eq!(harness.notes(), ["probe 2"]);
}

#[test]
fn permission_that_was_granted_meanwhile_makes_a_replacement_needless() {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    harness.pass(LIFE * 5 / 6);
    harness.answer_probe(ResumePermission::Granted);
    harness.pass(24 * LIFE);
    assert_eq!(harness.notes(), ["probe 1"]);
}

#[test]
fn replaced_lane_keeps_its_connections_until_the_service_closes_its_channel() {
    let mut harness = replaced();
    harness.pass(24 * LIFE);
    assert!(harness.lanes.contains_key(&1));
    assert!(harness.notes().iter().all(|note| !note.ends_with(" 1")));
    harness.closed_by_service(1);
    assert!(harness.notes().is_empty(), "another lane is active");
}

#[test]
fn drained_lane_that_outlives_the_expected_life_doubles_it() {
    let mut harness = replaced();
    harness.pass(just_before(LIFE * 11 / 10).saturating_sub(LIFE * 5 / 6));
    assert_eq!(harness.life(true), LIFE);
    harness.pass(MOMENT);
    assert_eq!((harness.life(true), harness.life(false)), (2 * LIFE, LIFE));
    harness.pass(LIFE * 11 / 10);
    assert_eq!(harness.life(true), 4 * LIFE);
}

#[test]
fn signed_and_unsigned_openings_have_lives_of_their_own() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.lose_last(Loss::Closed(1_800));
    harness.signed = false;
    harness.lose_last(Loss::Closed(1_800));
    assert_eq!((harness.life(true), harness.life(false)), (LIFE / 2, LIFE));
}

#[test]
fn connection_that_chose_the_lane_just_before_its_replacement_is_not_reset() {
    let mut harness = replaced();
    harness.drained(1, 1);
    assert_eq!(harness.notes(), ["keep draining 1"]);
    harness.drained(1, 0);
    assert_eq!(harness.notes(), ["close 1"]);
}

#[test]
fn lane_whose_replacement_is_lost_is_active_again_until_it_is_replaced_again() {
    let mut harness = replaced();
    harness.ended(2);
    assert_eq!(harness.notes(), ["open"], "no lane is active");
    harness.drained(1, 0);
    assert_eq!(harness.notes(), ["undrain 1"]);
    harness.drained(1, 0);
    assert!(harness.notes().is_empty(), "it is active, used or not");
    harness.opened();
    assert_eq!(harness.notes(), ["drain 1"]);
}

#[test]
fn replacement_that_cannot_be_opened_is_retried_without_an_outage() {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    harness.pass(LIFE * 5 / 6);
    harness.answer_probe(ResumePermission::Denied);
    harness.notes();
    for _ in 0..20 {
        harness.open_failed(permanent());
        harness.pass(just_before(ADD_DELAY));
        assert!(harness.notes().is_empty());
        harness.pass(ADD_DELAY);
        assert_eq!(harness.notes(), ["open"], "with up to as much again at random");
    }
}

#[test]
fn further_lanes_are_opened_when_wanted_one_after_another_up_to_the_number_allowed() {
    let mut harness = Harness::knowing(3, ResumePermission::Granted);
    for _ in 2..=3 {
        harness.wanted();
        assert_eq!(harness.notes(), ["open"]);
        harness.opened();
        assert!(harness.notes().is_empty());
    }
    harness.wanted();
    harness.pass(LIFE / 2);
    assert!(harness.notes().is_empty());
}

#[test]
fn lane_that_could_not_be_added_is_not_retried_before_a_connection_wants_it() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    harness.wanted();
    harness.open_failed(permanent());
    harness.pass(LIFE);
    assert_eq!(harness.notes(), ["open"]);
    harness.wanted();
    harness.open_failed(transient());
    harness.wanted();
    harness.pass(just_before(ADD_DELAY));
    assert_eq!(harness.notes(), ["open"]);
    harness.pass(ADD_DELAY);
    assert_eq!(harness.notes(), ["open"]);
}

#[test]
fn oldest_lane_is_replaced_first() {
    let mut harness = Harness::knowing(2, ResumePermission::Denied);
    harness.pass(LIFE / 2);
    harness.wanted();
    harness.opened();
    harness.pass(LIFE / 2);
    assert_eq!(harness.notes(), ["open", "probe 1"]);
    harness.answer_probe(ResumePermission::Denied);
    harness.opened();
    assert_eq!(harness.notes(), ["open", "drain 1"]);
    harness.drained(1, 0);
    assert_eq!(harness.notes(), ["close 1"]);
    harness.pass(LIFE / 2);
    assert_eq!(harness.notes(), ["probe 2"]);
}

#[test]
fn lane_that_is_lost_while_another_is_opened_is_opened_once() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    harness.wanted();
    harness.ended(1);
    assert_eq!(harness.notes(), ["open", &format!("degraded: {LOST}")]);
    harness.opened();
    assert_eq!(harness.notes(), ["recovered"]);
}

#[test]
fn first_guess_is_an_hour() {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    harness.pass(just_before(Duration::from_mins(50)));
    assert!(harness.notes().is_empty());
    harness.pass(MOMENT);
    assert_eq!(harness.notes(), ["probe 1"]);
    harness.answer_probe(ResumePermission::Denied);
    harness.opened();
    assert_eq!(harness.notes(), ["open", "drain 1"]);
}

#[test]
fn life_of_a_channel_is_learned_from_two_closes_in_a_row_that_agree() {
    use Loss::{Broken, Closed, Ended};
    let cases: [(&str, &[Loss], u32); 11] = [
        ("one close", &[Closed(1_800)], 3_600),
        ("two that agree", &[Closed(1_800), Closed(1_800)], 1_800),
        ("the first is shorter", &[Closed(1_800), Closed(2_000)], 1_800),
        ("the second is shorter", &[Closed(2_000), Closed(1_800)], 1_800),
        ("two that disagree", &[Closed(1_800), Closed(2_001)], 3_600),
        ("not in a row", &[Closed(1_800), Closed(600), Closed(1_800)], 3_600),
        ("longer than the guess", &[Closed(7_200), Closed(7_200)], 7_200),
        ("broken paths", &[Broken(1_800), Broken(1_800), Broken(1_800)], 3_600),
        ("sessions ended", &[Ended(1_800), Ended(1_800), Ended(1_800)], 3_600),
        ("a broken path between", &[Closed(1_800), Broken(60), Closed(1_800)], 1_800),
        ("too young", &[Closed(9), Closed(9), Closed(9)], 3_600),
    ];
    for (name, losses, expected) in cases {
        let mut harness = Harness::knowing(1, ResumePermission::Granted);
        for loss in losses {
            harness.lose_last(*loss);
        }
        assert_eq!(harness.life(true), expected * SECOND, "case: {name}");
    }
}

#[test]
fn learned_life_can_be_corrected() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    for (age, expected) in [(60, 3_600), (60, 60), (3_000, 60), (3_000, 3_000), (62, 3_000)] {
        harness.lose_last(Loss::Closed(age));
        assert_eq!(harness.life(true), expected * SECOND, "after {age} s");
    }
}

#[test]
fn lane_is_replaced_by_the_learned_life() {
    let mut harness = learned(LIFE / 2);
    harness.pass(just_before(LIFE / 2 * 5 / 6));
    assert!(harness.notes().is_empty());
    harness.pass(MOMENT);
    assert_eq!(harness.notes(), ["probe 3"]);
    harness.answer_probe(ResumePermission::Denied);
    harness.opened();
    assert_eq!(harness.notes(), ["open", "drain 3"]);
}

#[test]
fn lane_that_is_older_than_the_life_just_learned_is_replaced_at_once() {
    let mut harness = Harness::knowing(3, ResumePermission::Denied);
    harness.wanted();
    harness.opened();
    harness.pass(LIFE / 4);
    harness.closed_by_service(1);
    harness.wanted();
    harness.opened();
    harness.pass(LIFE / 4);
    assert_eq!(harness.notes(), ["open", "open"]);
    harness.closed_by_service(3);
    assert_eq!(harness.notes(), ["probe 2"]);
}

#[test]
fn lanes_that_are_closed_together_count_as_one_close() {
    let mut harness = Harness::knowing(2, ResumePermission::Denied);
    harness.wanted();
    harness.opened();
    harness.pass(LIFE / 4);
    harness.closed_by_service(1);
    harness.pass(SECOND);
    harness.closed_by_service(2);
    assert_eq!(harness.life(true), LIFE, "a restart of the gateway closes both");
    harness.opened();
    harness.pass(LIFE / 4);
    harness.closed_by_service(3);
    assert_eq!(harness.life(true), LIFE / 4);
}

#[test]
fn close_of_a_drained_lane_teaches_as_well() {
    let mut harness = replaced();
    harness.pass(LIFE / 15);
    harness.closed_by_service(1);
    harness.pass(LIFE * 5 / 6);
    harness.closed_by_service(2);
    assert_eq!(harness.life(true), LIFE * 9 / 10);
}

/// How a lane is lost, and at what age in seconds.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The service closes its channel.
    Closed(u32),
    /// Its path breaks.
    Broken(u32),
    /// Its session ends while the path is up.
    Ended(u32),
}

impl Harness {
    /// Loses the only lane in this way, and opens another.
    fn lose_last(&mut self, loss: Loss) {
        let number = self.last_number;
        match loss {
            Loss::Closed(age) => {
                self.pass(age * SECOND);
                self.closed_by_service(number);
            }
            Loss::Broken(age) => {
                self.pass(age * SECOND);
                self.disconnect(number);
                self.ended(number);
            }
            Loss::Ended(age) => {
                self.pass(age * SECOND);
                self.ended(number);
            }
        }
        // At once, or after the delay within an outage.
        self.pass(SECOND);
        self.opened();
    }
}

/// Lanes 1 and 2 were closed by the service at the age of `life`; lane 3 is open, and cannot be resumed.
fn learned(life: Duration) -> Harness {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    for number in 1..=2 {
        harness.pass(life);
        harness.closed_by_service(number);
        harness.opened();
    }
    assert_eq!(harness.life(true), life);
    harness.notes();
    harness
}

/// Lane 1 was replaced by lane 2.
fn replaced() -> Harness {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    harness.pass(LIFE * 5 / 6);
    harness.answer_probe(ResumePermission::Denied);
    harness.opened();
    assert_eq!(harness.notes(), ["probe 1", "open", "drain 1"]);
    harness
}
