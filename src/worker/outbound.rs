//! Where outgoing sockets leave from: `--outbound-addr` and its IPv6 twin, by address or by interface.
//!
//! # Theory of operation
//!
//! *By address* a socket is bound to it, and leaves as the routes say.
//!
//! *By interface* a socket with one peer (TCP, DNS) is bound to the device by its name (`SO_BINDTODEVICE`, which needs
//! no privilege on a fresh socket since Linux 5.7), so the kernel chooses the source address for each new
//! connection out of what the interface has at the time.
//!
//! A mapping's socket has many peers, one of which may be the host's loopback (the gateway), which no interface leads to;
//! and it may outlive the device. So it stays unbound, and each datagram that goes out into the world names the
//! interface (`IP_PKTINFO`). That takes an index, which is looked up anew when it is older than
//! [`INTERFACE_FRESH`], because an interface that went and came back has another. The kernel is asked through a socket
//! that is bound by name: one that it knows is a system call the worker makes anyway, so the filter of system calls has
//! nothing to allow for this.
//!
//! An interface that is not there fails the conversation at once (`ENODEV`), and the guest hears "network unreachable".
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::dgram::bound_to;
use crate::config::{NetConfig, Outbound};
use crate::limits::INTERFACE_FRESH;
use crate::time::Time;

/// No interface has this index: what is to leave by it is refused with `ENODEV`.
const NOWHERE: i32 = i32::MAX;

/// What was asked for, without the family.
enum From<'a> {
    Anywhere,
    Address(IpAddr),
    Interface(&'a str),
}

fn from(net: &NetConfig, v4: bool) -> From<'_> {
    let (address, interface) = if v4 { split(&net.outbound_v4) } else { split(&net.outbound_v6) };
    match (address, interface) {
        (Some(address), _) => From::Address(address),
        (None, Some(name)) => From::Interface(name),
        (None, None) => From::Anywhere,
    }
}

fn split<A: Copy + Into<IpAddr>>(outbound: &Option<Outbound<A>>) -> (Option<IpAddr>, Option<&str>) {
    match outbound {
        None => (None, None),
        Some(Outbound::Address(address)) => (Some((*address).into()), None),
        Some(Outbound::Interface(name)) => (None, Some(name)),
    }
}

/// Makes a fresh socket that will have the one peer `to` leave from where it should.
///
/// # Errors
/// `ENODEV` or `EADDRNOTAVAIL`: the interface or the address is not there (any more).
pub(super) fn bind(socket: &Socket, net: &NetConfig, to: IpAddr) -> io::Result<()> {
    if to.is_loopback() {
        return Ok(());
    }
    match from(net, to.is_ipv4()) {
        From::Anywhere => Ok(()),
        From::Address(address) => socket.bind(&SocketAddr::new(address, 0).into()),
        From::Interface(name) => socket.bind_device(Some(name.as_bytes())),
    }
}

/// The same for a fresh socket of a mapping. An interface is named with each datagram instead: [`Interfaces`].
///
/// # Errors
/// `EADDRNOTAVAIL`: the address is not there (any more).
pub(super) fn bind_unconnected(socket: &Socket, net: &NetConfig, v4: bool) -> io::Result<()> {
    match from(net, v4) {
        From::Anywhere | From::Interface(_) => Ok(()),
        From::Address(address) => socket.bind(&SocketAddr::new(address, 0).into()),
    }
}

/// The indexes of the interfaces that datagrams leave by.
#[derive(Debug)]
pub(super) struct Interfaces {
    v4: Option<Interface>,
    v6: Option<Interface>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    index: i32,
    /// When the index was looked up.
    at: Time,
}

impl Interfaces {
    /// Those that were asked for; sees that a socket may be bound to them.
    ///
    /// # Errors
    /// The kernel does not let us, with the remedy. An interface that is not there now may come.
    pub(super) fn new(net: &NetConfig) -> io::Result<Self> {
        let make = |v4: bool| {
            let From::Interface(name) = from(net, v4) else { return Ok(None) };
            let index = match look_up(name) {
                Ok(index) => index,
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => NOWHERE,
                Err(e) => return Err(refused(name, v4, &e)),
            };
            Ok(Some(Interface { name: name.to_owned(), index, at: Time(0) }))
        };
        Ok(Self { v4: make(true)?, v6: make(false)? })
    }

    /// The index of the interface by which a datagram to `to` leaves; 0: as the routes say.
    pub(super) fn index(&mut self, to: IpAddr, now: Time) -> i32 {
        let interface = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let Some(interface) = interface.as_mut().filter(|_| !to.is_loopback()) else { return 0 };
        if now - interface.at >= INTERFACE_FRESH {
            match look_up(&interface.name) {
                Ok(index) => interface.index = index,
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => interface.index = NOWHERE,
                // No descriptor is free: the last answer is better than none.
                Err(_) => {}
            }
            interface.at = now;
        }
        interface.index
    }
}

/// The index that the interface of this name has now.
fn look_up(name: &str) -> io::Result<i32> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
    socket.bind_device(Some(name.as_bytes()))?;
    bound_to(&socket)
}

fn refused(name: &str, v4: bool, e: &io::Error) -> io::Error {
    let option = if v4 { "--outbound-addr" } else { "--outbound-addr6" };
    let cause = nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO)).desc();
    io::Error::new(
        e.kind(),
        format!(
            "{option} {name}: bind a socket to the interface: {cause}: give an address instead"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn net(name: &str) -> NetConfig {
        NetConfig {
            outbound_v4: Some(Outbound::Interface(name.into())),
            outbound_v6: Some(Outbound::Address(Ipv6Addr::LOCALHOST)),
            ..NetConfig::native()
        }
    }

    const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

    #[test]
    fn loopback_is_free_of_it() {
        let mut interfaces = Interfaces::new(&net("lo")).unwrap();
        assert_eq!(interfaces.index(WORLD, Time(0)), 1);
        assert_eq!(interfaces.index(Ipv4Addr::LOCALHOST.into(), Time(0)), 0);
        // By address: nothing to name.
        assert_eq!(interfaces.index(Ipv6Addr::UNSPECIFIED.into(), Time(0)), 0);
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let (free, bound) = (socket(), socket());
        bind(&free, &net("lo"), Ipv4Addr::LOCALHOST.into()).unwrap();
        bind(&bound, &net("lo"), WORLD).unwrap();
        assert_eq!((bound_to(&free).unwrap(), bound_to(&bound).unwrap()), (0, 1));
    }

    #[test]
    fn an_interface_that_is_not_there() {
        let mut interfaces = Interfaces::new(&net("nosuch0")).unwrap();
        assert_eq!(interfaces.index(WORLD, Time(0)), NOWHERE);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let refused = bind(&socket, &net("nosuch0"), WORLD).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        // One that comes under this name is found when the answer is old.
        let interface = interfaces.v4.as_mut().unwrap();
        interface.name = "lo".into();
        let old = Time(INTERFACE_FRESH.0);
        assert_eq!(interfaces.index(WORLD, Time(old.0 - 1)), NOWHERE);
        assert_eq!(interfaces.index(WORLD, old), 1);
    }
}
