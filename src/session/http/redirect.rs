//! Which redirects are followed: never from outside to the inside of a network (HOSTILE.md K2).

use std::net::IpAddr;

use crate::base::is_inner_v4;
use crate::wire::url::Host;

/// How far from the machine itself an address is; a redirect may lead to the same kind or further out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Loopback,
    LinkLocal,
    Private,
    Public,
}

/// Where the answer with the redirect came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin(Scope);

impl Origin {
    /// `None`, a server behind a proxy, counts as public.
    pub(super) fn new(ip: Option<IpAddr>) -> Origin {
        Origin(ip.map_or(Scope::Public, scope))
    }

    /// Whether this origin may send us to that address. Link-local addresses (where clouds keep their credentials)
    /// are only reached from link-local ones.
    pub(super) fn may_lead_to(self, ip: IpAddr) -> bool {
        let target = scope(ip);
        match target {
            Scope::LinkLocal => self.0 == Scope::LinkLocal,
            _ => self.0 <= target,
        }
    }

    /// The same for a host before it is looked up; names pass unless they are known to mean this machine.
    pub(super) fn may_lead_to_host(self, host: &Host) -> bool {
        match host {
            Host::Ip(ip) => self.may_lead_to(*ip),
            Host::Name(name) => {
                let is_local = name == "localhost" || name.ends_with(".localhost");
                !is_local || self.0 == Scope::Loopback
            }
        }
    }
}

fn scope(ip: IpAddr) -> Scope {
    match ip.to_canonical() {
        // The unspecified address connects to this machine.
        ip if ip.is_loopback() || ip.is_unspecified() => Scope::Loopback,
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Scope::Loopback,
        IpAddr::V4(ip) if ip.is_link_local() => Scope::LinkLocal,
        IpAddr::V4(ip) if is_inner_v4(ip) => Scope::Private,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Scope::LinkLocal,
        IpAddr::V6(ip) if ip.is_unique_local() => Scope::Private,
        _ => Scope::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_sideways_or_outwards_only() {
        let public = "93.184.216.34";
        for (from, to, expected) in [
            (public, "1.1.1.1", true),
            (public, "127.0.0.1", false),
            (public, "0.0.0.0", false),
            (public, "::1", false),
            (public, "::ffff:127.0.0.1", false),
            (public, "169.254.169.254", false),
            (public, "fe80::1", false),
            (public, "10.0.0.1", false),
            (public, "100.64.0.1", false),
            (public, "fd00::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", public, true),
            ("127.0.0.1", "169.254.169.254", false),
            ("10.0.0.1", "192.168.0.1", true),
            ("10.0.0.1", "127.0.0.1", false),
        ] {
            let origin = Origin::new(Some(from.parse().unwrap()));
            let ip: IpAddr = to.parse().unwrap();
            assert_eq!(origin.may_lead_to(ip), expected, "{from} to {to}");
            assert_eq!(origin.may_lead_to_host(&Host::Ip(ip)), expected);
        }
        let name = Host::Name("localhost".into());
        assert!(!Origin::new(None).may_lead_to_host(&name));
    }
}
