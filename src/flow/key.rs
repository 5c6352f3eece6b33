//! What names a flow: protocol and endpoints, and the keyed hash of it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Kind of conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Proto {
    /// TCP: both endpoints name the flow.
    Tcp = 6,
    /// UDP: the guest's endpoint alone (endpoint-independent mapping, RFC 4787 REQ-1).
    Udp = 17,
    /// ICMP or ICMPv6 echo: the guest's address and identifier (as port).
    Ping = 1,
    /// A DNS query through the forwarder: the guest's endpoint, and the query's number as the
    /// other port.
    Dns = 53,
}

/// Names a flow. Addresses of both families in 16 bytes, IPv4 mapped (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    guest: [u8; 16],
    host: [u8; 16],
    guest_port: u16,
    host_port: u16,
    proto: Proto,
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

impl FlowKey {
    /// A flow between two endpoints.
    pub fn pair(proto: Proto, guest: SocketAddr, host: SocketAddr) -> Self {
        Self {
            guest: octets(guest.ip()),
            host: octets(host.ip()),
            guest_port: guest.port(),
            host_port: host.port(),
            proto,
        }
    }

    /// A flow named by the guest's endpoint alone.
    pub fn guest_only(proto: Proto, guest: SocketAddr) -> Self {
        Self {
            guest: octets(guest.ip()),
            host: [0; 16],
            guest_port: guest.port(),
            host_port: 0,
            proto,
        }
    }

    /// The guest's endpoint.
    pub fn guest(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.guest).to_canonical(), self.guest_port)
    }

    /// The other endpoint as the guest names it; unspecified when the guest's alone is the name.
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.host).to_canonical(), self.host_port)
    }

    /// The kind.
    pub fn proto(&self) -> Proto {
        self.proto
    }

    /// A hash that a guest cannot steer without the secret: multiply-and-fold over 64-bit words, each
    /// mixed with a secret word.
    pub fn hash(&self, secret: &[u64; 2]) -> u32 {
        let half = |bytes: &[u8; 16], i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(word)
        };
        let fold = |a: u64, b: u64| {
            let wide = u128::from(a) * u128::from(b);
            (wide as u64) ^ ((wide >> 64) as u64)
        };
        let ports = (u64::from(self.guest_port) << 24)
            | (u64::from(self.host_port) << 40)
            | u64::from(self.proto as u8);
        let mut acc = secret[1];
        for word in [
            half(&self.guest, 0),
            half(&self.guest, 1),
            half(&self.host, 0),
            half(&self.host, 1),
            ports,
        ] {
            acc = fold(acc ^ word ^ secret[0], 0x9e37_79b9_7f4a_7c15 ^ secret[1]).rotate_left(17)
                ^ acc;
        }
        (fold(acc, secret[0] | 1) >> 16) as u32
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} > {}", self.proto, self.guest(), self.host())
    }
}
