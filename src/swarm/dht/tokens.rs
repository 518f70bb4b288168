//! Secrets of a DHT node: tokens that only their address can use, and transaction ids nobody guesses. Layer 2, pure.
//!
//! The numbers of `base::Rng` can be computed from a few of them, and a node id shows some: nothing here comes from it.

use std::net::IpAddr;
use std::time::Duration;

use sha1::{Digest, Sha1};

use crate::base::{InfoHash, Now};

/// Tokens are made from another secret after this long, and the one before is still taken (BEP 5).
pub const ROTATION: Duration = Duration::from_secs(300);
/// Bytes of a token.
pub const TOKEN_BYTES: usize = 8;

/// What nobody outside knows.
#[derive(Clone)]
pub struct Secrets {
    key: [u8; 32],
    counter: u32,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Takes 32 bytes that nobody can guess.
    pub const fn new(key: [u8; 32]) -> Self {
        Secrets { key, counter: 0 }
    }

    /// The next transaction id: a keyed hash of a counter.
    pub fn next_transaction(&mut self) -> u32 {
        self.counter = self.counter.wrapping_add(1);
        let [a, b, c, d, ..] = self.hash(b"t", &self.counter.to_be_bytes());
        u32::from_be_bytes([a, b, c, d])
    }

    /// The token that this address may announce this info_hash with.
    pub fn token(&self, ip: IpAddr, info_hash: &InfoHash, now: Now) -> [u8; TOKEN_BYTES] {
        self.token_of(epoch(now), ip, info_hash)
    }

    /// Whether it is a token that the address got in the last five to ten minutes.
    pub fn is_good(&self, token: &[u8], ip: IpAddr, info_hash: &InfoHash, now: Now) -> bool {
        let now = epoch(now);
        [Some(now), now.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| self.token_of(epoch, ip, info_hash)[..] == *token)
    }

    fn token_of(&self, epoch: u64, ip: IpAddr, info_hash: &InfoHash) -> [u8; TOKEN_BYTES] {
        let mut asked = epoch.to_be_bytes().to_vec();
        match ip.to_canonical() {
            IpAddr::V4(ip) => asked.extend(ip.octets()),
            IpAddr::V6(ip) => asked.extend(ip.octets()),
        }
        asked.extend(info_hash.as_bytes());
        let hash = self.hash(b"a", &asked);
        let mut token = [0; TOKEN_BYTES];
        token.copy_from_slice(&hash[..TOKEN_BYTES]);
        token
    }

    fn hash(&self, purpose: &[u8], bytes: &[u8]) -> [u8; 20] {
        let hash = Sha1::new_with_prefix(self.key);
        hash.chain_update(purpose)
            .chain_update(bytes)
            .finalize()
            .into()
    }
}

fn epoch(now: Now) -> u64 {
    now.since(Now::ZERO).as_secs() / ROTATION.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_address_and_torrent_and_for_some_minutes() {
        let secrets = Secrets::new([7; 32]);
        let (ip, other) = (IpAddr::from([1, 2, 3, 4]), IpAddr::from([1, 2, 3, 5]));
        let (hash, other_hash) = (InfoHash::new([1; 20]), InfoHash::new([2; 20]));
        let made = Now::from_secs(1_000);
        let token = secrets.token(ip, &hash, made);
        for (after_s, is_good) in [(0, true), (199, true), (499, true), (800, false)] {
            let now = made + Duration::from_secs(after_s);
            assert_eq!(
                secrets.is_good(&token, ip, &hash, now),
                is_good,
                "{after_s}"
            );
        }
        assert!(!secrets.is_good(&token, other, &hash, made));
        assert!(!secrets.is_good(&token, ip, &other_hash, made));
        assert!(!secrets.is_good(&token[..7], ip, &hash, made));
        assert!(!secrets.is_good(&[], ip, &hash, made));
        assert!(!Secrets::new([8; 32]).is_good(&token, ip, &hash, made));
        let mapped: IpAddr = "::ffff:1.2.3.4".parse().unwrap();
        assert!(secrets.is_good(&token, mapped, &hash, made));
    }

    #[test]
    fn transaction_ids_differ() {
        let mut secrets = Secrets::new([7; 32]);
        let drawn: std::collections::BTreeSet<u32> =
            (0..1_000).map(|_| secrets.next_transaction()).collect();
        assert!(drawn.len() > 990);
    }
}
