//! How much is answered: to one address, to all together, and to whoever may be somebody else. Layer 2, pure.
//!
//! A datagram's source can be forged, and then the answer hits somebody who never asked (HOSTILE.md D1, D2).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::place::{Scope, one_address};
use crate::base::Now;

/// Bytes of an answer to an address that has not shown that it reads our datagrams, for each byte of the query: eight
/// nodes for the shortest query that asks for them.
pub const AMPLIFICATION_MAX: usize = 5;
/// Answers to one address in a second: a client that looks for many torrents sends a few.
pub const ANSWERS_PER_ADDRESS_MAX: u32 = 20;
/// Answers to everybody in a second.
pub const ANSWERS_MAX: u32 = 500;
/// Bytes of answers to everybody in a second, a small part of a home line.
pub const ANSWER_BYTES_PER_S_MAX: usize = 100_000;
/// Queries to addresses that asked us first, in a second: each may go to somebody who never asked.
pub const PINGS_MAX: u32 = 20;
/// Addresses counted one by one in a second; those beyond are bounded by the totals alone.
pub const ADDRESSES_MAX: usize = 1_024;

const WINDOW: Duration = Duration::from_secs(1);

/// Counts of the present second.
#[derive(Clone, Debug, Default)]
pub struct AnswerLimits {
    since: Now,
    by_address: BTreeMap<IpAddr, u32>,
    answers: u32,
    bytes: usize,
    pings: u32,
}

impl AnswerLimits {
    /// Whether a query from there is looked at at all. Counts it.
    pub fn admit(&mut self, ip: IpAddr, now: Now) -> bool {
        self.roll(now);
        if self.answers >= ANSWERS_MAX || self.bytes >= ANSWER_BYTES_PER_S_MAX {
            return false;
        }
        // Nodes of this machine share one address, and none is forged.
        if Scope::of(ip) != Scope::Loopback {
            let address = one_address(ip);
            let is_full = self.by_address.len() >= ADDRESSES_MAX;
            if !is_full || self.by_address.contains_key(&address) {
                let count = self.by_address.entry(address).or_default();
                if *count >= ANSWERS_PER_ADDRESS_MAX {
                    return false;
                }
                *count += 1;
            }
        }
        self.answers += 1;
        true
    }

    /// An answer of so many bytes goes out.
    pub fn on_answer(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether another address that asked us may be asked whether it is there. Counts it.
    pub fn admit_ping(&mut self, now: Now) -> bool {
        self.roll(now);
        let is_good = self.pings < PINGS_MAX;
        self.pings += u32::from(is_good);
        is_good
    }

    fn roll(&mut self, now: Now) {
        if now.since(self.since) >= WINDOW {
            *self = AnswerLimits {
                since: now,
                ..AnswerLimits::default()
            };
        }
    }

    pub(super) fn check(&self) {
        assert!(self.by_address.len() <= ADDRESSES_MAX);
        assert!(self.answers <= ANSWERS_MAX && self.pings <= PINGS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_and_all_together_are_answered_so_often_a_second() {
        let mut limits = AnswerLimits::default();
        let now = Now::from_secs(5);
        let ip = IpAddr::from([1, 2, 3, 4]);
        let answered = (0..1_000).filter(|_| limits.admit(ip, now)).count();
        assert_eq!(answered, ANSWERS_PER_ADDRESS_MAX as usize);
        // One IPv6 /64 is one address.
        let six = |low: u16| IpAddr::from([0x2600, 1, 2, 3, 0, 0, 0, low]);
        let answered = (0..1_000)
            .filter(|low| limits.admit(six(*low), now))
            .count();
        assert_eq!(answered, ANSWERS_PER_ADDRESS_MAX as usize);
        let forged = (0..100_000_u32).filter(|n| limits.admit(IpAddr::from(n.to_be_bytes()), now));
        assert_eq!(forged.count(), ANSWERS_MAX as usize - 2 * answered);
        limits.check();
        assert!(limits.admit(ip, now + WINDOW));
    }

    #[test]
    fn bytes_and_pings_are_bounded_too() {
        let mut limits = AnswerLimits::default();
        let now = Now::from_secs(5);
        let machine = IpAddr::from([127, 0, 0, 1]);
        let mut sent = 0;
        while limits.admit(machine, now) {
            limits.on_answer(1_000);
            sent += 1_000;
        }
        assert_eq!(sent, ANSWER_BYTES_PER_S_MAX);
        let pings = (0..1_000).filter(|_| limits.admit_ping(now)).count();
        assert_eq!(pings, PINGS_MAX as usize);
    }
}
