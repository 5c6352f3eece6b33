//! What a packet of the guest becomes: a flow's, or the first of one.

use std::net::SocketAddr;

use smoltcp::wire::{IpProtocol, TcpPacket};

use super::directory;
use super::dns::{self, DnsFlow};
use super::policy::{self, Verdict};
use super::{Flow, Home, Refused, Stack, dhcp, ndp};
use crate::arena::Slot;
use crate::flow::key::{FlowKey, Proto};
use crate::flow::local::Local;
use crate::flow::peers::{Room, Via};
use crate::flow::ping::PingFlow;
use crate::flow::tcp::{self, TcpFlow};
use crate::flow::udp::UdpFlow;
use crate::flow::{Action, Ctx, DgramKind, FlowId, Next, SendOpts, icmp};
use crate::frame::{Ip, Mac, Parsed, vnet};
use crate::stats::Drop;
use crate::time::Time;

impl Stack {
    pub(super) fn handle_ip(&mut self, mut slot: Slot, parsed: &Parsed, mut ip: Ip, now: Time) {
        if !policy::source_allowed(&self.net, &ip) {
            return self.stats.drop(Drop::BadSource);
        }
        if ip.fragment.is_some() {
            let mut ctx = ctx!(self, now);
            // A whole datagram comes back in a slot of its own, unfragmented.
            let Some((whole, whole_ip)) = self.reassembly.handle(&mut ctx, parsed, &ip, slot)
            else {
                return;
            };
            (slot, ip) = (whole, whole_ip);
            self.arrival.about.cut = true;
        }
        if self.arrival.about.cut {
            // What the guest has cut may be cut again, also where IPv6 says "don't" (frame::parse): a guest
            // with a large MTU cuts when it has learned the path's.
            ip.df = false;
        }
        match ip.proto {
            IpProtocol::Tcp => self.handle_tcp(slot, parsed, &ip, now),
            IpProtocol::Udp => self.handle_udp(slot, parsed, &ip, now),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => {
                if ndp::is_advert(&ip, slot.bytes()) {
                    self.tell_others(&slot, now);
                }
                let Some(slot) = self.handle_refusal(slot, &ip) else { return };
                let mut ctx = ctx!(self, now);
                // The gateway's own: echo to it, neighbour discovery, router solicitation.
                if let Some(slot) = self.gateway.handle_icmp(&mut ctx, parsed, &ip, slot) {
                    self.handle_echo(slot, parsed, &ip, now);
                }
                self.take_told(now);
            }
            _ => {
                self.stats.drop(Drop::Unsupported);
                let mut ctx = ctx!(self, now);
                icmp::protocol_unreachable(&mut ctx, parsed, &ip, slot.bytes());
            }
        }
    }

    fn handle_tcp(&mut self, mut slot: Slot, parsed: &Parsed, ip: &Ip, now: Time) {
        let Ok(packet) = TcpPacket::new_checked(&slot.bytes()[ip.start..ip.end]) else {
            return self.stats.drop(Drop::Malformed);
        };
        let header = usize::from(packet.header_len());
        let (src, dst) = (packet.src_port(), packet.dst_port());
        if src == 0 || dst == 0 {
            return self.stats.drop(Drop::PortZero);
        }
        let Some(segment) = tcp::Segment::parse(&packet, &ip.src, &ip.dst) else {
            return self.stats.drop(Drop::Malformed);
        };
        let key =
            FlowKey::pair(Proto::Tcp, SocketAddr::new(ip.src, src), SocketAddr::new(ip.dst, dst));
        let id = match self.home(&key) {
            Home::Here(id) => id,
            Home::Away(worker) => return self.hand_over(worker, slot),
            Home::Coming => return self.stats.drop(Drop::Misplaced),
            Home::Nowhere => {
                if let Some(id) = self.open_tcp(key, &segment, parsed, ip, slot, now) {
                    self.serve(id, now);
                }
                return;
            }
        };
        slot.set_range(slot.offset() + ip.start + header, ip.end - ip.start - header);
        let mut ctx = ctx!(self, now);
        if let Some((key, Flow::Tcp(flow))) = self.flows.get_mut(id) {
            flow.handle_segment(&mut ctx, key, &segment, slot);
            self.mark(id);
        }
    }

