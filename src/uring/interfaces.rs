//! The network interfaces of this machine (layer 4).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

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

/// Why nothing can leave through an interface or from an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// There is no interface of that name.
    #[error("network interface {0} is gone")]
    Gone(String),
    /// It is down, or has no carrier.
    #[error("network interface {0} is down")]
    Down(String),
    /// It has no address beyond its own link.
    #[error("network interface {0} has no address")]
    NoAddress(String),
    /// No interface of this machine has the address.
    #[error("{0} is no address of this machine any more")]
    NotOurs(IpAddr),
}

/// The number of the interface of that name, if something can leave through it. One that is made anew has another
/// number.
///
/// # Errors
///
/// Why nothing can.
pub fn through(name: &str) -> Result<u32, NoWay> {
    let gone = || NoWay::Gone(name.to_owned());
    let index = if_nametoindex(name).map_err(|_| gone())?;
    let works = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let mut why = gone();
    let addresses = getifaddrs().map_err(|_| gone())?;
    for entry in addresses.filter(|entry| entry.interface_name == name) {
        if !entry.flags.contains(works) {
            return Err(NoWay::Down(name.to_owned()));
        }
        why = NoWay::NoAddress(name.to_owned());
        let Some(address) = entry.address else {
            continue;
        };
        let six = address.as_sockaddr_in6().map(|six| six.ip());
        // Every interface that is up has a link-local one.
        let is_wide = six.is_some_and(|ip| !ip.is_unicast_link_local());
        if address.as_sockaddr_in().is_some() || is_wide {
            return Ok(index);
        }
    }
    Err(why)
}

/// Whether something can leave from that address: it can be bound, and the interface that has it, if any is listed, works.
///
/// # Errors
///
/// Why nothing can.
pub fn from(ip: IpAddr) -> Result<(), NoWay> {
    // What counts as ours is the kernel's to say: all of 127.0.0.0/8 does, and no list has it.
    if let Err(error) = UdpSocket::bind(SocketAddr::new(ip, 0))
        && error.kind() == io::ErrorKind::AddrNotAvailable
    {
        return Err(NoWay::NotOurs(ip));
    }
    let works = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let Ok(addresses) = getifaddrs() else {
        return Ok(());
    };
    let mut down = None;
    for entry in addresses {
        let address = entry.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in());
        let v6 = address.and_then(|address| address.as_sockaddr_in6());
        let v4 = v4.map(|address| IpAddr::V4(address.ip()));
        let v6 = v6.map(|address| IpAddr::V6(address.ip()));
        if v4.or(v6) != Some(ip) {
            continue;
        }
        // More than one interface may have it.
        if entry.flags.contains(works) {
            return Ok(());
        }
        down = Some(NoWay::Down(entry.interface_name));
    }
    down.map_or(Ok(()), Err)
}

/// The IPv4 gateway of the default route, through that interface only if one is named.
pub fn gateway(interface: Option<&str>) -> Option<Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/net/route").ok()?;
    gateway_in(&table, interface)
}

/// The same of the text of a table: hexadecimal numbers as they lie in memory, the least metric first.
fn gateway_in(table: &str, interface: Option<&str>) -> Option<Ipv4Addr> {
    let usable = u32::from(libc::RTF_UP | libc::RTF_GATEWAY);
    let routes = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.first()?;
        let hex = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let is_default = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & usable == usable;
        let is_meant = interface.is_none_or(|interface| interface == *name);
        let metric: u32 = words.get(6)?.parse().ok()?;
        (is_default && is_meant).then_some((metric, Ipv4Addr::from(hex(2)?.to_ne_bytes())))
    });
    routes.min().map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_that_of_the_default_route_with_the_least_metric() {
        let hex = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let row = |name: &str, gateway: [u8; 4], flags: u32, metric: u32| {
            let gateway = hex(gateway);
            format!("{name}\t00000000\t{gateway}\t{flags:04X}\t0\t0\t{metric}\t00000000\t0\t0\t0\n")
        };
        let table = [
            "Iface\tDestination\tGateway\n".to_owned(),
            row("eth0", [192, 168, 1, 1], 3, 100),
            row("wlan0", [10, 0, 0, 1], 3, 50),
            row("wg0", [10, 9, 9, 9], 1, 1),
            "eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n".to_owned(),
            "torn\n".to_owned(),
        ]
        .concat();
        assert_eq!(gateway_in(&table, None), Some(Ipv4Addr::new(10, 0, 0, 1)));
        let of_eth0 = gateway_in(&table, Some("eth0"));
        assert_eq!(of_eth0, Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(gateway_in(&table, Some("wg0")), None);
    }

    #[test]
    fn there_is_a_way_through_the_loopback_and_none_through_what_is_not_there() {
        assert_eq!(through("lo"), Ok(1));
        assert_eq!(through("nosuch0"), Err(NoWay::Gone("nosuch0".to_owned())));
        assert_eq!(from([127, 0, 0, 9].into()), Ok(()));
        let other = IpAddr::from([192, 0, 2, 77]);
        assert_eq!(from(other), Err(NoWay::NotOurs(other)));
    }

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
