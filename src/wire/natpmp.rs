//! Asking the gateway for a port of its own: NAT-PMP (RFC 6886) and its successor PCP (RFC 6887). Layer 1.
//!
//! Both speak over UDP with the gateway's port [`PORT`]. Whether a datagram came from the gateway is the caller's to check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the gateway listens.
pub const PORT: u16 = 5351;
/// Longer ones are not read: options of PCP fit, which we ask for none of.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;

const PCP_VERSION: u8 = 2;
const PCP_MAP: u8 = 1;
const PCP_HEAD_BYTES: usize = 24;
const PCP_MAP_BYTES: usize = 60;
const ANSWER: u8 = 0x80;
/// The gateway speaks another version, in both protocols.
const UNSUPPORTED_VERSION: u16 = 1;

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The word used in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// Its number in IP headers, as PCP has it.
    const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// NAT-PMP's opcode.
    const fn opcode(self) -> u8 {
        match self {
            Protocol::Tcp => 2,
            Protocol::Udp => 1,
        }
    }
}

/// One port to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    pub protocol: Protocol,
    pub internal_port: u16,
    /// The one that is wished for outside; 0 leaves it to the gateway.
    pub external_port: u16,
    /// 0 takes the mapping back.
    pub lifetime_secs: u32,
    /// Our address as the gateway sees it (PCP).
    pub client: IpAddr,
    /// The same for every request about one mapping, and unknown to others (PCP).
    pub nonce: [u8; 12],
}

/// What the gateway says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapAnswer {
    Mapped {
        external_port: u16,
        /// PCP tells it at once; NAT-PMP is asked with [`address_request`].
        external_ip: Option<IpAddr>,
        lifetime_secs: u32,
    },
    /// Refused, with the protocol's own code.
    Refused { code: u16 },
    /// It speaks the other protocol, or none of both.
    OtherVersion,
}