    /// A segment for no flow: a SYN opens one, anything else is answered by a RST (RFC 9293 3.5.2).
    fn open_tcp(
        &mut self,
        key: FlowKey,
        segment: &tcp::Segment,
        parsed: &Parsed,
        ip: &Ip,
        slot: Slot,
        now: Time,
    ) -> Option<FlowId> {
        let mut ctx = ctx!(self, now);
        if !segment.syn || segment.ack.is_some() || segment.rst {
            ctx.stats.drop(Drop::NoFlow);
            tcp::reset_unknown(&mut ctx, parsed.eth_src, &key, segment);
            return None;
        }
        // Not the key's address, in which a mapped one (::ffff:0:0/96) looks like an IPv4 one.
        let dst = SocketAddr::new(ip.dst, key.host().port());
        let to = match policy::tcp(&self.net, &self.dns, dst) {
            Verdict::To(to) => to,
            Verdict::Refuse(why) => {
                ctx.stats.drop(Drop::Forbidden);
                icmp::unreachable(&mut ctx, parsed, ip, slot.bytes(), why);
                return None;
            }
            Verdict::Drop => {
                ctx.stats.drop(Drop::Forbidden);
                return None;
            }
        };
        if self.draining {
            ctx.stats.drop(Drop::Draining);
            return None;
        }
        if !self.arrival.handed
            && let Some(worker) = self.seat.as_ref().and_then(|seat| seat.place(now))
        {
            self.arrival.about.placed = true;
            self.hand_over(worker, slot);
            return None;
        }
        let Some(loan) = self.openings.take(key.host(), now) else {
            self.stats.drop(Drop::TooManyOpenings);
            return None;
        };
        if policy::is_dns(&self.net, &key.host()) {
            let mut ctx = ctx!(self, now);
            self.dns.note_use(&mut ctx);
        }
        self.make_room(now);
        let mut ctx = ctx!(self, now);
        let flow = TcpFlow::new(&mut ctx, &key, parsed.eth_src, segment, &self.secret);
        match self.insert(key, Flow::Tcp(flow)) {
            Ok(id) => {
                if let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) {
                    flow.loan = Some(loan);
                }
                self.actions.push(Action::TcpConnect { flow: id, to });
                Some(id)
            }
            Err(refused) => {
                self.openings.give(loan);
                match refused {
                    Refused::Away(worker) => self.hand_over(worker, slot),
                    Refused::Full => {
                        let mut ctx = ctx!(self, now);
                        ctx.stats.drop(Drop::FlowTableFull);
                        tcp::reset_unknown(&mut ctx, parsed.eth_src, &key, segment);
                    }
                }
                None
            }
        }
    }

    fn handle_udp(&mut self, mut slot: Slot, parsed: &Parsed, ip: &Ip, now: Time) {
        let bytes = &slot.bytes()[ip.start..ip.end];
        let [s0, s1, d0, d1, l0, l1, ..] = *bytes else {
            return self.stats.drop(Drop::Malformed);
        };
        let (src, dst) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if len < 8 || len > bytes.len() {
            return self.stats.drop(Drop::Malformed);
        }
        if src == 0 || dst == 0 {
            return self.stats.drop(Drop::PortZero);
        }
        let (guest, to) = (SocketAddr::new(ip.src, src), SocketAddr::new(ip.dst, dst));
        let segment =
            if parsed.vnet.gso_type == vnet::GSO_UDP_L4 { parsed.vnet.gso_size } else { 0 };
        let payload = slot.offset() + ip.start + 8;
        let mut ctx = ctx!(self, now);
        if dhcp::is_request(&self.net, &guest, &to) {
            // One of us keeps the leases.
            if !self.arrival.handed && self.seat.as_ref().is_some_and(|seat| !seat.is_first()) {
                return self.hand_over(directory::FIRST, slot);
            }
            return self.dhcp.handle(&mut ctx, parsed, &slot.bytes()[ip.start + 8..ip.start + len]);
        }
        if ip.src.is_unspecified() {
            return ctx.stats.drop(Drop::BadSource);
        }
        if policy::is_dns(&self.net, &to) {
            slot.set_range(payload, len - 8);
            return self.handle_dns(guest, to, slot, parsed.eth_src, now);
        }
        let key = FlowKey::guest_only(Proto::Udp, guest);
        let home = self.home(&key);
        if let Home::Away(worker) = home {
            // Policy is the owner's to ask: it knows who has come by itself.
            return self.hand_over(worker, slot);
        }
        let route = match home {
            Home::Here(id) => self.udp_flow(id).and_then(|flow| flow.answer(to, now)),
            _ => None,
        };
        let host = match route {
            None => match self.datagram_host(parsed, ip, &slot, to, now) {
                Some(host) => host,
                None => return,
            },
            Some(route) => route.host,
        };
        let make = |room: &Room| Flow::Udp(UdpFlow::new(parsed.eth_src, room));
        let kind = UdpFlow::kind(&guest);
        let Some((id, mut slot)) = self.mapping(home, key, host, kind, make, slot, now) else {
            return;
        };
        let mut ctx = ctx!(self, now);
        slot.set_range(payload, len - 8);
        let opts = SendOpts { ttl: ip.ttl, tos: ip.tos, df: ip.df, segment, local: Local::ANY };
        if let Some((_, Flow::Udp(flow))) = self.flows.get_mut(id) {
            let route = route.unwrap_or_else(|| flow.route(host));
            let opens = route.via == Via::Own && !flow.has_socket();
            if opens && !self.share.take() {
                return ctx.stats.drop(Drop::FlowTableFull);
            }
            let next = flow.handle_datagram(&mut ctx, id, parsed.eth_src, to, route, slot, opts);
            if opens && !flow.has_socket() {
                self.share.give();
            }
            self.settle(id, next);
        }
    }

    fn udp_flow(&mut self, id: FlowId) -> Option<&mut UdpFlow> {
        match self.flows.get_mut(id) {
            Some((_, Flow::Udp(flow))) => Some(flow),
            _ => None,
        }
    }

    /// Where policy lets a datagram or an echo request go; otherwise the guest is told, and it is counted.
    fn datagram_host(
        &mut self,
        parsed: &Parsed,
        ip: &Ip,
        slot: &Slot,
        to: SocketAddr,
        now: Time,
    ) -> Option<SocketAddr> {
        let refused = match policy::udp(&self.net, to) {
            Verdict::To(host) => return Some(host),
            Verdict::Refuse(why) => Some(why),
            Verdict::Drop => None,
        };
        self.stats.drop(Drop::Forbidden);
        if let Some(why) = refused {
            icmp::unreachable(&mut ctx!(self, now), parsed, ip, slot.bytes(), why);
        }
        None
    }

    /// The mapping of a guest's datagram to `host`, made where there is none; `None`: it is another worker's, who has
    /// the frame now, or there may be none, which is counted.
    #[expect(clippy::too_many_arguments, reason = "of two protocols")]
    fn mapping(
        &mut self,
        home: Home,
        key: FlowKey,
        host: SocketAddr,
        kind: DgramKind,
        make: impl FnOnce(&Room) -> Flow,
        slot: Slot,
        now: Time,
    ) -> Option<(FlowId, Slot)> {
        let id = match home {
            Home::Here(id) => id,
            Home::Away(worker) => {
                self.hand_over(worker, slot);
                return None;
            }
            Home::Nowhere | Home::Coming => {
                if self.draining {
                    self.stats.drop(Drop::Draining);
                    return None;
                }
                let Some(loan) = self.mappings.take(host, now) else {
                    self.stats.drop(Drop::TooManyOpenings);
                    return None;
                };
                if !self.make_room_for_mapping(now) {
                    self.mappings.give(loan);
                    self.stats.drop(Drop::FlowTableFull);
                    return None;
                }
                let flow = make(&self.peer_room);
                let id = match self.insert(key, flow) {
                    Ok(id) => id,
                    Err(refused) => {
                        self.mappings.give(loan);
                        match refused {
                            Refused::Away(worker) => self.hand_over(worker, slot),
                            Refused::Full => self.stats.drop(Drop::FlowTableFull),
                        }
                        return None;
                    }
                };
                if let Some(owed) = self.flows.get_mut(id).and_then(|(_, flow)| flow.loan()) {
                    *owed = Some(loan);
                }
                self.actions.push(Action::DgramOpen { flow: id, kind });
                id
            }
        };
        if self.flows.get(id).is_some_and(|(_, flow)| flow.may_idle()) {
            self.idle.touch(id.index, now);
        }
        Some((id, slot))
    }

    fn handle_dns(&mut self, guest: SocketAddr, to: SocketAddr, slot: Slot, mac: Mac, now: Time) {
        let mut ctx = ctx!(self, now);
        if self.draining {
            return ctx.stats.drop(Drop::Draining);
        }
        let Some((number, flow)) = self.dns.query(&mut ctx, mac, slot) else {
            return;
        };
        let key = FlowKey::pair(Proto::Dns, guest, SocketAddr::new(to.ip(), number));
        if self.flows.find(&key).is_some() {
            self.dns.release();
            return ctx.stats.drop(Drop::DnsRefused);
        }
        self.start_dns(key, flow, now);
    }

    /// Gives a DNS query a flow, and so a socket.
    pub(super) fn start_dns(&mut self, key: FlowKey, flow: DnsFlow, now: Time) {
        self.make_room(now);
        let Ok(id) = self.place(key, Flow::Dns(flow)) else {
            self.dns.release();
            return self.stats.drop(Drop::FlowTableFull);
        };
        let mut ctx = ctx!(self, now);
        if let Some((key, Flow::Dns(flow))) = self.flows.get_mut(id) {
            let step = flow.start(&mut ctx, &self.dns, id, key);
            self.settle_dns(id, step, now);
        }
    }

    pub(super) fn settle_dns(&mut self, id: FlowId, step: dns::Step, now: Time) {
        match step {
            dns::Step::Wait(deadline) => self.settle(id, Next::Live(Some(deadline))),
            dns::Step::Done => self.settle(id, Next::Close { reset: false }),
            dns::Step::Move => {
                let Some((key, flow)) = self.flows.get_mut(id) else {
                    return;
                };
                let key = *key;
                let Flow::Dns(query) = std::mem::replace(flow, Flow::Closing(None)) else {
                    return;
                };
                self.timers.disarm(id.index);
                self.unhash(id);
                self.actions.push(Action::Close { flow: id, reset: false });
                self.start_dns(key, query, now);
            }
        }
    }

    fn handle_echo(&mut self, slot: Slot, parsed: &Parsed, ip: &Ip, now: Time) {
        let ctx = ctx!(self, now);
        let Some(ident) = icmp::echo_ident(ip, &slot.bytes()[ip.start..ip.end]) else {
            return ctx.stats.drop(Drop::Unsupported);
        };
        let to = SocketAddr::new(ip.dst, 0);
        let Some(host) = self.datagram_host(parsed, ip, &slot, to, now) else { return };
        let guest = SocketAddr::new(ip.src, ident);
        let key = FlowKey::guest_only(Proto::Ping, guest);
        let make = |room: &Room| Flow::Ping(PingFlow::new(parsed.eth_src, room));
        let home = self.home(&key);
        let kind = PingFlow::kind(&guest);
        let Some((id, mut slot)) = self.mapping(home, key, host, kind, make, slot, now) else {
            return;
        };
        let mut ctx = ctx!(self, now);
        slot.set_range(slot.offset() + ip.start, ip.end - ip.start);
        let opts = SendOpts { ttl: ip.ttl, tos: ip.tos, df: ip.df, segment: 0, local: Local::ANY };
        if let Some((_, Flow::Ping(flow))) = self.flows.get_mut(id) {
            let next = flow.handle_echo(&mut ctx, id, parsed.eth_src, to, host, slot, opts);
            self.settle(id, next);
        }
    }
}

#[cfg(test)]
mod tests;
