//! Lanes whose other end does not answer, and logins that are refused within an outage.

use super::*;
use crate::{ssh::SshError, tunnel::lanes::stall::Silent};

impl Harness {
    fn stall(&mut self, number: u64) {
        let now = self.now;
        let since = now.checked_sub(8 * SECOND).unwrap();
        self.lane(number).disconnected = Some(now);
        self.lifecycle.on_stalled(now, number, Stall { since, silent: Silent::Agent });
        self.work();
    }

    fn answers(&mut self, number: u64) {
        self.lane(number).disconnected = None;
        self.lifecycle.on_answering(self.now, number);
        self.work();
    }
}

#[test]
fn stalled_lane_is_replaced_at_once_and_keeps_its_connections() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    // The harness takes only lanes at the end of their life for replaced.
    harness.permission = ResumePermission::Denied;
    harness.pass(LIFE * 5 / 6);
    harness.stall(1);
    assert_eq!(harness.notes(), ["degraded: cable cut", "open"]);
    harness.opened();
    assert_eq!(harness.notes(), ["drain 1", "recovered"]);
    harness.answers(1);
    harness.pass(SECOND);
    assert!(harness.notes().is_empty(), "its connections go on where they are");
    harness.drained(1, 0);
    assert_eq!(harness.notes(), ["close 1"]);
}

#[test]
fn stalled_lane_that_answers_again_needs_no_replacement() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.stall(1);
    harness.answers(1);
    assert_eq!(harness.notes(), ["degraded: cable cut", "open", "recovered"]);
    harness.open_failed(transient());
    harness.pass(RECONNECT);
    assert!(harness.notes().is_empty());
}

#[test]
fn stalled_lane_beside_another_is_not_replaced() {
    let mut harness = Harness::knowing(2, ResumePermission::Granted);
    harness.wanted();
    harness.opened();
    harness.notes();
    harness.stall(1);
    harness.pass(SECOND);
    assert!(harness.notes().is_empty());
}

#[test]
fn attempts_to_replace_a_stalled_lane_follow_each_other_within_a_second_until_it_is_given_up() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    let began = harness.now;
    harness.stall(1);
    assert_eq!(harness.notes(), ["degraded: cable cut", "open"]);
    // It was silent for eight seconds by then.
    for _ in 0..RECONNECT.as_secs() - 8 - 1 {
        harness.open_failed(transient());
        assert!(harness.notes().is_empty());
        harness.pass(SECOND);
        assert_eq!(harness.notes(), ["open"]);
    }
    harness.pass(SECOND);
    let silent = "the SSM agent does not answer, though its session is open";
    assert_eq!(harness.notes(), ["abandon 1".to_owned(), format!("degraded: {silent}")]);
    assert_eq!(harness.now - began, RECONNECT.saturating_sub(8 * SECOND));
    // A new session has a sixth of the time in any case.
    harness.pass(RECONNECT / 6);
    let Some(LaneError::NotReplaced(cause)) = &harness.gave_up else { panic!("{harness:?}") };
    assert_eq!(cause.to_string(), silent);
}

#[test]
fn refused_login_within_an_outage_is_tried_again_three_times_a_quarter_of_a_minute_apart() {
    let refused = || {
        let (user, tried) = ("ec2-user".to_owned(), "ssh-ed25519".to_owned());
        let login = Box::new(ssh_client::Login { user, tried, accepted: None, rsa_bits: None });
        let methods = vec!["publickey".to_owned()];
        LaneError::from(SshError::from(ssh_client::Error::AuthRejected { login, methods }))
    };
    let mut harness = Harness::with(Limits { sessions: 1, reconnect: 2 * RECONNECT }, 1);
    harness.work();
    harness.ended(1);
    harness.notes();
    for _ in 0..LOGIN_RETRIES {
        harness.open_failed(refused());
        harness.pass(just_before(LOGIN_DELAY));
        assert!(harness.notes().is_empty());
        harness.pass(MOMENT);
        assert_eq!(harness.notes(), ["open"]);
    }
    harness.open_failed(refused());
    assert!(matches!(harness.gave_up, Some(LaneError::Ssh(_))), "{harness:?}");
}

#[test]
fn refused_login_beside_a_stalled_lane_is_not_repeated_every_second() {
    let mut harness = Harness::knowing(1, ResumePermission::Granted);
    harness.stall(1);
    harness.notes();
    harness.open_failed(permanent());
    harness.pass(2 * SECOND);
    assert!(harness.notes().is_empty(), "an error that stays");
}

#[test]
fn connection_while_every_lane_is_stalled_waits_for_another() {
    for sessions in [1, 2] {
        let mut harness = Harness::knowing(sessions, ResumePermission::Granted);
        harness.stall(1);
        let client = harness.lifecycle.on_connected(harness.now);
        assert!(harness.lifecycle.lane_for(client).is_none());
        harness.pass(3 * SECOND);
        assert!(harness.lifecycle.lane_for(client).is_none(), "{sessions} sessions");
        harness.answers(1);
        assert!(harness.lifecycle.lane_for(client).is_some());
    }
}
