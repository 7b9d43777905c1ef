//! How much of the outgoing stream is under way: bytes in flight, bytes a second, and bytes in a message.
//!
//! The service between client and agent has limits of its own, and what they count is not documented. What was seen is
//! how it shows them: by `pause_publication`, and by the close of the channel (docs/ssm-protocol.md, section 9.2).
//! So a channel stays within what is proven, and takes each pause, and each close that follows one or a fast upload,
//! for a limit:
//!
//! | event | in flight | rate | message |
//! | --- | --- | --- | --- |
//! | start | 64 messages, doubling each round trip to at most 256 KiB | no limit | as configured |
//! | pause during an upload in messages of 1,024 bytes | at most half of the window of then | 7/10 of what was sent within the last second | |
//! | pause during an upload in larger messages | at most half of the window of then | no limit yet | 1,024 bytes |
//! | close soon after a pause, or during a fast upload | the same, beginning with 16 messages | half, else the same | 1,024 bytes |
//! | close while larger messages are in flight | | | 1,024 bytes |
//! | ten seconds in which this limit held bytes back | 1/16 more | 1/16 more; 1/4 beyond the rate at which it showed | |
//! | a session that was resumed, without a limit so far | grows beyond 256 KiB, slowly | | |
//!
//! Only a session that was resumed before goes beyond the proven 256 KiB, so that a close pauses the connections and
//! does not cut them.

use std::time::{Duration, Instant};

use crate::{
    rtt::RoundTrip,
    send_rate::{Bucket, Meter},
    upload_limits::UploadLimits,
    window::{PROVEN, Window},
};

/// The limits of one channel.
#[derive(Debug)]
pub(crate) struct Congestion {
    message_bytes: usize,
    window: Window,
    /// Whether the window held bytes back when it was last asked.
    window_limited: bool,
    meter: Meter,
    /// `None` while the rate is not limited.
    bucket: Option<Bucket>,
    /// Limit of the window that the service has shown, in messages.
    ceiling: Option<usize>,
    /// Whether messages larger than [`PROVEN_MESSAGE`] are not sent any more.
    small_messages: bool,
    /// What was sent within the second before the service showed the limit, in bytes.
    shown_rate: usize,
    /// When a shown limit first held bytes back, since it was last changed.
    limited_since: Option<Instant>,
    /// When the last pause was asked for, or when it has ended.
    paused_at: Option<Instant>,
    /// Maximum of the window in messages where no limit has shown.
    maximum: usize,
    /// Whether the last path was lost by congestion.
    is_congested: bool,
}

impl Congestion {
    /// `limits`: what earlier channels have learned.
    pub(crate) fn new(message_bytes: usize, limits: UploadLimits, now: Instant) -> Self {
        let mut congestion = Self {
            message_bytes,
            window: Window::new(),
            window_limited: false,
            meter: Meter::new(),
            bucket: limits.bytes_per_second.map(|rate| Bucket::new(rate, now)),
            ceiling: limits.window,
            small_messages: limits.small_messages,
            shown_rate: limits.bytes_per_second.unwrap_or(0),
            limited_since: None,
            paused_at: None,
            maximum: PROVEN,
            is_congested: false,
        };
        if congestion.is_limited() {
            congestion.window.restart();
        }
        congestion.bound_window();
        congestion
    }

    /// What the channels after this one are to know.
    pub(crate) fn limits(&self) -> UploadLimits {
        UploadLimits {
            bytes_per_second: self.bucket.as_ref().map(Bucket::bytes_per_second),
            window: self.ceiling,
            small_messages: self.small_messages,
        }
    }

    /// Maximum payload of a new message.
    pub(crate) fn message_bytes(&self) -> usize {
        if self.small_messages {
            self.message_bytes.min(PROVEN_MESSAGE)
        } else {
            self.message_bytes
        }
    }

    /// Maximum of the messages in flight.
    pub(crate) const fn window(&self) -> usize {
        self.window.messages()
    }

    /// Maximum of the payload bytes in flight.
    pub(crate) const fn window_bytes(&self) -> usize {
        self.window.bytes()
    }

    /// Whether the window has room for a message of `bytes` besides `messages` with `in_flight` bytes. To be called
    /// only when there is something to send.
    pub(crate) fn has_room(&mut self, messages: usize, in_flight: usize, bytes: usize) -> bool {
        let room = self.window.has_room(messages, in_flight, bytes);
        self.window_limited = !room;
        room
    }

