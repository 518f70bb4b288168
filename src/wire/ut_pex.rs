//! Peer exchange: who joined and who left, as one peer sees it (BEP 11). Layer 1.
//! Which addresses to believe, how often to listen, and private torrents are the swarm's.

use super::bencode::{Dict, Item};
use super::extended::{ExtensionError, scan_dict};
use super::tracker::{read_compact_v4, read_compact_v6, write_compact};
use std::net::SocketAddr;

/// Entries read from each list of a message, and written into each: BEP 11's figure for one message
/// (HOSTILE.md W15).
pub const PEX_ENTRIES_MAX: usize = 50;

/// The longest message read: the first one after connecting may list everybody, but a thousand addresses
/// of each kind fit into this, flags included.
pub const PEX_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// What the sender says about a peer (BEP 11, `added.f`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PexFlags(u8);

impl PexFlags {
    /// The peer would rather be talked to encrypted.
    pub const ENCRYPTION: PexFlags = PexFlags(0x01);
    /// The peer is a seed or only uploads.
    pub const SEED: PexFlags = PexFlags(0x02);
    /// The peer speaks uTP.
    pub const UTP: PexFlags = PexFlags(0x04);
    /// The peer can be reached by hole punching (BEP 55).
    pub const HOLEPUNCH: PexFlags = PexFlags(0x08);
    /// The sender connected to it, so it takes connections.
    pub const REACHABLE: PexFlags = PexFlags(0x10);

    /// Wraps the raw byte.
    pub const fn new(bits: u8) -> Self {
        PexFlags(bits)
    }

    /// The raw byte.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Both sets of flags.
    pub const fn and(self, other: PexFlags) -> Self {
        PexFlags(self.0 | other.0)
    }

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: PexFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// A peer that joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PexPeer {
    pub addr: SocketAddr,
    pub flags: PexFlags,
}

/// One `ut_pex` message, both address families together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PexMessage {
    pub added: Vec<PexPeer>,
    pub dropped: Vec<SocketAddr>,
}

/// Bytes of a compact IPv4 address and of a compact IPv6 address (BEP 23, BEP 7).
const V4_BYTES: usize = 6;
const V6_BYTES: usize = 18;

impl PexMessage {
    /// Reads the payload of an extension message that came under our id for `ut_pex`.
    ///
    /// Of each of the four lists the first [`PEX_ENTRIES_MAX`] entries are looked at; addresses that no peer can
    /// have are left out, missing flags are none set.
    ///
    /// # Errors
    /// When it is over [`PEX_MESSAGE_BYTES_MAX`] or no bencoded dictionary.
    pub fn parse(payload: &[u8]) -> Result<Self, ExtensionError> {
        let (dict, _) = scan_dict(payload, PEX_MESSAGE_BYTES_MAX)?;
        let mut message = PexMessage::default();
        let lists = [
            (V4_BYTES, &b"added"[..], &b"added.f"[..]),
            (V6_BYTES, b"added6", b"added6.f"),
        ];
        for (entry_bytes, key, flags_key) in lists {
            let flags = dict.bytes(flags_key).unwrap_or_default().iter().copied();
            let flags = flags.map(PexFlags).chain(std::iter::repeat(PexFlags(0)));
            let entries = addrs(dict, key, entry_bytes);
            let peers = entries
                .zip(flags)
                .filter_map(|(addr, flags)| Some(PexPeer { addr: addr?, flags }));
            message.added.extend(peers);
        }
        for (entry_bytes, key) in [(V4_BYTES, &b"dropped"[..]), (V6_BYTES, b"dropped6")] {
            message
                .dropped
                .extend(addrs(dict, key, entry_bytes).flatten());
        }
        Ok(message)
    }

    /// The payload as it goes over the wire; empty lists are left out.
    ///
    /// # Panics
    /// When a list of one family has more than [`PEX_ENTRIES_MAX`] entries.
    pub fn encode(&self) -> Vec<u8> {
        let mut added = Lists::default();
        let mut flags = Lists::default();
        for peer in &self.added {
            added.push(peer.addr);
            flags.of(peer.addr).push(peer.flags.0);
        }
        let mut dropped = Lists::default();
        self.dropped.iter().for_each(|addr| dropped.push(*addr));
        for (v4, v6) in [(&added.v4, &added.v6), (&dropped.v4, &dropped.v6)] {
            assert!(v4.len() <= PEX_ENTRIES_MAX * V4_BYTES, "too many entries");
            assert!(v6.len() <= PEX_ENTRIES_MAX * V6_BYTES, "too many entries");
        }
        let entries: [(&[u8], Vec<u8>); 6] = [
            (b"added", added.v4),
            (b"added.f", flags.v4),
            (b"added6", added.v6),
            (b"added6.f", flags.v6),
            (b"dropped", dropped.v4),
            (b"dropped6", dropped.v6),
        ];
        let entries = entries.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        Item::dict(entries.map(|(key, bytes)| (key, Item::bytes(bytes)))).encode()
    }
}

