//! What is to go wrong: a plan and a seed, so that a failing run can be repeated.

use std::time::Duration;

/// What goes wrong, and the seed of all that is left to chance.
///
/// The default plan is a world without faults.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(crate) seed: u64,
    pub(crate) api: Vec<ApiFault>,
    pub(crate) up: Link,
    pub(crate) down: Link,
    pub(crate) cut: Option<Cut>,
    pub(crate) ends_without_word: bool,
}

impl Plan {
    /// A plan without faults.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Adds a fault of the API. The first fault that applies to a call is the one that happens.
    #[must_use]
    pub fn api(mut self, fault: ApiFault) -> Self {
        self.api.push(fault);
        self
    }

    /// Faults of messages from client to agent.
    ///
    /// The agent looks at no digest: damage in this direction reaches sshd or kills the session.
    #[must_use]
    pub fn up(mut self, link: Link) -> Self {
        self.up = link;
        self
    }

    /// Faults of messages from agent to client.
    #[must_use]
    pub fn down(mut self, link: Link) -> Self {
        self.down = link;
        self
    }

    /// Faults in both directions.
    #[must_use]
    pub fn both(self, link: Link) -> Self {
        self.up(link).down(link)
    }

    /// Breaks of the client's WebSocket.
    #[must_use]
    pub fn cut(mut self, cut: Cut) -> Self {
        self.cut = Some(cut);
        self
    }

    /// Ends sessions by a close of the socket alone, without `channel_closed`.
    #[must_use]
    pub fn ending_without_word(mut self) -> Self {
        self.ends_without_word = true;
        self
    }
}

/// A call that may fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// `ssm:StartSession`.
    StartSession,
    /// `ssm:ResumeSession`.
    ResumeSession,
    /// `ssm:TerminateSession`.
    TerminateSession,
    /// `sts:AssumeRole`.
    AssumeRole,
    /// The upgrade to a WebSocket.
    OpenDataChannel,
}

/// How a call fails.
#[derive(Clone, Debug)]
pub enum Failure {
    /// `ThrottlingException`; 429 for an upgrade.
    Throttled,
    /// `InternalServerError`, status 500.
    InternalServerError,
    /// `TargetNotConnected`, status 430.
    TargetNotConnected,
    /// Any other error.
    Error {
        /// Of HTTP.
        status: u16,
        /// Such as `BadRequest`.
        code: String,
        /// For people.
        message: String,
    },
    /// The call is carried out that much later.
    Delayed(Duration),
    /// The call is carried out, and the connection closed in place of an answer.
    AnswerLost,
    /// The call is carried out, and its answer has no token.
    WithoutToken,
    /// There is never an answer.
    Hangs,
    /// The connection is closed at once.
    ConnectionClosed,
}

/// A failure, the calls that it applies to, and how often.
#[derive(Clone, Debug)]
pub struct ApiFault {
    pub(crate) failure: Failure,
    pub(crate) action: Option<Action>,
    pub(crate) extent: Extent,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    Always,
    Times(u32),
    /// From the building of the emulator, or from the plan's setting.
    Lasting(Duration),
}

impl ApiFault {
    /// A failure of every call, always.
    pub fn new(failure: Failure) -> Self {
        Self { failure, action: None, extent: Extent::Always }
    }

    /// Of this call only.
    #[must_use]
    pub fn on(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    /// The first so many times only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.extent = Extent::Times(times);
        self
    }

    /// For so long only, from when the plan was set.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.extent = Extent::Lasting(duration);
        self
    }
}

/// Faults of the messages of one direction. Probabilities go from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    pub(crate) drop: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) damage: f64,
    pub(crate) truncate: f64,
    pub(crate) forge: f64,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
}

impl Link {
    /// A link without faults.
    pub fn clean() -> Self {
        Self::default()
    }

    /// Messages vanish.
    #[must_use]
    pub fn dropping(mut self, probability: f64) -> Self {
        self.drop = probability;
        self
    }

