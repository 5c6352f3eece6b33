//! Datagram sockets: made, armed, sent on, and heard.
//!
//! # Theory of operation
//!
//! Each socket has two multishot `recvmsg`: one for data and one for the error queue. Either ends for
//! many reasons that are no failure (a datagram of 0 bytes, an ICMP error, no buffer left) and is
//! armed anew at the end of the turn. Both draw from the worker's ring of datagram slots; the kernel puts
//! a header, the sender's name and control messages in front of the payload, as many bytes as the core
//! needs there for the headers of a frame.
//!
//! What the host's kernel has coalesced (`UDP_GRO`: datagrams of one sender and one size that came together)
//! stays together: it comes in one slot, with the size of each, and goes to the guest as one frame. What came one by
//! one in a turn is joined on its way to the guest ([`delivery`](crate::flow::delivery)).
//!
//! Sends of a turn are coalesced likewise: [`run`](super::run). A send never waits (`MSG_DONTWAIT`), so that it completes while it is submitted and the sends of a
//! socket keep their order; a full socket buffer drops the datagram, as a full interface would. A send
//! may fail for an *earlier* datagram: an ICMP error stays with the socket until some call reports it. Such
//! a datagram is sent again at once.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use io_uring::{cqueue, opcode, types};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::Worker;
use super::cmsg::{self, DATA_CONTROL, ERROR_CONTROL, LOCAL_CONTROL, NAME};
use super::outbound;
use super::run::{Limit, Run};
use super::sock::Sock;
use super::submit::Msg;
use super::token::{Op, Token};
use crate::arena::{Chain, Slot};
use crate::config::NetConfig;
use crate::flow::{DgramKind, Errno, Event, FlowId, SendOpts};
use crate::limits::{SOCKET_BUFFER, UDP_SEND_BYTES, UDP_SEND_SEGMENTS};
use crate::stats::Drop;

/// Datagrams on their way to the host's kernel: a run of several slots, sent in one part, or one slot, sent in
/// one part or several.
#[derive(Debug)]
pub(super) struct Sending {
    flow: FlowId,
    slots: Chain,
    run: Run,
    /// Index of the interface to leave by; 0: as the routes say.
    via: i32,
    /// Parts that have not completed.
    left: u32,
    /// What a part was refused with.
    failed: Option<Errno>,
}

impl Sending {
    /// Parts to be sent.
    fn parts(&self) -> u32 {
        match (self.slots.slots(), self.run.opts().segment) {
            (1, 1..) => self.slots.bytes().div_ceil(self.part_bytes() as u32).max(1),
            _ => 1,
        }
    }

    /// Bytes of each part but the last of a run in one slot: as many segments as one send takes.
    fn part_bytes(&self) -> usize {
        let segment = usize::from(self.run.opts().segment).max(1);
        segment * UDP_SEND_SEGMENTS.min(UDP_SEND_BYTES / segment).max(1)
    }

    /// Calls `f` with what lies together in memory of a part.
    fn for_each(&self, part: u32, mut f: impl FnMut(&[u8])) {
        let cut = self.slots.slots() == 1 && self.run.opts().segment != 0;
        self.slots.for_each(|slot| {
            let bytes = slot.bytes();
            let (mut start, mut end) = (0, bytes.len());
            if cut {
                start = (part as usize * self.part_bytes()).min(end);
                end = (start + self.part_bytes()).min(end);
            }
            f(&bytes[start..end]);
            true
        });
    }
}

/// What every receive asks for: room for a name, and for control messages.
pub(super) struct Heads {
    data: Box<libc::msghdr>,
    /// Of a socket that is told more.
    told: Box<libc::msghdr>,
    errors: Box<libc::msghdr>,
}

impl Heads {
    pub(super) fn new() -> Self {
        let with_room = |control: usize| {
            // SAFETY: all-zero bytes are a valid `msghdr`.
            let mut hdr: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
            hdr.msg_namelen = NAME as _;
            hdr.msg_controllen = control as _;
            hdr
        };
        Self {
            data: with_room(DATA_CONTROL),
            told: with_room(LOCAL_CONTROL),
            errors: with_room(ERROR_CONTROL),
        }
    }
}

