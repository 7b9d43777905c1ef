//! A client, a model agent, a link each way, and one virtual clock.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    agent::{Agent, Behaviour},
    link::{Faults, Link},
};
use crate::{Config, DataChannel, Event, Message, MessageType, ProtocolError, random::Random};

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) client: DataChannel,
    pub(super) agent: Agent,
    pub(super) up: Link,
    pub(super) down: Link,
    pub(super) connected: bool,
    pub(super) events: Vec<Event>,
    pub(super) error: Option<ProtocolError>,
    /// Bytes that the client has read.
    pub(super) read: Vec<u8>,
    /// Bytes that the client has still to write.
    pub(super) unwritten: Vec<u8>,
    /// Frames that the client has sent.
    pub(super) sent: Vec<Bytes>,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(Config::default(), Behaviour::default(), Faults::default(), 1)
    }

    /// Creates a pair that has completed the handshake.
    pub(super) fn open(behaviour: Behaviour, faults: Faults) -> Self {
        let mut pair = Self::with(Config::default(), behaviour, faults, 1);
        pair.run_until(|pair| pair.client.is_open() && pair.client.unacknowledged() == 0);
        pair.sent.clear();
        pair.agent.seen.clear();
        pair
    }

    pub(super) fn with(config: Config, behaviour: Behaviour, faults: Faults, seed: u64) -> Self {
        let now = Instant::now();
        let mut random = Random::new(seed);
        let (up, down) = (Random::new(random.next()), Random::new(random.next()));
        Self {
            now,
            start: now,
            client: DataChannel::new(config, now, 1_767_225_600_000, u128::from(seed)),
            agent: Agent::new(behaviour, now),
            up: Link::new(faults, up, false),
            down: Link::new(faults, down, true),
            connected: true,
            events: Vec::new(),
            error: None,
            read: Vec::new(),
            unwritten: Vec::new(),
            sent: Vec::new(),
        }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.up.set_faults(faults);
        self.down.set_faults(faults);
    }

    /// Closes the client's WebSocket. The agent is not affected.
    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        self.up.cut();
        self.down.cut();
        self.client.on_disconnected(self.now);
        assert_eq!(self.client.poll_timeout(), None, "a clock runs without a socket");
        assert_eq!(self.client.poll_transmit(self.now), None, "sent without a socket");
    }

    pub(super) fn resume(&mut self) {
        self.connected = true;
        self.client.on_resumed(self.now);
    }

    /// Lets both sides process everything that is due, without advancing the clock.
    pub(super) fn settle(&mut self) {
        loop {
            let mut idle = true;
            let written = self.client.write(&self.unwritten);
            self.unwritten.drain(..written);
            if self.connected {
                while let Some(frame) = self.client.poll_transmit(self.now) {
                    idle = false;
                    self.up.put(self.now, &frame);
                    self.sent.push(frame);
                }
            }
            while let Some(frame) = self.agent.poll_transmit() {
                idle = false;
                if self.connected {
                    self.down.put(self.now, &frame);
                }
            }
            while let Some(frame) = self.up.take(self.now) {
                idle = false;
                self.agent.handle_message(self.now, &frame);
            }
            while let Some(frame) = self.down.take(self.now) {
                idle = false;
                if let Err(error) = self.client.handle_message(self.now, frame) {
                    self.error.get_or_insert(error);
                }
            }
            self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
            while let Some(bytes) = self.client.read() {
                assert!(!bytes.is_empty());
                self.read.extend_from_slice(&bytes);
            }
            if idle {
                return;
            }
        }
    }

    /// Advances the clock to the next deadline, at most to `limit`; false once that is reached.
    pub(super) fn step(&mut self, limit: Instant) -> bool {
        self.settle();
        let next = [
            self.client.poll_timeout(),
            // Bytes may have been offered since its last deadline.
            self.agent.poll_timeout().map(|due| due.max(self.now)),
            self.up.next(),
            self.down.next(),
        ];
        let next = next.into_iter().flatten().min().map_or(limit, |next| next.min(limit));
        assert!(next >= self.now, "a deadline lies in the past");
        self.now = next;
        if self.client.poll_timeout().is_some_and(|due| due <= self.now) {
            self.client.handle_timeout(self.now);
            self.settle();
            let later = self.client.poll_timeout().is_none_or(|due| due > self.now);
            assert!(later, "a deadline that was handled is still there: {:?}", self.client);
        }
        self.agent.handle_timeout(self.now);
        self.settle();
        self.now < limit
    }

    /// Runs until `condition` holds; fails after an hour.
    #[track_caller]
    pub(super) fn run_until(&mut self, condition: impl Fn(&Self) -> bool) {
        let limit = self.now + Duration::from_hours(1);
        self.settle();
        while !condition(self) {
            assert!(
                self.step(limit),
                "not within an hour: {:?}, {:?}, {:?}; {} bytes to write, {} at sshd, {} read, {} acknowledged",
                self.events,
                self.error,
                self.client.statistics(),
                self.unwritten.len(),
                self.agent.written.len(),
                self.read.len(),
                self.agent.acknowledged.len(),
            );
        }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let limit = self.now + time;
        while self.step(limit) {}
    }

    /// Numbers of the stream messages among the frames that the client has sent.
    pub(super) fn numbers_sent(&self) -> Vec<i64> {
        self.messages_sent(MessageType::InputStreamData).map(|m| m.sequence_number).collect()
    }

    pub(super) fn messages_sent(&self, kind: MessageType) -> impl Iterator<Item = Message> {
        let messages = self.sent.iter().map(|frame| Message::decode(frame).unwrap());
        messages.filter(move |message| message.message_type == kind)
    }
}
