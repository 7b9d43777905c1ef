//! One direction of a path that loses, doubles, delays, swaps and damages.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::random::Random;

/// What one direction does to its frames, in cases of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    pub(super) duplication: u64,
    /// A byte of the digest is changed.
    pub(super) damage: u64,
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
    /// Frames lost by plan, counted from the first one that was put in.
    planned: Vec<u64>,
}

impl Link {
    pub(super) fn new(faults: Faults, random: Random) -> Self {
        Self { faults, random, underway: BTreeMap::new(), count: 0, planned: Vec::new() }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Loses the frames with these positions from now.
    pub(super) fn lose(&mut self, positions: impl IntoIterator<Item = u64>) {
        let count = self.count;
        self.planned.extend(positions.into_iter().map(|position| count + position));
    }

    pub(super) fn put(&mut self, now: Instant, frame: &Bytes) {
        let position = self.count;
        self.count += 1;
        if self.planned.contains(&position) || self.random.chance(self.faults.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.chance(self.faults.duplication));
        for copy in 0..copies {
            let mut frame = frame.clone();
            if self.random.chance(self.faults.damage) {
                let mut damaged = frame.to_vec();
                damaged[80] ^= 0x55;
                frame = damaged.into();
            }
            let jitter = u64::try_from(self.faults.jitter.as_micros()).unwrap();
            let jitter = Duration::from_micros(self.random.below(jitter + 1));
            let due = now + self.faults.delay + jitter;
            self.underway.insert((due, position << 1 | copy), frame);
        }
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
