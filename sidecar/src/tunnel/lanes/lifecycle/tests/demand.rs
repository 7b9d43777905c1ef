//! Which lane a connection gets, and how many lanes are opened for connections.

use super::*;

/// The lane of a connection; `None` while it waits.
fn lane(harness: &Harness, id: ConnectionId) -> Option<u64> {
    harness.lifecycle.lane_of(id).map(|lane| lane.number)
}

fn lanes(harness: &Harness, ids: &[ConnectionId]) -> Vec<Option<u64>> {
    ids.iter().map(|id| lane(harness, *id)).collect()
}

impl Harness {
    fn connect_all(&mut self, count: usize) -> Vec<ConnectionId> {
        (0..count).map(|_| self.connect().0).collect()
    }

    pub(super) fn finish(&mut self, id: ConnectionId) {
        self.lifecycle.on_finished(self.now, id);
        self.work();
    }

    pub(super) fn miss_lane(&mut self, id: ConnectionId) {
        self.lifecycle.on_lane_missed(self.now, id);
        self.work();
    }

    pub(super) fn hang_up(&mut self, id: ConnectionId) {
        self.lifecycle.on_disconnected(self.now, id);
        self.work();
    }

    /// Opens lanes a second apart, as the agent starts them, while they are asked for; returns how many.
    fn open_lanes(&mut self) -> usize {
        let mut opened = 0;
        while self.underway {
            self.pass(SECOND);
            self.opened();
            opened += 1;
        }
        opened
    }
}

#[test]
fn single_client_has_the_first_lane_at_once_and_nothing_is_opened_for_it() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    let (client, _) = harness.connect();
    assert_eq!(lane(&harness, client), Some(1));
    harness.pass(LIFE / 2);
    assert!(harness.notes().is_empty());
}

#[test]
fn connections_one_after_another_stay_on_one_lane() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    for _ in 0..20 {
        let (client, _) = harness.connect();
        assert_eq!(lane(&harness, client), Some(1));
        // The target's end comes later than the next connection.
        harness.finish(client);
    }
    harness.pass(LIFE / 2);
    assert!(harness.notes().is_empty());
}

#[test]
fn eight_that_arrive_together_get_a_lane_each_in_their_order() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    let clients = harness.connect_all(8);
    assert_eq!(harness.notes(), ["open"]);
    for expected in 2..=8 {
        assert_eq!(lane(&harness, clients[expected - 1]), None, "{expected} waits");
        harness.pass(SECOND);
        harness.opened();
        let expected = u64::try_from(expected).unwrap();
        assert_eq!(lane(&harness, clients[usize::try_from(expected).unwrap() - 1]), Some(expected));
    }
    assert_eq!(lanes(&harness, &clients), (1..=8).map(Some).collect::<Vec<_>>());
    assert_eq!(harness.notes(), ["open"; 6]);
    harness.pass(LIFE / 2);
    assert!(harness.notes().is_empty(), "no more than connections");
}

#[test]
fn as_many_lanes_as_connections_are_opened() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    harness.connect_all(3);
    assert_eq!(harness.open_lanes(), 2);
    let (fourth, _) = harness.connect();
    assert_eq!((lane(&harness, fourth), harness.open_lanes()), (None, 1));
    assert_eq!(lane(&harness, fourth), Some(4));
}

#[test]
fn connection_with_only_one_session_never_waits() {
    let mut harness = Harness::knowing(1, ResumePermission::Denied);
    let clients = harness.connect_all(5);
    assert_eq!(lanes(&harness, &clients), [Some(1); 5]);
    harness.pass(LIFE * 5 / 6);
    harness.answer_probe(ResumePermission::Denied);
    assert!(harness.underway, "a replacement");
    let (during, _) = harness.connect();
    assert_eq!(lane(&harness, during), Some(1));
}

#[test]
fn connections_that_come_when_all_lanes_are_taken_share_them_evenly_at_once() {
    let mut harness = Harness::knowing(4, ResumePermission::Granted);
    harness.connect_all(4);
    harness.open_lanes();
    let later = harness.connect_all(4);
    let mut shared = lanes(&harness, &later);
    shared.sort_unstable();
    assert_eq!(shared, (1..=4).map(Some).collect::<Vec<_>>());
    assert!(!harness.underway);
}

#[test]
fn burst_of_more_connections_than_lanes_is_spread_evenly() {
    for (count, most) in [(9, 2), (12, 2), (16, 2), (20, 3), (64, 8)] {
        let mut harness = Harness::knowing(8, ResumePermission::Granted);
        let clients = harness.connect_all(count);
        assert_eq!(harness.open_lanes(), 7, "{count} connections");
        let places = lanes(&harness, &clients);
        for number in 1..=8 {
            let load = places.iter().filter(|place| **place == Some(number)).count();
            assert!((count / 8..=most).contains(&load), "{load} of {count} on lane {number}");
        }
    }
}

/// `pg_dump -j8` has nine connections, and the first of them does little.
#[test]
fn ninth_of_nine_shares_the_lane_of_the_first_and_not_that_of_the_eighth() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    let clients = harness.connect_all(9);
    harness.open_lanes();
    assert_eq!(lane(&harness, clients[7]), Some(8));
    assert_eq!(lane(&harness, clients[8]), Some(1));
}

#[test]
fn wait_ends_after_a_second_for_each_further_lane() {
    let mut harness = Harness::knowing(4, ResumePermission::Granted);
    let clients = harness.connect_all(3);
    harness.pass(SECOND);
    let (later, _) = harness.connect();
    // Three seconds, and one for the lane that is being opened.
    harness.pass(just_before(3 * SECOND));
    assert_eq!(lanes(&harness, &clients), [Some(1), None, None]);
    harness.pass(MOMENT);
    assert_eq!(lanes(&harness, &clients), [Some(1); 3]);
    assert_eq!(lane(&harness, later), None, "it came a second later");
    harness.pass(SECOND);
    assert_eq!(lane(&harness, later), Some(1));
    // The lanes are for connections to come.
    assert_eq!(harness.open_lanes(), 3);
}

