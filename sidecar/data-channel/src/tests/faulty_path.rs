//! All rules for a faulty path (see the documentation of the crate) at once in random runs, and single tests of
//! those that random runs do not reach.

use std::time::Duration;

use super::{agent::Behaviour, link::Faults, pair::Pair, seeds};
use crate::{Config, Event, MessageType, SequenceNumber, random::Random};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn both_streams_arrive_whole_on_a_path_with_every_fault() {
    seeds::each(400, |seed| {
        let mut random = Random::new(seed);
        let faults = any_faults(&mut random);
        let behaviour = Behaviour {
            acknowledges_again: random.below(4) != 0,
            clock_runs_back: random.below(2) == 0,
            ..Behaviour::default()
        };
        let mut transfer = Transfer::new(behaviour, faults, &mut random, seed);
        for _ in 0..random.below(4) {
            transfer.disrupt(faults, &mut random);
        }
        transfer.finish();
    });
}

#[test]
fn numbers_near_the_end_of_the_field_are_like_any_other() {
    seeds::each(200, |seed| {
        let mut random = Random::new(seed);
        let faults = Faults { forgery: 0, ..any_faults(&mut random) };
        let mut transfer = Transfer::new(Behaviour::default(), faults, &mut random, seed);
        // Few more numbers than both streams and the end of the session need.
        transfer.skip(i64::MAX - 1_000, i64::MAX - 100 - i64::try_from(random.below(100)).unwrap());
        transfer.disrupt(faults, &mut random);
        transfer.finish();
    });
}

#[test]
fn a_close_at_any_moment_is_the_end_and_what_came_before_it_can_be_read() {
    seeds::each(400, |seed| {
        let mut random = Random::new(seed);
        let faults = any_faults(&mut random);
        let mut transfer = Transfer::new(Behaviour::default(), faults, &mut random, seed);
        let quiet = random.below(3_000);
        transfer.pair.run_for(ms(random.below(quiet + 1)));
        let pair = &mut transfer.pair;
        // It is sent only once; if it is lost, the client sees only a closed socket.
        pair.set_faults(Faults { loss: 0, truncation: 0, ..faults });
        pair.agent.close("the end");
        pair.run_until(|pair| {
            pair.events.iter().any(|event| matches!(event, Event::Closed { .. }))
        });
        let sent = pair.sent.len();
        if random.chance(500) {
            pair.disconnect();
            pair.run_for(ms(random.below(1_000)));
            pair.resume();
        }
        pair.run_for(Duration::from_secs(20));
        assert_eq!(pair.sent.len(), sent, "sent something after the end");
        assert_eq!(pair.client.poll_timeout(), None);
        assert_eq!((pair.client.write(b"x"), pair.client.terminate()), (0, false));
        let closed = |event: &&Event| matches!(event, Event::Closed { .. });
        assert_eq!(pair.events.iter().filter(closed).count(), 1, "reported once");
        transfer.assert_prefixes();
    });
}

#[test]
fn an_agent_that_repeats_for_ever_is_acknowledged_each_time_and_does_no_harm() {
    let behaviour = Behaviour { resends_for_ever: Some(3), ..Behaviour::default() };
    let mut pair = Pair::open(behaviour, Faults { delay: ms(20), ..Faults::default() });
    let download: Vec<u8> = (0..100 * 1_024).map(|index: u32| index.to_be_bytes()[3]).collect();
    pair.agent.offer(&download);
    pair.unwritten.clone_from(&download);
    pair.run_for(Duration::from_hours(1));
    assert!(pair.read == download && pair.agent.written == download);
    let acknowledged = pair.agent.acknowledged.iter().filter(|number| **number == 3).count() as u64;
    let duplicates = pair.client.statistics().duplicates;
    // The last acknowledgement is under way.
    assert!(duplicates > 3_000 && acknowledged >= duplicates, "{acknowledged} of {duplicates}");
    assert_eq!(pair.client.unacknowledged(), 0);
}

#[test]
fn a_path_that_stalls_for_a_minute_continues() {
    let mut pair = Pair::open(Behaviour::default(), Faults { delay: ms(30), ..Faults::default() });
    let bytes = Random::new(1).bytes(300 * 1_024);
    pair.agent.offer(&bytes);
    pair.unwritten.clone_from(&bytes);
    pair.run_for(ms(100));
    let until = pair.now + Duration::from_mins(1);
    pair.up.hold(until);
    pair.down.hold(until);
    pair.run_for(Duration::from_mins(1));
    let repeated = pair.client.statistics().retransmissions;
    assert!(repeated < 5_000, "{repeated} messages into a path that takes none");
    pair.run_until(|pair| pair.read == bytes && pair.agent.written == bytes);
}

