//! How far the server may send ahead on one channel.
//!
//! What it sends ahead stands in the one queue that all channels of the connection share. Where the path
//! is slower than the server, everybody's answers wait behind it: 512 KiB ahead at 0.8 MB/s are 650 ms
//! more for each query on another channel. So a channel in bulk is allowed what arrives on it in one
//! round trip, and little more; one that is not keeps room for an answer at once.

use std::time::{Duration, Instant};

/// The window of one channel, by the rate at which data arrives on it.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveWindow {
    /// In bytes.
    size: u32,
    limit: u32,
    /// The highest rate so far that two epochs in a row have reached, in bytes per second. It is never
    /// lowered: a window that followed the rate which it limits itself might never stop shrinking.
    best: u64,
    /// The rate of the latest epoch.
    latest: u64,
    /// Epochs in which the window doubles still, as the rate has grown with it.
    growing: u8,
    epoch: Option<Epoch>,
    /// Bytes since the last pause.
    unbroken: u64,
    recent: Option<Recent>,
}

/// What has arrived lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    began: Instant,
    /// Since then.
    bytes: u64,
    /// In the stretch before.
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

/// A stretch of time of about a round trip.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    began: Instant,
    /// Arrived since then.
    bytes: u64,
    latest: Instant,
}

impl ReceiveWindow {
    /// Makes one that never exceeds `limit` bytes.
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

    /// In bytes; what the server may have sent, and the consumer not consumed.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Whether data comes in bulk, over the last second or two; on a busy machine not without pauses.
    pub(crate) fn is_in_bulk(&self, now: Instant) -> bool {
        self.recent.is_some_and(|recent| recent.bytes_by(now) >= u64::from(INITIAL))
    }

    /// How much credit is worth a packet to the server, in bytes.
    ///
    /// Little where little arrives: sshd sends with Nagle's algorithm, and the agent's acknowledgements of
    /// TCP, which it waits for, are delayed by 40 ms if nothing goes the other way.
    pub(crate) fn grain(&self) -> u32 {
        let soon = in_time(self.best, GRAIN_TIME).min(self.size / 8);
        soon.max(LEAST_GRAIN).min(self.size.div_ceil(2))
    }

