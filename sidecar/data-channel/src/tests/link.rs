//! One direction of a path that loses, duplicates, delays, reorders, damages and truncates frames, stalls, and
//! injects forged ones.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::{Message, MessageType, message::Envelope, random::Random};

/// Faults of one direction, each as cases in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    /// Loss of acknowledgements, in addition to `loss`.
    pub(super) acknowledgement_loss: u64,
    pub(super) duplication: u64,
    /// A byte of the digest is changed.
    pub(super) damage: u64,
    /// The end is cut off, sometimes with part of the header. Only towards the client, since the agent does not
    /// check digests.
    pub(super) truncation: u64,
    /// A forged frame is injected, see [`Link::forge`]. Only towards the client.
    pub(super) forgery: u64,
    pub(super) delay: Duration,
    /// Maximum additional delay, drawn for each frame; causes reordering.
    pub(super) jitter: Duration,
}

#[derive(Debug)]
pub(super) struct Link {
    faults: Faults,
    random: Random,
    underway: BTreeMap<(Instant, u64), Bytes>,
    count: u64,
    delivered: u64,
    /// Positions of frames to lose, counted from the first frame.
    planned: Vec<u64>,
    /// Nothing arrives before this moment.
    held_until: Option<Instant>,
    /// Whether this is the direction towards the client.
    towards_client: bool,
    /// Frames for [`Link::forge`] to repeat.
    past: Vec<Bytes>,
}

impl Link {
    pub(super) fn new(faults: Faults, random: Random, towards_client: bool) -> Self {
        Self {
            faults,
            random,
            underway: BTreeMap::new(),
            count: 0,
            delivered: 0,
            planned: Vec::new(),
            held_until: None,
            towards_client,
            past: Vec::new(),
        }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Loses the frames at these positions, counted from now.
    pub(super) fn lose(&mut self, positions: impl IntoIterator<Item = u64>) {
        let count = self.count;
        self.planned.extend(positions.into_iter().map(|position| count + position));
    }

    /// Holds everything back until `until`; nothing is lost.
    pub(super) fn hold(&mut self, until: Instant) {
        self.held_until = Some(until);
    }

    pub(super) fn put(&mut self, now: Instant, frame: &Bytes) {
        let position = self.count;
        self.count += 1;
        if self.towards_client && self.random.chance(self.faults.forgery) {
            let forged = self.forge();
            self.deliver(now, forged);
        }
        if self.past.len() < PAST {
            self.past.push(frame.clone());
        }
        let is_acknowledgement =
            || Message::decode(frame).is_ok_and(|m| m.message_type == MessageType::Acknowledge);
        let loses_this = self.faults.acknowledgement_loss > 0 && is_acknowledgement();
        if self.planned.contains(&position)
            || self.random.chance(self.faults.loss)
            || loses_this && self.random.chance(self.faults.acknowledgement_loss)
        {
            return;
        }
        let copies = 1 + u64::from(self.random.chance(self.faults.duplication));
        for _ in 0..copies {
            let mut frame = frame.clone();
            if self.random.chance(self.faults.damage) {
                let mut damaged = frame.to_vec();
                damaged[80] ^= 0x55;
                frame = damaged.into();
            }
            if self.towards_client && self.random.chance(self.faults.truncation) {
                let length = self.random.below(frame.len() as u64);
                frame.truncate(usize::try_from(length).unwrap());
            }
            self.deliver(now, frame);
        }
    }

    fn deliver(&mut self, now: Instant, frame: Bytes) {
        let jitter = u64::try_from(self.faults.jitter.as_micros()).unwrap();
        let jitter = Duration::from_micros(self.random.below(jitter + 1));
        let due = now + self.faults.delay + jitter;
        let due = self.held_until.map_or(due, |until| due.max(until));
        self.delivered += 1;
        self.underway.insert((due, self.delivered), frame);
    }

    /// Creates a frame that the client has to drop in any state. A forged frame that is valid in every respect
    /// cannot be detected; TLS has to exclude it.
    fn forge(&mut self) -> Bytes {
        let length = usize::try_from(self.random.below(3) * self.random.below(70_000)).unwrap();
        let far = [i64::MAX, i64::MAX - 1, 1 << 40, 1_000_000][self.below(4)];
        let negative = [-1, i64::MIN, -1_000_000][self.below(3)];
        let output = MessageType::OutputStreamData;
        match self.random.below(12) {
            // No header, or an invalid one.
            0 => self.random.bytes(length.min(500)).into(),
            1 => made(output, 5, b"x", |frame| frame[..4].fill(0xff)),
            2 => made(output, 5, b"x", |frame| frame[..4].fill(0)),
            3 => made(output, 5, b"x", |frame| frame[40..48].fill(0)),
            4 => made(output, 5, b"x", |frame| frame[4..36].fill(b' ')),
            // Any size, of an unknown type or of the wrong direction.
            5 => made(output, 5, &vec![7; length], |frame| frame[4..10].copy_from_slice(b"tuptuo")),
            6 => made(MessageType::InputStreamData, 0, &vec![7; length], |_| ()),
            // Invalid numbers, or numbers beyond every buffer.
            7 => made(output, negative, b"x", |_| ()),
            8 => made(output, far, b"x", |_| ()),
            // Acknowledgements of messages never sent, or malformed ones.
            9 | 10 => {
                let number = if self.random.chance(500) { far } else { negative };
                let text = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
                let text = if self.random.chance(200) { "[]".to_owned() } else { text };
                made(MessageType::Acknowledge, 0, text.as_bytes(), |_| ())
            }
            // A repetition of an earlier frame, which may belong to the handshake.
            _ => match self.past.len() {
                0 => Bytes::new(),
                past => {
                    let index = self.below(past);
                    self.past[index].clone()
                }
            },
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    pub(super) fn take(&mut self, now: Instant) -> Option<Bytes> {
        let entry = self.underway.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.underway.first_key_value().map(|((due, _), _)| *due)
    }

    /// Drops everything under way, as the loss of the socket does.
    pub(super) fn cut(&mut self) {
        self.underway.clear();
    }
}

/// Encodes a message with a correct digest, then applies a change.
fn made(
    message_type: MessageType,
    sequence_number: i64,
    payload: &[u8],
    change: impl FnOnce(&mut [u8]),
) -> Bytes {
    let mut frame = BytesMut::new();
    let (created_date_ms, flags, message_id, payload_type) = (1, 0, Uuid::from_u128(9), 1);
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    change(&mut frame);
    frame.freeze()
}

/// Number of frames kept for repetition; the first ones include the handshake.
const PAST: usize = 64;
