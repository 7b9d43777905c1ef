//! How a session ends.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Event, MessageType};

#[test]
fn the_flag_follows_what_was_written_and_its_acknowledgement_is_reported() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    assert_eq!(pair.client.write(b"last bytes"), 10);
    assert!(pair.client.terminate());
    assert_eq!((pair.client.write(b"more"), pair.client.writable()), (0, 0));
    pair.run_until(|pair| pair.events.contains(&Event::Terminated));
    assert_eq!(pair.agent.written, b"last bytes");
    pair.run_until(|pair| pair.events.contains(&Event::Closed { reason: String::new() }));
}

#[test]
fn a_lost_flag_is_sent_again() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.up.lose([0]);
    assert!(pair.client.terminate() && pair.client.terminate());
    pair.run_until(|pair| pair.events.contains(&Event::Terminated));
    assert_eq!(pair.numbers_sent(), [1, 1]);
}

#[test]
fn a_full_window_does_not_hold_the_flag_back() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { loss: 1_000, ..Faults::default() });
    pair.unwritten = vec![1; 1 << 20];
    pair.settle();
    assert_eq!(pair.sent.len(), 64);
    pair.client.terminate();
    pair.settle();
    assert_eq!(pair.sent.len(), 65);
    pair.set_faults(Faults::default());
    pair.run_until(|pair| pair.agent.terminated);
    assert_eq!(pair.agent.written.len(), 64 * 1_024);
}

#[test]
fn acknowledgements_continue_between_the_flag_and_the_close() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.client.terminate();
    pair.settle();
    assert_eq!(pair.events.last(), Some(&Event::Terminated));
    pair.agent.send(crate::PayloadType::Output, b"bye", pair.now);
    pair.settle();
    assert!(pair.agent.has_sent_everything());
    assert_eq!(pair.read, b"bye");
}

#[test]
fn a_closed_channel_reports_the_reason_and_sends_nothing() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.unwritten = b"in flight".to_vec();
    pair.set_faults(Faults { loss: 1_000, ..Faults::default() });
    pair.settle();
    pair.set_faults(Faults::default());
    pair.agent.offer(b"the last rows");
    pair.agent.handle_timeout(pair.now + Duration::from_millis(1));
    pair.agent.close("\n----------ERROR-------\nYour session timed out due to inactivity");
    let frames: Vec<_> = std::iter::from_fn(|| pair.agent.poll_transmit()).collect();
    for frame in &frames {
        pair.client.handle_message(pair.now, frame.clone()).unwrap();
    }
    let reason = "Your session timed out due to inactivity".to_owned();
    assert_eq!(pair.client.poll_event(), Some(Event::Closed { reason }));
    assert_eq!(pair.client.poll_transmit(pair.now), None, "no acknowledgement either");
    assert_eq!(pair.client.poll_timeout(), None);
    assert_eq!(
        pair.client.read().as_deref(),
        Some(&b"the last rows"[..]),
        "received bytes can be read"
    );
    assert!(!pair.client.is_open() && !pair.client.terminate());
    for frame in frames {
        assert_eq!(pair.client.handle_message(pair.now, frame), Ok(()), "ignored");
    }
    assert_eq!(pair.client.poll_event(), None, "reported once");
}

#[test]
fn a_close_before_the_handshake_is_reported() {
    let mut pair = Pair::new();
    pair.agent.close("\n----------ERROR-------\nPlugin with name Port is not supported");
    pair.run_until(|pair| !pair.events.is_empty());
    let reason = "Plugin with name Port is not supported".to_owned();
    assert_eq!(pair.events, [Event::Closed { reason }]);
}

#[test]
fn a_damaged_close_is_a_close() {
    let mut pair = Pair::new();
    pair.agent.send_control(MessageType::ChannelClosed, b"{\"Output\":");
    pair.set_faults(Faults { damage: 1_000, ..Faults::default() });
    pair.run_until(|pair| !pair.events.is_empty());
    assert_eq!(pair.events, [Event::Closed { reason: "{\"Output\":".into() }]);
}
