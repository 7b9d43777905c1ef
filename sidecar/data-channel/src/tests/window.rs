//! The window, and the bounds of outgoing bytes.

use std::time::{Duration, Instant};

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Config, Message};

#[test]
fn the_first_window_is_64_messages_and_doubles_each_round_trip_up_to_256() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: Duration::from_millis(4), ..Faults::default() });
    pair.unwritten = vec![1; 1 << 20];
    let mut sent = Vec::new();
    for _ in 0..4 {
        pair.settle();
        sent.push(pair.sent.len());
        pair.run_for(Duration::from_millis(8));
    }
    assert_eq!(sent, [64, 192, 448, 704], "at most 256 in flight");
}

#[test]
fn small_writes_share_a_message_until_it_is_sent() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    for _ in 0..100 {
        assert_eq!(pair.client.write(&[1; 30]), 30);
    }
    pair.settle();
    let lengths: Vec<_> =
        pair.sent.iter().map(|frame| Message::decode(frame).unwrap().payload.len()).collect();
    assert_eq!(lengths, [1_024, 1_024, 952]);
}

#[test]
fn a_single_byte_is_sent_at_once_and_an_empty_write_sends_nothing() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    assert_eq!(pair.client.write(b""), 0);
    assert_eq!(pair.client.poll_transmit(pair.now), None, "never an empty payload");
    assert_eq!(pair.client.write(b"\n"), 1);
    pair.settle();
    assert_eq!(pair.agent.written, b"\n");
}

#[test]
fn writing_stops_at_the_bound_until_something_is_acknowledged() {
    let config = Config { outgoing_bytes: 3_000, ..Config::default() };
    let mut pair = Pair::with(config, Behaviour::default(), Faults::default(), 1);
    pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
    pair.set_faults(Faults { delay: Duration::from_millis(10), ..Faults::default() });
    assert_eq!(pair.client.write(&[1; 5_000]), 3_000);
    assert_eq!((pair.client.write(b"x"), pair.client.writable()), (0, 0));
    pair.settle();
    assert_eq!(pair.client.writable(), 0, "sent but not acknowledged");
    pair.run_for(Duration::from_millis(20));
    pair.settle();
    assert_eq!(pair.client.writable(), 3_000);
}

/// The worst case for memory: an agent that accepts everything and acknowledges one message in eight.
#[test]
fn unacknowledged_messages_are_bounded_and_leave_once_acknowledged() {
    const BOUND: usize = 16 * 1_024;
    const MESSAGE: usize = 256;
    let behaviour = Behaviour { acknowledges_every: 8, ..Behaviour::default() };
    let config = Config { outgoing_bytes: BOUND, message_bytes: MESSAGE, ..Config::default() };
    let mut pair = Pair::with(config, behaviour, Faults::default(), 1);
    pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
    let before = pair.client.statistics().bytes_sent;
    let length = 64 * BOUND;
    pair.unwritten = vec![1; length];
    let kept = |pair: &Pair| {
        let sent = usize::try_from(pair.client.statistics().bytes_sent - before).unwrap();
        let unsent = length - pair.unwritten.len() - sent;
        unsent + pair.client.unacknowledged() * MESSAGE
    };
    let (mut most, end) = (0, pair.now + Duration::from_mins(10));
    while pair.step(end) {
        most = most.max(kept(&pair));
    }
    assert_eq!(pair.client.statistics().set_aside * MESSAGE, 4 * BOUND);
    assert!((5 * BOUND..=5 * BOUND + 8 * MESSAGE).contains(&most), "{most} bytes");
    let written = pair.agent.written.len();
    assert!(written < length, "everything has been written");

    // Most of the messages set aside are still unacknowledged.
    pair.agent.acknowledge_every(1);
    pair.run_until(|pair| pair.agent.written.len() == length);
    pair.run_until(|pair| pair.client.unacknowledged() == 0);
}

/// Agents before 3.2.1041.0 never acknowledge these messages.
#[test]
fn a_full_window_is_probed_when_no_more_can_be_set_aside() {
    const BOUND: usize = 4 * 1_024;
    let behaviour =
        Behaviour { acknowledges_again: false, acknowledges_every: 8, ..Behaviour::default() };
    let config = Config { outgoing_bytes: BOUND, message_bytes: 256, ..Config::default() };
    let mut pair = Pair::with(config, behaviour, Faults::default(), 1);
    pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
    pair.unwritten = vec![1; 64 * BOUND];
    pair.run_until(|pair| pair.client.statistics().set_aside * 256 == 4 * BOUND);
    pair.run_until(|pair| {
        pair.client.writable() == 0 && pair.client.unacknowledged() * 256 >= 5 * BOUND
    });
    pair.agent.acknowledge_every(1);
    let written = pair.agent.written.len();
    pair.run_for(Duration::from_mins(1));
    let more = pair.agent.written.len() - written;
    assert!(more >= 10 * 256, "{more} bytes in a minute");
}

#[test]
fn message_sizes_are_clamped_to_their_range() {
    for (asked, used) in [(0, 256), (1_024, 1_024), (usize::MAX, 65_536)] {
        let config = Config { message_bytes: asked, ..Config::default() };
        let mut pair = Pair::with(config, Behaviour::default(), Faults::default(), 1);
        pair.run_until(|pair| pair.client.is_open());
        pair.sent.clear();
        pair.client.write(&vec![1; 70_000]);
        pair.settle();
        assert_eq!(Message::decode(&pair.sent[0]).unwrap().payload.len(), used);
    }
}

#[test]
fn dates_follow_the_clock_of_the_caller() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.now += Duration::from_secs(100);
    pair.client.write(b"x");
    let frame = pair.client.poll_transmit(pair.now).unwrap();
    let passed = u64::try_from((pair.now - pair.start).as_millis()).unwrap();
    assert_eq!(Message::decode(&frame).unwrap().created_date_ms, 1_767_225_600_000 + passed);
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let start = Instant::now();
    let run = |seed: u64| {
        let mut pair = Pair::with(Config::default(), Behaviour::default(), Faults::default(), seed);
        pair.client = crate::DataChannel::new(Config::default(), start, 5, u128::from(seed));
        pair.now = start.max(pair.now);
        pair.unwritten = vec![1; 5_000];
        let opening = pair.client.opening("token");
        let frame = pair.agent.poll_transmit().unwrap();
        pair.client.handle_message(start, frame).unwrap();
        let sent: Vec<_> = std::iter::from_fn(|| pair.client.poll_transmit(start)).collect();
        (opening, sent)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
