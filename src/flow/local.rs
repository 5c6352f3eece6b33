//! The host's own end of a conversation.

use std::net::{IpAddr, Ipv6Addr};

/// An address of the host that a peer has sent to: what it is sent leaves from there. A socket that is bound to all
/// addresses would leave that to the routes, and who is connected to one address hears nothing from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// IPv4 mapped; unspecified: not known.
    ip: Ipv6Addr,
    /// Interface of a link-local address; 0 for all others.
    scope: u32,
}

impl Local {
    /// As the routes say.
    pub const ANY: Self = Self { ip: Ipv6Addr::UNSPECIFIED, scope: 0 };

    /// This address; `interface` is the index of the one that it was asked on. What no datagram can leave from is
    /// [`Local::ANY`].
    pub fn new(ip: IpAddr, interface: u32) -> Self {
        match ip {
            IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() => {
                Self { ip: ip.to_ipv6_mapped(), scope: 0 }
            }
            IpAddr::V6(ip) if !ip.is_unspecified() && !ip.is_multicast() => {
                Self { ip, scope: if ip.is_unicast_link_local() { interface } else { 0 } }
            }
            _ => Self::ANY,
        }
    }

    /// The address; `None`: as the routes say.
    pub fn ip(self) -> Option<IpAddr> {
        (self != Self::ANY).then(|| self.ip.to_canonical())
    }

    /// Index of the interface of a link-local address; 0 for all others.
    pub fn interface(self) -> u32 {
        self.scope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_sent_from() {
        for (ip, interface) in [
            ("127.0.0.2", 0),
            ("192.0.2.1", 0),
            ("169.254.1.1", 0),
            ("2001:db8::1", 0),
            ("::1", 0),
            ("fe80::1", 7),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let local = Local::new(ip, 7);
            assert_eq!((local.ip(), local.interface()), (Some(ip), interface));
        }
        for ip in ["0.0.0.0", "255.255.255.255", "224.0.0.251", "::", "ff02::fb"] {
            assert_eq!(Local::new(ip.parse().unwrap(), 7), Local::ANY, "{ip}");
        }
        assert_eq!(Local::ANY.ip(), None);
    }
}
