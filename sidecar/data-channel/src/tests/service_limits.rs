//! A service with limits of its own (docs/ssm-protocol.md, section 9.2). Nobody knows what the real one counts, so each
//! candidate is a model here: it asks for a pause first, and closes the channel if more than 256 KiB follow.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Config, Message, MessageType};

const KIB: usize = 1_024;

/// What the service allows.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    /// Payload bytes that it has received and whose acknowledgement it has not passed on.
    window: Option<usize>,
    /// Payload bytes within a second.
    rate: Option<usize>,
    /// Payload bytes within a second in messages larger than 1,024 bytes.
    large: Option<usize>,
}

impl Limits {
    fn all(rate: usize) -> Self {
        Self { window: Some(256 * KIB), rate: Some(rate), large: Some(256 * KIB) }
    }
}

/// The service, next to the client: what the client sends counts at once, a pause takes the path's delay.
struct Service {
    limits: Limits,
    looked_at: usize,
    /// Payload bytes of the last second, with their message's size.
    recent: VecDeque<(Instant, usize)>,
    /// Bytes received since the pause was asked for.
    since_pause: Option<usize>,
    pauses: usize,
    closes: usize,
}

impl Service {
    fn new(limits: Limits) -> Self {
        let recent = VecDeque::new();
        Self { limits, looked_at: 0, recent, since_pause: None, pauses: 0, closes: 0 }
    }

    fn look(&mut self, pair: &mut Pair) {
        for frame in pair.sent.iter().skip(self.looked_at) {
            let message = Message::decode(frame).unwrap();
            if message.message_type == MessageType::InputStreamData {
                let bytes = message.payload.len();
                self.recent.push_back((pair.now, bytes));
                self.since_pause = self.since_pause.map(|sum| sum + bytes);
            }
        }
        self.looked_at = pair.sent.len();
        let limit = pair.now.checked_sub(Duration::from_secs(1)).unwrap();
        while self.recent.pop_front_if(|(at, _)| *at <= limit).is_some() {}
        if self.since_pause.is_some_and(|bytes| bytes > 256 * KIB) {
            self.closes += 1;
            self.since_pause = None;
            self.recent.clear();
            pair.disconnect();
            pair.run_for(Duration::from_millis(150));
            pair.resume();
            return;
        }
        let rate: usize = self.recent.iter().map(|(_, bytes)| bytes).sum();
        let large = self.recent.iter().map(|(_, bytes)| bytes).filter(|bytes| **bytes > KIB);
        let large: usize = large.sum();
        let in_flight = usize::try_from(pair.client.statistics().bytes_in_flight).unwrap();
        let used =
            [(in_flight, self.limits.window), (rate, self.limits.rate), (large, self.limits.large)];
        let share =
            |(used, limit): &(usize, Option<usize>)| limit.map_or(0, |limit| used * 100 / limit);
        let used = used.iter().map(share).max().unwrap();
        match self.since_pause {
            None if used > 100 => {
                self.pauses += 1;
                self.since_pause = Some(0);
                pair.agent.send_control(MessageType::PausePublication, b"{}");
            }
            Some(_) if used < 90 => {
                self.since_pause = None;
                pair.agent.send_control(MessageType::StartPublication, b"{}");
            }
            _ => (),
        }
    }
}

#[derive(Debug)]
struct Outcome {
    pauses: usize,
    closes: usize,
    bytes_per_second: usize,
}

/// An upload without end through such a service, `half` the round trip away from the agent.
fn upload(limits: Limits, half: Duration, message_bytes: usize, seconds: u64) -> Outcome {
    let config = Config { message_bytes, ..Config::default() };
    let faults = Faults { delay: half, ..Faults::default() };
    let mut pair = Pair::with(config, Behaviour::default(), faults, 1);
    pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
    pair.sent.clear();
    let mut service = Service::new(limits);
    let end = pair.now + Duration::from_secs(seconds);
    let mut carried = 0;
    while pair.now < end {
        if pair.unwritten.len() < 512 * KIB {
            pair.unwritten.resize(1 << 20, 7);
        }
        // A path without delay would carry everything at the same moment.
        let next = pair.now + Duration::from_millis(1);
        pair.step(next.min(end));
        service.look(&mut pair);
        carried += pair.agent.written.len();
        pair.agent.written.clear();
        pair.agent.seen.clear();
        if pair.sent.len() > 100_000 {
            pair.sent.clear();
            service.looked_at = 0;
        }
    }
    let bytes_per_second = carried / usize::try_from(seconds).unwrap();
    Outcome { pauses: service.pauses, closes: service.closes, bytes_per_second }
}

#[test]
fn an_upload_within_what_is_proven_is_never_paused_by_a_window() {
    for half in [1, 25, 100] {
        let limits = Limits { window: Some(256 * KIB), ..Limits::default() };
        let outcome = upload(limits, Duration::from_millis(half), KIB, 5);
        assert_eq!((outcome.pauses, outcome.closes), (0, 0), "{half} ms: {outcome:?}");
    }
}

#[test]
fn no_rate_that_a_service_allows_closes_the_channel() {
    let cases = [(100_000, 25), (500_000, 100), (1_000_000, 1), (5_000_000, 25), (10_000_000, 1)];
    for (rate, half) in cases {
        let outcome = upload(Limits::all(rate), Duration::from_millis(half), KIB, 10);
        println!("{rate} bytes a second, {half} ms: {outcome:?}");
        assert_eq!(outcome.closes, 0, "{rate}, {half} ms: {outcome:?}");
        let possible = rate.min(256 * KIB * 1_000 / (2 * usize::try_from(half).unwrap()));
        assert!(
            outcome.bytes_per_second >= possible / 2,
            "{rate}, {half} ms: {outcome:?} of {possible}"
        );
    }
}

#[test]
fn large_messages_are_given_up_at_the_first_pause() {
    for message_bytes in [2, 8, 64] {
        let limits = Limits::all(5_000_000);
        let outcome = upload(limits, Duration::from_millis(25), message_bytes * KIB, 10);
        println!("{message_bytes} KiB a message: {outcome:?}");
        assert!(outcome.closes <= 1, "{message_bytes} KiB: {outcome:?}");
        assert!(outcome.bytes_per_second > 1_000_000, "{message_bytes} KiB: {outcome:?}");
    }
}
