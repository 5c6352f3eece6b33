//! DHCPv4 server (RFC 2131): sixteen leases, `.15` to `.30`, by the client's MAC.
//!
//! # Theory of operation
//!
//! A lease is a MAC and a time. Until that time the address is *taken*: offered, bound, or declined
//! by a client that found somebody else on it. After it the address is free, but the MAC stays, so
//! that a client that comes back gets the address it had, until another one needs it: the
//! address that has been free for longest goes first.
//!
//! This server is the only one on the link and knows the whole of it, so it may refuse (NAK) what
//! it did not give. It answers no relay agents, and no BOOTP.
//!
//! DHCP clients read from packet sockets, where a checksum that the kernel would finish shows as a
//! wrong one (udhcpc then drops the answer, dhclient warns): these datagrams leave with a finished
//! checksum.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress,
    IpProtocol,
};

use crate::arena::Slot;
use crate::config::NetConfig;
use crate::flow::Ctx;
use crate::frame::{Mac, Pair, Parsed, build, checksum};
use crate::limits::{DHCP_DECLINED, DHCP_LEASE_SECS, DHCP_LEASES, DHCP_OFFER};
use crate::stats::Drop;
use crate::time::{Millis, Time};

/// The leases.
#[derive(Debug, Default)]
pub struct Dhcp {
    leases: [Lease; DHCP_LEASES],
}

/// What is known of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    /// Who has it, or had it last; `None`: nobody, or a client declined it.
    mac: Option<Mac>,
    /// Until when nobody else gets it.
    until: Time,
}

/// What we use of a client's message.
#[derive(Debug)]
struct Message<'a> {
    kind: DhcpMessageType,
    xid: u32,
    /// `true`: the client cannot receive unicast before it has an address.
    broadcast: bool,
    mac: Mac,
    /// The address the client has, or says it has.
    ciaddr: Option<Ipv4Addr>,
    /// The address the client would like (option 50).
    requested: Option<Ipv4Addr>,
    /// The server the client speaks to (option 54).
    server: Option<Ipv4Addr>,
    /// Client identifier (option 61): returned as it came (RFC 6842).
    client_id: Option<&'a [u8]>,
}

impl Dhcp {
    /// No lease given.
    pub fn new() -> Self {
        Self::default()
    }

    /// A message (the UDP payload) from a client.
    pub fn handle(&mut self, ctx: &mut Ctx<'_>, parsed: &Parsed, message: &[u8]) {
        let message = match Message::parse(message) {
            Ok(message) => message,
            Err(why) => return ctx.stats.drop(why),
        };
        match message.kind {
            DhcpMessageType::Discover => {
                let Some(lease) = self.choose(ctx.net, ctx.now, &message) else {
                    return ctx.stats.drop(Drop::NoLease);
                };
                // A client that asks anew while it has a lease keeps that.
                let had = self.leases.get(lease).map_or(ctx.now, |lease| lease.until);
                let until = had.max(ctx.now + DHCP_OFFER);
                let addr = self.take(ctx.net, lease, message.mac, until);
                send(ctx, parsed, &message, DhcpMessageType::Offer, Some(addr));
            }
            DhcpMessageType::Request => self.request(ctx, parsed, &message),
            DhcpMessageType::Release => {
                if let Some(lease) = self.held(ctx.net, message.ciaddr, message.mac) {
                    lease.until = ctx.now;
                }
            }
            DhcpMessageType::Decline => {
                if let Some(lease) = self.held(ctx.net, message.requested, message.mac) {
                    *lease = Lease { mac: None, until: ctx.now + DHCP_DECLINED };
                }
            }
            DhcpMessageType::Inform => send(ctx, parsed, &message, DhcpMessageType::Ack, None),
            DhcpMessageType::Offer
            | DhcpMessageType::Ack
            | DhcpMessageType::Nak
            | DhcpMessageType::Unknown(_) => ctx.stats.drop(Drop::Unsupported),
        }
    }

    /// Takes an offer, or confirms an address the client has (RFC 2131 section 4.3.2).
    fn request(&mut self, ctx: &mut Ctx<'_>, parsed: &Parsed, message: &Message<'_>) {
        let now = ctx.now;
        if message.server.is_some_and(|server| server != ctx.net.v4.gateway) {
            // Another server's offer was taken; ours is free again.
            for lease in self.leases.iter_mut().filter(|l| l.mac == Some(message.mac)) {
                lease.until = lease.until.min(now);
            }
            return;
        }
        let Some(wanted) = message.requested.or(message.ciaddr) else {
            return ctx.stats.drop(Drop::Malformed);
        };
        let lease = index(ctx.net, wanted).filter(|i| {
            self.leases
                .get(*i)
                .is_some_and(|lease| lease.mac == Some(message.mac) || now >= lease.until)
        });
        match lease {
            Some(i) => {
                let until = now + Millis::secs(u64::from(DHCP_LEASE_SECS));
                let addr = self.take(ctx.net, i, message.mac, until);
                send(ctx, parsed, message, DhcpMessageType::Ack, Some(addr));
            }
            None => send(ctx, parsed, message, DhcpMessageType::Nak, None),
        }
    }

