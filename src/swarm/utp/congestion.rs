//! How much may be on its way: LEDBAT (BEP 29, RFC 6817), round-trip times and when an answer is late. Layer 2, pure.

use std::time::Duration;

use crate::base::Now;

/// The queueing delay that is aimed at (BEP 29).
const TARGET_US: f64 = 100_000.0;
/// Bytes that the window grows by in one round trip far below the target.
const GAIN_BYTES: f64 = 3_000.0;
/// The largest part of the window that is given up in one round trip to a queue.
const YIELD_MAX: f64 = 0.5;
/// What a loss leaves of the window where packets queue, or may do so (BEP 29).
const LEFT_QUEUED: f64 = 0.5;
/// What it leaves where none does: then it is the line that loses, as radio does, and what the window is made smaller by helps
/// nobody. It still counts for something, as not every queue is seen: TCP gives up as much for any loss (RFC 9438).
const LEFT_UNQUEUED: f64 = 0.7;
/// Packets that wait no longer than this wait in no queue that could overflow.
const UNQUEUED_US: u32 = 5_000;
/// Packets that may be on their way at first.
const WINDOW_START_PACKETS: f64 = 4.0;
/// Beyond this no line is kept busier, and losses of a whole window cost too much.
const WINDOW_MAX_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// Times in which the lowest delay is remembered: a drifting clock is followed within `BASE_SPANS` of them.
const BASE_SPAN: Duration = Duration::from_secs(60);
const BASE_SPANS: usize = 3;
/// The lowest of so many samples counts: one late packet is no queue.
const SAMPLES: usize = 3;
/// A step of the other side's base delay larger than this is something else than a drifting clock.
const DRIFT_MAX_US: u32 = 10_000;
/// A timeout is never shorter (BEP 29), nor longer than this.
const TIMEOUT_MIN: Duration = Duration::from_millis(500);
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// What an answer may be late by, beyond what round trips differ by, before it is asked for: acks that wait for more, and
/// clocks that are looked at late.
const LATE_SLACK: Duration = Duration::from_millis(50);
/// Before anything is known of the line.
const TIMEOUT_START: Duration = Duration::from_secs(1);

/// The lowest delay seen lately, in one direction. Delays hold the difference of both clocks, so only their differences
/// mean anything.
#[derive(Clone, Debug, Default)]
pub(super) struct BaseDelay {
    /// The lowest of each span, newest last.
    lowest: Vec<u32>,
    span_ends: Now,
}

impl BaseDelay {
    /// Takes a sample; returns how far it lies above the lowest.
    pub fn add(&mut self, sample_us: u32, now: Now) -> u32 {
        if self.lowest.is_empty() || now >= self.span_ends {
            if self.lowest.len() == BASE_SPANS {
                self.lowest.remove(0);
            }
            self.lowest.push(sample_us);
            self.span_ends = now + BASE_SPAN;
        }
        if let Some(newest) = self.lowest.last_mut()
            && is_less(sample_us, *newest)
        {
            *newest = sample_us;
        }
        sample_us.wrapping_sub(self.get())
    }

    /// The lowest; 0 before the first sample.
    pub fn get(&self) -> u32 {
        let lower = |a: u32, b: u32| if is_less(b, a) { b } else { a };
        self.lowest.iter().copied().reduce(lower).unwrap_or(0)
    }

    /// Moves all of it up.
    fn raise(&mut self, by_us: u32) {
        for lowest in &mut self.lowest {
            *lowest = lowest.wrapping_add(by_us);
        }
    }
}

/// Earlier on a circle of 2³² µs.
const fn is_less(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The delays of both directions of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Delays {
    ours: BaseDelay,
    theirs: BaseDelay,
    samples: [u32; SAMPLES],
    count: usize,
}

impl Delays {
    /// A packet of theirs came so long after it was sent, by both clocks.
    pub fn on_theirs(&mut self, delay_us: u32, now: Now) {
        let is_first = self.theirs.lowest.is_empty();
        let before = self.theirs.get();
        self.theirs.add(delay_us, now);
        let fell_by = before.wrapping_sub(self.theirs.get());
        // The clocks drift apart: what falls on their side rises on ours, where no minimum would follow it.
        if !is_first && fell_by > 0 && fell_by < DRIFT_MAX_US {
            self.ours.raise(fell_by);
        }
    }

    /// A packet of ours took so long, as they say.
    pub fn on_ours(&mut self, delay_us: u32, now: Now) {
        let above = self.ours.add(delay_us, now);
        self.samples[self.count % SAMPLES] = above;
        self.count += 1;
    }

    /// How long packets of ours queue, if that is known.
    pub fn queueing_us(&self) -> Option<u32> {
        let known = self.samples.get(..self.count.min(SAMPLES))?;
        known.iter().copied().min()
    }

    /// Whether all of the last packets found the line free.
    pub fn is_unqueued(&self) -> bool {
        self.count >= SAMPLES && self.samples.iter().all(|above| *above <= UNQUEUED_US)
    }
}

/// Round-trip time, smoothed.
#[derive(Clone, Debug)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    deviation: Duration,
}

