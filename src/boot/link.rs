//! Addresses, routes and link state inside the guest, over netlink. No external program, no wait.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;

use super::{Context, Failure};
use crate::config::{Config, Personality};
use crate::limits::TAP_QUEUE;

/// Length of an IPv6 network's prefix: SLAAC knows no other (RFC 4291 section 2.5.1).
const V6_PREFIX: u8 = 64;

/// Brings `lo` and the TAP of the network namespace that this process is in up, with addresses and routes.
///
/// # Errors
/// The step that the kernel refused.
pub fn configure(config: &Config) -> Result<(), Failure> {
    let (name, net) = (config.tap_name.as_str(), &config.net);
    let mut netlink = Netlink::open().context(|| "open a netlink socket in the guest")?;
    let lo = index("lo")?;
    netlink.up(lo, false).context(|| "bring lo up")?;

    let tap = index(name)?;
    let mut properties =
        vec![LinkAttribute::Mtu(net.mtu.into()), LinkAttribute::TxQueueLen(TAP_QUEUE)];
    if let Some(mac) = net.guest_mac {
        properties.push(LinkAttribute::Address(mac.to_vec()));
    }
    netlink.set_link(tap, properties).context(|| {
        format!(
            "set MTU {} {}and queue of {name}",
            net.mtu,
            if net.guest_mac.is_some() { "and MAC " } else { "" }
        )
    })?;
    let v4 = net.v4;
    netlink
        .add_v4(tap, v4.guest.into(), v4.prefix, v4.broadcast().into())
        .context(|| format!("set address {}/{} on {name}", v4.guest, v4.prefix))?;

    // With slirp4netns, IPv6 comes by router advertisements alone, and its way to bring the link up
    // (SIOCSIFFLAGS with UP and RUNNING) clears IFF_MULTICAST.
    let slirp = config.personality == Personality::Slirp4netns;
    let v6 = net.v6.and_then(|v6| Some((v6.guest?, v6.link_local)));
    if let Some((guest, _)) = v6
        && let Err(e) = add_v6(&mut netlink, name, tap, guest)
    {
        tracing::warn!("the guest has no IPv6: set address {guest} on {name}: {e}");
    }
    netlink.up(tap, slirp).context(|| format!("bring {name} up"))?;
    netlink
        .add_default(tap, v4.gateway.into())
        .context(|| format!("set the default route via {}", v4.gateway))?;
    if let Some((_, router)) = v6
        && let Err(e) = netlink.add_default(tap, router.into())
    {
        tracing::warn!("the guest has no IPv6 route: default via {router} on {name}: {e}");
    }
    Ok(())
}

/// Sets an IPv6 address that can be used at once. Without `accept_dad=0` the link-local address, which
/// speaks for the guest to the router, waits 1.5 s.
fn add_v6(netlink: &mut Netlink, name: &str, tap: u32, addr: Ipv6Addr) -> io::Result<()> {
    // Of the namespace this process is in; some containers have a read-only /proc/sys.
    if let Err(e) = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0") {
        tracing::debug!("accept_dad of {name}: {e}");
    }
    netlink.add_v6(tap, addr)
}

fn index(name: &str) -> Result<u32, Failure> {
    if_nametoindex(name).context(|| format!("find interface {name} in the guest"))
}

/// A netlink socket, one request at a time.
struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(4096) })
    }

    fn up(&mut self, index: u32, clear_multicast: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if clear_multicast {
            message.header.change_mask |= LinkFlags::Multicast;
        }
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn set_link(&mut self, index: u32, properties: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = properties;
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn add_v4(&mut self, index: u32, addr: IpAddr, prefix: u8, brd: IpAddr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(addr));
        message.attributes.push(AddressAttribute::Address(addr));
        if let IpAddr::V4(brd) = brd {
            message.attributes.push(AddressAttribute::Broadcast(brd));
        }
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_v6(&mut self, index: u32, addr: Ipv6Addr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = V6_PREFIX;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(addr.into()));
        message.attributes.push(AddressAttribute::Address(addr.into()));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_default(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family =
            if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        if gateway.is_ipv6() {
            // No address of the link's own network need be there yet.
            message.header.flags = RouteFlags::Onlink;
        }
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(index));
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.finalize();
        self.buffer.clear();
        self.buffer.resize(request.buffer_len(), 0);
        request.serialize(&mut self.buffer);
        self.socket.send(&self.buffer, 0)?;
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer)
            .map_err(io::Error::other)?;
        match reply.payload {
            NetlinkPayload::Error(e) => match e.code {
                None => Ok(()),
                Some(_) => Err(e.to_io()),
            },
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }
}
