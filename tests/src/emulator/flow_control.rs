//! The service's flow control towards a client, modelled from what was seen from outside (specification,
//! section 12): a client that goes too far gets `pause_publication`, and one that goes on after it loses its
//! channel. Which limit the service has is not known, so there are three, each of which may be switched off.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Which limits the gateway has, and what it does to clients that do not stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowControl {
    window: bool,
    rate: Option<f64>,
    large_messages: bool,
    agent_away: bool,
    close: FlowClose,
}

/// A reason for a pause.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Limit {
    /// More than 256 KiB of payload that the agent has not acknowledged.
    Window,
    /// More payload within a second than the rate allows, retransmissions included.
    Rate,
    /// More than 256 KiB within two seconds in messages of more than 1,024 bytes.
    LargeMessages,
    /// The agent's own channel is broken.
    AgentAway,
}

/// What happens when more than 256 KiB of payload follow a pause.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FlowClose {
    /// `channel_closed`: the session is over. This is what was seen.
    #[default]
    ChannelClosed,
    /// The WebSocket is closed with 1000 "Bye"; the session may be resumed.
    WebSocket,
}

impl FlowControl {
    /// No limit, and no close after a pause.
    pub fn none() -> Self {
        Self {
            window: false,
            rate: None,
            large_messages: false,
            agent_away: false,
            close: FlowClose::default(),
        }
    }

    /// All three limits at once, with 5 MB/s.
    pub fn all() -> Self {
        Self::none().window().rate(5.0).large_messages()
    }

    /// Limits what is unacknowledged.
    #[must_use]
    pub fn window(mut self) -> Self {
        self.window = true;
        self
    }

    /// Limits the rate, in millions of bytes a second.
    #[must_use]
    pub fn rate(mut self, megabytes: f64) -> Self {
        self.rate = Some(megabytes);
        self
    }

    /// Limits messages of more than 1,024 bytes.
    #[must_use]
    pub fn large_messages(mut self) -> Self {
        self.large_messages = true;
        self
    }

    /// Pauses the client while the agent's own channel is broken. Whether the service does is not known.
    #[must_use]
    pub fn agent_away(mut self) -> Self {
        self.agent_away = true;
        self
    }

    /// What happens to a client that goes on after a pause.
    #[must_use]
    pub fn closing(mut self, close: FlowClose) -> Self {
        self.close = close;
        self
    }

    /// Whether clients that go on after a pause are closed.
    fn closes(&self) -> bool {
        self.window || self.rate.is_some() || self.large_messages || self.agent_away
    }
}

impl Default for FlowControl {
    fn default() -> Self {
        Self::all()
    }
}

/// What the gateway knows of a client's stream messages.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    /// Payload bytes of the messages in flight, by sequence number.
    unacknowledged: BTreeMap<u64, usize>,
    in_flight: usize,
    /// Sequence number of the next new message.
    next: u64,
    recent: Meter,
    large: Meter,
    agent_is_away: bool,
    /// The limits that are exceeded, or were and are not yet kept again by some distance.
    exceeded: BTreeSet<Limit>,
    /// Payload bytes since the client was paused.
    since_pause: Option<usize>,
    /// Paused by `Control::pause`, which only `Control::start` ends.
    by_hand: bool,
    closed: bool,
}

/// What a change of the gauge requires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    Nothing,
    /// [`Gauge::poll`] has a signal for the client.
    Signal,
    /// The client has gone on after a pause.
    Close(FlowClose),
}

/// What the gateway does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    Pause(Limit),
    Start,
    /// Nothing before this time, or before the gauge changes.
    Wait(Option<Instant>),
}

impl Gauge {
    /// A new WebSocket starts without a pause. What is in flight stays in flight.
    pub(crate) fn reconnected(&mut self) {
        let before = std::mem::take(self);
        self.unacknowledged = before.unacknowledged;
        self.in_flight = before.in_flight;
        self.next = before.next;
        self.agent_is_away = before.agent_is_away;
    }

    /// Counts a stream message of the client.
    pub(crate) fn received(
        &mut self,
        model: &FlowControl,
        sequence: u64,
        length: usize,
        now: Instant,
    ) -> Effect {
        if sequence >= self.next {
            self.next = sequence + 1;
            self.unacknowledged.insert(sequence, length);
            self.in_flight += length;
        }
        self.recent.add(length, now);
        if length > USUAL_MESSAGE {
            self.large.add(length, now);
        }
        if let Some(bytes) = &mut self.since_pause {
            *bytes += length;
            if *bytes > ALLOWANCE && model.closes() && !self.closed {
                self.closed = true;
                return Effect::Close(model.close);
            }
        }
        self.review(model, now)
    }

    /// Counts the acknowledge of a stream message.
    pub(crate) fn acknowledged(&mut self, sequence: u64) -> Effect {
        let Some(length) = self.unacknowledged.remove(&sequence) else { return Effect::Nothing };
        self.in_flight -= length;
        let over = self.exceeded.contains(&Limit::Window) && self.in_flight < WINDOW / 2;
        if over { Effect::Signal } else { Effect::Nothing }
    }

