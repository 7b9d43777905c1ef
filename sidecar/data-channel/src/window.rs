//! The congestion window: how much may be in flight.

use std::time::{Duration, Instant};

use crate::rtt::RoundTrip;

/// Congestion window in messages, each of which stands for 1,024 payload bytes.
///
/// It doubles each round trip at first, then grows by a fraction of itself, as long as the round trip stays near
/// its minimum; it halves when messages are overdue. A message that is missing while later ones have arrived
/// costs little: below the WebSocket is TCP, so it was lost inside the service and not in a full queue of the
/// path, which would show in the round trip.
///
/// The agent announces no window: it buffers 100,000 messages and stops reading while sshd does not
/// (docs/ssm-protocol.md, section 9.2). A full path shows only as a growing round trip, so that bounds growth.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    messages: usize,
    maximum: usize,
    /// Below this the window doubles each round trip.
    threshold: usize,
    /// Acknowledgements since the last step of slow growth.
    credit: usize,
    /// When the window was last reduced. Losses of messages sent before do not reduce it again.
    cut_at: Option<Instant>,
    /// Start of the current round trip, and the lower bound to which missing messages may reduce the window in it.
    missing: Option<(Instant, usize)>,
}

impl Window {
    pub(crate) const fn new() -> Self {
        Self {
            messages: INITIAL,
            maximum: PROVEN,
            threshold: PROVEN,
            credit: 0,
            cut_at: None,
            missing: None,
        }
    }

    /// Starts again at the minimum, to grow slowly.
    pub(crate) fn restart(&mut self) {
        self.messages = MINIMUM.min(self.maximum);
        self.threshold = self.messages;
        self.credit = 0;
    }

    /// Sets the maximum, in messages.
    pub(crate) fn set_maximum(&mut self, messages: usize) {
        self.maximum = messages;
        self.messages = self.messages.min(messages);
    }

    pub(crate) const fn messages(&self) -> usize {
        self.messages
    }

    /// In payload bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.messages * MESSAGE_BYTES
    }

    pub(crate) const fn is_at_maximum(&self) -> bool {
        self.messages >= self.maximum
    }

    /// Whether a message of `bytes` may be sent besides `messages` with `in_flight` bytes. A single message always may.
    pub(crate) const fn has_room(&self, messages: usize, in_flight: usize, bytes: usize) -> bool {
        let fits = in_flight.saturating_add(bytes) <= self.bytes();
        messages == 0 || (messages < self.messages && fits)
    }

    /// Handles the acknowledgement of a message of `bytes`. `window_limited`: the window held bytes back. A window that
    /// was not used up proves nothing about a larger one.
    pub(crate) fn on_acknowledged(
        &mut self,
        bytes: usize,
        window_limited: bool,
        rtt: &RoundTrip,
        now: Instant,
    ) {
        let (Some(smoothed), Some(minimum)) = (rtt.smoothed(), rtt.minimum()) else { return };
        if smoothed > minimum * 2 + SLACK * 2 {
            // Once a round trip, or one queue would reduce the window many times.
            let due =
                self.cut_at.is_none_or(|cut_at| now.saturating_duration_since(cut_at) >= smoothed);
            if due {
                self.shrink_to(self.messages - self.messages / 8, now);
            }
            return;
        }
        if !window_limited || smoothed > minimum + minimum / 2 + SLACK {
            return;
        }
        self.credit += bytes.div_ceil(MESSAGE_BYTES).max(1);
        let step = if self.messages < self.threshold { 1 } else { GROWTH_FRACTION };
        self.messages = (self.messages + self.credit / step).min(self.maximum);
        self.credit %= step;
    }

    /// Handles the loss of a message sent at `sent_at`; false if the window was reduced for it already.
    pub(crate) fn on_lost(&mut self, sent_at: Instant, now: Instant) -> bool {
        let counted = self.cut_at.is_some_and(|cut_at| sent_at <= cut_at);
        if !counted {
            self.shrink_to(self.messages / 2, now);
        }
        !counted
    }

    /// Handles `count` messages that are missing while later ones have arrived. Reduces the window by at most half
    /// in a round trip.
    pub(crate) fn on_missing(&mut self, count: usize, rtt: &RoundTrip, now: Instant) {
        let round_trip = rtt.smoothed().unwrap_or_default();
        let least = match self.missing {
            Some((began, least)) if now.saturating_duration_since(began) < round_trip => least,
            _ => {
                let half = self.messages / 2;
                self.missing = Some((now, half));
                half
            }
        };
        let least = least.max(MINIMUM).min(self.messages);
        self.messages = self.messages.saturating_sub(count * MISSING_DECREMENT).max(least);
    }

    fn shrink_to(&mut self, messages: usize, now: Instant) {
        self.messages = messages.max(MINIMUM).min(self.maximum);
        self.threshold = self.messages;
        self.credit = 0;
        self.cut_at = Some(now);
    }
}