    /// Takes note that `bytes` have arrived. `round_trip` is what the path takes at most, queues apart;
    /// where that is not known, nothing can be said but that the window shall not be in the way.
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
            // The first data ever, or after a long pause: it was sent before this epoch.
            _ => {
                self.epoch = Some(Epoch { began: now, bytes: 0, latest: now });
                self.unbroken = u64::from(bytes);
            }
        }
        self.size = self.fitting(round_trip);
    }

    fn on_rate(&mut self, rate: u64) {
        // What a stall has held up arrives in one.
        let lasting = rate.min(std::mem::replace(&mut self.latest, rate));
        let has_grown = lasting > self.best + self.best / 4;
        self.growing = if has_grown { GROWING } else { self.growing.saturating_sub(1) };
        self.best = self.best.max(lasting);
    }

    fn fitting(&self, round_trip: Duration) -> u32 {
        // On a long path the rest of the way, to the server and within it, may be long as well.
        let carried = in_time(self.best, round_trip + round_trip.saturating_sub(NEAR) / 2);
        let carried = if self.growing > 0 { carried.saturating_mul(2) } else { carried };
        // Credit waits until there is a grain of it, and a grain of data until it is complete.
        let carried = carried.saturating_add((carried / 4).max(2 * LEAST_GRAIN));
        let least = if self.unbroken < BULK { INITIAL } else { LEAST };
        carried.max(least).min(self.limit)
    }

    /// How long so much takes to arrive, as far as that is known.
    fn time_for(&self, bytes: u32) -> Duration {
        match self.best {
            0 => Duration::ZERO,
            rate => Duration::from_micros(u64::from(bytes).saturating_mul(1_000_000) / rate),
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn in_time(rate: u64, time: Duration) -> u32 {
    u32::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}

/// What a channel may be sent before its rate is known, and what one may be sent at once that is not in
/// bulk, in bytes: most answers to a query, in one round trip.
const INITIAL: u32 = 128 * 1024;

/// A channel in bulk keeps at least so much, in bytes: 10 ms at the 0.8 MB/s of one session.
const LEAST: u32 = 8 * 1024;

/// Less credit than this is not worth a packet, in bytes, unless the window is small.
const LEAST_GRAIN: u32 = 3 * 1024;

/// Credit does not wait for longer, as long as the window is large enough.
const GRAIN_TIME: Duration = Duration::from_millis(5);

/// So much without a pause of most of a round trip is bulk, in bytes.
const BULK: u64 = 2 * INITIAL as u64;

/// What came in this time, and in the same before it, tells whether a channel is in bulk.
const RECENT: Duration = Duration::from_secs(1);

/// Rates over less time say more about timers than about the path.
const SHORTEST_EPOCH: Duration = Duration::from_millis(40);

/// A round trip of less is told of a path that hardly takes any time.
const NEAR: Duration = Duration::from_millis(15);

/// As long as each rate exceeds all before by a quarter, and so many epochs more, the window itself may be
/// what limits it.
const GROWING: u8 = 2;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// As large as the client allows by default.
    const PACKET: u32 = 4 * 1024;

    /// A channel in bulk: a server that always has more, behind a path.
    struct Bulk {
        window: ReceiveWindow,
        now: Instant,
        /// What is told of the round trip leaves this out.
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

        /// Lets it run for `time` over a path of `rate` bytes per second, `None` for no limit, and `delay`
        /// for a round trip; returns the rate seen from the second round trip on.
        fn run(&mut self, rate: Option<u32>, delay: Duration, time: Duration) -> u64 {
            let (step, start) = (ms(1), self.now);
            // Credit on its way to the server, and data on its way back, as one delay.
            let mut flying =
                VecDeque::from(vec![0_u32; usize::try_from(delay.as_millis()).unwrap()]);
            let mut packets = VecDeque::new();
            let (mut outstanding, mut carried, mut seen) = (0_u32, 0_u32, 0_u64);
            while self.now < start + time {
                let credit = self.window.size().saturating_sub(outstanding);
                let granted = if credit >= self.window.grain() { credit } else { 0 };
                outstanding += granted;
                flying.push_back(granted);
                let mut sendable = flying.pop_front().unwrap_or_default();
                while sendable > 0 {
                    packets.push_back(sendable.min(PACKET));
                    sendable -= sendable.min(PACKET);
                }
                // What the path has not carried of one packet it carries of the next.
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
    fn a_delay_that_is_not_told_does_not_make_the_window_shrink_away() {
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
    fn what_a_stall_held_up_is_no_rate() {
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
    fn answers_of_a_moment_find_room_at_once() {
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
    fn bulk_is_known_while_it_lasts() {
        let mut bulk = Bulk::new();
        assert!(!bulk.window.is_in_bulk(bulk.now), "nothing has come");
        bulk.run(Some(800_000), ms(20), ms(150));
        assert!(!bulk.window.is_in_bulk(bulk.now), "an answer of 100 kB");
        // A busy machine holds it up again and again.
        for _ in 0..20 {
            bulk.run(Some(800_000), ms(20), ms(200));
            bulk.now += ms(100);
            assert!(bulk.window.is_in_bulk(bulk.now));
        }
        assert!(!bulk.window.is_in_bulk(bulk.now + ms(2_000)), "it has ended");
    }

    #[test]
    fn an_unknown_path_gets_all_there_is() {
        let mut window = ReceiveWindow::new(512 * 1024);
        window.on_data(1, Instant::now(), None);
        assert_eq!(window.size(), 512 * 1024);
        assert_eq!(ReceiveWindow::new(100).size(), 100);
    }
}
