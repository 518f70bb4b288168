//! A rate limit shared fairly by many clients, by deficit round robin. Layer 2, pure.
//!
//! Clients are numbers that the caller chooses (a peer, a torrent). Moves no bytes and keeps no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::base::Now;

/// What a usual client may take before the next one's turn: one block.
const QUANTUM_BYTES: u64 = 16_384;
/// Unused rate is kept for a twentieth of a second: late timers lose nothing, and two seconds stay within 3 %.
const BURST_PER_S: u64 = 20;
/// A wake-up earlier than this costs more than the delay it saves.
const WAKE_MIN: Duration = Duration::from_millis(1);
/// Tokens are counted in millionths of a byte, so no rate is lost to rounding.
const MICRO: u128 = 1_000_000;

/// How a client stands to those that wait beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Gets half of what a usual one gets.
    Low,
    #[default]
    Normal,
    /// Gets twice of what a usual one gets.
    High,
}

impl Priority {
    /// From what control protocols say: below, at or above 0.
    pub const fn from_number(number: i8) -> Priority {
        match number {
            ..0 => Priority::Low,
            0 => Priority::Normal,
            1.. => Priority::High,
        }
    }

    const fn quantum_bytes(self) -> u64 {
        match self {
            Priority::Low => QUANTUM_BYTES / 2,
            Priority::Normal => QUANTUM_BYTES,
            Priority::High => QUANTUM_BYTES * 2,
        }
    }
}

/// The answer to [`Bandwidth::request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Go ahead.
    Now,
    /// [`Bandwidth::poll`] will name this client.
    Wait,
}

/// What one waiting client asked for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    wanted_bytes: u64,
    saved_bytes: u64,
    turn_left_bytes: u64,
    quantum_bytes: u64,
}

/// A limiter of one direction of the whole session.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    bytes_per_s: Option<u64>,
    tokens_micro: u128,
    refilled_at: Now,
    /// Those who wait, the one whose turn it is first; the same clients as in `waiting`.
    turns: VecDeque<u64>,
    waiting: BTreeMap<u64, Waiting>,
    /// Bytes still missing for all of `waiting`.
    missing_bytes: u64,
}

impl Bandwidth {
    /// A limiter of `bytes_per_s`, or one that never waits for `None`. 0 lets nothing through.
    pub const fn new(bytes_per_s: Option<u64>) -> Self {
        Bandwidth {
            bytes_per_s,
            tokens_micro: 0,
            refilled_at: Now::ZERO,
            turns: VecDeque::new(),
            waiting: BTreeMap::new(),
            missing_bytes: 0,
        }
    }

    /// The rate now in force.
    pub const fn rate(&self) -> Option<u64> {
        self.bytes_per_s
    }

    /// True when no rate is set.
    pub const fn is_unlimited(&self) -> bool {
        self.bytes_per_s.is_none()
    }

    /// Changes the rate; those who wait go on waiting under the new one ([`Bandwidth::poll`] is then due).
    pub fn set_rate(&mut self, bytes_per_s: Option<u64>, now: Now) {
        self.refill(now);
        self.bytes_per_s = bytes_per_s;
        self.tokens_micro = self.tokens_micro.min(self.tokens_max());
    }

    /// Asks to move `bytes`. After [`Grant::Wait`] the client waits for [`Bandwidth::poll`]; asking again adds to it.
    pub fn request(&mut self, client: u64, bytes: u64, now: Now) -> Grant {
        self.request_as(Priority::Normal, client, bytes, now)
    }

    /// The same for a client of that priority.
    pub fn request_as(&mut self, priority: Priority, client: u64, bytes: u64, now: Now) -> Grant {
        if self.bytes_per_s.is_none() && self.waiting.is_empty() {
            return Grant::Now;
        }
        self.refill(now);
        let cost = u128::from(bytes) * MICRO;
        if self.waiting.is_empty() && self.tokens_micro >= cost {
            self.tokens_micro -= cost;
            return Grant::Now;
        }
        self.missing_bytes = self.missing_bytes.saturating_add(bytes);
        if let Some(entry) = self.waiting.get_mut(&client) {
            entry.wanted_bytes = entry.wanted_bytes.saturating_add(bytes);
            return Grant::Wait;
        }
        let entry = Waiting {
            wanted_bytes: bytes,
            saved_bytes: 0,
            turn_left_bytes: priority.quantum_bytes(),
            quantum_bytes: priority.quantum_bytes(),
        };
        self.waiting.insert(client, entry);
        self.turns.push_back(client);
        Grant::Wait
    }