impl Worker {
    /// Makes a flow's socket and listens on it.
    pub(super) fn dgram_open(&mut self, flow: FlowId, kind: DgramKind) -> io::Result<()> {
        let fd = match socket(&self.net, kind) {
            Ok(socket) => socket.into(),
            Err(e) => {
                let errno = Errno(e.raw_os_error().unwrap_or(libc::EIO));
                self.stack.handle_event(Event::DgramFailed { flow, errno }, self.now);
                return Ok(());
            }
        };
        let limit = match kind {
            DgramKind::Udp4 => Limit::ethernet(true),
            DgramKind::Udp6 => Limit::ethernet(false),
            // A ping socket knows no runs, and a query is alone.
            DgramKind::Ping4 | DgramKind::Ping6 | DgramKind::Dns(_) => Limit::NONE,
        };
        let mut sock = Sock::new(fd, flow.generation);
        sock.outbound = !matches!(kind, DgramKind::Dns(_));
        self.put_dgram(flow, sock, limit);
        self.arm_dgram(flow)
    }

    /// Keeps a datagram socket, whose receives are to be armed.
    pub(super) fn put_dgram(&mut self, flow: FlowId, mut sock: Sock, limit: Limit) {
        sock.rearm = Op::Data as u8 | Op::ErrQueue as u8;
        sock.run_limit = limit;
        self.put_sock(flow, sock);
    }

    /// Submits the receives of a socket that have ended.
    fn arm_dgram(&mut self, flow: FlowId) -> io::Result<()> {
        for (op, flags) in [(Op::Data, 0), (Op::ErrQueue, libc::MSG_ERRQUEUE)] {
            let Some(sock) = self.sock(flow) else { return Ok(()) };
            if sock.rearm & op as u8 == 0 {
                continue;
            }
            sock.rearm &= !(op as u8);
            sock.begin(op);
            let (raw, told) = (sock.raw(), sock.told);
            let hdr = match op {
                Op::Data if told => &self.heads.told,
                Op::Data => &self.heads.data,
                _ => &self.heads.errors,
            };
            let entry =
                opcode::RecvMsgMulti::new(types::Fd(raw), &raw const **hdr, self.dgrams.group())
                    .flags(flags as u32)
                    .build()
                    .user_data(Token::Sock(op, flow).pack());
            // SAFETY: the kernel reads the header when the entry is submitted, and it lies unchanged in a box for
            // as long as the worker lives; buffers come from a registered ring, whose slots the `BufRing` holds.
            unsafe { self.ring.push(&entry) }?;
        }
        Ok(())
    }

    /// Arms anew what ended in this turn. The ring of buffers has been refilled. Whoever was fed last goes
    /// last: a socket with a queue takes every buffer there is as soon as it is armed, and those
    /// behind it end again with nothing.
    pub(super) fn rearm_dgrams(&mut self) -> io::Result<()> {
        let mut rearm = std::mem::take(&mut self.rearm);
        rearm.sort_unstable_by_key(|&flow| self.sock(flow).map_or(0, |sock| sock.fed));
        for &flow in &rearm {
            self.arm_dgram(flow)?;
        }
        rearm.clear();
        self.rearm = rearm;
        Ok(())
    }

    /// Takes a datagram, or a run of the guest's own, to be sent at the turn's end: together with those
    /// before it, where one send can carry them.
    pub(super) fn dgram_send(&mut self, flow: FlowId, slot: Slot, to: SocketAddr, opts: SendOpts) {
        let full = self.dgram_sends.is_full();
        let Some(sock) = self.sock(flow) else { return };
        let (open, limit) = (sock.open, sock.run_limit);
        if let Some(sending) = open.and_then(|index| self.dgram_sends.get(index))
            && sending.run.takes(to, opts, slot.len())
        {
            return sending.slots.push_back(slot);
        }
        if full {
            return self.stack.stats_mut().drop(Drop::HostRefused);
        }
        let run = Run::new(to, opts, slot.len(), limit);
        let mut slots = Chain::new();
        slots.push_back(slot);
        let index =
            self.dgram_sends.put(Sending { flow, slots, run, via: 0, left: 0, failed: None });
        self.dgrams_out.push(index);
        if let Some(sock) = self.sock(flow) {
            sock.open = Some(index);
        }
    }