#[test]
fn a_process_that_was_stopped_for_an_hour_continues() {
    let mut pair = Pair::open(Behaviour::default(), Faults { delay: ms(30), ..Faults::default() });
    let bytes = Random::new(2).bytes(300 * 1_024);
    pair.agent.offer(&bytes);
    pair.unwritten.clone_from(&bytes);
    pair.run_for(ms(100));
    // No calls meanwhile; then everything is due at once.
    pair.now += Duration::from_hours(1);
    pair.agent.handle_timeout(pair.now);
    pair.client.handle_timeout(pair.now);
    pair.run_until(|pair| pair.read == bytes && pair.agent.written == bytes);
}

/// All faults, with loss up to 10 %, delays up to 400 ms and as much jitter.
fn any_faults(random: &mut Random) -> Faults {
    let mut up_to = |bound: u64| random.below(2) * random.below(bound + 1);
    Faults {
        loss: up_to(100),
        acknowledgement_loss: up_to(300),
        duplication: up_to(100),
        damage: up_to(50),
        truncation: up_to(50),
        forgery: up_to(200),
        delay: ms(up_to(400)),
        jitter: ms(up_to(400)),
    }
}

/// A transfer of random bytes both ways.
struct Transfer {
    pair: Pair,
    upload: Vec<u8>,
    download: Vec<u8>,
}

impl Transfer {
    fn new(behaviour: Behaviour, faults: Faults, random: &mut Random, seed: u64) -> Self {
        let mut pair = Pair::with(Config::default(), behaviour, faults, seed);
        let mut bytes = || {
            let length = random.below(40_000);
            random.bytes(usize::try_from(length).unwrap())
        };
        let (upload, download) = (bytes(), bytes());
        pair.unwritten.clone_from(&upload);
        pair.agent.offer(&download);
        Self { pair, upload, download }
    }

    /// Continues with other sequence numbers after the handshake.
    fn skip(&mut self, outgoing: i64, incoming: i64) {
        let pair = &mut self.pair;
        let (upload, download) = (std::mem::take(&mut pair.unwritten), self.download.clone());
        pair.agent.offer_instead(&[]);
        pair.run_until(|pair| pair.client.is_open());
        pair.run_until(|pair| {
            pair.client.unacknowledged() == 0 && pair.agent.has_sent_everything()
        });
        // Frames still under way have old numbers.
        pair.disconnect();
        pair.resume();
        let number = |raw| SequenceNumber::from_wire(raw).unwrap();
        pair.client.skip_to(number(outgoing), number(incoming));
        pair.agent.skip_to(outgoing, incoming);
        pair.unwritten = upload;
        pair.agent.offer_instead(&download);
    }

    /// Lets some time pass, then disturbs the path at random.
    fn disrupt(&mut self, faults: Faults, random: &mut Random) {
        let pair = &mut self.pair;
        let quiet = random.below(2_000);
        pair.run_for(ms(random.below(quiet + 1)));
        match random.below(4) {
            0 => {
                pair.disconnect();
                pair.run_for(ms(random.below(60_000)));
                pair.resume();
            }
            1 => {
                pair.agent.send_control(MessageType::PausePublication, b"{}");
                pair.run_for(ms(random.below(60_000)));
                pair.agent.send_control(MessageType::StartPublication, b"{}");
            }
            2 => {
                let until = pair.now + ms(random.below(60_000));
                pair.up.hold(until);
                pair.down.hold(until);
            }
            _ => {
                pair.set_faults(Faults { loss: 1_000, ..faults });
                pair.run_for(ms(random.below(15_000)));
                pair.set_faults(faults);
            }
        }
        self.assert_prefixes();
    }

    fn assert_prefixes(&self) {
        assert!(self.upload.starts_with(&self.pair.agent.written), "the bytes at sshd differ");
        assert!(self.download.starts_with(&self.pair.read), "the bytes read by the client differ");
    }

    /// Runs until both streams have arrived, and ends the session.
    fn finish(mut self) {
        let (upload, download) = (self.upload.len(), self.download.len());
        self.pair
            .run_until(|pair| pair.agent.written.len() >= upload && pair.read.len() >= download);
        self.assert_prefixes();
        let pair = &mut self.pair;
        assert_eq!(pair.error, None);
        assert_eq!((pair.agent.discarded, pair.agent.responses.len()), (0, 1));
        assert!(pair.client.terminate());
        pair.run_until(|pair| pair.agent.terminated);
        let opened = pair.events.iter().filter(|event| matches!(event, Event::Open { .. })).count();
        assert_eq!(opened, 1);
    }
}
