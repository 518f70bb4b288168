//! Addresses that lead to machines of our own network, or of our provider's.

use std::net::{IpAddr, Ipv4Addr};

/// Of an inner network (RFC 1918), or between a provider and its customers (RFC 6598), where overlay networks live too.
pub const fn is_inner_v4(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    ip.is_private() || first == 100 && second & 0xc0 == 64
}

/// This machine, its link, or an inner network.
pub const fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || is_inner_v4(ip) || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_addresses_are_told_from_those_out_there() {
        for (text, expected) in [
            ("10.0.0.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.63.255.255", false),
            ("100.128.0.0", false),
            ("169.254.1.1", true),
            ("::ffff:192.168.0.1", true),
            ("fe80::1", true),
            ("fd00::1", true),
            ("2001:db8::1", false),
            ("9.9.9.9", false),
        ] {
            assert_eq!(is_local(text.parse().unwrap()), expected, "{text}");
        }
    }
}
