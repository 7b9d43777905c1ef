//! Delays between attempts that fail with transient errors.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// An endless sequence of delays. Each is twice the one before, up to [`LONGEST`], plus a random part of up to its own
/// length: many sidecars lose the same service at once, and must not return to it at once.
#[derive(Debug)]
pub(crate) struct Backoff(ExponentialBackoff);

impl Backoff {
    /// Begins with `first`, before its random part.
    pub(crate) fn new(first: Duration) -> Self {
        Self::seeded(first, random_seed())
    }

    /// As [`new`](Self::new), with the random parts from `seed`: equal seeds give equal delays. For state machines,
    /// which draw no random numbers.
    pub(crate) fn seeded(first: Duration, seed: u64) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(first).with_max_delay(LONGEST);
        Self(builder.without_max_times().with_jitter().with_jitter_seed(seed).build())
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST)
    }
}

/// A seed from the operating system's generator.
pub(crate) fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// Longest delay before its random part is added; with that a delay is below 10 s.
const LONGEST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound_each_with_a_random_part_of_up_to_its_length() {
        let mut backoff = Backoff::new(Duration::from_millis(200));
        for least in [200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(Duration::from_millis) {
            let delay = backoff.next_delay();
            assert!((least..2 * least).contains(&delay), "{delay:?} instead of {least:?} and more");
        }
    }
}