#[test]
fn lane_that_cannot_be_opened_releases_those_that_wait() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    let clients = harness.connect_all(4);
    harness.pass(SECOND);
    harness.opened();
    harness.open_failed(transient());
    assert_eq!(lanes(&harness, &clients), [Some(1), Some(2), Some(1), Some(2)]);
    harness.pass(LIFE / 2);
    assert_eq!(harness.notes(), ["open", "open"], "not before a connection calls for it");
}

#[test]
fn connection_during_the_delay_after_a_failure_shares_and_is_counted_after_it() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    harness.connect_all(2);
    harness.open_failed(transient());
    let (during, _) = harness.connect();
    assert_eq!(lane(&harness, during), Some(1));
    assert_eq!(harness.notes(), ["open"]);
    harness.pass(2 * ADD_DELAY);
    assert_eq!(harness.notes(), ["open"]);
    harness.opened();
    assert_eq!(harness.notes(), ["open"], "three connections have a use for three lanes");
}

#[test]
fn further_lanes_are_tried_again_with_random_delays() {
    let delays: Vec<Duration> = (0..8)
        .map(|seed| {
            let limits = Limits { sessions: 2, reconnect: RECONNECT };
            let mut harness = Harness::with(limits, seed);
            harness.connect_all(2);
            harness.open_failed(transient());
            harness.connect();
            let failed = harness.now;
            while !harness.underway {
                harness.pass(SECOND / 100);
            }
            harness.now - failed
        })
        .collect();
    for delay in &delays {
        assert!((ADD_DELAY..=2 * ADD_DELAY).contains(delay), "{delay:?}");
    }
    assert!(delays.iter().any(|delay| *delay != delays[0]), "{delays:?}");
}

#[test]
fn connection_that_waits_takes_a_lane_that_becomes_empty() {
    for end in [Harness::finish, Harness::hang_up] {
        let mut harness = Harness::knowing(2, ResumePermission::Granted);
        let clients = harness.connect_all(2);
        assert_eq!(lane(&harness, clients[1]), None);
        end(&mut harness, clients[0]);
        assert_eq!(lane(&harness, clients[1]), Some(1));
    }
}

#[test]
fn client_that_hangs_up_while_it_waits_leaves_its_lane_to_the_next() {
    let mut harness = Harness::knowing(4, ResumePermission::Granted);
    let clients = harness.connect_all(4);
    harness.hang_up(clients[1]);
    assert_eq!(harness.open_lanes(), 2, "three are left");
    assert_eq!(lane(&harness, clients[2]), Some(2));
    assert_eq!(lane(&harness, clients[3]), Some(3));
}

#[test]
fn client_that_closes_its_half_while_it_waits_is_served_at_once() {
    let mut harness = Harness::knowing(4, ResumePermission::Granted);
    let clients = harness.connect_all(3);
    harness.finish(clients[1]);
    assert_eq!(lanes(&harness, &clients), [Some(1), Some(1), None]);
    assert_eq!(harness.open_lanes(), 1);
    assert_eq!(lane(&harness, clients[2]), Some(2));
}

#[test]
fn opening_that_nobody_needs_any_more_is_the_last() {
    let mut harness = Harness::knowing(8, ResumePermission::Granted);
    let clients = harness.connect_all(8);
    for client in &clients[1..] {
        harness.hang_up(*client);
    }
    assert_eq!(harness.open_lanes(), 1);
    assert_eq!(harness.notes(), ["open"]);
}

#[test]
fn wait_for_a_lane_counts_from_the_end_of_an_outage() {
    let mut harness = Harness::knowing(4, ResumePermission::Granted);
    harness.ended(1);
    let clients = harness.connect_all(3);
    harness.pass(30 * SECOND);
    assert_eq!(lanes(&harness, &clients), [None; 3]);
    harness.opened();
    assert_eq!(lanes(&harness, &clients), [Some(2), None, None]);
    assert_eq!(harness.open_lanes(), 2);
    assert_eq!(lanes(&harness, &clients), [Some(2), Some(3), Some(4)]);
}

#[test]
fn connection_whose_lane_was_lost_before_its_channel_was_open_gets_another() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    let clients = harness.connect_all(2);
    harness.open_lanes();
    assert!(harness.lifecycle.lane_for(clients[1]).is_some());
    harness.ended(2);
    assert_eq!(lane(&harness, clients[1]), None);
    harness.miss_lane(clients[1]);
    assert_eq!(lane(&harness, clients[1]), Some(1));
}

#[test]
fn connection_whose_lane_was_lost_before_it_was_told_gets_another() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    let clients = harness.connect_all(2);
    harness.open_lanes();
    assert_eq!(lane(&harness, clients[1]), Some(2));
    harness.ended(2);
    assert_eq!(lane(&harness, clients[1]), Some(1));
}

#[test]
fn connections_on_a_draining_lane_have_no_part_of_the_others() {
    let mut harness = Harness::knowing(2, ResumePermission::Denied);
    harness.connect_all(3);
    harness.open_lanes();
    harness.pass(LIFE * 5 / 6);
    harness.answer_probe(ResumePermission::Denied);
    let replacement = harness.opened();
    harness.notes();
    // The connections of the drained lane stay where they are.
    let (new, found_empty) = harness.connect();
    assert_eq!((lane(&harness, new), found_empty), (Some(replacement), true));
}