    /// Submits the turn's datagrams, in the order in which they came.
    pub(super) fn flush_dgrams(&mut self) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.dgrams_out);
        for &index in &out {
            self.push_dgrams(index)?;
        }
        out.clear();
        self.dgrams_out = out;
        Ok(())
    }

    fn push_dgrams(&mut self, index: u32) -> io::Result<()> {
        let Some(sending) = self.dgram_sends.get(index) else { return Ok(()) };
        let parts = sending.parts();
        sending.left = parts;
        let (flow, to, opts) = (sending.flow, sending.run.to(), sending.run.opts());
        self.set_df(flow, &to, opts.df)?;
        let Some(sock) = self.sock(flow) else {
            drop(self.dgram_sends.take(index));
            return Ok(());
        };
        let raw = sock.raw();
        sock.open = None;
        sock.sends += parts;
        let via = if sock.outbound { self.interfaces.index(to.ip(), self.now) } else { 0 };
        if let Some(sending) = self.dgram_sends.get(index) {
            sending.via = via;
        }
        for part in 0..parts {
            let Some(sending) = self.dgram_sends.get(index) else { return Ok(()) };
            let msg = self.scratch.next();
            msg.iov.clear();
            sending.for_each(part, |bytes| msg.add(bytes));
            msg.datagram(to, &opts, via);
            let entry = opcode::SendMsg::new(types::Fd(raw), &raw const msg.hdr)
                .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)
                .build()
                .user_data(Token::DgramSend { index, part }.pack());
            // SAFETY: payload lies in slots that `dgram_sends` holds until the last part's completion;
            // all else in a box of `scratch`, untouched until the next turn begins, when the entry is
            // submitted.
            unsafe { self.ring.push(&entry) }?;
        }
        Ok(())
    }

    /// Puts a socket into the "don't fragment" mode that a datagram wants.
    fn set_df(&mut self, flow: FlowId, to: &SocketAddr, df: bool) -> io::Result<()> {
        let Some(sock) = self.sock(flow) else { return Ok(()) };
        if sock.df == Some(df) {
            return Ok(());
        }
        // The mode holds for the socket, and datagrams of the other mode may wait in the queue.
        let waiting = sock.sends > 0;
        sock.df = Some(df);
        let raw = sock.raw();
        if waiting {
            self.ring.submit()?;
        }
        let (level, name, dont, always) = match to {
            SocketAddr::V4(_) => {
                (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT, libc::IP_PMTUDISC_DO)
            }
            SocketAddr::V6(_) => (
                libc::SOL_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
                libc::IPV6_PMTUDISC_DO,
            ),
        };
        // Fails only for a name the kernel does not know: then it keeps its default.
        let _ = set(raw, level, name, if df { always } else { dont });
        Ok(())
    }

    /// A part of a send has completed.
    pub(super) fn dgram_sent(&mut self, index: u32, part: u32, result: i32) {
        let Some(sending) = self.dgram_sends.get(index) else { return };
        let flow = sending.flow;
        let Some(Some(sock)) = self.socks.get_mut(flow.index as usize) else { return };
        let closing = sock.closing;
        sock.sends -= 1;
        let failed = match result {
            0.. => None,
            _ if closing => Some(Errno(-result)),
            _ => send_again(sock, sending, part, -result).err(),
        };
        sending.failed = sending.failed.or(failed);
        sending.left -= 1;
        if sending.left == 0
            && let Some(Sending { mut slots, run, failed, .. }) = self.dgram_sends.take(index)
            && let Some(errno) = failed
            && !closing
        {
            let (to, local) = (run.to(), run.opts().local);
            while let Some(slot) = slots.pop_front() {
                let event = Event::DgramSent { flow, slot, to, local, errno };
                self.stack.handle_event(event, self.now);
            }
        }
        if closing
            && let Some(Some(sock)) = self.socks.get(flow.index as usize)
            && sock.quiet()
        {
            self.finish_close(flow);
        }
    }

    /// A receive of data or of errors has brought something, or ended, or both.
    pub(super) fn dgram_op(&mut self, op: Op, flow: FlowId, result: i32, flags: u32) {
        // The slot is taken in any case, or the ring would lose it.
        let slot = cqueue::buffer_select(flags)
            .and_then(|bid| self.dgrams.take(bid, result.max(0) as usize));
        let Some(Some(sock)) = self.socks.get_mut(flow.index as usize) else { return };
        if sock.generation != flow.generation {
            return;
        }
        if !cqueue::more(flags) {
            sock.end(op);
            if sock.closing {
                if sock.quiet() {
                    self.finish_close(flow);
                }
                return;
            }
            if sock.rearm == 0 {
                self.rearm.push(flow);
            }
            sock.rearm |= op as u8;
        }
        if result < 0 {
            // Not the socket's business: no buffer, or an ICMP error, which the error queue explains. The
            // rest would come again for ever.
            if matches!(
                -result,
                libc::EINVAL | libc::EBADF | libc::EFAULT | libc::ENOTSOCK | libc::EOPNOTSUPP
            ) {
                sock.rearm = 0;
                let event = Event::DgramFailed { flow, errno: Errno(-result) };
                self.stack.handle_event(event, self.now);
            }
            return;
        }
        let Some(mut slot) = slot.filter(|_| !sock.closing) else { return };
        self.fed += 1;
        sock.fed = self.fed;
        let room = if sock.told { LOCAL_CONTROL } else { DATA_CONTROL };
        let event = match op {
            Op::ErrQueue => {
                cmsg::read_error(slot.bytes()).map(|error| Event::DgramError { flow, error })
            }
            _ => cmsg::read_data(slot.bytes(), room).map(|data| {
                slot.set_range(slot.offset() + data.start, data.len);
                let cmsg::Received { from, local, ttl, tos, segment, .. } = data;
                Event::DgramReceived { flow, slot, from, local, ttl, tos, segment }
            }),
        };
        match event {
            Some(event) => self.stack.handle_event(event, self.now),
            None => self.stack.stats_mut().drop(Drop::Malformed),
        }
    }
}

