//! `pause_publication` and `start_publication`.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Event, MessageType};

fn paused() -> Pair {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.agent.send_control(MessageType::PausePublication, b"{}");
    pair.settle();
    assert_eq!(pair.events.pop(), Some(Event::Paused));
    pair.unwritten = b"held".to_vec();
    pair.settle();
    assert!(pair.unwritten.is_empty() && pair.sent.is_empty(), "accepted, but held");
    pair
}

#[test]
fn start_publication_lets_data_flow_again() {
    let mut pair = paused();
    pair.run_for(Duration::from_secs(5));
    assert!(pair.sent.is_empty());
    pair.agent.send_control(MessageType::StartPublication, b"\0garbage");
    pair.settle();
    assert_eq!(pair.events.pop(), Some(Event::Started));
    assert_eq!(pair.agent.written, b"held");
}

#[test]
fn a_stream_message_is_acknowledged_during_a_pause_and_does_not_end_it() {
    let mut pair = paused();
    pair.agent.offer(b"rows");
    pair.run_for(Duration::from_secs(5));
    assert_eq!(pair.read, b"rows");
    assert!(pair.agent.has_sent_everything() && pair.agent.written.is_empty());
}

#[test]
fn a_lost_start_holds_data_for_ten_seconds() {
    let mut pair = paused();
    let start = pair.now;
    pair.agent.send_control(MessageType::PausePublication, b"{}");
    pair.run_for(Duration::from_secs(5));
    pair.agent.send_control(MessageType::PausePublication, b"{}");
    pair.run_until(|pair| pair.agent.written == b"held");
    assert_eq!(
        pair.now - start,
        Duration::from_secs(10),
        "a repeated request does not prolong the pause"
    );
}

#[test]
fn clocks_stand_still_during_a_pause() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.up.lose([0]);
    pair.unwritten = b"lost".to_vec();
    pair.settle();
    pair.run_for(Duration::from_millis(150));
    pair.agent.send_control(MessageType::PausePublication, b"{}");
    pair.run_for(Duration::from_secs(8));
    // Called before a deadline, as by a driver with other timers.
    pair.client.handle_timeout(pair.now);
    pair.settle();
    assert_eq!(pair.sent.len(), 1, "not sent again");
    pair.agent.send_control(MessageType::StartPublication, b"{}");
    pair.settle();
    let start = pair.now;
    pair.run_until(|pair| pair.agent.written == b"lost");
    assert_eq!(pair.now - start, Duration::from_millis(50), "the rest of its time-out");
}

#[test]
fn a_lost_start_holds_data_for_two_seconds_after_the_last_acknowledgement() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: Duration::from_millis(10), ..Faults::default() });
    pair.unwritten = b"first".to_vec();
    pair.settle();
    pair.set_faults(Faults::default());
    pair.agent.send_control(MessageType::PausePublication, b"{}");
    pair.settle();
    pair.unwritten = b" second".to_vec();
    pair.run_for(Duration::from_millis(1_999));
    assert_eq!(pair.agent.written, b"first", "acknowledged, but the pause goes on");
    pair.run_until(|pair| pair.agent.written == b"first second");
    assert!(pair.events.ends_with(&[Event::Paused, Event::Started]));
    // Its round trip contains a pause and is no sample.
    assert_eq!(pair.client.statistics().minimum_rtt, Some(Duration::ZERO));
}

#[test]
fn the_end_of_the_session_is_not_held_back() {
    let mut pair = paused();
    assert!(pair.client.terminate());
    pair.settle();
    assert!(pair.agent.terminated);
    assert_eq!(pair.agent.written, b"held");
}