impl MapRequest {
    /// A MAP request of PCP: 60 bytes.
    pub fn to_pcp(&self) -> Vec<u8> {
        let mut out = vec![PCP_VERSION, PCP_MAP, 0, 0];
        out.extend(self.lifetime_secs.to_be_bytes());
        out.extend(mapped(self.client).octets());
        out.extend(self.nonce);
        out.extend([self.protocol.number(), 0, 0, 0]);
        out.extend(self.internal_port.to_be_bytes());
        out.extend(self.external_port.to_be_bytes());
        // No address in particular, of our own family (RFC 6887 §11.1).
        let any = match self.client {
            IpAddr::V4(_) => mapped(Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED,
        };
        out.extend(any.octets());
        out
    }

    /// A request of NAT-PMP: 12 bytes.
    pub fn to_natpmp(&self) -> Vec<u8> {
        let mut out = vec![0, self.protocol.opcode(), 0, 0];
        out.extend(self.internal_port.to_be_bytes());
        // Taking a mapping back names no port outside (RFC 6886 §3.4).
        let external = if self.lifetime_secs == 0 {
            0
        } else {
            self.external_port
        };
        out.extend(external.to_be_bytes());
        out.extend(self.lifetime_secs.to_be_bytes());
        out
    }

    /// Reads an answer to this request over PCP; `None` when it is none.
    pub fn read_pcp(&self, datagram: &[u8]) -> Option<MapAnswer> {
        if datagram.len() > DATAGRAM_BYTES_MAX {
            return None;
        }
        if *datagram.first()? != PCP_VERSION {
            // A gateway that knows NAT-PMP alone says so in its own form (RFC 6887 §9).
            let is_refusal = datagram.first() == Some(&0) && datagram.get(1)? & ANSWER != 0;
            let code = u16_at(datagram, 2)?;
            return (is_refusal && code == UNSUPPORTED_VERSION).then_some(MapAnswer::OtherVersion);
        }
        if *datagram.get(1)? != ANSWER | PCP_MAP || datagram.len() < PCP_HEAD_BYTES {
            return None;
        }
        let code = u16::from(*datagram.get(3)?);
        if code == UNSUPPORTED_VERSION {
            return Some(MapAnswer::OtherVersion);
        }
        let is_ours = datagram.len() >= PCP_MAP_BYTES
            && datagram.get(24..36)? == self.nonce
            && *datagram.get(36)? == self.protocol.number()
            && u16_at(datagram, 40)? == self.internal_port;
        if !is_ours {
            return None;
        }
        if code != 0 {
            return Some(MapAnswer::Refused { code });
        }
        let octets: [u8; 16] = datagram.get(44..60)?.try_into().ok()?;
        Some(MapAnswer::Mapped {
            external_port: u16_at(datagram, 42)?,
            external_ip: Some(Ipv6Addr::from(octets).to_canonical()),
            lifetime_secs: u32_at(datagram, 4)?,
        })
    }

    /// Reads an answer to this request over NAT-PMP; `None` when it is none.
    pub fn read_natpmp(&self, datagram: &[u8]) -> Option<MapAnswer> {
        let is_answer = datagram.get(..2)? == [0, ANSWER | self.protocol.opcode()];
        if !is_answer || datagram.len() > DATAGRAM_BYTES_MAX {
            return None;
        }
        match u16_at(datagram, 2)? {
            0 => {}
            UNSUPPORTED_VERSION => return Some(MapAnswer::OtherVersion),
            code => return Some(MapAnswer::Refused { code }),
        }
        if u16_at(datagram, 8)? != self.internal_port {
            return None;
        }
        Some(MapAnswer::Mapped {
            external_port: u16_at(datagram, 10)?,
            external_ip: None,
            lifetime_secs: u32_at(datagram, 12)?,
        })
    }
}

/// Asks a NAT-PMP gateway for its address outside: 2 bytes.
pub fn address_request() -> Vec<u8> {
    vec![0, 0]
}

/// Reads the answer to [`address_request`]; `None` when it is none, or a refusal.
pub fn read_address(datagram: &[u8]) -> Option<Ipv4Addr> {
    if datagram.get(..4)? != [0, ANSWER, 0, 0] || datagram.len() > DATAGRAM_BYTES_MAX {
        return None;
    }
    u32_at(datagram, 8).map(Ipv4Addr::from)
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(two))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(four))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: MapRequest = MapRequest {
        protocol: Protocol::Tcp,
        internal_port: 6881,
        external_port: 6881,
        lifetime_secs: 7200,
        client: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 7)),
        nonce: *b"abcdefghijkl",
    };

    /// What a gateway would answer: the request with the answer's bit, a result, and a port outside.
    fn pcp_answer(code: u8) -> Vec<u8> {
        let mut answer = ASKED.to_pcp();
        answer[1] |= ANSWER;
        answer[3] = code;
        answer[42..44].copy_from_slice(&7000_u16.to_be_bytes());
        answer[44..].copy_from_slice(&Ipv4Addr::new(203, 0, 113, 5).to_ipv6_mapped().octets());
        answer
    }

    #[test]
    fn requests_have_the_bytes_of_their_rfcs() {
        assert_eq!(ASKED.to_natpmp(), b"\0\x02\0\0\x1a\xe1\x1a\xe1\0\0\x1c\x20");
        let end = MapRequest {
            lifetime_secs: 0,
            ..ASKED
        };
        assert_eq!(end.to_natpmp(), b"\0\x02\0\0\x1a\xe1\0\0\0\0\0\0");
        let pcp = ASKED.to_pcp();
        assert_eq!(pcp.len(), PCP_MAP_BYTES);
        assert_eq!(pcp[..8], *b"\x02\x01\0\0\0\0\x1c\x20");
        assert_eq!(pcp[18..24], *b"\xff\xff\xc0\xa8\x01\x07");
        assert_eq!(pcp[24..44], *b"abcdefghijkl\x06\0\0\0\x1a\xe1\x1a\xe1");
    }

    #[test]
    fn answers_are_read() {
        let mapped = MapAnswer::Mapped {
            external_port: 7000,
            external_ip: Some([203, 0, 113, 5].into()),
            lifetime_secs: 7200,
        };
        assert_eq!(ASKED.read_pcp(&pcp_answer(0)), Some(mapped));
        assert_eq!(
            ASKED.read_pcp(&pcp_answer(2)),
            Some(MapAnswer::Refused { code: 2 })
        );
        let older = b"\0\x81\0\x01\0\0\0\0";
        assert_eq!(ASKED.read_pcp(older), Some(MapAnswer::OtherVersion));
        let natpmp = b"\0\x82\0\0\0\0\0\x01\x1a\xe1\x1b\x58\0\0\x0e\x10";
        let mapped = MapAnswer::Mapped {
            external_port: 7000,
            external_ip: None,
            lifetime_secs: 3600,
        };
        assert_eq!(ASKED.read_natpmp(natpmp), Some(mapped));
        let refused = ASKED.read_natpmp(b"\0\x82\0\x02\0\0\0\x01");
        assert_eq!(refused, Some(MapAnswer::Refused { code: 2 }));
        let address = b"\0\x80\0\0\0\0\0\x01\xcb\0\x71\x05";
        assert_eq!(read_address(address), Some(Ipv4Addr::new(203, 0, 113, 5)));
    }

    #[test]
    fn what_answers_another_request_or_is_cut_off_is_none() {
        let whole = pcp_answer(0);
        for end in 0..whole.len() {
            assert_eq!(ASKED.read_pcp(&whole[..end]), None, "{end} bytes");
        }
        for at in [1, 24, 36, 40] {
            let mut other = whole.clone();
            other[at] ^= 0x10;
            assert_eq!(ASKED.read_pcp(&other), None, "byte {at}");
        }
        let natpmp = b"\0\x82\0\0\0\0\0\x01\x1a\xe1\x1b\x58\0\0\x0e\x10";
        for end in 0..natpmp.len() {
            assert_eq!(ASKED.read_natpmp(&natpmp[..end]), None, "{end} bytes");
        }
        let udp = MapRequest {
            protocol: Protocol::Udp,
            ..ASKED
        };
        assert_eq!(udp.read_natpmp(natpmp), None);
        assert_eq!(read_address(b"\0\x80\0\x03\0\0\0\x01\0\0\0\0"), None);
        assert_eq!(read_address(b""), None);
        assert_eq!(ASKED.read_pcp(&[2; 2_000]), None);
    }
}