    /// The lease to offer: the client's own, else the one it asks for, else the longest free.
    fn choose(&self, net: &NetConfig, now: Time, message: &Message<'_>) -> Option<usize> {
        let free = |i: &usize| self.leases.get(*i).is_some_and(|lease| now >= lease.until);
        let own = self.leases.iter().position(|lease| lease.mac == Some(message.mac));
        own.or_else(|| message.requested.and_then(|addr| index(net, addr)).filter(free)).or_else(
            || {
                let leases = self.leases.iter().enumerate();
                leases.filter(|(i, _)| free(i)).min_by_key(|(_, l)| l.until).map(|(i, _)| i)
            },
        )
    }

    /// Gives a lease to a client, and the one it had before back.
    fn take(&mut self, net: &NetConfig, index: usize, mac: Mac, until: Time) -> Ipv4Addr {
        for (i, lease) in self.leases.iter_mut().enumerate() {
            if i == index {
                *lease = Lease { mac: Some(mac), until };
            } else if lease.mac == Some(mac) {
                *lease = Lease::default();
            }
        }
        Ipv4Addr::from(u32::from(net.v4.dhcp_start) + index as u32)
    }

    /// The lease of an address, if this client has it.
    fn held(&mut self, net: &NetConfig, addr: Option<Ipv4Addr>, mac: Mac) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(index(net, addr?)?)?;
        (lease.mac == Some(mac)).then_some(lease)
    }
}

/// Which lease an address is.
fn index(net: &NetConfig, addr: Ipv4Addr) -> Option<usize> {
    let index = u32::from(addr).checked_sub(u32::from(net.v4.dhcp_start))? as usize;
    (index < DHCP_LEASES).then_some(index)
}

/// Whether a datagram is for the DHCP server: port 68 to 67, broadcast or to the gateway.
pub fn is_request(net: &NetConfig, guest: &SocketAddr, to: &SocketAddr) -> bool {
    let ours = [Ipv4Addr::BROADCAST, net.v4.gateway, net.v4.broadcast()].map(IpAddr::V4);
    guest.port() == CLIENT_PORT && to.port() == SERVER_PORT && ours.contains(&to.ip())
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Drop> {
        let packet = DhcpPacket::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        let EthernetAddress(mac) = packet.client_hardware_address();
        if packet.magic_number() != MAGIC
            || packet.opcode() != DhcpOpCode::Request
            || packet.hardware_type() != ArpHardware::Ethernet
            || packet.hardware_len() != 6
            || mac[0] & 1 != 0
        {
            return Err(Drop::Malformed);
        }
        if !packet.relay_agent_ip().is_unspecified() {
            return Err(Drop::Unsupported);
        }
        let given = |addr: Ipv4Addr| (!addr.is_unspecified()).then_some(addr);
        let mut message = Self {
            kind: DhcpMessageType::Unknown(0),
            xid: packet.transaction_id(),
            broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
            mac,
            ciaddr: given(packet.client_ip()),
            requested: None,
            server: None,
            client_id: None,
        };
        let mut rest = bytes.get(OPTIONS..).unwrap_or_default();
        loop {
            let (kind, data) = match *rest {
                [] | [OPT_END, ..] => break,
                [OPT_PAD, ref more @ ..] => {
                    rest = more;
                    continue;
                }
                [kind, len, ref more @ ..] if more.len() >= usize::from(len) => {
                    let (data, more) = more.split_at(usize::from(len));
                    rest = more;
                    (kind, data)
                }
                [_, ..] => return Err(Drop::Malformed),
            };
            let addr = || <[u8; 4]>::try_from(data).map(Ipv4Addr::from);
            match kind {
                OPT_TYPE => {
                    let [kind] = *data else { return Err(Drop::Malformed) };
                    message.kind = DhcpMessageType::from(kind);
                }
                OPT_REQUESTED => {
                    message.requested = given(addr().map_err(|_| Drop::Malformed)?);
                }
                OPT_SERVER => message.server = Some(addr().map_err(|_| Drop::Malformed)?),
                OPT_CLIENT_ID => message.client_id = Some(data),
                _ => {}
            }
        }
        Ok(message)
    }
}

