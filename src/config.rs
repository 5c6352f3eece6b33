//! What the operator asked for, resolved and checked once. `cli` writes it, everything else reads it.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::limits::WORKERS_MAX;

/// One run of the program.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to give a network to.
    pub mode: Mode,
    /// Whose manners: messages, exit codes, defaults.
    pub personality: Personality,
    /// The guest's network.
    pub net: NetConfig,
    /// Name of the TAP inside the namespace.
    pub tap_name: String,
    /// Workers wanted, each with a queue of the TAP: 1 to [`WORKERS_MAX`]. A TAP that exists may have but one queue, which one of them reads for all.
    pub workers: usize,
    /// Bring the interface up with addresses and routes (`-c` of slirp4netns; native: always).
    pub configure: bool,
    /// Gets one byte `'1'` and is closed when the network is ready.
    pub ready_fd: Option<RawFd>,
    /// The program ends when this one hangs up.
    pub exit_fd: Option<RawFd>,
    /// Path of the API socket.
    pub api_socket: Option<PathBuf>,
    /// File that gets our PID, removed at the end.
    pub pid_file: Option<PathBuf>,
    /// Most verbose level of log lines on stderr.
    pub log_level: tracing::Level,
    /// `run`: the resolv.conf of the guest is ours. Off with `--disable-dns`.
    pub write_resolv_conf: bool,
    /// Ports forwarded from the start.
    pub forwards: Vec<Forward>,
    /// Mount namespace, capabilities, `no_new_privs`, core dumps: see `boot::sandbox`. On unless refused in the native
    /// commands, `--enable-sandbox` in slirp4netns.
    pub sandbox: bool,
    /// System calls and operations of the rings by allow-list, no new rings. On unless refused in the native commands,
    /// `--enable-seccomp` in slirp4netns.
    pub seccomp: bool,
}

/// Ports of the host that lead into the guest: one, or as many as the range has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub transport: Transport,
    /// Address of the host that is listened on; unspecified: all of its family. The guest's address is of the same.
    pub host_addr: IpAddr,
    /// Interface of the host that is listened on alone (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
    /// Ports of the host, 1 and up.
    pub host_ports: RangeInclusive<u16>,
    /// Address in the guest; `None`: the guest's own of the family of `host_addr`.
    pub guest_addr: Option<IpAddr>,
    /// Port in the guest of the first of `host_ports`; the others follow it. The last is 65535 at most.
    pub guest_port: u16,
}

/// What a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// A forward's number, as the API tells it: from 1, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub u64);

/// What is asked of a program that runs, by its API socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRequest {
    /// Forward these ports, too.
    Add(Forward),
    /// Tell all forwards.
    List,
    /// End this one.
    Remove(ForwardId),
}

/// `ringtap port ...`: a request and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCommand {
    /// Path of the API socket.
    pub api: PathBuf,
    /// What to ask.
    pub request: PortRequest,
}

impl Forward {
    /// How many ports it has.
    pub fn len(&self) -> usize {
        self.host_ports.len()
    }

    /// Whether it has no port at all, which is a mistake.
    pub fn is_empty(&self) -> bool {
        self.host_ports.is_empty()
    }

    /// The last port in the guest; `None`: it would be beyond 65535.
    pub fn guest_port_end(&self) -> Option<u16> {
        self.guest_port.checked_add(self.host_ports.end().checked_sub(*self.host_ports.start())?)
    }
}

impl Transport {
    /// Its name in command lines and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Workers when none were asked for: one for each core that this process may use, and that its control group
/// gives it time for.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX)
}

/// Whose command line was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// `ringtap ...`
    Native,
    /// argv\[0\] is `slirp4netns`.
    Slirp4netns,
}

/// What the program gives a network to.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Make namespaces, run a command in them.
    Run {
        /// The command and its arguments; empty: the user's shell.
        cmd: Vec<OsString>,
        /// Keep the user's own uid and gid inside instead of 0.
        keep_uid: bool,
    },
    /// Join namespaces that exist.
    Attach(Target),
    /// Make a network namespace and keep it at this path.
    Create(PathBuf),
}

/// The namespace to attach to.
#[derive(Clone, Debug)]
pub enum Target {
    /// The network (and user) namespace of a process.
    Pid {
        /// The process.
        pid: i32,
        /// User namespace to join instead of the process's own.
        userns: Option<PathBuf>,
    },
    /// A network namespace by path.
    Path {
        /// The namespace file.
        path: PathBuf,
        /// User namespace to join first.
        userns: Option<PathBuf>,
    },
    /// An open TAP, inherited (`--netns-type=tapfd`).
    TapFd(RawFd),
    /// No namespace: a program that connects to a socket of packets at this path (`--target-type=bess`).
    Bess(PathBuf),
}

