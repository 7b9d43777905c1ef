//! Loss, damage and delay: both streams arrive whole.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair, seeds};
use crate::{Config, Event, MessageType, random::Random};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_lost_message_arrives_after_one_timeout() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    let start = pair.now;
    pair.up.lose([0]);
    pair.unwritten = b"select 1".to_vec();
    pair.run_until(|pair| !pair.agent.written.is_empty());
    assert_eq!(pair.agent.written, b"select 1");
    assert_eq!(pair.now - start, ms(200));
    pair.settle();
    assert_eq!(pair.client.poll_timeout(), None, "nothing left in flight");
}

#[test]
fn a_message_waits_twice_as_long_each_time() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    let start = pair.now;
    pair.up.lose(0..6);
    pair.unwritten = b"select 1".to_vec();
    let mut waits = Vec::new();
    for count in 1..=7 {
        pair.run_until(|pair| pair.sent.len() == count);
        waits.push(pair.now - start);
    }
    assert_eq!(waits, [0, 200, 600, 1_400, 3_000, 6_000, 9_000].map(ms));
    assert!(pair.sent.windows(2).all(|frames| frames[0] == frames[1]), "sent again unchanged");
    assert_eq!(pair.client.statistics().retransmissions, 6);
}

#[test]
fn overdue_messages_are_sent_again_oldest_first_and_paced() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.up.lose(0..60);
    pair.unwritten = vec![7; 60 * 1_024];
    pair.settle();
    assert_eq!(pair.sent.len(), 60);
    pair.sent.clear();
    pair.run_for(ms(200));
    assert_eq!(pair.sent.len(), 16, "one burst");
    pair.run_for(ms(40));
    let numbers = pair.numbers_sent();
    assert!(numbers.is_sorted() && numbers.len() == 60, "{numbers:?}");
    pair.run_until(|pair| pair.agent.written.len() == 60 * 1_024);
    assert_eq!(pair.client.unacknowledged(), 0);
}

#[test]
fn a_lost_outgoing_acknowledgement_is_repeated() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.up.lose([0]);
    pair.agent.offer(b"rows");
    pair.run_until(|pair| pair.agent.has_sent_everything());
    assert_eq!(pair.read, b"rows");
    assert_eq!(pair.client.statistics().duplicates, 1);
}

/// Separate repairs of 50 messages, one in 100 ms, would take 5 s.
#[test]
fn acknowledgements_lost_in_a_row_cost_the_agent_one_repair() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: ms(10), ..Faults::default() });
    let start = pair.now;
    pair.up.lose(0..50);
    pair.agent.offer(&vec![5; 50 * 1_024]);
    pair.run_until(|pair| pair.read.len() == 50 * 1_024);
    pair.run_until(|pair| pair.agent.has_sent_everything());
    assert!(pair.now - start < ms(600), "{:?}", pair.now - start);
    let statistics = pair.client.statistics();
    assert_eq!(statistics.duplicates, 1);
    // The repeated ones may include two of the handshake.
    assert!(statistics.acknowledgements_sent <= 2 * 52 + 1, "{statistics:?}");
}

#[test]
fn a_message_missing_among_others_comes_again_without_a_timeout() {
    let pair = one_a_millisecond(&[5]);
    assert!(pair.now - pair.start < ms(200), "{:?}", pair.now - pair.start);
    assert_eq!(pair.client.statistics().retransmissions, 1);
    let numbers = pair.numbers_sent();
    let again = numbers.windows(2).position(|pair| pair[1] < pair[0]).unwrap() + 1;

    let pair = one_a_millisecond(&[5, again]);
    assert!(pair.now - pair.start < ms(200), "lost again: {:?}", pair.now - pair.start);
    assert_eq!(pair.client.statistics().retransmissions, 2);
}

