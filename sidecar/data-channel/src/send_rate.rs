//! How fast payload bytes are sent: measured always, limited where the service has asked for a pause.

use std::time::{Duration, Instant};

/// Payload bytes sent within the last second.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    /// Bytes of each tenth of a second, as a ring.
    tenths: [usize; TENTHS],
    current: usize,
    /// When the current tenth began.
    began: Option<Instant>,
}

impl Meter {
    pub(crate) const fn new() -> Self {
        Self { tenths: [0; TENTHS], current: 0, began: None }
    }

    pub(crate) fn on_sent(&mut self, bytes: usize, now: Instant) {
        self.advance(now);
        if let Some(tenth) = self.tenths.get_mut(self.current) {
            *tenth = tenth.saturating_add(bytes);
        }
    }

    /// Bytes sent within the last second, to a tenth.
    pub(crate) fn last_second(&mut self, now: Instant) -> usize {
        self.advance(now);
        self.tenths.iter().sum()
    }

    fn advance(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began).as_millis() / TENTH.as_millis();
        let steps = usize::try_from(passed).unwrap_or(usize::MAX);
        for _ in 0..steps.min(TENTHS) {
            self.current = (self.current + 1) % TENTHS;
            if let Some(tenth) = self.tenths.get_mut(self.current) {
                *tenth = 0;
            }
        }
        if steps > 0 {
            self.began = if steps > TENTHS {
                Some(now)
            } else {
                Some(began + TENTH * u32::try_from(steps).unwrap_or(u32::MAX))
            };
        }
    }
}

/// A token bucket.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    bytes_per_second: usize,
    /// Bytes that may be sent now; negative after a message larger than what was there.
    tokens: i64,
    /// When `tokens` was computed.
    at: Instant,
    /// Tokens that a message waits for.
    awaited: i64,
}

impl Bucket {
    /// Empty at first.
    pub(crate) const fn new(bytes_per_second: usize, now: Instant) -> Self {
        Self { bytes_per_second, tokens: 0, at: now, awaited: 0 }
    }

    pub(crate) const fn bytes_per_second(&self) -> usize {
        self.bytes_per_second
    }

    pub(crate) fn set_rate(&mut self, bytes_per_second: usize, now: Instant) {
        self.refill(now);
        self.bytes_per_second = bytes_per_second;
        self.tokens = self.tokens.min(self.depth());
    }

    /// Whether `bytes` may be sent now. More than the bucket holds passes when it is full, and the next ones wait for
    /// longer.
    pub(crate) fn admits(&mut self, bytes: usize, now: Instant) -> bool {
        self.refill(now);
        let needed = i64::try_from(bytes).unwrap_or(i64::MAX).min(self.depth());
        if self.tokens < needed {
            self.awaited = needed;
        }
        self.tokens >= needed
    }

    /// Counts `bytes` that were sent.
    pub(crate) fn take(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// When a burst is worth a wake-up again, with the message that was not admitted last.
    pub(crate) fn next_burst(&self) -> Instant {
        let missing = (self.depth() / 2).max(self.awaited).saturating_sub(self.tokens);
        let nanos = nanos_for(usize::try_from(missing).unwrap_or(0), self.bytes_per_second);
        self.at + Duration::from_nanos(nanos.saturating_add(1))
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let bytes = passed.as_nanos() * self.bytes_per_second as u128 / NANOS;
        if bytes == 0 {
            // The time is kept, or frequent calls would add nothing for ever.
            return;
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(bytes).min(self.depth());
        self.at = now;
    }

    fn depth(&self) -> i64 {
        let depth = (self.bytes_per_second / BURSTS_PER_SECOND).max(MINIMUM_DEPTH);
        i64::try_from(depth).unwrap_or(i64::MAX)
    }
}

fn nanos_for(bytes: usize, bytes_per_second: usize) -> u64 {
    let nanos = bytes as u128 * NANOS / bytes_per_second.max(1) as u128;
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

const TENTHS: usize = 10;

const TENTH: Duration = Duration::from_millis(100);

const NANOS: u128 = 1_000_000_000;

/// The bucket holds the bytes of a second divided by this. Our choice: a burst every 20 ms, small against the second
/// over which a service may count.
const BURSTS_PER_SECOND: usize = 25;

/// In bytes: four messages.
const MINIMUM_DEPTH: usize = 4 * 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn bytes_count_for_a_second() {
        let (mut meter, start) = (Meter::new(), Instant::now());
        meter.on_sent(100, start);
        meter.on_sent(10, start + ms(550));
        assert_eq!(meter.last_second(start + ms(999)), 110);
        assert_eq!(meter.last_second(start + ms(1_050)), 10);
        assert_eq!(meter.last_second(start + ms(1_600)), 0);
        meter.on_sent(5, start + ms(3_600_000));
        assert_eq!(meter.last_second(start + ms(3_600_500)), 5);
    }

    #[test]
    fn no_more_than_the_rate_passes_whatever_the_moments_of_the_calls() {
        for step in [1, 3, 20, 100] {
            let (mut bucket, start) = (Bucket::new(100_000, Instant::now()), Instant::now());
            let (mut passed, mut at) = (0, 0);
            while at < 10_000 {
                while bucket.admits(1_024, start + ms(at)) {
                    bucket.take(1_024);
                    passed += 1_024;
                }
                at += step;
            }
            assert!(
                (390_000..=1_005_000).contains(&passed),
                "{passed} bytes at steps of {step} ms"
            );
            if step <= 20 {
                assert!(passed >= 950_000, "{passed} bytes at steps of {step} ms");
            }
        }
    }

    #[test]
    fn the_next_burst_passes_when_it_is_due() {
        let start = Instant::now();
        for rate in [1_000, 32 * 1_024, 1_000_000, 50_000_000] {
            for bytes in [1, 1_024, 4_096, 65_536] {
                let mut bucket = Bucket::new(rate, start);
                assert!(!bucket.admits(bytes, start));
                let due = bucket.next_burst();
                assert!(due > start);
                assert!(bucket.admits(bytes, due), "{bytes} at {rate} a second");
            }
        }
    }

    #[test]
    fn a_message_larger_than_the_bucket_passes_when_that_is_full() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10_000, start);
        assert!(!bucket.admits(65_536, start + ms(100)));
        assert!(bucket.admits(65_536, start + ms(1_000)));
        bucket.take(65_536);
        assert!(!bucket.admits(1_024, start + ms(7_000)), "6.5 s are used up");
        assert!(bucket.admits(1_024, start + ms(7_300)));
    }
}