/// The guest's network as the packet core knows it.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// MTU of the TAP, bytes of IP.
    pub mtu: u16,
    /// MAC for the guest's interface, when asked for.
    pub guest_mac: Option<[u8; 6]>,
    /// MAC of the gateway: 52:55 and its IPv4 address.
    pub gateway_mac: [u8; 6],
    /// IPv4 layout.
    pub v4: V4Net,
    /// IPv6 layout, when the guest has IPv6.
    pub v6: Option<V6Net>,
    /// The gateway's addresses (and what slirp4netns treats alike) reach the host's loopback.
    pub host_loopback: bool,
    /// `.3` and its IPv6 twin forward DNS.
    pub dns: bool,
    /// Where outgoing IPv4 sockets leave from; `None`: as the host's routes say.
    pub outbound_v4: Option<Outbound<Ipv4Addr>>,
    /// The same for IPv6.
    pub outbound_v6: Option<Outbound<Ipv6Addr>>,
}

/// Where outgoing sockets of a family leave from. Those to the host's loopback are free of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound<A> {
    /// From this address of the host, by the interface that the routes say.
    Address(A),
    /// By the interface that has this name at the time, from the address that the kernel chooses there.
    Interface(String),
}

impl<A: fmt::Display> fmt::Display for Outbound<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Interface(name) => name.fmt(f),
        }
    }
}

/// IPv4 addresses, laid out as slirp4netns does (compat: network +2, +3, +15..+30, +100).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4Net {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length, 1 to 25.
    pub prefix: u8,
    /// +2: the gateway, and the host.
    pub gateway: Ipv4Addr,
    /// +3: the DNS forwarder.
    pub dns: Ipv4Addr,
    /// +100: the guest's recommended address.
    pub guest: Ipv4Addr,
    /// +15: first DHCP lease; sixteen of them.
    pub dhcp_start: Ipv4Addr,
}

/// IPv6 addresses (fd00::/64 in slirp4netns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6Net {
    /// The /64.
    pub prefix: Ipv6Addr,
    /// `::2`: the host.
    pub gateway: Ipv6Addr,
    /// `fe80::2`: the router.
    pub link_local: Ipv6Addr,
    /// `::3`: the DNS forwarder.
    pub dns: Ipv6Addr,
    /// The address set at once when the native commands configure the guest (`::100`);
    /// `None`: router advertisements only, as slirp4netns.
    pub guest: Option<Ipv6Addr>,
}

impl V4Net {
    /// The layout for a network. The caller has checked the prefix (1..=25) and that `network` is
    /// the network's address.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Self {
        let at = |n: u32| Ipv4Addr::from(u32::from(network).wrapping_add(n));
        Self { network, prefix, gateway: at(2), dns: at(3), guest: at(100), dhcp_start: at(15) }
    }

    /// The netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }

    /// The directed broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !u32::from(self.netmask()))
    }

    /// Whether an address lies in the network.
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        u32::from(addr) & u32::from(self.netmask()) == u32::from(self.network)
    }
}

impl V6Net {
    /// slirp4netns's fixed layout, fd00::/64, with the guest's own address or without.
    pub fn fd00(guest: bool) -> Self {
        let at = |n: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
        Self {
            prefix: at(0),
            gateway: at(2),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            dns: at(3),
            guest: guest.then(|| at(0x100)),
        }
    }

    /// Whether an address lies in the /64.
    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.octets()[..8] == self.prefix.octets()[..8]
    }
}

impl NetConfig {
    /// The native defaults: 10.0.2.0/24, fd00::/64, MTU 1500, host loopback not reachable.
    pub fn native() -> Self {
        Self::new(V4Net::new(Ipv4Addr::new(10, 0, 2, 0), 24), Some(V6Net::fd00(true)), 1500)
    }

    /// A network with DNS, without host loopback.
    pub fn new(v4: V4Net, v6: Option<V6Net>, mtu: u16) -> Self {
        let [a, b, c, d] = v4.gateway.octets();
        Self {
            mtu,
            guest_mac: None,
            gateway_mac: [0x52, 0x55, a, b, c, d],
            v4,
            v6,
            host_loopback: false,
            dns: true,
            outbound_v4: None,
            outbound_v6: None,
        }
    }

    /// Whether an address is one of the gateway's own (`.2`, `.3` with DNS on, `fe80::2`, ...).
    pub fn is_gateway(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => a == self.v4.gateway || (self.dns && a == self.v4.dns),
            IpAddr::V6(a) => self.v6.is_some_and(|v6| {
                a == v6.gateway || a == v6.link_local || (self.dns && a == v6.dns)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_of_an_odd_network() {
        let net = V4Net::new(Ipv4Addr::new(10, 0, 135, 128), 25);
        assert_eq!(net.guest, Ipv4Addr::new(10, 0, 135, 228));
        assert_eq!(net.netmask(), Ipv4Addr::new(255, 255, 255, 128));
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 0, 135, 255));
        assert!(net.contains(Ipv4Addr::new(10, 0, 135, 130)));
        assert!(!net.contains(Ipv4Addr::new(10, 0, 135, 1)));
    }
}