/// Answers a message. `addr`: the address given; `None` for NAK, and for INFORM, whose client has one.
fn send(
    ctx: &mut Ctx<'_>,
    parsed: &Parsed,
    message: &Message<'_>,
    kind: DhcpMessageType,
    addr: Option<Ipv4Addr>,
) {
    let Some(mut slot) = ctx.control_slot() else {
        return;
    };
    let gateway = ctx.net.v4.gateway;
    let refused = kind == DhcpMessageType::Nak;
    slot.set_range(slot.offset(), MESSAGE_MAX);
    slot.bytes_mut().fill(0);
    let mut packet = DhcpPacket::new_unchecked(slot.bytes_mut());
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(message.xid);
    packet.set_client_hardware_address(EthernetAddress(message.mac));
    if message.broadcast {
        packet.set_flags(DhcpFlags::BROADCAST);
    }
    if kind == DhcpMessageType::Ack {
        packet.set_client_ip(message.ciaddr.unwrap_or(Ipv4Addr::UNSPECIFIED));
    }
    packet.set_your_ip(addr.unwrap_or(Ipv4Addr::UNSPECIFIED));
    packet.set_magic_number(MAGIC);
    let len = options(ctx.net, &mut slot, message, kind, addr.is_some());
    slot.truncate(len);

    // RFC 2131 section 4.1: to the address the client has; else to the one it will have, unless it
    // says that it cannot take that; a refusal to everybody.
    let (mac, dst) = match (message.ciaddr, addr) {
        _ if refused => (BROADCAST_MAC, Ipv4Addr::BROADCAST),
        (Some(ciaddr), _) => (parsed.eth_src, ciaddr),
        (None, Some(addr)) if !message.broadcast => (message.mac, addr),
        (None, _) => (BROADCAST_MAC, Ipv4Addr::BROADCAST),
    };
    let pair = Pair::V4(gateway, dst);
    udp(&mut slot, pair);
    let out =
        build::Out { eth_src: ctx.net.gateway_mac, eth_dst: mac, pair, ttl: 64, tos: 0, df: false };
    build::ip(&mut slot, &out, IpProtocol::Udp);
    ctx.write(slot);
}

/// Writes the options; yields the length of the message, which is zero behind them.
fn options(
    net: &NetConfig,
    slot: &mut Slot,
    message: &Message<'_>,
    kind: DhcpMessageType,
    lease: bool,
) -> usize {
    let gateway = net.v4.gateway.octets();
    let mut packet = DhcpPacket::new_unchecked(slot.bytes_mut());
    let mut writer = packet.options_mut();
    let mut len = OPTIONS + 1;
    // Room for all of them is asserted below, so none is ever left out.
    let mut put = |kind: u8, data: &[u8]| {
        if writer.emit(DhcpOption { kind, data }).is_ok() {
            len += 2 + data.len();
        }
    };
    put(OPT_TYPE, &[kind.into()]);
    put(OPT_SERVER, &gateway);
    if let Some(id) = message.client_id {
        put(OPT_CLIENT_ID, id);
    }
    if lease {
        put(OPT_LEASE_TIME, &DHCP_LEASE_SECS.to_be_bytes());
    }
    if kind != DhcpMessageType::Nak {
        put(OPT_NETMASK, &net.v4.netmask().octets());
        put(OPT_ROUTER, &gateway);
        if net.dns {
            put(OPT_DNS, &net.v4.dns.octets());
        }
        put(OPT_MTU, &net.mtu.to_be_bytes());
    }
    let _ = writer.end();
    len.max(MESSAGE_MIN)
}

/// Puts a UDP header with a finished checksum in front of a message to a client.
fn udp(slot: &mut Slot, pair: Pair) {
    slot.prepend(8);
    let len = slot.len() as u16;
    let bytes = slot.bytes_mut();
    for (i, field) in [SERVER_PORT, CLIENT_PORT, len, 0].into_iter().enumerate() {
        bytes[2 * i..2 * i + 2].copy_from_slice(&field.to_be_bytes());
    }
    let sum = checksum::fold(checksum::sum(
        checksum::pseudo_header(pair, u8::from(IpProtocol::Udp), u32::from(len)),
        bytes,
    ));
    // A checksum of 0 would mean that there is none (RFC 768).
    let sum = if sum == 0xffff { sum } else { !sum };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
}

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const BROADCAST_MAC: Mac = [0xff; 6];
/// The magic cookie in front of the options (RFC 2131 section 3).
const MAGIC: u32 = 0x6382_5363;
/// Where the options begin.
const OPTIONS: usize = 240;
/// Old clients take no shorter message (RFC 951 section 3: 300 bytes).
const MESSAGE_MIN: usize = 300;
/// Fixed part, a client identifier of 255 bytes, our own options.
const MESSAGE_MAX: usize = OPTIONS + 2 + 255 + 64;
const _: () = assert!(MESSAGE_MAX > OPTIONS + (2 + 255) + (3 + 6 + 6 + 6 + 6 + 6 + 4) + 1);

// RFC 2132.
const OPT_PAD: u8 = 0;
const OPT_NETMASK: u8 = 1;
const OPT_ROUTER: u8 = 3;
const OPT_DNS: u8 = 6;
const OPT_MTU: u8 = 26;
const OPT_REQUESTED: u8 = 50;
const OPT_LEASE_TIME: u8 = 51;
const OPT_TYPE: u8 = 53;
const OPT_SERVER: u8 = 54;
const OPT_CLIENT_ID: u8 = 61;
const OPT_END: u8 = 255;

#[cfg(test)]
mod tests;