    /// Messages arrive twice.
    #[must_use]
    pub fn duplicating(mut self, probability: f64) -> Self {
        self.duplicate = probability;
        self
    }

    /// Messages are overtaken by up to 20 ms of others.
    #[must_use]
    pub fn reordering(mut self, probability: f64) -> Self {
        self.reorder = probability;
        self
    }

    /// A bit of digest or payload is changed, never one of the header: nothing protects those.
    #[must_use]
    pub fn damaging(mut self, probability: f64) -> Self {
        self.damage = probability;
        self
    }

    /// Payloads lose their end.
    #[must_use]
    pub fn truncating(mut self, probability: f64) -> Self {
        self.truncate = probability;
        self
    }

    /// Frames come along that nobody sent and that a client has to drop: without a whole header, of unknown types
    /// and any size, with numbers far ahead or below zero, acknowledges of what was never sent. Towards the client
    /// alone, since they would kill the real agent.
    #[must_use]
    pub fn forging(mut self, probability: f64) -> Self {
        self.forge = probability;
        self
    }

    /// Messages take this long, and up to `jitter` more, without overtaking each other.
    #[must_use]
    pub fn delayed(mut self, delay: Duration, jitter: Duration) -> Self {
        self.delay = delay;
        self.jitter = jitter;
        self
    }

    pub(crate) fn is_clean(&self) -> bool {
        let chances =
            [self.drop, self.duplicate, self.reorder, self.damage, self.truncate, self.forge];
        chances.iter().all(|chance| *chance <= 0.0) && self.delay.is_zero() && self.jitter.is_zero()
    }
}

/// How a WebSocket breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Break {
    /// Close 1000 "Bye", as the service does it each hour.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing is read nor written any more, and the connection stays open.
    Silence,
}

/// Breaks of a session's WebSocket after so many frames of data, in either direction, each time.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub(crate) after: u64,
    pub(crate) how: Break,
    pub(crate) times: u32,
}

impl Cut {
    /// A break after `frames` frames of each of a session's connections.
    pub fn after(frames: u64, how: Break) -> Self {
        Self { after: frames, how, times: u32::MAX }
    }

    /// Of the first so many connections of a session only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

/// A small generator of numbers that look random: the same from the same seed, everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // The steps below would stay at zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Xorshift with a multiplication (Vigna, "xorshift64*").
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        let steps = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(steps) < probability * f64::from(u32::MAX)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap_or(0) % limit.max(1)
    }

    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        let steps = u32::try_from(self.next() >> 48).unwrap_or(0);
        limit * steps / 0xffff
    }

    /// An id of version 4.
    pub(crate) fn uuid(&mut self) -> uuid::Uuid {
        let (high, low) = (u128::from(self.next()), u128::from(self.next()));
        uuid::Builder::from_random_bytes((high << 64 | low).to_be_bytes()).into_uuid()
    }

    /// Lower-case hexadecimal digits.
    pub(crate) fn hex(&mut self, digits: usize) -> String {
        let digit =
            |nibble: usize| char::from(b"0123456789abcdef".get(nibble).copied().unwrap_or(b'0'));
        (0..digits).map(|_| digit(self.below(16))).collect()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| u8::try_from(self.below(256)).unwrap_or(0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_about_what_it_says_and_repeats() {
        for probability in [0.0, 0.01, 0.5, 1.0] {
            let count = |seed| {
                let mut rng = Rng::new(seed);
                (0..20_000).filter(|_| rng.chance(probability)).count()
            };
            let hits = f64::from(u32::try_from(count(7)).unwrap());
            assert!((hits / 20_000.0 - probability).abs() < 0.02, "{hits} for {probability}");
            assert_eq!(count(7), count(7));
        }
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut rng = Rng::new(0);
        for _ in 0..1_000 {
            assert!(rng.below(3) < 3);
            assert!(rng.up_to(Duration::from_millis(5)) <= Duration::from_millis(5));
            assert_eq!(rng.uuid().get_version_num(), 4);
        }
    }
}
