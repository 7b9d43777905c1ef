//! Whether the stream from the agent stands still again and again behind a message that is missing.

use std::time::{Duration, Instant};

/// How long such stops take, where the path loses so much that they are the rule.
///
/// The agent sends again the oldest message alone, every 100 ms. Where that happens all the time, whoever
/// wants the stream to flow has to have more under way than a round trip carries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gaps {
    /// Since when a message is missing.
    since: Option<Instant>,
    period: Option<Period>,
    usual: Duration,
}

/// A stretch of time in which stops are counted.
#[derive(Clone, Copy, Debug)]
struct Period {
    began: Instant,
    stopped: Duration,
    longest: Duration,
}

impl Gaps {
    /// Takes note of whether messages have come while one before them is missing.
    pub(crate) fn note(&mut self, missing: bool, now: Instant) {
        let start = Period { began: now, stopped: Duration::ZERO, longest: Duration::ZERO };
        let period = self.period.get_or_insert(start);
        if missing {
            self.since.get_or_insert(now);
        } else if let Some(since) = self.since.take() {
            let stop = now.saturating_duration_since(since);
            period.stopped += stop;
            period.longest = period.longest.max(stop);
        }
        let length = now.saturating_duration_since(period.began);
        if length >= PERIOD {
            let is_rule = period.stopped * RULE >= length;
            self.usual = if is_rule { period.longest.min(LONGEST) } else { Duration::ZERO };
            self.period = Some(start);
        }
    }

    /// How long a stop takes; zero where stops are no rule.
    pub(crate) const fn usual(&self) -> Duration {
        self.usual
    }
}

/// Long enough for ten repairs by the agent.
const PERIOD: Duration = Duration::from_secs(1);

/// Stops are the rule from this part of the time on.
const RULE: u32 = 4;

/// No more is allowed for, however long the agent took.
const LONGEST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Runs for five seconds with a stop of 150 ms as often as `every`; returns what is usual then.
    fn usual(gaps: &mut Gaps, start: Instant, every: u64) -> Duration {
        for millisecond in 0..5_000 {
            gaps.note(millisecond % every < 150, start + ms(millisecond));
        }
        gaps.usual()
    }

    #[test]
    fn stops_count_where_they_are_the_rule() {
        let (mut gaps, start) = (Gaps::default(), Instant::now());
        assert_eq!(usual(&mut gaps, start, 1_000), Duration::ZERO);
        assert_eq!(usual(&mut gaps, start + ms(5_000), 300), ms(150));
        assert_eq!(usual(&mut gaps, start + ms(10_000), 5_000), Duration::ZERO, "it is over");
    }
}
