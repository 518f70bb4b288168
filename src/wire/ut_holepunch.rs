//! Messages of hole punching: two peers that nobody can dial are told of each other by a third (BEP 55). Layer 1.
//! Whom to tell, how often, and where to dial are the swarm's.

use super::tracker::write_compact;
use std::net::{IpAddr, SocketAddr};

/// Type and family of the address.
const HEAD_BYTES: usize = 2;
/// The error code, which some leave out where there is no error.
const CODE_BYTES: usize = 4;
/// Bytes of a compact IPv4 address and of a compact IPv6 address (BEP 23, BEP 7).
const V4_BYTES: usize = 6;
const V6_BYTES: usize = 18;

/// Why a rendezvous came to nothing (BEP 55, `err_code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolepunchError {
    /// Nobody can be at that address.
    NoSuchPeer,
    /// The one that was asked is not connected to it.
    NotConnected,
    /// The peer there does not know the extension.
    NoSupport,
    /// The address is that of the one that was asked.
    NoSelf,
    /// A code that BEP 55 does not name.
    Unknown(u32),
}

impl HolepunchError {
    const fn code(self) -> u32 {
        match self {
            HolepunchError::NoSuchPeer => 1,
            HolepunchError::NotConnected => 2,
            HolepunchError::NoSupport => 3,
            HolepunchError::NoSelf => 4,
            HolepunchError::Unknown(code) => code,
        }
    }

    const fn of(code: u32) -> HolepunchError {
        match code {
            1 => HolepunchError::NoSuchPeer,
            2 => HolepunchError::NotConnected,
            3 => HolepunchError::NoSupport,
            4 => HolepunchError::NoSelf,
            code => HolepunchError::Unknown(code),
        }
    }
}

/// One `ut_holepunch` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolepunchMessage {
    /// To the relay: the sender wants to be connected with that peer.
    Rendezvous(SocketAddr),
    /// From the relay: dial that address over uTP now.
    Connect(SocketAddr),
    /// From the relay: the rendezvous with that address cannot be.
    Error(SocketAddr, HolepunchError),
}

/// The payload is no message of hole punching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HolepunchParseError {
    #[error("a message of hole punching of {got_bytes} bytes, at least {min_bytes} were expected")]
    TooShort { min_bytes: usize, got_bytes: usize },
    #[error("unknown type {got} of a message of hole punching")]
    UnknownType { got: u8 },
    #[error("unknown family {got} of an address")]
    UnknownFamily { got: u8 },
}

impl HolepunchMessage {
    /// Reads the payload of an extension message that came under our id for `ut_holepunch`. The address may be one that
    /// no peer can have; bytes behind the message are not looked at.
    ///
    /// # Errors
    /// Too short, or of an unknown type or family.
    pub fn parse(payload: &[u8]) -> Result<Self, HolepunchParseError> {
        let too_short = |min_bytes| HolepunchParseError::TooShort {
            min_bytes,
            got_bytes: payload.len(),
        };
        let [kind, family, rest @ ..] = payload else {
            return Err(too_short(HEAD_BYTES));
        };
        let addr_bytes = match family {
            0 => V4_BYTES,
            1 => V6_BYTES,
            got => return Err(HolepunchParseError::UnknownFamily { got: *got }),
        };
        let split = rest.split_at_checked(addr_bytes);
        let (addr, rest) = split.ok_or_else(|| too_short(HEAD_BYTES + addr_bytes))?;
        let addr = read_addr(addr).ok_or_else(|| too_short(HEAD_BYTES + addr_bytes))?;
        match kind {
            0 => Ok(HolepunchMessage::Rendezvous(addr)),
            1 => Ok(HolepunchMessage::Connect(addr)),
            2 => {
                let code = rest.first_chunk::<CODE_BYTES>();
                let code = code.ok_or_else(|| too_short(HEAD_BYTES + addr_bytes + CODE_BYTES))?;
                let error = HolepunchError::of(u32::from_be_bytes(*code));
                Ok(HolepunchMessage::Error(addr, error))
            }
            got => Err(HolepunchParseError::UnknownType { got: *got }),
        }
    }

    /// The payload as it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, addr, code) = match *self {
            HolepunchMessage::Rendezvous(addr) => (0, addr, 0),
            HolepunchMessage::Connect(addr) => (1, addr, 0),
            HolepunchMessage::Error(addr, error) => (2, addr, error.code()),
        };
        let mut out = vec![kind, u8::from(addr.is_ipv6())];
        write_compact(addr, &mut out);
        out.extend(code.to_be_bytes());
        out
    }
}

/// A compact address, IPv4 mapped into IPv6 as IPv4.
fn read_addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip: IpAddr = match <[u8; 4]>::try_from(ip) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(ip).ok()?.into(),
    };
    let port = u16::from_be_bytes(*port);
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[u8] = &[0, 0, 1, 2, 3, 4, 0x1a, 0xe1, 0, 0, 0, 0];

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn messages_are_these_bytes_and_read_back() {
        let v4 = addr("1.2.3.4:6881");
        let v6 = addr("[2001:db8::5]:258");
        assert_eq!(HolepunchMessage::Rendezvous(v4).encode(), V4);
        let error = HolepunchMessage::Error(v6, HolepunchError::NoSupport);
        let golden = b"\x02\x01\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x05\x01\x02\0\0\0\x03";
        assert_eq!(error.encode(), golden);
        let errors = [
            HolepunchError::NoSuchPeer,
            HolepunchError::NotConnected,
            HolepunchError::NoSupport,
            HolepunchError::NoSelf,
            HolepunchError::Unknown(77),
        ];
        let errors = errors.map(|error| HolepunchMessage::Error(v4, error));
        let others = [
            HolepunchMessage::Connect(v6),
            HolepunchMessage::Rendezvous(v6),
        ];
        for message in errors.into_iter().chain(others) {
            assert_eq!(HolepunchMessage::parse(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn the_code_may_be_left_out_where_there_is_no_error() {
        let read = HolepunchMessage::parse(&V4[..8]);
        assert_eq!(read, Ok(HolepunchMessage::Rendezvous(addr("1.2.3.4:6881"))));
        let mut error = V4.to_vec();
        error[0] = 2;
        let cut = HolepunchMessage::parse(&error[..11]);
        let (min_bytes, got_bytes) = (12, 11);
        let too_short = HolepunchParseError::TooShort {
            min_bytes,
            got_bytes,
        };
        assert_eq!(cut, Err(too_short));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_refused() {
        for end in 0..8 {
            let read = HolepunchMessage::parse(&V4[..end]);
            assert!(
                matches!(read, Err(HolepunchParseError::TooShort { .. })),
                "{end}"
            );
        }
        let mut other = V4.to_vec();
        other[1] = 2;
        let unknown = HolepunchParseError::UnknownFamily { got: 2 };
        assert_eq!(HolepunchMessage::parse(&other), Err(unknown));
        other[..2].copy_from_slice(&[3, 0]);
        let unknown = HolepunchParseError::UnknownType { got: 3 };
        assert_eq!(HolepunchMessage::parse(&other), Err(unknown));
    }
}
