//! One direction of a faulty link: applies a plan's [`Link`] to each message, as the seed decides.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    codec::{ACKNOWLEDGE, INPUT, KIND, Message, OUTPUT, PAYLOAD},
    faults::{Link, Rng},
};

/// Messages in transit.
#[derive(Debug)]
pub(crate) struct Path {
    rng: Rng,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    /// Arrival time of the last message that keeps its order.
    last: Option<Instant>,
    count: u64,
}

#[derive(Debug, Eq, PartialEq)]
struct UnderWay {
    due: Instant,
    number: u64,
    message: Arrived,
}

/// A message that has arrived.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Arrived {
    pub(crate) frame: Bytes,
    /// Whether it was changed on the way.
    pub(crate) damaged: bool,
    /// Whether it was never sent.
    pub(crate) forged: bool,
}

impl Arrived {
    /// Wraps an unchanged message.
    pub(crate) fn intact(frame: Bytes) -> Self {
        Self { frame, damaged: false, forged: false }
    }
}

impl Path {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), under_way: BinaryHeap::new(), last: None, count: 0 }
    }

    /// Sends a message; returns it at once if no fault or delay applies.
    pub(crate) fn send(&mut self, link: &Link, frame: Bytes, now: Instant) -> Option<Arrived> {
        if link.is_clean() && self.under_way.is_empty() {
            return Some(Arrived::intact(frame));
        }
        if self.rng.chance(link.forge) {
            let forged = Arrived { frame: self.forge(), damaged: true, forged: true };
            let due = now + link.delay + self.rng.up_to(link.jitter);
            self.put(due, forged);
        }
        if self.rng.chance(link.drop) {
            return None;
        }
        let copies = if self.rng.chance(link.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let message = self.spoil(link, &frame);
            let mut due = now + link.delay + self.rng.up_to(link.jitter);
            if self.rng.chance(link.reorder) {
                due += OVERTAKEN / 20 + self.rng.up_to(OVERTAKEN);
            } else {
                due = self.last.map_or(due, |last| last.max(due));
                self.last = Some(due);
            }
            self.put(due, message);
        }
        None
    }

    /// Sends a message of the gateway itself, which is only delayed.
    pub(crate) fn send_safely(
        &mut self,
        link: &Link,
        frame: Bytes,
        now: Instant,
    ) -> Option<Arrived> {
        let delay = Link::clean().delayed(link.delay, link.jitter);
        self.send(&delay, frame, now)
    }

    fn put(&mut self, due: Instant, message: Arrived) {
        self.count += 1;
        self.under_way.push(Reverse(UnderWay { due, number: self.count, message }));
    }

    /// When the next message arrives.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(next)| next.due)
    }

    /// Returns the next message that has arrived.
    pub(crate) fn arrived(&mut self, now: Instant) -> Option<Arrived> {
        if self.due()? > now {
            return None;
        }
        self.under_way.pop().map(|Reverse(next)| next.message)
    }

    fn spoil(&mut self, link: &Link, frame: &Bytes) -> Arrived {
        let truncate = self.rng.chance(link.truncate) && frame.len() > PAYLOAD + 1;
        let damage = self.rng.chance(link.damage);
        if !truncate && !damage {
            return Arrived::intact(frame.clone());
        }
        let mut bytes = BytesMut::from(frame.as_ref());
        if truncate {
            let kept = 1 + self.rng.below(bytes.len() - PAYLOAD - 1);
            bytes.truncate(PAYLOAD + kept);
        }
        if damage {
            let protected = DIGEST.len() + bytes.len().saturating_sub(PAYLOAD);
            let at = DIGEST.start + self.rng.below(protected);
            let at = if DIGEST.contains(&at) { at } else { at - DIGEST.end + PAYLOAD };
            let bit = 1 << self.rng.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        Arrived { frame: bytes.freeze(), damaged: true, forged: false }
    }

    /// Creates a frame that every client must drop. Forged frames that obey all rules are not made, since a
    /// client cannot distinguish them from genuine ones.
    fn forge(&mut self) -> Bytes {
        let far = [i64::MAX, 1 << 40, 1_000_000];
        let number = far.get(self.rng.below(3)).copied().unwrap_or(i64::MAX);
        let number = if self.rng.chance(0.3) { -number } else { number };
        let length = self.rng.below(3) * self.rng.below(60_000);
        let payload = Bytes::from(vec![b'f'; length + 1]);
        let frame = match self.rng.below(5) {
            0 => return self.rng.bytes(length.min(2_000)).into(),
            1 => Message::new(OUTPUT, number, 1, payload),
            2 => Message::new(INPUT, 0, 1, payload),
            3 => Message::new("no_type_of_ours", 0, 1, payload),
            _ => {
                let body = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
                Message::new(ACKNOWLEDGE, 0, 0, body.into())
            }
        };
        let mut bytes = BytesMut::from(frame.encode().as_ref());
        match self.rng.below(6) {
            0 => bytes.truncate(self.rng.below(PAYLOAD)),
            // Neither a header length nor a date.
            1 => bytes.iter_mut().take(4).for_each(|byte| *byte = 0xff),
            2 => bytes.iter_mut().skip(KIND + 8).take(8).for_each(|byte| *byte = 0),
            _ => {}
        }
        bytes.freeze()
    }
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Maximum delay of a reordered message.
const OVERTAKEN: Duration = Duration::from_millis(20);

/// Offsets of the digest.
const DIGEST: std::ops::Range<usize> = 80..112;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: i64) -> Bytes {
        Message::new(INPUT, number, 1, Bytes::from_static(b"0123456789")).encode()
    }

    /// Sends a thousand messages, one per millisecond, and returns those that arrive.
    fn through(link: &Link, seed: u64) -> Vec<Message> {
        let mut path = Path::new(seed);
        let start = Instant::now();
        let mut arrived = Vec::new();
        for step in 0..2_000_u32 {
            let now = start + Duration::from_millis(1) * step;
            while let Some(message) = path.arrived(now) {
                arrived.push(message);
            }
            if step < 1_000 {
                arrived.extend(path.send(link, frame(i64::from(step)), now));
            }
        }
        for message in &arrived {
            let intact = Message::decode(&message.frame).unwrap().is_intact();
            assert_eq!(message.damaged, !intact, "damage is reported, and visible in the digest");
        }
        arrived.iter().map(|message| Message::decode(&message.frame).unwrap()).collect()
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let in_order = |messages: &[Message]| messages.is_sorted_by_key(|message| message.sequence);
        let clean = through(&Link::clean(), 1);
        assert_eq!(clean.len(), 1_000);
        let link = Link::clean().delayed(Duration::from_millis(5), Duration::from_millis(20));
        let late = through(&link, 1);
        assert!(late.len() == 1_000 && in_order(&late));
        let lost = through(&Link::clean().dropping(0.1), 1);
        assert!((850..950).contains(&lost.len()) && in_order(&lost), "{}", lost.len());
        let doubled = through(&Link::clean().duplicating(0.1), 1);
        assert!((1_050..1_150).contains(&doubled.len()), "{}", doubled.len());
        let mixed = through(&Link::clean().reordering(0.1), 1);
        assert!(mixed.len() == 1_000 && !in_order(&mixed));
        for link in [Link::clean().damaging(0.1), Link::clean().truncating(0.1)] {
            let messages = through(&link, 1);
            let damaged = messages.iter().filter(|message| !message.is_intact()).count();
            assert!((50..150).contains(&damaged), "{damaged} for {link:?}");
            assert!(in_order(&messages), "numbers are never damaged");
        }
    }

    #[test]
    fn forged_frames_come_beside_the_true_ones() {
        let mut path = Path::new(1);
        let start = Instant::now();
        for number in 0..1_000 {
            assert_eq!(path.send(&Link::clean().forging(0.1), frame(number), start), None);
        }
        let arrived: Vec<_> = std::iter::from_fn(|| path.arrived(start)).collect();
        let (forged, true_ones): (Vec<_>, Vec<_>) =
            arrived.into_iter().partition(|message| message.forged);
        assert!((50..150).contains(&forged.len()), "{}", forged.len());
        let numbers = true_ones.iter().map(|message| Message::decode(&message.frame).unwrap());
        assert!(numbers.map(|message| message.sequence).eq(0..1_000));
    }

    #[test]
    fn same_seed_same_faults() {
        let link = Link::clean().dropping(0.1).duplicating(0.1).reordering(0.1).damaging(0.1);
        let numbers = |seed| -> Vec<_> {
            through(&link, seed)
                .into_iter()
                .map(|message| (message.sequence, message.digest))
                .collect()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