/// Sends a message each millisecond over 10 ms each way, losing the frames at the positions `lost`. Ends when all
/// messages have arrived.
fn one_a_millisecond(lost: &[usize]) -> Pair {
    let mut pair = Pair::open(Behaviour::default(), Faults { delay: ms(10), ..Faults::default() });
    pair.start = pair.now;
    pair.up.lose(lost.iter().map(|position| *position as u64));
    for piece in 0..150_u8 {
        pair.client.write(&[piece; 1_024]);
        pair.run_for(ms(1));
    }
    pair.run_until(|pair| pair.agent.written.len() == 150 * 1_024);
    assert!(pair.agent.written.chunks(1_024).zip(0..).all(|(piece, number)| piece[0] == number));
    pair
}

#[test]
fn messages_that_overtake_each_other_are_not_sent_again() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: ms(20), jitter: ms(5), ..Faults::default() });
    for _ in 0..2_000 {
        pair.unwritten.extend([1; 1_024]);
        pair.run_for(ms(1));
    }
    pair.run_until(|pair| pair.agent.written.len() == 2_000 * 1_024);
    assert_eq!(pair.client.statistics().retransmissions, 0);
}

#[test]
fn an_upload_over_a_path_that_loses_one_in_a_hundred_keeps_half_of_its_rate() {
    let carried = |loss| {
        let faults = Faults { loss, delay: ms(10), ..Faults::default() };
        let config =
            Config { outgoing_bytes: 512 * 1_024, message_bytes: 256, ..Config::default() };
        let mut pair = Pair::with(config, Behaviour::default(), faults, 1);
        pair.run_until(|pair| pair.client.is_open());
        let bytes = vec![1; 512 * 1_024];
        for _ in 0..500 {
            pair.client.write(&bytes);
            pair.run_for(ms(1));
        }
        pair.agent.written.len()
    };
    let (whole, lossy) = (carried(0), carried(10));
    assert!(lossy * 2 > whole, "{lossy} of {whole} bytes");
}

#[test]
fn every_stored_message_is_acknowledged_at_once_also_early_ones() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.down.lose([0]);
    pair.agent.offer(&[1; 4 * 1_024]);
    pair.run_for(ms(10));
    assert_eq!(pair.agent.acknowledged, [0, 1, 3, 4, 5]);
    assert!(pair.read.is_empty());
    pair.run_until(|pair| pair.read.len() == 4 * 1_024);
}

#[test]
fn a_damaged_message_is_dropped_without_acknowledgement_and_comes_again() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { damage: 1_000, ..Faults::default() });
    pair.agent.offer(b"rows");
    pair.run_for(ms(1));
    assert_eq!((pair.client.statistics().dropped_damaged, pair.agent.acknowledged.len()), (1, 2));
    pair.set_faults(Faults::default());
    pair.run_until(|pair| pair.read == b"rows");
}

#[test]
fn input_refused_while_the_agent_connects_arrives_afterwards() {
    let behaviour = Behaviour { dial: Duration::from_secs(2), ..Behaviour::default() };
    let mut pair = Pair::open(behaviour, Faults::default());
    pair.unwritten = vec![9; 10 * 1_024];
    pair.run_until(|pair| pair.agent.written.len() == 10 * 1_024);
    assert!(pair.now - pair.start < Duration::from_millis(3_100), "{:?}", pair.now - pair.start);
}

/// Agents before 3.2.1041.0, which do not repeat a lost acknowledgement.
#[test]
fn messages_that_are_never_acknowledged_do_not_block_the_window() {
    let behaviour = Behaviour { acknowledges_again: false, ..Behaviour::default() };
    let mut pair = Pair::open(behaviour, Faults { delay: ms(5), ..Faults::default() });
    // All acknowledgements of the first window.
    pair.down.lose(0..64);
    let length = 2_000 * 1_024;
    pair.unwritten = vec![3; length];
    pair.run_until(|pair| pair.agent.written.len() == length);
    assert!(pair.now - pair.start < Duration::from_secs(20), "{:?}", pair.now - pair.start);
    pair.run_for(Duration::from_mins(2));
    assert_eq!(pair.client.statistics().in_flight, 0);
    assert_eq!(pair.client.statistics().set_aside, 64);
    assert_eq!(pair.client.unacknowledged(), 64);
    // From then on they cost little traffic.
    pair.sent.clear();
    pair.run_for(Duration::from_mins(2));
    assert!(pair.sent.len() <= 64 * 3, "{} messages", pair.sent.len());
}

