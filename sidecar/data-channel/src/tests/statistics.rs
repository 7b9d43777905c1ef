//! Counters.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{MessageType, PayloadType};

#[test]
fn both_streams_are_counted_in_messages_and_payload_bytes() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    let before = pair.client.statistics();
    assert_eq!((before.messages_sent, before.messages_received), (1, 2), "the handshake");
    let acknowledged = before.acknowledgements_sent;
    pair.unwritten = vec![1; 2_500];
    pair.agent.offer(&[2; 3_000]);
    pair.run_until(|pair| pair.read.len() == 3_000 && pair.client.unacknowledged() == 0);
    let after = pair.client.statistics();
    assert_eq!((after.messages_sent, after.bytes_sent - before.bytes_sent), (4, 2_500));
    assert_eq!((after.messages_received, after.bytes_received - before.bytes_received), (5, 3_000));
    assert_eq!(after.acknowledgements_sent - acknowledged, 3);
    assert_eq!((after.retransmissions, after.duplicates, after.out_of_order), (0, 0, 0));
    assert_eq!((after.pauses, after.resumes), (0, 0));
}

#[test]
fn duplicates_are_not_counted_as_received() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { duplication: 1_000, ..Faults::default() });
    pair.agent.send(PayloadType::Output, b"rows", pair.now);
    pair.settle();
    let statistics = pair.client.statistics();
    assert_eq!((statistics.messages_received, statistics.duplicates), (3, 1));
}

#[test]
fn messages_in_flight_are_counted() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { loss: 1_000, ..Faults::default() });
    pair.client.write(&[1; 3_000]);
    pair.settle();
    let statistics = pair.client.statistics();
    assert_eq!((statistics.in_flight, statistics.set_aside, statistics.window), (3, 0, 64));
    assert_eq!(pair.client.unacknowledged(), 3);
    assert_eq!(statistics.retransmission_timeout, Duration::from_millis(200));
    assert_eq!(statistics.smoothed_rtt, Some(Duration::ZERO));
}

#[test]
fn pauses_are_counted_once_each() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    for _ in 0..3 {
        pair.agent.send_control(MessageType::PausePublication, b"");
        pair.agent.send_control(MessageType::PausePublication, b"");
        pair.agent.send_control(MessageType::StartPublication, b"");
    }
    pair.settle();
    assert_eq!(pair.client.statistics().pauses, 3);
}
