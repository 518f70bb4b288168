//! What is kept of a node between runs: where it saw itself, and whom it knew. Layer 2, pure; bytes only.

use std::net::{IpAddr, SocketAddr};

use sha1::{Digest, Sha1};

use crate::base::NodeId;
use crate::wire::krpc::Contact;
use crate::wire::tracker::is_usable_peer;

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"GYRE-DHT";
/// Raised when the layout below changes.
const VERSION: u32 = 1;
/// Length of the SHA-1 over everything before it.
const CHECKSUM_BYTES: usize = 20;
/// Bytes of one address: an IPv6 address, IPv4 mapped into it, and a port.
const ADDR_BYTES: usize = 18;
/// Nodes kept; two families with as many hints as are used at a start.
const CONTACTS_MAX: usize = 512;
/// The longest file read back.
pub const SAVED_BYTES_MAX: usize = 32 * 1024;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Our address of each family, as others saw it.
    pub external: Vec<IpAddr>,
    /// Nodes that answered, the last first.
    pub contacts: Vec<Contact>,
}

/// The bytes are not what an earlier run saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    #[error("not a list of DHT nodes")]
    BadMagic,
    #[error("list of DHT nodes of version {got}, this program knows version {expected}")]
    OtherVersion { expected: u32, got: u32 },
    #[error("list of DHT nodes ends at the wrong place")]
    BadLength,
    #[error("list of DHT nodes is damaged (checksum)")]
    BadChecksum,
}

impl Saved {
    /// The bytes, ending in a checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        let external = self.external.iter().take(2);
        out.push(u8::try_from(external.len()).unwrap_or(0));
        external.for_each(|ip| put_addr(&mut out, SocketAddr::new(*ip, 0)));
        for contact in self.contacts.iter().take(CONTACTS_MAX) {
            out.extend(contact.id.as_bytes());
            put_addr(&mut out, contact.addr);
        }
        let checksum = Sha1::digest(&out);
        out.extend_from_slice(&checksum);
        out
    }

    /// Reads what [`Saved::encode`] wrote.
    ///
    /// # Errors
    /// It is something else, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Saved, SavedError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(SavedError::BadMagic)?;
        let (version, _) = rest.split_first_chunk::<4>().ok_or(SavedError::BadLength)?;
        let got = u32::from_le_bytes(*version);
        if got != VERSION {
            let expected = VERSION;
            return Err(SavedError::OtherVersion { expected, got });
        }
        let (signed, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .filter(|_| bytes.len() <= SAVED_BYTES_MAX)
            .ok_or(SavedError::BadLength)?;
        if Sha1::digest(signed).as_slice() != checksum {
            return Err(SavedError::BadChecksum);
        }
        let body = signed.get(MAGIC.len() + 4..).ok_or(SavedError::BadLength)?;
        let (count, body) = body.split_first().ok_or(SavedError::BadLength)?;
        let (external, contacts) = body
            .split_at_checked(usize::from(*count) * ADDR_BYTES)
            .ok_or(SavedError::BadLength)?;
        let entry_bytes = 20 + ADDR_BYTES;
        if !contacts.len().is_multiple_of(entry_bytes) || *count > 2 {
            return Err(SavedError::BadLength);
        }
        let external = external.chunks_exact(ADDR_BYTES).filter_map(addr);
        let contacts = contacts.chunks_exact(entry_bytes).filter_map(|entry| {
            let (id, rest) = entry.split_first_chunk::<20>()?;
            Some(Contact {
                id: NodeId::new(*id),
                addr: addr(rest).filter(|addr| is_usable_peer(*addr))?,
            })
        });
        Ok(Saved {
            external: external.map(|addr| addr.ip()).collect(),
            contacts: contacts.take(CONTACTS_MAX).collect(),
        })
    }
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend(ip.octets());
    out.extend(addr.port().to_le_bytes());
}

fn addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_first_chunk::<16>()?;
    let port = u16::from_le_bytes(port.try_into().ok()?);
    Some(SocketAddr::new(IpAddr::from(*ip).to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let contact = |last: u8, addr: &str| Contact {
            id: NodeId::new([last; 20]),
            addr: addr.parse().unwrap(),
        };
        Saved {
            external: vec!["9.8.7.6".parse().unwrap(), "2001:db9::1".parse().unwrap()],
            contacts: vec![contact(1, "1.2.3.4:5"), contact(2, "[2001:db9::2]:6")],
        }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        assert_eq!(Saved::decode(&saved().encode()), Ok(saved()));
        let nothing = Saved::default();
        assert_eq!(Saved::decode(&nothing.encode()), Ok(nothing));
    }

    #[test]
    fn every_damage_is_found() {
        let good = saved().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Saved::decode(&bad).is_err(), "byte {at}");
            assert!(Saved::decode(&good[..at]).is_err(), "{at} bytes");
        }
        let mut longer = good;
        longer.push(0);
        assert!(Saved::decode(&longer).is_err());
        assert_eq!(Saved::decode(b"something else"), Err(SavedError::BadMagic));
    }

    #[test]
    fn a_full_list_fits_into_what_is_read_back() {
        let contact = saved().contacts[0];
        let full = Saved {
            external: saved().external,
            contacts: vec![contact; 10_000],
        };
        assert!(full.encode().len() <= SAVED_BYTES_MAX);
        assert_eq!(
            Saved::decode(&full.encode()).unwrap().contacts.len(),
            CONTACTS_MAX
        );
    }
}
