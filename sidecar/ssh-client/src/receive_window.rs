//! The size of a channel's receive window: how much the server may send on it ahead of the consumer.
//!
//! All channels of a connection share one queue on the path. If the path is slower than the server, data sent
//! ahead on one channel delays all others: 512 KiB at 0.8 MB/s add 650 ms to each query on another channel.
//! So the window of a channel that carries bulk data is limited to what arrives on it in one round trip and
//! little more (its bandwidth-delay product); any other keeps room for a whole answer.

use std::time::{Duration, Instant};

/// The window of one channel, adapted to the rate at which data arrives on it.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveWindow {
    /// In bytes.
    size: u32,
    /// Largest size, in bytes.
    limit: u32,
    /// The highest rate so far that two epochs in a row have reached, in bytes per second. It is never lowered:
    /// the window limits the rate, so a window that followed a falling rate might shrink for ever.
    best: u64,
    /// The rate of the latest epoch, in bytes per second.
    latest: u64,
    /// Number of epochs for which the window is still doubled, because the rate has grown with it.
    growing: u8,
    epoch: Option<Epoch>,
    /// Bytes since the last pause.
    unbroken: u64,
    recent: Option<Recent>,
}

/// Bytes of the last one to two times [`RECENT`].
#[derive(Clone, Copy, Debug)]
struct Recent {
    began: Instant,
    /// Bytes since then.
    bytes: u64,
    /// Bytes in the period before.
    before: u64,
}

impl Recent {
    fn add(&mut self, bytes: u32, now: Instant) {
        if now.saturating_duration_since(self.began) >= RECENT {
            *self = Self { began: now, bytes: 0, before: self.bytes_by(now) };
        }
        self.bytes += u64::from(bytes);
    }

    fn bytes_by(&self, now: Instant) -> u64 {
        match now.saturating_duration_since(self.began) {
            age if age < RECENT => self.bytes + self.before,
            age if age < RECENT * 2 => self.bytes,
            _ => 0,
        }
    }
}

/// A period of about a round trip, for which the rate is measured.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    began: Instant,
    /// Bytes since then.
    bytes: u64,
    /// When the latest of them arrived.
    latest: Instant,
}

impl ReceiveWindow {
    /// Makes a window that never exceeds `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            size: INITIAL.min(limit),
            limit,
            best: 0,
            latest: 0,
            growing: 0,
            epoch: None,
            unbroken: 0,
            recent: None,
        }
    }

    /// Most bytes that may be sent by the server and not yet consumed.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Whether bulk data arrived in the last second or two. Pauses are allowed: a busy machine causes them.
    pub(crate) fn is_in_bulk(&self, now: Instant) -> bool {
        self.recent.is_some_and(|recent| recent.bytes_by(now) >= u64::from(INITIAL))
    }

    /// Least credit for which a window adjustment is sent, in bytes.
    ///
    /// Small if little arrives: sshd uses Nagle's algorithm, so it waits for TCP acknowledgements from the
    /// SSM agent, which are delayed by 40 ms unless data is sent the other way.
    pub(crate) fn min_credit(&self) -> u32 {
        let soon = in_time(self.best, MAX_CREDIT_DELAY).min(self.size / 8);
        soon.max(LEAST_CREDIT).min(self.size.div_ceil(2))
    }

    /// Notes that `bytes` have arrived. `round_trip` is the longest round trip of the path without its
    /// queues; while it is unknown, the window has its largest size.
    pub(crate) fn on_data(&mut self, bytes: u32, now: Instant, round_trip: Option<Duration>) {
        let recent = Recent { began: now, bytes: 0, before: 0 };
        self.recent.get_or_insert(recent).add(bytes, now);
        let Some(round_trip) = round_trip else {
            self.size = self.limit;
            return;
        };
        let arriving = self.time_for(bytes) * 2;
        self.unbroken += u64::from(bytes);
        let length = round_trip.max(SHORTEST_EPOCH);
        match &mut self.epoch {
            Some(epoch) if now.saturating_duration_since(epoch.began) < length * 4 => {
                let pause = now.saturating_duration_since(epoch.latest).saturating_sub(arriving);
                if pause > round_trip / 2 {
                    self.unbroken = u64::from(bytes);
                }
                epoch.latest = now;
                epoch.bytes += u64::from(bytes);
                let elapsed = now.saturating_duration_since(epoch.began);
                if elapsed >= length {
                    let rate = per_second(epoch.bytes, elapsed);
                    self.epoch = Some(Epoch { began: now, bytes: 0, latest: now });
                    self.on_rate(rate);
                }
            }
            // The first data at all or after a long pause was sent before this epoch, so it does not count.
            _ => {
                self.epoch = Some(Epoch { began: now, bytes: 0, latest: now });
                self.unbroken = u64::from(bytes);
            }
        }
        self.size = self.size_for(round_trip);
    }

    fn on_rate(&mut self, rate: u64) {
        // The lower of two epochs: data that a stall held up arrives all at once.
        let lasting = rate.min(std::mem::replace(&mut self.latest, rate));
        let has_grown = lasting > self.best + self.best / 4;
        self.growing = if has_grown { GROWING } else { self.growing.saturating_sub(1) };
        self.best = self.best.max(lasting);
    }

    fn size_for(&self, round_trip: Duration) -> u32 {
        // If the path is long, the unmeasured rest of the way, to the server and within it, may be long as well.
        let carried = in_time(self.best, round_trip + round_trip.saturating_sub(NEAR) / 2);
        let carried = if self.growing > 0 { carried.saturating_mul(2) } else { carried };
        // Credit waits until `min_credit` is reached, and data until its packet is complete.
        let carried = carried.saturating_add((carried / 4).max(2 * LEAST_CREDIT));
        let least = if self.unbroken < BULK { INITIAL } else { LEAST };
        carried.max(least).min(self.limit)
    }

    /// How long `bytes` take to arrive at the best rate; zero while that is unknown.
    fn time_for(&self, bytes: u32) -> Duration {
        match self.best {
            0 => Duration::ZERO,
            rate => Duration::from_micros(u64::from(bytes).saturating_mul(1_000_000) / rate),
        }
    }
}