    pub(crate) fn set_agent_away(&mut self, away: bool) {
        self.agent_is_away = away;
    }

    pub(crate) fn pause_by_hand(&mut self) {
        self.by_hand = true;
        self.since_pause.get_or_insert(0);
    }

    pub(crate) fn start_by_hand(&mut self) {
        self.by_hand = false;
        self.since_pause = None;
    }

    /// Decides what to tell the client, once for each change.
    pub(crate) fn poll(&mut self, model: &FlowControl, now: Instant) -> Next {
        self.review(model, now);
        match (self.exceeded.first(), self.since_pause) {
            _ if self.closed => Next::Wait(None),
            (Some(limit), None) => {
                self.since_pause = Some(0);
                Next::Pause(*limit)
            }
            (None, Some(_)) if !self.by_hand => {
                self.since_pause = None;
                Next::Start
            }
            (Some(_), Some(_)) => {
                let by_time = [Limit::Rate, Limit::LargeMessages];
                let passes = by_time.iter().any(|limit| self.exceeded.contains(limit));
                Next::Wait(passes.then_some(now + REVIEW))
            }
            (None, _) => Next::Wait(None),
        }
    }

    fn review(&mut self, model: &FlowControl, now: Instant) -> Effect {
        let recent = self.recent.within(SECOND, now);
        let large = self.large.within(LARGE_PERIOD, now);
        let above = |share: f64| model.rate.is_some_and(|rate| recent > share * rate * 1e6);
        // For each limit whether it is exceeded, and whether it is not kept again yet.
        let limits = [
            (Limit::Window, model.window, self.in_flight > WINDOW, self.in_flight >= WINDOW / 2),
            (Limit::Rate, model.rate.is_some(), above(1.0), above(0.9)),
            (Limit::LargeMessages, model.large_messages, large > LARGE_BYTES, large > 0.0),
            (Limit::AgentAway, model.agent_away, self.agent_is_away, self.agent_is_away),
        ];
        for (limit, is_on, begins, lasts) in limits {
            if is_on && begins {
                self.exceeded.insert(limit);
            } else if !is_on || !lasts {
                self.exceeded.remove(&limit);
            }
        }
        if self.exceeded.is_empty() == self.since_pause.is_none() {
            Effect::Nothing
        } else {
            Effect::Signal
        }
    }
}

/// Bytes by the time at which they were counted.
#[derive(Debug, Default)]
struct Meter {
    slots: VecDeque<(Instant, usize)>,
    sum: usize,
}

impl Meter {
    fn add(&mut self, bytes: usize, now: Instant) {
        self.sum += bytes;
        match self.slots.back_mut() {
            Some((start, sum)) if now < *start + SLOT => *sum += bytes,
            _ => self.slots.push_back((now, bytes)),
        }
    }

    /// The bytes of the last `period`; what is older is forgotten.
    fn within(&mut self, period: Duration, now: Instant) -> f64 {
        while let Some((start, bytes)) = self.slots.front()
            && *start + period <= now
        {
            self.sum -= bytes;
            self.slots.pop_front();
        }
        f64::from(u32::try_from(self.sum).unwrap_or(u32::MAX))
    }
}

/// Payload bytes that may be unacknowledged: what the live service was seen to bear.
const WINDOW: usize = 256 * 1024;

/// Payload bytes that may follow a pause: what may have been in flight when it was sent.
const ALLOWANCE: usize = 256 * 1024;

/// Payload of the official plugin's messages, in bytes; larger ones are large.
const USUAL_MESSAGE: usize = 1_024;

/// Bytes in large messages that are borne within [`LARGE_PERIOD`]: 8 KiB and 32 KiB were seen to be accepted,
/// but not for long.
const LARGE_BYTES: f64 = 256.0 * 1024.0;
const LARGE_PERIOD: Duration = Duration::from_secs(2);

/// Period over which the rate is measured.
const SECOND: Duration = Duration::from_secs(1);

/// Resolution of a [`Meter`].
const SLOT: Duration = Duration::from_millis(1);