    /// There is nothing to send.
    pub(crate) const fn on_idle(&mut self) {
        self.window_limited = false;
    }

    /// Whether the rate admits a message of `bytes` now. It counts once it is sent, see [`on_sent`](Self::on_sent).
    pub(crate) fn admits(&mut self, bytes: usize, now: Instant) -> bool {
        let Some(bucket) = &mut self.bucket else { return true };
        let admitted = bucket.admits(bytes, now);
        if !admitted {
            self.on_held_back(Limit::Rate, now);
        }
        admitted
    }

    /// When the rate admits the next burst; `None` without a limit.
    pub(crate) fn next_burst(&self) -> Option<Instant> {
        self.bucket.as_ref().map(Bucket::next_burst)
    }

    /// A message with these payload bytes was sent, for the first time or again.
    pub(crate) fn on_sent(&mut self, bytes: usize, now: Instant) {
        self.meter.on_sent(bytes, now);
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
    }

    /// A message of `bytes` was acknowledged.
    pub(crate) fn on_acknowledged(&mut self, bytes: usize, rtt: &RoundTrip, now: Instant) {
        self.window.on_acknowledged(bytes, self.window_limited, rtt, now);
        if self.window_limited && self.ceiling.is_some() && self.window.is_at_maximum() {
            self.on_held_back(Limit::Window, now);
        }
    }

    /// A message in flight is overdue; false if the window was reduced for it before.
    pub(crate) fn on_lost(&mut self, sent_at: Instant, now: Instant) -> bool {
        self.window.on_lost(sent_at, now)
    }

    /// Messages are missing while later ones have arrived.
    pub(crate) fn on_missing(&mut self, count: usize, rtt: &RoundTrip, now: Instant) {
        self.window.on_missing(count, rtt, now);
    }

    /// The service asks for a pause.
    pub(crate) fn on_pause(&mut self, now: Instant) {
        self.paused_at = Some(now);
        let sent = self.meter.last_second(now);
        if sent >= SIGNIFICANT {
            self.limit(sent, sent / 10 * 7, now);
        }
    }

    /// The pause is over.
    pub(crate) const fn on_pause_ended(&mut self, now: Instant) {
        self.paused_at = Some(now);
    }

    /// The path is lost, or the channel was closed, while messages larger than [`PROVEN_MESSAGE`] were in flight or not.
    pub(crate) fn on_path_lost(&mut self, large_in_flight: bool, now: Instant) {
        let sent = self.meter.last_second(now);
        let follows_pause =
            self.paused_at.is_some_and(|at| now.saturating_duration_since(at) < AFTER_A_PAUSE);
        let limit = self.bucket.as_ref().map_or(0, Bucket::bytes_per_second);
        // A limit that was not reached proves nothing; soon after a pause, little was sent because of it.
        let rate = if sent >= FAST { sent } else { limit.max(sent) };
        self.is_congested = sent >= FAST || (follows_pause && rate >= SIGNIFICANT);
        if self.is_congested {
            self.limit(rate, rate / 2, now);
        }
        self.small_messages |= large_in_flight;
    }

    /// The session was resumed on a new path.
    pub(crate) fn on_new_path(&mut self) {
        self.maximum = BEYOND_PROVEN;
        self.paused_at = None;
        if self.is_congested {
            self.window.restart();
        }
        self.bound_window();
    }

    /// Whether the last path was lost by congestion, so that the next one is filled slowly.
    pub(crate) const fn is_congested(&self) -> bool {
        self.is_congested
    }

    /// The service has shown a limit when `shown` bytes a second were sent; from now on at most `rate` are.
    fn limit(&mut self, shown: usize, rate: usize, now: Instant) {
        self.ceiling = Some((self.window.messages() / 2).clamp(MINIMUM_CEILING, PROVEN));
        self.limited_since = None;
        // Large messages are the first suspect: the rate may be none.
        if self.message_bytes() <= PROVEN_MESSAGE {
            let rate = rate.max(MINIMUM_RATE);
            match &mut self.bucket {
                Some(bucket) => bucket.set_rate(rate.min(bucket.bytes_per_second()), now),
                None => self.bucket = Some(Bucket::new(rate, now)),
            }
            self.shown_rate = shown;
        }
        self.small_messages = true;
        self.bound_window();
    }

