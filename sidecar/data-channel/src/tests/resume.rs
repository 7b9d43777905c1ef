//! Loss of the WebSocket and resume.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair};

#[test]
fn everything_unacknowledged_is_sent_again_in_order_at_once() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: Duration::from_millis(50), ..Faults::default() });
    pair.unwritten = (0..100 * 1_024).map(|index: u32| index.to_be_bytes()[3]).collect();
    let expected = pair.unwritten.clone();
    pair.run_for(Duration::from_millis(30));
    let before = pair.sent.clone();
    pair.disconnect();
    pair.run_for(Duration::from_mins(5));
    assert_eq!(pair.sent.len(), before.len(), "nothing is sent meanwhile");
    pair.sent.clear();
    pair.resume();
    pair.settle();
    assert_eq!(pair.sent[..before.len()], before[..], "the same frames, unchanged");
    pair.run_until(|pair| pair.agent.written.len() == expected.len());
    assert!(pair.agent.written == expected);
    assert_eq!(pair.client.statistics().resumes, 1);
}

#[test]
fn a_resumed_session_needs_no_new_handshake() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.disconnect();
    assert!(pair.client.is_open());
    pair.unwritten = b"written without a socket".to_vec();
    pair.settle();
    assert!(pair.unwritten.is_empty(), "there is room");
    pair.resume();
    pair.run_until(|pair| pair.agent.written == b"written without a socket");
    assert_eq!((pair.events.len(), pair.agent.responses.len()), (1, 1));
}

#[test]
fn messages_that_the_agent_sent_meanwhile_are_repaired() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.disconnect();
    pair.agent.offer(&vec![5; 20 * 1_024]);
    pair.run_for(Duration::from_secs(2));
    pair.resume();
    pair.run_until(|pair| pair.read.len() == 20 * 1_024);
    assert!(pair.agent.has_sent_everything());
}

#[test]
fn unsent_acknowledgements_are_sent_on_the_next_socket() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.agent.offer(b"rows");
    pair.agent.handle_timeout(pair.now + Duration::from_millis(1));
    let frame = pair.agent.poll_transmit().unwrap();
    pair.client.handle_message(pair.now, frame).unwrap();
    pair.disconnect();
    pair.resume();
    pair.settle();
    assert!(pair.agent.has_sent_everything());
}

#[test]
fn a_pause_ends_with_its_socket() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.agent.send_control(crate::MessageType::PausePublication, b"");
    pair.settle();
    pair.disconnect();
    pair.resume();
    pair.unwritten = b"x".to_vec();
    pair.settle();
    assert_eq!(pair.agent.written, b"x");
}

#[test]
fn samples_of_the_old_path_do_not_count_on_the_new_one() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: Duration::from_millis(20), ..Faults::default() });
    pair.unwritten = b"x".to_vec();
    pair.run_for(Duration::from_millis(10));
    pair.disconnect();
    pair.run_for(Duration::from_mins(1));
    pair.resume();
    pair.run_until(|pair| pair.client.unacknowledged() == 0);
    let statistics = pair.client.statistics();
    assert_eq!(statistics.minimum_rtt, None);
    assert!(statistics.smoothed_rtt.unwrap() < Duration::from_millis(40));
}
