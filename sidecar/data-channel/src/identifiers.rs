//! Message ids from a seed, so that a run can be repeated exactly.

use uuid::{Builder, Uuid};

/// Generator of version 4 UUIDs that depends on the seed alone.
///
/// They need to be distinct, not unpredictable: nothing is authorised by a message id.
#[derive(Clone, Debug)]
pub(crate) struct Identifiers {
    high: u64,
    low: u64,
}

impl Identifiers {
    pub(crate) fn new(seed: u128) -> Self {
        let (high, low) = Uuid::from_u128(seed).as_u64_pair();
        Self { high, low }
    }

    pub(crate) fn next(&mut self) -> Uuid {
        // SplitMix64 twice: each half visits every value once before it repeats one.
        self.high = self.high.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.low = self.low.wrapping_add(0xd1b5_4a32_d192_ed03);
        let bytes = *Uuid::from_u64_pair(mix(self.high), mix(self.low)).as_bytes();
        Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, 2014): a bijection that spreads every bit.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_are_distinct_version_4_and_repeat_with_the_seed() {
        let mut identifiers = Identifiers::new(7);
        let made: Vec<Uuid> = (0..10_000).map(|_| identifiers.next()).collect();
        assert!(made.iter().all(|id| id.get_version_num() == 4));
        assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
        let mut again = Identifiers::new(7);
        assert!(made.iter().all(|id| *id == again.next()));
        assert_ne!(Identifiers::new(8).next(), Identifiers::new(7).next());
    }
}