/// The first addresses of a compact list, one item an entry; `None` for one that no peer can have.
fn addrs<'a>(
    dict: Dict<'a>,
    key: &[u8],
    entry_bytes: usize,
) -> impl Iterator<Item = Option<SocketAddr>> + use<'a> {
    let bytes = dict.bytes(key).unwrap_or_default();
    let entries = bytes.chunks_exact(entry_bytes).take(PEX_ENTRIES_MAX);
    entries.map(|entry| {
        let mut one = Vec::new();
        match entry.len() {
            V4_BYTES => read_compact_v4(entry, &mut one, 1),
            _ => read_compact_v6(entry, &mut one, 1),
        }
        one.pop()
    })
}

/// One list for each address family.
#[derive(Default)]
struct Lists {
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl Lists {
    fn of(&mut self, addr: SocketAddr) -> &mut Vec<u8> {
        match addr {
            SocketAddr::V4(_) => &mut self.v4,
            SocketAddr::V6(_) => &mut self.v6,
        }
    }

    fn push(&mut self, addr: SocketAddr) {
        write_compact(addr, self.of(addr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> PexMessage {
        let peer = |addr: &str, flags| PexPeer {
            addr: addr.parse().unwrap(),
            flags,
        };
        PexMessage {
            added: vec![
                peer("1.2.3.4:258", PexFlags::SEED.and(PexFlags::REACHABLE)),
                peer("5.6.7.8:6881", PexFlags::default()),
                peer(
                    "[3031:3233:3435:3637:3839:6162:6364:6566]:26728",
                    PexFlags::SEED,
                ),
            ],
            dropped: vec!["9.9.9.9:9".parse().unwrap()],
        }
    }

    const GOLDEN: &[u8] =
        b"d5:added12:\x01\x02\x03\x04\x01\x02\x05\x06\x07\x08\x1a\xe17:added.f2:\x12\0\
        6:added618:0123456789abcdefhh8:added6.f1:\x02\
        7:dropped6:\x09\x09\x09\x09\0\x09e";

    #[test]
    fn message_matches_its_golden_bytes_and_reads_back() {
        assert_eq!(message().encode(), GOLDEN);
        assert_eq!(PexMessage::parse(GOLDEN), Ok(message()));
        assert_eq!(PexMessage::default().encode(), b"de");
        for end in 0..GOLDEN.len() {
            assert!(PexMessage::parse(&GOLDEN[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn entries_over_the_cap_are_ignored() {
        let list = [1, 2, 3, 4, 5, 6].repeat(10_000);
        let list = list.get(..60_000).unwrap();
        let text = [b"d5:added60000:", list, b"e"].concat();
        let read = PexMessage::parse(&text).unwrap();
        assert_eq!(read.added.len(), PEX_ENTRIES_MAX);
        let too_long = vec![b'd'; PEX_MESSAGE_BYTES_MAX + 1];
        assert!(matches!(
            PexMessage::parse(&too_long),
            Err(ExtensionError::TooLong { .. })
        ));
    }

    #[test]
    fn unusable_addresses_are_left_out_and_flags_stay_with_their_peer() {
        let text = b"d5:added20:\x01\x02\x03\x04\0\0\x05\x06\x07\x08\x1a\xe1\0\0\0\0\0\x01xx7:added.f2:\x02\x10e";
        let read = PexMessage::parse(text).unwrap();
        let addr = "5.6.7.8:6881".parse().unwrap();
        let flags = PexFlags::REACHABLE;
        assert_eq!(read.added, [PexPeer { addr, flags }]);
    }

    #[test]
    fn missing_flags_and_wrong_types_do_no_harm() {
        let read = PexMessage::parse(b"d5:added6:\x05\x06\x07\x08\x1a\xe17:droppedlee").unwrap();
        assert_eq!(read.added.len(), 1);
        assert!(!read.added.iter().any(|peer| peer.flags.has(PexFlags::SEED)));
        assert!(read.dropped.is_empty());
    }

    #[test]
    #[should_panic(expected = "too many entries")]
    fn writing_more_than_the_cap_is_our_own_mistake() {
        let addr: SocketAddr = "5.6.7.8:6881".parse().unwrap();
        let message = PexMessage {
            added: Vec::new(),
            dropped: vec![addr; PEX_ENTRIES_MAX + 1],
        };
        message.encode();
    }
}