/// The same where the bound of bytes blocks the writer.
#[test]
fn a_message_that_is_never_acknowledged_does_not_block_the_writer() {
    let behaviour = Behaviour { acknowledges_again: false, ..Behaviour::default() };
    let config = Config { outgoing_bytes: 3_000, message_bytes: 4_096, ..Config::default() };
    let mut pair = Pair::with(config, behaviour, Faults::default(), 1);
    pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
    pair.down.lose([0]);
    pair.unwritten = vec![3; 100_000];
    pair.run_until(|pair| pair.agent.written.len() == 100_000);
}

#[test]
fn a_path_that_becomes_slow_is_measured_without_endless_repetition() {
    let mut pair = Pair::open(Behaviour::default(), Faults::default());
    pair.set_faults(Faults { delay: ms(600), ..Faults::default() });
    for _ in 0..40 {
        pair.unwritten = vec![1; 1_024];
        pair.run_for(ms(1_500));
    }
    let statistics = pair.client.statistics();
    assert!(statistics.smoothed_rtt.unwrap() > ms(1_000), "{statistics:?}");
    assert!(statistics.retransmissions < 10, "{statistics:?}");
}

#[test]
fn both_streams_arrive_whole_on_any_path() {
    seeds::each(400, run_seed);
}

fn run_seed(seed: u64) {
    let mut random = Random::new(seed);
    let mut pick = |bound| random.below(bound);
    let faults = Faults {
        loss: pick(3) * pick(60),
        duplication: pick(3) * pick(60),
        damage: pick(2) * pick(40),
        delay: ms(pick(80)),
        jitter: ms(pick(3) * pick(30)),
        ..Faults::default()
    };
    let behaviour = Behaviour {
        acknowledges_again: pick(4) != 0,
        dial: ms(pick(2) * pick(3_000)),
        ..Behaviour::default()
    };
    let size = |choice: u64, small: usize, large: usize| if choice == 0 { small } else { large };
    let config = Config {
        message_bytes: [256, 1_024, 4_096][usize::try_from(pick(3)).unwrap()],
        incoming_bytes: size(pick(4), 5_000, 1 << 20),
        incoming_messages: size(pick(4), 3, 1_000),
        outgoing_bytes: size(pick(4), 3_000, 1 << 20),
        ..Config::default()
    };
    let lengths = [pick(60_000), pick(60_000)].map(|length| usize::try_from(length).unwrap());
    let disruptions = pick(4);
    let [upload, download] = lengths.map(|length| random.bytes(length));

    let mut pair = Pair::with(config, behaviour, faults, seed);
    pair.unwritten.clone_from(&upload);
    pair.agent.offer(&download);
    for _ in 0..disruptions {
        let quiet = random.below(2_000);
        pair.run_for(ms(random.below(quiet + 1)));
        if random.chance(600) {
            pair.disconnect();
            pair.run_for(ms(random.below(6_000)));
            pair.resume();
        } else {
            pair.agent.send_control(MessageType::PausePublication, b"{}");
            pair.run_for(ms(random.below(15_000)));
            // It may get lost like any other message.
            pair.agent.send_control(MessageType::StartPublication, b"{}");
        }
        assert!(upload.starts_with(&pair.agent.written) && download.starts_with(&pair.read));
    }
    pair.run_until(|pair| {
        pair.agent.written.len() >= upload.len() && pair.read.len() >= download.len()
    });
    assert!(pair.agent.written == upload, "the bytes at sshd differ");
    assert!(pair.read == download, "the bytes read by the client differ");
    assert_eq!(pair.agent.discarded, 0, "sent before the handshake was complete");
    assert_eq!(pair.agent.responses.len(), 1);
    assert_eq!(pair.error, None);

    assert!(pair.client.terminate());
    pair.run_until(|pair| pair.agent.terminated);
    let opened = pair.events.iter().filter(|event| matches!(event, Event::Open { .. })).count();
    assert_eq!(opened, 1);
}