impl RoundTrip {
    pub const fn new() -> RoundTrip {
        RoundTrip {
            smoothed: None,
            deviation: Duration::ZERO,
        }
    }

    /// Takes one that was measured with a packet sent once.
    pub fn add(&mut self, sample: Duration) {
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(sample);
            self.deviation = sample / 2;
            return;
        };
        self.deviation = (self.deviation * 3 + smoothed.abs_diff(sample)) / 4;
        self.smoothed = Some((smoothed * 7 + sample) / 8);
    }

    /// When what was sent counts as lost, after so many timeouts in a row.
    pub fn timeout(&self, timeouts: u32) -> Duration {
        let base = match self.smoothed {
            None => TIMEOUT_START,
            Some(smoothed) => (smoothed + self.deviation * 4).max(TIMEOUT_MIN),
        };
        base.saturating_mul(1 << timeouts.min(10)).min(TIMEOUT_MAX)
    }

    /// When an answer is late enough to ask for it; `None` where nothing is known of the line.
    pub fn late_after(&self) -> Option<Duration> {
        let smoothed = self.smoothed?;
        Some(smoothed + self.deviation * 4 + LATE_SLACK)
    }
}

/// The congestion window.
#[derive(Clone, Debug)]
pub(super) struct Congestion {
    window: f64,
    /// Slow start ends here; none as long as nothing was lost.
    threshold: Option<f64>,
    is_slow_start: bool,
    /// A loss of what was sent before this transmission belongs to the last one.
    counts_from: u64,
}

impl Congestion {
    pub fn new(packet_bytes: u32) -> Congestion {
        Congestion {
            window: WINDOW_START_PACKETS * f64::from(packet_bytes),
            threshold: None,
            is_slow_start: true,
            counts_from: 0,
        }
    }

    /// Bytes that may be on their way.
    pub fn window_bytes(&self) -> u64 {
        self.window as u64
    }

    /// So many bytes came across, of so many that were on their way. A window that was not full does not grow: that says
    /// nothing about the line. It yields to a queue all the same, by as large a part as the queue is too long, half of it
    /// in a round trip at the most.
    pub fn on_acked(
        &mut self,
        (acked_bytes, of_bytes): (u64, u64),
        filled_window: bool,
        queueing_us: u32,
        packet_bytes: u32,
    ) {
        let off_target = (TARGET_US - f64::from(queueing_us)) / TARGET_US;
        if off_target <= 0.0 && self.is_slow_start {
            self.is_slow_start = false;
            self.threshold = Some(self.window / 2.0);
        }
        let acked = acked_bytes as f64;
        let lowest = f64::from(packet_bytes);
        if off_target < 0.0 {
            self.window = (self.window + acked * off_target.max(-YIELD_MAX)).max(lowest);
            return;
        }
        if !filled_window {
            return;
        }
        // After a loss more is on its way than the window is wide: it is still one round trip's.
        let steady = GAIN_BYTES * off_target * acked / self.window.max(of_bytes as f64);
        let gain = if self.is_slow_start {
            match self.threshold {
                Some(threshold) if self.window + acked > threshold => {
                    self.is_slow_start = false;
                    steady
                }
                _ => acked.max(steady),
            }
        } else {
            steady
        };
        self.window = (self.window + gain).clamp(lowest, WINDOW_MAX_BYTES);
    }

    /// A packet was lost whose last transmission had that number; `next` is the number of the next one.
    pub fn on_lost(&mut self, transmission: u64, next: u64, is_unqueued: bool, packet_bytes: u32) {
        if transmission < self.counts_from {
            return;
        }
        self.counts_from = next;
        // A window that doubles is twice as wide as it was when this was sent.
        let left = match is_unqueued && !self.is_slow_start {
            true => LEFT_UNQUEUED,
            false => LEFT_QUEUED,
        };
        self.window = (self.window * left).max(f64::from(packet_bytes));
        self.threshold = Some(self.window);
        self.is_slow_start = false;
    }

