//! Where an address lies: on this machine, on its network, or out there, and who is its neighbour. Layer 2, pure.
//!
//! Whoever tells addresses may tell those of its own scope and wider ones: a node out there must not send us to
//! machines of our own network (HOSTILE.md D6).

use std::net::{IpAddr, SocketAddr};

/// How far away an address is, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// This machine.
    Loopback,
    /// A private or link-local network.
    Local,
    /// Everywhere else.
    Public,
}

impl Scope {
    /// The scope of an address.
    pub fn of(ip: IpAddr) -> Scope {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Scope::Loopback,
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Scope::Local,
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Scope::Local,
            _ => Scope::Public,
        }
    }
}

/// Whether `teller` may name `addr`.
pub fn may_tell(teller: IpAddr, addr: IpAddr) -> bool {
    Scope::of(addr) >= Scope::of(teller)
}

/// Addresses that one person has without effort: an IPv4 /24, an IPv6 /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network([u8; 7]);

impl Network {
    /// The network of an address.
    pub fn of(ip: IpAddr) -> Network {
        let mut bytes = [0; 7];
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                bytes[0] = 4;
                bytes[1..4].copy_from_slice(&ip.octets()[..3]);
            }
            IpAddr::V6(ip) => {
                bytes[0] = 6;
                bytes[1..].copy_from_slice(&ip.octets()[..6]);
            }
        }
        Network(bytes)
    }
}

/// What counts as one address: an IPv4 address, an IPv6 /64.
pub fn one_address(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let mut bytes = ip.octets();
            bytes[8..].fill(0);
            IpAddr::from(bytes)
        }
        v4 => v4,
    }
}

/// One spelling for one address: no IPv4 inside IPv6, no flow labels; scopes stay.
pub fn normal(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(mut v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => {
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_out_there_names_machines_of_our_network() {
        let (machine, network, world) = (ip("127.0.0.1"), ip("192.168.3.4"), ip("8.8.8.8"));
        for (teller, addr, is_good) in [
            (machine, machine, true),
            (machine, network, true),
            (machine, world, true),
            (network, machine, false),
            (network, network, true),
            (world, machine, false),
            (world, network, false),
            (world, world, true),
            (ip("2001:db9::1"), ip("fd00::1"), false),
            (ip("2001:db9::1"), ip("::1"), false),
            (ip("::ffff:8.8.8.8"), ip("10.0.0.1"), false),
        ] {
            assert_eq!(may_tell(teller, addr), is_good, "{teller} names {addr}");
        }
    }

    #[test]
    fn networks_and_addresses_are_what_one_person_has() {
        assert_eq!(
            Network::of(ip("1.2.3.4")),
            Network::of(ip("::ffff:1.2.3.200"))
        );
        assert_ne!(Network::of(ip("1.2.3.4")), Network::of(ip("1.2.4.4")));
        assert_eq!(
            Network::of(ip("2600:1:2:3::")),
            Network::of(ip("2600:1:2:f::9"))
        );
        assert_eq!(
            one_address(ip("2600:1:2:3::5")),
            one_address(ip("2600:1:2:3:8::"))
        );
        assert_ne!(one_address(ip("1.2.3.4")), one_address(ip("1.2.3.5")));
    }
}