    /// Raises the limit that holds bytes back, after [`CLIMB_AFTER`] in which one did.
    fn on_held_back(&mut self, limit: Limit, now: Instant) {
        let since = *self.limited_since.get_or_insert(now);
        if now.saturating_duration_since(since) < CLIMB_AFTER {
            return;
        }
        self.limited_since = Some(now);
        let rate = self.bucket.as_ref().map(Bucket::bytes_per_second);
        let climb =
            if rate.is_some_and(|rate| rate < self.shown_rate) { CLIMB } else { CLIMB_BEYOND };
        let more = |limit: usize| limit + limit / climb;
        match (limit, &mut self.bucket) {
            (Limit::Rate, Some(bucket)) => match more(bucket.bytes_per_second()) {
                rate if rate >= UNLIMITED_RATE => self.bucket = None,
                rate => bucket.set_rate(rate, now),
            },
            (Limit::Rate, None) => (),
            (Limit::Window, _) => {
                self.ceiling = self.ceiling.map(more).filter(|ceiling| *ceiling < PROVEN);
            }
        }
        self.bound_window();
    }

    fn bound_window(&mut self) {
        let maximum = if self.is_limited() { PROVEN } else { self.maximum };
        self.window.set_maximum(self.ceiling.unwrap_or(maximum));
    }

    const fn is_limited(&self) -> bool {
        self.bucket.is_some() || self.ceiling.is_some()
    }
}

/// A limit that the service has shown.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Rate,
    Window,
}

/// Largest payload proven for sustained uploads, in bytes (docs/ssm-protocol.md, section 9.2).
pub(crate) const PROVEN_MESSAGE: usize = 1_024;

/// Maximum of the window in messages where a session was resumed and no limit has shown. At 25 ms one way 1,024 in
/// flight gave 13.2 MB/s, 4,096 only 15.2 (docs/ssm-protocol.md, section 9.2).
const BEYOND_PROVEN: usize = 4_096;

/// Minimum of the window's limit, in messages. Our choice: at a round trip of 0 ms 16 are enough.
const MINIMUM_CEILING: usize = 32;

/// Bytes within a second from which a pause is taken for a limit. Below, it has other causes. Our choice: a tenth of
/// what the official plugin sends.
const SIGNIFICANT: usize = 64 * 1_024;

/// Bytes within a second that are a fast upload. Our choice: half of what the official plugin sends.
const FAST: usize = 256 * 1_024;

/// Minimum limit of the rate, in bytes a second. Our choice: a quarter of what another client keeps to by default
/// (docs/ssm-protocol.md, section 9.2).
const MINIMUM_RATE: usize = 32 * 1_024;

/// From here on the rate is not limited any more, in bytes a second. Our choice: more than an agent takes in messages
/// of 1,024 bytes.
const UNLIMITED_RATE: usize = 32 << 20;

/// A close this soon after a pause has the same cause. Our choice.
const AFTER_A_PAUSE: Duration = Duration::from_secs(10);

/// Our choice: from 7/10 of what the service takes, a rate is back there after a minute.
const CLIMB_AFTER: Duration = Duration::from_secs(10);

/// Limits grow by themselves divided by this, up to the rate at which they showed.
const CLIMB: usize = 16;