/// Messages. Our choice: with 1,024 bytes each enough for 1 MB/s at 60 ms, small enough for any path.
const INITIAL: usize = 64;

/// Messages. Our choice: at a round trip of 0 ms 16 are enough (docs/ssm-protocol.md, section 9.2).
const MINIMUM: usize = 16;

/// Messages: 256 KiB of payload, the only amount in flight proven on the live service (docs/ssm-protocol.md,
/// section 9.2).
pub(crate) const PROVEN: usize = 256;

/// Payload bytes that a message stands for. A larger one counts as several.
const MESSAGE_BYTES: usize = 1_024;

/// Delay that is no sign of a full path: a busy agent, timers of its system. Our choice.
const SLACK: Duration = Duration::from_millis(10);

/// After the first loss the window grows by one message per this many acknowledgements. Our choice.
const GROWTH_FRACTION: usize = 8;

/// Messages by which a missing one reduces the window. Our choice: less than the growth unless more than one in
/// sixteen is missing.
const MISSING_DECREMENT: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn path(minimum: u64, smoothed: u64) -> RoundTrip {
        let mut rtt = RoundTrip::new();
        rtt.on_sample(ms(minimum));
        for _ in 0..100 {
            rtt.on_sample(ms(smoothed));
        }
        rtt
    }

    #[test]
    fn a_full_window_doubles_each_round_trip_up_to_the_cap() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        for expected in [128, 256, 256] {
            for _ in 0..window.messages() {
                window.on_acknowledged(1_024, true, &rtt, now);
            }
            assert_eq!(window.messages(), expected);
        }
    }

    #[test]
    fn a_window_that_is_not_used_does_not_grow() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        for _ in 0..1_000 {
            window.on_acknowledged(1_024, false, &rtt, now);
        }
        assert_eq!(window.messages(), INITIAL);
    }

    #[test]
    fn growth_ends_where_the_round_trip_grows() {
        let (mut window, now) = (Window::new(), Instant::now());
        for _ in 0..1_000 {
            window.on_acknowledged(1_024, true, &path(50, 90), now);
        }
        assert_eq!(window.messages(), INITIAL);
    }

    #[test]
    fn a_queue_shrinks_the_window_once_each_round_trip() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 200));
        for _ in 0..100 {
            window.on_acknowledged(1_024, true, &rtt, now);
        }
        assert_eq!(window.messages(), 56);
        window.on_acknowledged(1_024, true, &rtt, now + ms(200));
        assert_eq!(window.messages(), 49);
    }

    #[test]
    fn one_loss_halves_once_whatever_was_in_flight() {
        let (mut window, start) = (Window::new(), Instant::now());
        let now = start + ms(200);
        assert!(window.on_lost(start, now));
        assert!(!window.on_lost(start + ms(1), now));
        assert_eq!(window.messages(), 32);
        assert!(window.on_lost(now + ms(1), now + ms(400)));
        assert!(window.on_lost(now + ms(600), now + ms(900)));
        assert_eq!(window.messages(), MINIMUM);
    }

    #[test]
    fn missing_messages_reduce_the_window_by_two_each_and_at_most_half_in_a_round_trip() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        window.on_missing(1, &rtt, now);
        assert_eq!(window.messages(), 62);
        window.on_missing(100, &rtt, now + ms(49));
        assert_eq!(window.messages(), 32);
        window.on_missing(100, &rtt, now + ms(50));
        assert_eq!(window.messages(), MINIMUM);
        window.on_lost(now, now);
        window.on_missing(100, &rtt, now + ms(500));
        assert_eq!(window.messages(), MINIMUM);
    }

    #[test]
    fn after_a_loss_the_window_grows_slowly() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        window.on_lost(now, now);
        for _ in 0..32 {
            window.on_acknowledged(1_024, true, &rtt, now);
        }
        assert_eq!(window.messages(), 36);
    }

    #[test]
    fn large_messages_count_by_their_bytes() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        assert!(window.has_room(7, 7 * 8_192, 8_192));
        assert!(!window.has_room(8, 8 * 8_192, 1));
        assert!(window.has_room(0, 0, 65_537), "a single message always has room");
        for _ in 0..8 {
            window.on_acknowledged(8_192, true, &rtt, now);
        }
        assert_eq!(window.messages(), 128);
    }

    #[test]
    fn a_window_that_starts_again_grows_slowly() {
        let (mut window, now, rtt) = (Window::new(), Instant::now(), path(50, 50));
        window.restart();
        assert_eq!(window.messages(), MINIMUM);
        for _ in 0..16 {
            window.on_acknowledged(1_024, true, &rtt, now);
        }
        assert_eq!(window.messages(), 18);
    }
}
