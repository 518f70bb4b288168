//! A rate limit shared fairly by many clients, by deficit round robin. Layer 2, pure.
//!
//! Clients are numbers that the caller chooses (a peer, a torrent). Moves no bytes and keeps no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::base::Now;

/// What a client may take before the next one's turn: one block.
const QUANTUM_BYTES: u64 = 16_384;
/// Unused rate is kept for a twentieth of a second: late timers lose nothing, and two seconds stay within 3 %.
const BURST_PER_S: u64 = 20;
/// A wake-up earlier than this costs more than the delay it saves.
const WAKE_MIN: Duration = Duration::from_millis(1);
/// Tokens are counted in millionths of a byte, so no rate is lost to rounding.
const MICRO: u128 = 1_000_000;

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
            turn_left_bytes: QUANTUM_BYTES,
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
                entry.turn_left_bytes = QUANTUM_BYTES;
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