/// How often a pause for the rate or for large messages is reviewed.
const REVIEW: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: usize = 1_024;

    /// A gauge with its clock and its client's next sequence number.
    struct Client {
        gauge: Gauge,
        model: FlowControl,
        now: Instant,
        next: u64,
    }

    impl Client {
        fn of(model: FlowControl) -> Self {
            Self { gauge: Gauge::default(), model, now: Instant::now(), next: 0 }
        }

        fn send(&mut self, bytes: usize, message: usize) -> Option<FlowClose> {
            for _ in 0..bytes / message {
                let effect = self.gauge.received(&self.model, self.next, message, self.now);
                self.next += 1;
                if let Effect::Close(how) = effect {
                    return Some(how);
                }
            }
            None
        }

        fn acknowledge(&mut self, numbers: std::ops::Range<u64>) {
            for number in numbers {
                self.gauge.acknowledged(number);
            }
        }

        fn after(&mut self, millis: u64) -> Next {
            self.now += Duration::from_millis(millis);
            self.gauge.poll(&self.model, self.now)
        }
    }

    #[test]
    fn window_bears_256_kib_and_pauses_until_half_is_acknowledged() {
        let mut client = Client::of(FlowControl::none().window());
        client.send(WINDOW, MESSAGE);
        assert_eq!(client.after(0), Next::Wait(None));
        client.send(1, 1);
        assert_eq!(client.after(0), Next::Pause(Limit::Window));
        assert_eq!(client.after(60_000), Next::Wait(None));
        client.acknowledge(0..128);
        assert_eq!(client.after(0), Next::Wait(None));
        client.acknowledge(128..130);
        assert_eq!(client.after(0), Next::Start);
        assert_eq!(client.after(0), Next::Wait(None));
    }

    #[test]
    fn retransmissions_count_for_the_rate_and_not_for_the_window() {
        for (model, pauses) in
            [(FlowControl::none().window(), false), (FlowControl::none().rate(1.0), true)]
        {
            let mut client = Client::of(model);
            for _ in 0..5 {
                client.send(WINDOW, MESSAGE);
                client.next = 0;
            }
            assert_eq!(matches!(client.after(0), Next::Pause(_)), pauses, "{model:?}");
        }
    }

    #[test]
    fn rate_is_that_of_the_last_second() {
        for rate in [0.1, 1.0, 10.0] {
            let mut client = Client::of(FlowControl::none().rate(rate));
            let tenth = Duration::from_millis(100).as_secs_f64() * rate * 1e6;
            let tenth = (1..).step_by(100).find(|bytes| f64::from(*bytes) >= tenth).unwrap();
            let tenth = usize::try_from(tenth).unwrap() - 200;
            for _ in 0..50 {
                client.send(tenth, 100);
                assert_eq!(client.after(100), Next::Wait(None), "{rate} MB/s");
            }
            client.send(3 * tenth, 100);
            assert_eq!(client.after(0), Next::Pause(Limit::Rate), "{rate} MB/s");
            assert!(matches!(client.after(100), Next::Wait(Some(_))), "reviewed by time");
            assert_eq!(client.after(1_000), Next::Start, "{rate} MB/s");
        }
    }

    #[test]
    fn large_messages_are_borne_for_a_while() {
        let mut client = Client::of(FlowControl::none().large_messages());
        for _ in 0..100 {
            client.send(WINDOW, MESSAGE);
        }
        client.send(WINDOW, 8 * MESSAGE);
        assert_eq!(client.after(1_000), Next::Wait(None));
        client.send(8 * MESSAGE, 8 * MESSAGE);
        assert_eq!(client.after(0), Next::Pause(Limit::LargeMessages));
        assert!(matches!(client.after(1_999), Next::Wait(Some(_))));
        assert_eq!(client.after(1), Next::Start);
    }

    #[test]
    fn pause_ends_only_when_every_limit_is_kept() {
        let mut client = Client::of(FlowControl::all());
        client.send(2 * WINDOW, 8 * MESSAGE);
        assert_eq!(client.after(0), Next::Pause(Limit::Window));
        client.acknowledge(0..client.next);
        assert!(matches!(client.after(1_500), Next::Wait(Some(_))), "large messages");
        assert_eq!(client.after(500), Next::Start);
    }

    #[test]
    fn client_that_goes_on_for_256_kib_after_a_pause_is_closed() {
        for how in [FlowClose::ChannelClosed, FlowClose::WebSocket] {
            let mut client = Client::of(FlowControl::all().closing(how));
            assert_eq!(client.send(10 * WINDOW, MESSAGE), None, "no pause was sent yet");
            assert!(matches!(client.after(0), Next::Pause(_)));
            assert_eq!(client.send(ALLOWANCE, MESSAGE), None);
            assert_eq!(client.send(1, 1), Some(how));
            assert_eq!(client.send(ALLOWANCE, MESSAGE), None, "closed once");
            client.gauge.reconnected();
            assert_eq!(client.gauge.in_flight, 10 * WINDOW + 2 * ALLOWANCE + 1);
        }
    }

    #[test]
    fn pause_by_hand_ends_by_hand() {
        let mut client = Client::of(FlowControl::all());
        client.gauge.pause_by_hand();
        assert_eq!(client.after(60_000), Next::Wait(None));
        assert_eq!(client.send(ALLOWANCE, MESSAGE), None);
        assert!(client.send(MESSAGE, MESSAGE).is_some());
        let mut client = Client::of(FlowControl::none());
        client.gauge.pause_by_hand();
        assert_eq!(client.send(9 * ALLOWANCE, MESSAGE), None, "where nothing is limited");
        client.gauge.start_by_hand();
        assert_eq!(client.after(0), Next::Wait(None));
    }
}