/// Rate in bytes per second.
fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// Bytes that arrive in `time` at `rate` bytes per second.
fn in_time(rate: u64, time: Duration) -> u32 {
    u32::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}

// Limits of ours; the tests below show what they do on paths with round trips of 1 to 100 ms.

/// Window of a channel whose rate is unknown, and least window of one that carries no bulk data, in bytes: most
/// answers to a query arrive in one round trip.
const INITIAL: u32 = 128 * 1024;

/// Least window of a channel that carries bulk data, in bytes: 10 ms at the 0.8 MB/s of one session.
const LEAST: u32 = 8 * 1024;

/// Least credit that is sent, in bytes, unless the window is small: less is not worth a packet.
const LEAST_CREDIT: u32 = 3 * 1024;

/// Longest time for which credit is held back while the window is large enough.
const MAX_CREDIT_DELAY: Duration = Duration::from_millis(5);

/// Bytes without a pause of half a round trip that count as bulk data.
const BULK: u64 = 2 * INITIAL as u64;

/// Length of each of the two periods that decide whether a channel carries bulk data.
const RECENT: Duration = Duration::from_secs(1);

/// Shortest epoch: rates over less time show timers rather than the path.
const SHORTEST_EPOCH: Duration = Duration::from_millis(40);

/// A round trip up to this is also reported for a path of almost none, so it does not lengthen the estimate.
const NEAR: Duration = Duration::from_millis(15);

