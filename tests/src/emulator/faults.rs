//! Fault injection: a plan and a seed, so that a failing run can be repeated.

use std::time::Duration;

/// The faults to inject, and the seed for everything random.
///
/// The default plan has no faults.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(crate) seed: u64,
    pub(crate) api: Vec<ApiFault>,
    pub(crate) up: Link,
    pub(crate) down: Link,
    pub(crate) cut: Option<Cut>,
    pub(crate) ends_without_word: bool,
    pub(crate) agent: Option<(AgentFailure, u64)>,
}

impl Plan {
    /// A plan without faults, with this seed.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Adds a fault of the API. The first fault that applies to a call is used.
    #[must_use]
    pub fn api(mut self, fault: ApiFault) -> Self {
        self.api.push(fault);
        self
    }

    /// Faults of the messages from client to agent.
    ///
    /// The agent checks no digests: damage in this direction reaches sshd or kills the session.
    #[must_use]
    pub fn up(mut self, link: Link) -> Self {
        self.up = link;
        self
    }

    /// Faults of the messages from agent to client.
    #[must_use]
    pub fn down(mut self, link: Link) -> Self {
        self.down = link;
        self
    }

    /// The same faults in both directions.
    #[must_use]
    pub fn both(self, link: Link) -> Self {
        self.up(link).down(link)
    }

    /// Breaks the client's WebSocket.
    #[must_use]
    pub fn cut(mut self, cut: Cut) -> Self {
        self.cut = Some(cut);
        self
    }

    /// Each session's agent fails with this payload of the client, counted from 1; once.
    #[must_use]
    pub fn agent(mut self, failure: AgentFailure, payload: u64) -> Self {
        self.agent = Some((failure, payload));
        self
    }

    /// Ends sessions by closing the WebSocket, without `channel_closed`.
    #[must_use]
    pub fn ending_without_word(mut self) -> Self {
        self.ends_without_word = true;
        self
    }
}

/// How a session's agent fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AgentFailure {
    /// Its own channel breaks after it has written a payload to sshd, and before it acknowledges it.
    ChannelBreaks,
    /// Its session worker is killed.
    WorkerKilled,
}

/// A call that can fail.
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
        /// HTTP status.
        status: u16,
        /// Error code, such as `BadRequest`.
        code: String,
        /// Message for people.
        message: String,
    },
    /// The call is executed after this delay.
    Delayed(Duration),
    /// The call is executed, but the connection is closed without a response.
    AnswerLost,
    /// The call is executed, but its response has no token.
    WithoutToken,
    /// No response is ever sent.
    Hangs,
    /// The connection is closed at once.
    ConnectionClosed,
}

/// A failure, the calls to which it applies, and how often.
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
    /// Counted from when the emulator was built, or the plan was set.
    Lasting(Duration),
}

impl ApiFault {
    /// A failure of every call, without limit.
    pub fn new(failure: Failure) -> Self {
        Self { failure, action: None, extent: Extent::Always }
    }

    /// Applies to this call only.
    #[must_use]
    pub fn on(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    /// Applies to the first `times` calls only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.extent = Extent::Times(times);
        self
    }

    /// Applies for this long, from when the plan was set.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.extent = Extent::Lasting(duration);
        self
    }
}

/// Faults of the messages in one direction. Probabilities range from 0 to 1.
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

    /// Drops messages.
    #[must_use]
    pub fn dropping(mut self, probability: f64) -> Self {
        self.drop = probability;
        self
    }

    /// Delivers messages twice.
    #[must_use]
    pub fn duplicating(mut self, probability: f64) -> Self {
        self.duplicate = probability;
        self
    }

    /// Delays messages by up to 20 ms, so that others overtake them.
    #[must_use]
    pub fn reordering(mut self, probability: f64) -> Self {
        self.reorder = probability;
        self
    }

    /// Flips a bit of digest or payload, never one of the header, which no digest protects.
    #[must_use]
    pub fn damaging(mut self, probability: f64) -> Self {
        self.damage = probability;
        self
    }

    /// Cuts off the end of payloads.
    #[must_use]
    pub fn truncating(mut self, probability: f64) -> Self {
        self.truncate = probability;
        self
    }

    /// Inserts frames that were never sent and that a client must drop: without a complete header, of
    /// unknown types and any size, with sequence numbers far ahead or below zero, acknowledges of messages
    /// that were never sent. Only towards the client, since they would kill the real agent.
    #[must_use]
    pub fn forging(mut self, probability: f64) -> Self {
        self.forge = probability;
        self
    }

    /// Delays messages by `delay`, and by up to `jitter` more, without reordering.
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
    /// Close 1000 "Bye", as the service sends it every hour.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing is read or written any more, and the connection stays open.
    Silence,
}

/// Breaks each WebSocket of a session after a number of data frames, counted in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub(crate) after: u64,
    pub(crate) how: Break,
    pub(crate) times: u32,
}

impl Cut {
    /// Breaks every connection of a session after `frames` frames.
    pub fn after(frames: u64, how: Break) -> Self {
        Self { after: frames, how, times: u32::MAX }
    }

    /// Breaks only the first `times` connections of a session.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

/// A small pseudo-random generator: the same sequence for the same seed on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Xorshift would stay at zero.
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

    /// A number below `limit`, which must not be 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap_or(0) % limit.max(1)
    }

    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        let steps = u32::try_from(self.next() >> 48).unwrap_or(0);
        limit * steps / 0xffff
    }

    /// A version 4 UUID.
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
