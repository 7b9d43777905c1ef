//! Pauses between attempts at what may pass.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Pauses without end, each twice the one before up to [`LONGEST`].
///
/// Up to as much again is added to each by chance: many sidecars lose the same thing at once, and must not
/// come back for it at once.
#[derive(Debug)]
pub(crate) struct Pauses(ExponentialBackoff);

impl Pauses {
    /// Begins with `first`, before what is added by chance.
    pub(crate) fn new(first: Duration) -> Self {
        Self::seeded(first, seed())
    }

    /// As [`new`](Self::new), for state machines that know no chance of their own: the same for each `seed`.
    pub(crate) fn seeded(first: Duration, seed: u64) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(first).with_max_delay(LONGEST);
        Self(builder.without_max_times().with_jitter().with_jitter_seed(seed).build())
    }

    /// The pause before the next attempt.
    pub(crate) fn next_pause(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST)
    }
}

/// A seed by chance.
pub(crate) fn seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// Before what is added by chance.
const LONGEST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_up_to_as_much_is_added_by_chance() {
        let mut pauses = Pauses::new(Duration::from_millis(200));
        for least in [200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(Duration::from_millis) {
            let pause = pauses.next_pause();
            assert!((least..2 * least).contains(&pause), "{pause:?} instead of {least:?} and more");
        }
    }
}
