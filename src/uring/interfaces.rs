//! The network interfaces of this machine (layer 4).

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// Addresses listed at most: a machine with more has networks enough.
const ADDRESSES_MAX: usize = 64;

/// An address of a network interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub name: String,
    /// And its number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
}

/// The addresses that multicast can be sent from, loopback included, at most 64.
///
/// # Errors
///
/// As getifaddrs(3).
pub fn multicast_addresses() -> io::Result<Vec<InterfaceAddress>> {
    let mut found = Vec::new();
    for interface in getifaddrs()? {
        let can = InterfaceFlags::IFF_MULTICAST | InterfaceFlags::IFF_LOOPBACK;
        let is_up = interface.flags.contains(InterfaceFlags::IFF_UP);
        let Some(address) = interface
            .address
            .filter(|_| is_up && interface.flags.intersects(can))
        else {
            continue;
        };
        let v4 = address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()));
        let v6 = address
            .as_sockaddr_in6()
            .map(|address| IpAddr::V6(address.ip()));
        let (Some(ip), Ok(index)) = (v4.or(v6), if_nametoindex(interface.interface_name.as_str()))
        else {
            continue;
        };
        found.push(InterfaceAddress {
            name: interface.interface_name,
            index,
            ip,
        });
        if found.len() == ADDRESSES_MAX {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_them() {
        let addresses = multicast_addresses().unwrap();
        let loopback = addresses.iter().find(|address| address.ip.is_loopback());
        assert_eq!(
            loopback.map(|address| (address.name.as_str(), address.index)),
            Some(("lo", 1))
        );
    }
}