/// And by this beyond that rate, where nothing speaks against more. Our choice: tenfold in two minutes.
const CLIMB_BEYOND: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1_024;

    fn new(limits: UploadLimits) -> (Congestion, Instant) {
        let now = Instant::now();
        (Congestion::new(KIB, limits, now), now)
    }

    fn send(congestion: &mut Congestion, kib: usize, now: Instant) {
        for _ in 0..kib {
            congestion.on_sent(KIB, now);
        }
    }

    #[test]
    fn a_pause_during_an_upload_limits_rate_window_and_messages() {
        let (mut congestion, now) = new(UploadLimits::default());
        assert_eq!(congestion.limits(), UploadLimits::default());
        send(&mut congestion, 1_000, now);
        congestion.on_pause(now);
        let limits = congestion.limits();
        assert_eq!(limits.bytes_per_second(), Some(716_800));
        assert_eq!(limits.window, Some(32));
        assert!(!congestion.has_room(32, 32 * KIB, KIB));
    }

    #[test]
    fn a_pause_during_an_upload_in_large_messages_limits_messages_and_window_first() {
        let now = Instant::now();
        let mut congestion = Congestion::new(8 * KIB, UploadLimits::default(), now);
        assert_eq!(congestion.message_bytes(), 8 * KIB);
        send(&mut congestion, 1_000, now);
        congestion.on_pause(now);
        assert_eq!((congestion.message_bytes(), congestion.window()), (KIB, 32));
        assert_eq!(congestion.limits().bytes_per_second(), None);
        congestion.on_pause(now);
        assert_eq!(congestion.limits().bytes_per_second(), Some(716_800), "the second suspect");
    }

    #[test]
    fn a_pause_without_an_upload_limits_nothing() {
        let (mut congestion, now) = new(UploadLimits::default());
        send(&mut congestion, 63, now);
        congestion.on_pause(now);
        congestion.on_path_lost(false, now);
        assert!(!congestion.is_congested());
        assert_eq!(congestion.limits(), UploadLimits::default());
    }

    #[test]
    fn after_a_close_during_a_fast_upload_the_next_path_starts_small() {
        let (mut congestion, now) = new(UploadLimits::default());
        send(&mut congestion, 255, now);
        congestion.on_path_lost(false, now);
        assert!(!congestion.is_congested());
        send(&mut congestion, 1, now);
        congestion.on_path_lost(false, now);
        assert!(congestion.is_congested());
        congestion.on_new_path();
        assert_eq!(congestion.window(), 16);
        assert_eq!(congestion.limits().bytes_per_second(), Some(128 * KIB));
    }

    #[test]
    fn a_close_soon_after_a_pause_halves_the_limit_again() {
        let (mut congestion, now) = new(UploadLimits::default());
        send(&mut congestion, 1_000, now);
        congestion.on_pause(now);
        congestion.on_pause_ended(now);
        let later = now + AFTER_A_PAUSE;
        congestion.on_path_lost(false, later);
        assert!(!congestion.is_congested(), "long after the pause");
        congestion.on_pause_ended(later);
        congestion.on_path_lost(false, later);
        assert!(congestion.is_congested());
        assert_eq!(congestion.limits().bytes_per_second(), Some(358_400));
    }

    #[test]
    fn a_close_with_large_messages_in_flight_makes_messages_small() {
        let now = Instant::now();
        let mut congestion = Congestion::new(8 * KIB, UploadLimits::default(), now);
        congestion.on_path_lost(true, now);
        assert_eq!(congestion.message_bytes(), KIB);
    }

    #[test]
    fn limits_hold_for_the_next_channel_and_climb_slowly_while_they_hold_bytes_back() {
        let limits =
            UploadLimits { bytes_per_second: Some(64_000), window: Some(64), small_messages: true };
        let now = Instant::now();
        let mut congestion = Congestion::new(8 * KIB, limits, now);
        assert_eq!((congestion.message_bytes(), congestion.limits()), (KIB, limits));
        assert_eq!(congestion.window(), 16);
        let at = |seconds| now + Duration::from_secs(seconds);
        let fill = |congestion: &mut Congestion, second| {
            let mut sent = 0;
            while congestion.admits(KIB, at(second)) {
                congestion.on_sent(KIB, at(second));
                sent += 1;
            }
            sent
        };
        assert!((0..10).all(|second| fill(&mut congestion, second) <= 4));
        assert_eq!(congestion.limits(), limits);
        fill(&mut congestion, 10);
        let raised = UploadLimits { bytes_per_second: Some(80_000), ..limits };
        assert_eq!(congestion.limits(), raised);
    }

    #[test]
    fn only_a_resumed_session_without_a_limit_goes_beyond_what_is_proven() {
        let (mut congestion, now) = new(UploadLimits::default());
        let mut rtt = RoundTrip::new();
        rtt.on_sample(Duration::from_millis(50));
        let grow = |congestion: &mut Congestion| {
            for _ in 0..100_000 {
                congestion.window_limited = true;
                congestion.on_acknowledged(KIB, &rtt, now);
            }
            congestion.window()
        };
        assert_eq!(grow(&mut congestion), 256);
        congestion.on_path_lost(false, now);
        congestion.on_new_path();
        assert_eq!(grow(&mut congestion), 4_096);
        send(&mut congestion, 1_000, now);
        congestion.on_pause(now);
        assert_eq!(grow(&mut congestion), 256, "a limit has shown");
    }
}