    /// Nothing came back at all.
    pub fn on_timeout(&mut self, next: u64, packet_bytes: u32) {
        self.counts_from = next;
        self.threshold = Some((self.window / 2.0).max(2.0 * f64::from(packet_bytes)));
        self.window = f64::from(packet_bytes);
        self.is_slow_start = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_to_the_first_loss_and_then_grows_by_the_gain() {
        let mut congestion = Congestion::new(1_000);
        assert_eq!(congestion.window_bytes(), 4_000);
        congestion.on_acked((4_000, 4_000), true, 0, 1_000);
        assert_eq!(congestion.window_bytes(), 8_000);
        congestion.on_lost(7, 8, false, 1_000);
        congestion.on_lost(6, 9, false, 1_000);
        assert_eq!(congestion.window_bytes(), 4_000, "one loss a round trip");
        congestion.on_acked((4_000, 4_000), true, 0, 1_000);
        assert_eq!(congestion.window_bytes(), 7_000);
        congestion.on_acked((7_000, 7_000), true, 50_000, 1_000);
        assert_eq!(congestion.window_bytes(), 8_500, "half way to the target");
        congestion.on_acked((8_500, 8_500), false, 120_000, 1_000);
        assert_eq!(congestion.window_bytes(), 6_800, "it yields to a queue");
        congestion.on_acked((6_800, 6_800), true, 400_000, 1_000);
        assert_eq!(congestion.window_bytes(), 3_400, "by half at the most");
        congestion.on_acked((3_400, 3_400), false, 0, 1_000);
        assert_eq!(congestion.window_bytes(), 3_400, "it was not filled");
        congestion.on_timeout(20, 1_000);
        assert_eq!(congestion.window_bytes(), 1_000);
    }

    #[test]
    fn a_loss_halves_the_window_where_packets_queue_or_it_doubles_and_cuts_it_less_elsewhere() {
        let mut congestion = Congestion::new(1_000);
        congestion.on_acked((6_000, 6_000), true, 0, 1_000);
        congestion.on_lost(7, 8, true, 1_000);
        assert_eq!(congestion.window_bytes(), 5_000, "it doubled");
        congestion.on_lost(8, 9, true, 1_000);
        assert_eq!(congestion.window_bytes(), 3_500, "nothing queues");
        congestion.on_lost(9, 10, false, 1_000);
        assert_eq!(congestion.window_bytes(), 1_750);

        let mut delays = Delays::default();
        for delay_us in [20_000, 21_000] {
            delays.on_ours(delay_us, Now::ZERO);
        }
        assert!(!delays.is_unqueued(), "too little is known");
        delays.on_ours(24_000, Now::ZERO);
        assert!(delays.is_unqueued());
        delays.on_ours(26_000, Now::ZERO);
        assert!(!delays.is_unqueued(), "the last one waited");
        delays.on_ours(20_000, Now::ZERO);
        assert!(!delays.is_unqueued());
    }

    #[test]
    fn a_round_trip_grows_by_the_gain_although_its_window_was_cut_meanwhile() {
        let mut congestion = Congestion::new(1_000);
        congestion.on_acked((20_000, 20_000), true, 0, 1_000);
        congestion.on_lost(7, 8, false, 1_000);
        assert_eq!(congestion.window_bytes(), 12_000);
        congestion.on_acked((12_000, 24_000), true, 0, 1_000);
        congestion.on_acked((12_000, 12_000), true, 0, 1_000);
        assert_eq!(congestion.window_bytes(), 12_000 + 1_500 + 2_666);
    }

    #[test]
    fn the_base_delay_follows_a_clock_either_way() {
        let mut base = BaseDelay::default();
        // Just below the wrap of the clock.
        assert_eq!(base.add(u32::MAX - 10, Now::ZERO), 0);
        assert_eq!(base.add(5, Now::ZERO), 16);
        assert_eq!(base.add(u32::MAX - 20, Now::ZERO), 0);
        for minute in 1..=4 {
            base.add(1_000, Now::from_secs(minute * 61));
        }
        assert_eq!(base.get(), 1_000, "what was low is forgotten");

        let mut delays = Delays::default();
        delays.on_theirs(50_000, Now::ZERO);
        delays.on_ours(1_000, Now::ZERO);
        delays.on_theirs(49_000, Now::ZERO);
        delays.on_ours(2_000, Now::ZERO);
        assert_eq!(delays.queueing_us(), Some(0), "drift is no queue");
    }

    #[test]
    fn timeouts_follow_the_line_within_their_bounds() {
        let mut rtt = RoundTrip::new();
        assert_eq!(rtt.timeout(0), TIMEOUT_START);
        rtt.add(Duration::from_millis(10));
        assert_eq!(rtt.timeout(0), TIMEOUT_MIN);
        for _ in 0..100 {
            rtt.add(Duration::from_secs(2));
        }
        assert!(rtt.timeout(0) > Duration::from_millis(1_900));
        assert_eq!(rtt.timeout(9), TIMEOUT_MAX);
    }
}
