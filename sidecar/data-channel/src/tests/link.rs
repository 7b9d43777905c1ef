//! One direction of a path that loses, doubles, delays, swaps, damages and cuts short, that stands still, and
//! on which somebody says what nobody sent.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::{Message, MessageType, message::Envelope, random::Random};

/// What one direction does to its frames, in cases of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    /// Acknowledgements are lost, beside `loss`.
    pub(super) acknowledgement_loss: u64,
    pub(super) duplication: u64,
    /// A byte of the digest is changed.
    pub(super) damage: u64,
    /// The end is cut off, sometimes with a piece of the header. Towards the client alone: the agent
    /// looks at no digest.
    pub(super) truncation: u64,
    /// A frame that nobody sent comes along, see [`Link::forge`]. Towards the client alone.
    pub(super) forgery: u64,
    pub(super) delay: Duration,
    /// Up to so much more, for each frame by itself: this is what reorders.
    pub(super) jitter: Duration,
}

#[derive(Debug)]
pub(super) struct Link {
    faults: Faults,
    random: Random,
    underway: BTreeMap<(Instant, u64), Bytes>,
    count: u64,
    delivered: u64,
    /// Frames lost by plan, counted from the first one that was put in.
    planned: Vec<u64>,
    /// Nothing arrives before.
    held_until: Option<Instant>,
    /// Whether it leads to the client, whose rules are tested.
    towards_client: bool,
    /// Frames that have been on it, to be heard again.
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

    /// Loses the frames with these positions from now.
    pub(super) fn lose(&mut self, positions: impl IntoIterator<Item = u64>) {
        let count = self.count;
        self.planned.extend(positions.into_iter().map(|position| count + position));
    }

    /// Holds everything back until then; nothing is lost.
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
                // Nothing is missing from a message without payload but its header.
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

    /// Makes a frame that has to be dropped, whatever state the client is in: what follows the rules to the
    /// letter cannot be told from the truth, and is for TLS to keep out.
    fn forge(&mut self) -> Bytes {
        let length = usize::try_from(self.random.below(3) * self.random.below(70_000)).unwrap();
        let far = [i64::MAX, i64::MAX - 1, 1 << 40, 1_000_000][self.below(4)];
        let negative = [-1, i64::MIN, -1_000_000][self.below(3)];
        let output = MessageType::OutputStreamData;
        match self.random.below(12) {
            // No header, or one that makes no sense.
            0 => self.random.bytes(length.min(500)).into(),
            1 => made(output, 5, b"x", |frame| frame[..4].fill(0xff)),
            2 => made(output, 5, b"x", |frame| frame[..4].fill(0)),
            3 => made(output, 5, b"x", |frame| frame[40..48].fill(0)),
            4 => made(output, 5, b"x", |frame| frame[4..36].fill(b' ')),
            // Any size, of a type that nobody knows or of the wrong direction.
            5 => made(output, 5, &vec![7; length], |frame| frame[4..10].copy_from_slice(b"tuptuo")),
            6 => made(MessageType::InputStreamData, 0, &vec![7; length], |_| ()),
            // Numbers that are none, or that lie beyond every buffer.
            7 => made(output, negative, b"x", |_| ()),
            8 => made(output, far, b"x", |_| ()),
            // Acknowledgements of what was never sent, or that are none.
            9 | 10 => {
                let number = if self.random.chance(500) { far } else { negative };
                let text = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
                let text = if self.random.chance(200) { "[]".to_owned() } else { text };
                made(MessageType::Acknowledge, 0, text.as_bytes(), |_| ())
            }
            // Something that was said before, the handshake included; whatever it was, it is old.
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

    /// The socket is gone, and all that was on it.
    pub(super) fn cut(&mut self) {
        self.underway.clear();
    }
}

/// A message with a right digest, and then a change.
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

/// Frames that are remembered: the first ones have the handshake among them.
const PAST: usize = 64;