    /// The clients that may go ahead now, each with all the bytes it asked for.
    pub fn poll(&mut self, now: Now) -> Vec<(u64, u64)> {
        self.refill(now);
        let mut granted = Vec::new();
        while let Some(&client) = self.turns.front() {
            let Some(entry) = self.waiting.get_mut(&client) else {
                self.turns.pop_front();
                continue;
            };
            let missing = entry.wanted_bytes - entry.saved_bytes;
            let step = match self.bytes_per_s {
                None => missing,
                Some(_) => {
                    let affordable = u64::try_from(self.tokens_micro / MICRO).unwrap_or(u64::MAX);
                    missing.min(entry.turn_left_bytes).min(affordable)
                }
            };
            entry.saved_bytes += step;
            entry.turn_left_bytes = entry.turn_left_bytes.saturating_sub(step);
            self.missing_bytes = self.missing_bytes.saturating_sub(step);
            self.tokens_micro = self.tokens_micro.saturating_sub(u128::from(step) * MICRO);
            if entry.saved_bytes == entry.wanted_bytes {
                granted.push((client, entry.wanted_bytes));
                self.waiting.remove(&client);
                self.turns.pop_front();
            } else if entry.turn_left_bytes == 0 {
                entry.turn_left_bytes = entry.quantum_bytes;
                self.turns.rotate_left(1);
            } else {
                break;
            }
        }
        granted
    }

    /// When [`Bandwidth::poll`] is worth calling; `None` when nobody waits or the rate is 0.
    pub fn next_deadline(&self) -> Option<Now> {
        let entry = self.waiting.get(self.turns.front()?)?;
        let Some(rate) = self.bytes_per_s else {
            return Some(self.refilled_at);
        };
        if rate == 0 {
            return None;
        }
        let missing = entry.wanted_bytes - entry.saved_bytes;
        let need = u128::from(missing.min(entry.turn_left_bytes)) * MICRO;
        let short = need.saturating_sub(self.tokens_micro);
        let micros = u64::try_from(short.div_ceil(u128::from(rate))).unwrap_or(u64::MAX);
        Some(self.refilled_at + Duration::from_micros(micros).max(WAKE_MIN))
    }

    /// Gives back granted bytes that were not moved.
    pub fn refund(&mut self, bytes: u64) {
        let tokens = self.tokens_micro + u128::from(bytes) * MICRO;
        self.tokens_micro = tokens.min(self.tokens_max());
    }

    /// The client is gone; what it had saved up goes back.
    pub fn forget(&mut self, client: u64) {
        if let Some(entry) = self.waiting.remove(&client) {
            self.turns.retain(|other| *other != client);
            let missing = entry.wanted_bytes - entry.saved_bytes;
            self.missing_bytes = self.missing_bytes.saturating_sub(missing);
            self.refund(entry.saved_bytes);
        }
    }