/// Epochs for which the window stays doubled after the rate has exceeded its maximum by a quarter: the window
/// itself may be what limits the rate.
const GROWING: u8 = 2;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The default of `Config::max_packet`.
    const PACKET: u32 = 4 * 1024;

    /// A channel with bulk data: a server that always has more to send, and a path.
    struct Bulk {
        window: ReceiveWindow,
        now: Instant,
        /// The part of the round trip that is not reported to the window.
        hidden: Duration,
    }

    impl Bulk {
        fn new() -> Self {
            Self {
                window: ReceiveWindow::new(512 * 1024),
                now: Instant::now(),
                hidden: Duration::ZERO,
            }
        }

        /// Runs for `time` over a path of `rate` bytes per second, `None` for no limit, and a round trip of
        /// `delay`; returns the rate from the second round trip on.
        fn run(&mut self, rate: Option<u32>, delay: Duration, time: Duration) -> u64 {
            let (step, start) = (ms(1), self.now);
            // One delay for both credit to the server and data back.
            let mut flying =
                VecDeque::from(vec![0_u32; usize::try_from(delay.as_millis()).unwrap()]);
            let mut packets = VecDeque::new();
            let (mut outstanding, mut carried, mut seen) = (0_u32, 0_u32, 0_u64);
            while self.now < start + time {
                let credit = self.window.size().saturating_sub(outstanding);
                let granted = if credit >= self.window.min_credit() { credit } else { 0 };
                outstanding += granted;
                flying.push_back(granted);
                let mut sendable = flying.pop_front().unwrap_or_default();
                while sendable > 0 {
                    packets.push_back(sendable.min(PACKET));
                    sendable -= sendable.min(PACKET);
                }
                // Capacity left over from one packet is used for the next.
                carried = rate.map_or(u32::MAX, |rate| carried + rate / 1_000);
                while let Some(packet) = packets.pop_front_if(|packet| *packet <= carried) {
                    carried -= packet;
                    outstanding -= packet;
                    self.window.on_data(
                        packet,
                        self.now,
                        Some((delay + ms(10)).saturating_sub(self.hidden)),
                    );
                    if self.now >= start + delay * 2 {
                        seen += u64::from(packet);
                    }
                }
                if packets.is_empty() {
                    carried = 0;
                }
                self.now += step;
            }
            per_second(seen, time.saturating_sub(delay * 2))
        }
    }

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn bulk_fills_a_slow_path_and_no_queue() {
        for (delay, least, most) in
            [(1, 8_192, 16_000), (20, 24_000, 48_000), (100, 90_000, 180_000)]
        {
            let mut bulk = Bulk::new();
            bulk.run(Some(800_000), ms(delay), ms(2_000));
            let rate = bulk.run(Some(800_000), ms(delay), ms(2_000));
            assert!(rate > 790_000, "{rate} B/s at {delay} ms");
            let size = bulk.window.size();
            assert!((least..most).contains(&size), "{size} bytes at {delay} ms");
        }
    }

    #[test]
    fn unreported_delay_does_not_shrink_the_window_for_ever() {
        for rate in [800_000, 4_000_000] {
            let mut bulk = Bulk::new();
            bulk.hidden = ms(40);
            bulk.run(Some(rate), ms(80), ms(10_000));
            let (seen, size) = (bulk.run(Some(rate), ms(80), ms(10_000)), bulk.window.size());
            bulk.run(Some(rate), ms(80), ms(60_000));
            let later = bulk.run(Some(rate), ms(80), ms(10_000));
            assert!(later >= seen - seen / 100, "{later} after {seen} B/s of {rate}");
            assert!(seen > u64::from(rate) * 4 / 5, "{seen} B/s of {rate}, {size} bytes");
        }
    }

    #[test]
    fn a_fast_path_opens_the_window_to_its_limit() {
        for delay in [1, 20, 100] {
            let mut bulk = Bulk::new();
            bulk.run(None, ms(delay), ms(2_000));
            assert_eq!(bulk.window.size(), 512 * 1024, "at {delay} ms");
        }
    }

    #[test]
    fn a_path_that_becomes_faster_is_followed() {
        let mut bulk = Bulk::new();
        bulk.run(Some(800_000), ms(20), ms(2_000));
        let rate = bulk.run(Some(4_000_000), ms(20), ms(3_000));
        assert!(rate > 3_500_000, "{rate}");
    }

    #[test]
    fn burst_after_a_stall_does_not_count_as_rate() {
        let mut bulk = Bulk::new();
        bulk.run(Some(800_000), ms(100), ms(5_000));
        let size = bulk.window.size();
        for _ in 0..20 {
            bulk.now += ms(500);
            bulk.window.on_data(size, bulk.now, Some(ms(110)));
            bulk.run(Some(800_000), ms(100), ms(1_000));
        }
        assert!(bulk.window.size() <= size * 3 / 2, "{} after {size}", bulk.window.size());
    }

    #[test]
    fn short_answers_find_room_at_once() {
        let mut window = ReceiveWindow::new(512 * 1024);
        let mut now = Instant::now();
        for _ in 0..100 {
            for _ in 0..10 {
                window.on_data(5_000, now, Some(ms(110)));
                now += ms(1);
                assert!(window.size() >= INITIAL, "{}", window.size());
            }
            now += ms(100);
        }
    }

    #[test]
    fn bulk_is_detected_while_it_lasts() {
        let mut bulk = Bulk::new();
        assert!(!bulk.window.is_in_bulk(bulk.now), "nothing has arrived");
        bulk.run(Some(800_000), ms(20), ms(150));
        assert!(!bulk.window.is_in_bulk(bulk.now), "an answer of 100 kB");
        // With pauses, as on a busy machine.
        for _ in 0..20 {
            bulk.run(Some(800_000), ms(20), ms(200));
            bulk.now += ms(100);
            assert!(bulk.window.is_in_bulk(bulk.now));
        }
        assert!(!bulk.window.is_in_bulk(bulk.now + ms(2_000)), "it has ended");
    }

    #[test]
    fn unknown_round_trip_gives_the_largest_window() {
        let mut window = ReceiveWindow::new(512 * 1024);
        window.on_data(1, Instant::now(), None);
        assert_eq!(window.size(), 512 * 1024);
        assert_eq!(ReceiveWindow::new(100).size(), 100);
    }
}