impl Msg {
    /// Adds payload, which must outlive the send.
    fn add(&mut self, bytes: &[u8]) {
        let (iov_base, iov_len) = (bytes.as_ptr().cast_mut().cast(), bytes.len());
        self.iov.push(libc::iovec { iov_base, iov_len });
    }

    /// Makes this the `msghdr` of what was added.
    fn datagram(&mut self, to: SocketAddr, opts: &SendOpts, via: i32) {
        self.addr = SockAddr::from(to);
        let len = cmsg::write(&mut self.control.0, &to, opts, via);
        self.hdr.msg_name = self.addr.as_ptr().cast_mut().cast();
        self.hdr.msg_namelen = self.addr.len();
        self.hdr.msg_iov = self.iov.as_mut_ptr();
        self.hdr.msg_iovlen = self.iov.len() as _;
        self.hdr.msg_control = self.control.0.as_mut_ptr().cast();
        self.hdr.msg_controllen = len as _;
        self.hdr.msg_flags = 0;
    }
}

/// Sends a part again that was refused, when the refusal may have been meant for another datagram;
/// a run that cannot leave as one (a segment above the path's MTU, a device without checksum
/// offload), datagram by datagram.
fn send_again(sock: &mut Sock, sending: &Sending, part: u32, errno: i32) -> Result<(), Errno> {
    // Out of room: the datagram is lost, as on a full interface.
    if matches!(errno, libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ECANCELED) {
        return Err(Errno(errno));
    }
    let (to, opts, via) = (sending.run.to(), sending.run.opts(), sending.via);
    let mut msg = Msg::new();
    sending.for_each(part, |bytes| msg.add(bytes));
    let result = send_clear(sock, &mut msg, to, &opts, via);
    let Err(Errno(errno @ (libc::EMSGSIZE | libc::EINVAL | libc::EIO))) = result else {
        return result;
    };
    if opts.segment == 0 {
        return result;
    }
    let alone = SendOpts { segment: 0, ..opts };
    let mut result = Ok(());
    sending.for_each(part, |bytes| {
        for datagram in bytes.chunks(usize::from(opts.segment)) {
            msg.iov.clear();
            msg.add(datagram);
            // All are tried, also after one that failed.
            let sent = send_clear(sock, &mut msg, to, &alone, via);
            result = result.and(sent);
        }
    });
    // Alone it is invalid as well, as from an address that has gone: that says nothing of runs.
    if errno != libc::EINVAL || result != Err(Errno(errno)) {
        sock.run_limit.refused(errno, opts.segment);
    }
    result
}