    /// Number of clients that wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    fn refill(&mut self, now: Now) {
        let passed = now.since(self.refilled_at).as_micros();
        self.refilled_at = self.refilled_at.max(now);
        let earned = u128::from(self.bytes_per_s.unwrap_or(0)) * passed;
        self.tokens_micro = (self.tokens_micro + earned).min(self.tokens_max());
    }

    /// Never more than what is asked for plus one burst.
    fn tokens_max(&self) -> u128 {
        let burst_bytes = self.bytes_per_s.unwrap_or(0).div_ceil(BURST_PER_S);
        u128::from(burst_bytes.saturating_add(self.missing_bytes)) * MICRO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that always want their next `bytes`, woken late by up to `late_ms`; returns what each got.
    fn run(rate: u64, clients: &[u64], secs: u64, late_ms: u64) -> Vec<u64> {
        let mut rng = crate::base::Rng::new(rate);
        let mut limiter = Bandwidth::new(Some(rate));
        let mut got = vec![0; clients.len()];
        let mut now = Now::from_secs(100);
        let end = now + Duration::from_secs(secs);
        let ask = |limiter: &mut Bandwidth, got: &mut Vec<u64>, at: usize, now| {
            while limiter.request(at as u64, clients[at], now) == Grant::Now {
                got[at] += clients[at];
            }
        };
        for at in 0..clients.len() {
            ask(&mut limiter, &mut got, at, now);
        }
        loop {
            let due = limiter.next_deadline().expect("somebody waits");
            now = due.max(now) + Duration::from_micros(rng.below(late_ms * 1_000 + 1));
            if now > end {
                return got;
            }
            for (client, bytes) in limiter.poll(now) {
                got[client as usize] += bytes;
                ask(&mut limiter, &mut got, client as usize, now);
            }
        }
    }

    #[test]
    fn the_rate_holds_within_three_percent_over_two_seconds() {
        for rate in [100_000, 1_000_000, 12_345_678, 100_000_000, 1_250_000_000] {
            for late_ms in [0, 3, 20] {
                let sum: u64 = run(rate, &[16_384; 5], 2, late_ms).iter().sum();
                // What is saved up for unfinished requests is not yet sent.
                let slack = rate * 2 * 3 / 100 + 5 * 16_384;
                assert!(sum <= rate * 2 + rate * 6 / 100, "{sum} at {rate}");
                assert!(sum + slack >= rate * 2, "{sum} at {rate}, late {late_ms}");
            }
        }
    }

    #[test]
    fn clients_of_different_demand_get_the_same() {
        let got = run(2_000_000, &[16_384, 262_144, 65_536, 16_384], 20, 1);
        let fair = 10_000_000;
        for bytes in &got {
            assert!((fair * 9 / 10..=fair * 11 / 10).contains(bytes), "{got:?}");
        }
    }

    #[test]
    fn priorities_share_a_line_four_to_two_to_one() {
        let priorities = [Priority::Low, Priority::Normal, Priority::High];
        let mut limiter = Bandwidth::new(Some(7_000_000));
        let (mut got, mut now) = ([0_u64; 3], Now::from_secs(1));
        let ask = |limiter: &mut Bandwidth, got: &mut [u64; 3], client: usize, now| {
            let priority = priorities[client];
            while limiter.request_as(priority, client as u64, 32_768, now) == Grant::Now {
                got[client] += 32_768;
            }
        };
        (0..3).for_each(|client| ask(&mut limiter, &mut got, client, now));
        while now < Now::from_secs(11) {
            now = limiter.next_deadline().unwrap().max(now);
            for (client, bytes) in limiter.poll(now) {
                got[client as usize] += bytes;
                ask(&mut limiter, &mut got, client as usize, now);
            }
        }
        for (bytes, fair) in got.into_iter().zip([10_000_000, 20_000_000, 40_000_000]) {
            assert!((fair * 9 / 10..=fair * 11 / 10).contains(&bytes), "{got:?}");
        }
    }

    #[test]
    fn a_modest_client_never_waits_behind_greedy_ones() {
        let mut limiter = Bandwidth::new(Some(1_000_000));
        let start = Now::from_secs(1);
        assert_eq!(limiter.request(1, 1 << 30, start), Grant::Wait);
        assert_eq!(limiter.request(2, 10_000, start), Grant::Wait);
        let granted = limiter.poll(start + Duration::from_millis(50));
        assert_eq!(granted, [(2, 10_000)]);
    }

    #[test]
    fn an_unlimited_limiter_never_waits() {
        let mut limiter = Bandwidth::new(None);
        assert_eq!(limiter.request(1, u64::MAX, Now::ZERO), Grant::Now);
        assert_eq!(limiter.next_deadline(), None);
    }

    #[test]
    fn the_rate_can_be_changed_and_lifted() {
        let mut limiter = Bandwidth::new(Some(0));
        assert_eq!(limiter.request(1, 1_000, Now::ZERO), Grant::Wait);
        assert_eq!(limiter.next_deadline(), None, "nothing goes at rate 0");
        let later = Now::from_secs(10);
        assert_eq!(limiter.poll(later), []);
        limiter.set_rate(Some(1_000), later);
        assert_eq!(limiter.next_deadline(), Some(Now::from_secs(11)));
        assert_eq!(limiter.poll(Now::from_secs(11)), [(1, 1_000)]);
        assert_eq!(limiter.request(1, 1 << 40, later), Grant::Wait);
        limiter.set_rate(None, later);
        assert!(limiter.next_deadline().unwrap() <= Now::from_secs(11));
        assert_eq!(limiter.poll(later), [(1, 1 << 40)]);
    }

    #[test]
    fn a_client_that_leaves_gives_back_what_it_saved() {
        let mut limiter = Bandwidth::new(Some(1_000_000));
        limiter.request(1, 1_000_000, Now::ZERO);
        limiter.request(2, 100_000, Now::ZERO);
        assert_eq!(limiter.poll(Now::from_millis(100)), []);
        limiter.forget(1);
        let granted = limiter.poll(Now::from_millis(110));
        assert_eq!(granted, [(2, 100_000)]);
        assert_eq!(limiter.waiting_count(), 0);
        limiter.forget(2);
    }

    #[test]
    fn idle_time_is_worth_one_burst() {
        let mut limiter = Bandwidth::new(Some(1_000_000));
        limiter.request(1, 1, Now::ZERO);
        limiter.poll(Now::from_secs(1));
        let later = Now::from_secs(1_000);
        assert_eq!(limiter.request(1, 50_000, later), Grant::Now);
        assert_eq!(limiter.request(1, 1, later), Grant::Wait);
        limiter.refund(50_000);
        assert_eq!(limiter.poll(later), [(1, 1)]);
    }
}