/// Sends by a plain system call, after taking the socket's pending error away. What is refused all
/// the same is tried once more: another error may have come in between. The error queue keeps them all.
fn send_clear(
    sock: &Sock,
    msg: &mut Msg,
    to: SocketAddr,
    opts: &SendOpts,
    via: i32,
) -> Result<(), Errno> {
    msg.datagram(to, opts, via);
    let send = || {
        sock.error();
        send_now(sock.raw(), msg)
    };
    send().or_else(|_| send())
}

/// Sends by a plain system call.
fn send_now(fd: RawFd, msg: &Msg) -> Result<(), Errno> {
    // SAFETY: `msg`, made a `msghdr` by `Msg::datagram`, and the slots that it points to live until the call
    // returns; the kernel only reads them.
    let sent =
        unsafe { libc::sendmsg(fd, &raw const msg.hdr, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 {
        return Err(Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)));
    }
    Ok(())
}

/// A datagram socket, configured.
///
/// # Errors
/// What `socket(2)`, `bind(2)` or `connect(2)` says.
fn socket(net: &NetConfig, kind: DgramKind) -> io::Result<Socket> {
    let (v4, protocol) = match kind {
        DgramKind::Udp4 => (true, Protocol::UDP),
        DgramKind::Udp6 => (false, Protocol::UDP),
        DgramKind::Ping4 => (true, Protocol::ICMPV4),
        DgramKind::Ping6 => (false, Protocol::ICMPV6),
        DgramKind::Dns(resolver) => (resolver.is_ipv4(), Protocol::UDP),
    };
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
    if !v4 {
        socket.set_only_v6(true)?;
    }
    configure(&socket, v4, matches!(kind, DgramKind::Udp4 | DgramKind::Udp6))?;
    if let DgramKind::Dns(resolver) = kind {
        outbound::bind(&socket, net, resolver.ip())?;
        socket.connect(&resolver.into())?;
        return Ok(socket);
    }
    outbound::bind_unconnected(&socket, net, v4)?;
    Ok(socket)
}

/// Index of the interface that a socket is bound to (`SO_BINDTOIFINDEX`); 0: none.
pub(super) fn bound_to(socket: &Socket) -> io::Result<i32> {
    let mut index: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option's value is an `int`; `index` and `len` are valid for writes until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw mut index).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// Makes a datagram socket tell all that the core wants to know.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn configure(socket: &impl AsFd, v4: bool, runs: bool) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    if v4 {
        for name in [libc::IP_RECVERR, libc::IP_RECVTTL, libc::IP_RECVTOS] {
            set(fd, libc::SOL_IP, name, 1)?;
        }
    } else {
        for name in [libc::IPV6_RECVERR, libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS] {
            set(fd, libc::SOL_IPV6, name, 1)?;
        }
    }
    // Room for a burst of large datagrams; the kernel clamps it to net.core.[rw]mem_max.
    let socket = SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    if runs {
        // Datagrams that the host's kernel has coalesced come as they are, and go on as one frame.
        set(fd, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    }
    Ok(())
}

/// Makes a socket that is bound to all addresses tell to which one a datagram came.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn ask_local(socket: &impl AsFd, v4: bool) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    if v4 {
        set(fd, libc::SOL_IP, libc::IP_PKTINFO, 1)
    } else {
        set(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)
    }
}

/// Sets an option that is an `int`.
fn set(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option's value is an `int` that lives until the call returns, and its length is
    // given; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
