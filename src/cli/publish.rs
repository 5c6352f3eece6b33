//! Port forwards as people write them: `[ADDRESS:]PORT[-PORT][:[GUEST_ADDRESS:]PORT[-PORT]][/tcp|/udp]`.
//!
//! As podman's `--publish`, with IPv6 addresses in brackets, and `ADDRESS%INTERFACE` or `%INTERFACE` to listen on one
//! interface alone. A port by itself leads to the same port of the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::value;
use crate::config::{Forward, Transport};

/// For everything that has no shape of its own.
const SHAPE: &str = "must be [ADDRESS:]PORT[-PORT][:GUEST_PORT][/udp], such as 8080:80, 127.0.0.1:8080:80 or [::1]:8080:80 \
                     (IPv6 in brackets)";

/// Reads one; a reason when it is none.
pub(super) fn forward(text: &str) -> Result<Forward, String> {
    let (rest, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((rest, "tcp")) => (rest, Transport::Tcp),
        Some((rest, "udp")) => (rest, Transport::Udp),
        Some((_, other)) => return Err(format!("/{other}: must be /tcp or /udp")),
    };
    let mut parts = parts(rest)?.into_iter().peekable();
    let (addr, interface) = match parts.next_if(|part| !is_ports(part)) {
        Some(part) => host(part)?,
        None => (None, None),
    };
    let (first, end) = ports(parts.next().ok_or("a port is missing, as in 127.0.0.1:8080:80")?)?;
    let guest_addr = parts.next_if(|part| !is_ports(part)).map(address).transpose()?;
    let guest_port = match parts.next() {
        Some(part) => {
            let (guest, guest_end) = ports(part)?;
            if guest_end != guest && guest_end - guest != end - first {
                return Err("both ranges must have as many ports".to_owned());
            }
            guest
        }
        None if guest_addr.is_some() => return Err("the guest's port is missing".to_owned()),
        None => first,
    };
    if parts.next().is_some() {
        return Err(SHAPE.to_owned());
    }
    let unspecified = |v6| -> IpAddr {
        if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    };
    let host_addr =
        addr.unwrap_or_else(|| unspecified(guest_addr.is_some_and(|guest| guest.is_ipv6())));
    if let Some(guest) = guest_addr
        && guest.is_ipv4() != host_addr.is_ipv4()
    {
        return Err(format!("{guest} and {host_addr}: both must be IPv4, or both IPv6"));
    }
    let forward = Forward {
        transport,
        host_addr,
        interface,
        host_ports: first..=end,
        guest_addr,
        guest_port,
    };
    match forward.guest_port_end() {
        Some(_) => Ok(forward),
        None => Err(format!("from {guest_port} on, {} ports go beyond 65535", forward.len())),
    }
}

/// Cuts at colons that are not in brackets.
fn parts(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        // What is in brackets belongs to one part.
        let skip = if rest.starts_with('[') { rest.find(']').ok_or(SHAPE)? } else { 0 };
        let Some(at) = rest.get(skip..).and_then(|tail| tail.find(':')) else {
            parts.push(rest);
            break;
        };
        let (part, tail) = rest.split_at(skip + at);
        parts.push(part);
        rest = tail.strip_prefix(':').unwrap_or_default();
    }
    // `127.0.0.1::80` asks for a port by chance elsewhere; `::1:8080:80` lacks its brackets.
    if parts.len() > 4 || parts.contains(&"") { Err(SHAPE.to_owned()) } else { Ok(parts) }
}

fn is_ports(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

/// `8080` or `8080-8089`.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| {
        // A sign would be a number, too.
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let port = text.parse().ok().filter(|&port: &u16| port > 0 && digits);
        port.ok_or_else(|| format!("port {text}: must be from 1 to 65535"))
    };
    let (first, end) = text.split_once('-').unwrap_or((text, text));
    let (first, end) = (port(first)?, port(end)?);
    if end < first {
        return Err(format!("{text}: the second port of a range must not be below the first"));
    }
    Ok((first, end))
}

/// The address and the interface to listen on.
fn host(text: &str) -> Result<(Option<IpAddr>, Option<String>), String> {
    let (inside, behind) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(SHAPE)?,
        None => (text, ""),
    };
    let (addr, within) = match inside.split_once('%') {
        Some((addr, name)) => (addr, Some(name)),
        None => (inside, None),
    };
    let name = match (within, behind) {
        (within, "") => within,
        (None, behind) => Some(behind.strip_prefix('%').ok_or(SHAPE)?),
        (Some(_), _) => return Err(SHAPE.to_owned()),
    };
    if let Some(name) = name
        && !value::is_interface_name(name)
    {
        return Err(format!("%{name}: is no name of an interface"));
    }
    let interface = name.map(str::to_owned);
    if addr.is_empty() && interface.is_some() && !text.starts_with('[') {
        return Ok((None, interface));
    }
    Ok((Some(parse(addr, text.starts_with('['))?), interface))
}

/// The guest's address.
fn address(text: &str) -> Result<IpAddr, String> {
    match text.strip_prefix('[') {
        Some(rest) => parse(rest.strip_suffix(']').ok_or(SHAPE)?, true),
        None => parse(text, false),
    }
}

fn parse(addr: &str, brackets: bool) -> Result<IpAddr, String> {
    if brackets {
        let v6 = addr.parse::<Ipv6Addr>();
        v6.map(IpAddr::V6).map_err(|_| format!("[{addr}]: is no IPv6 address"))
    } else {
        let v4 = addr.parse::<Ipv4Addr>();
        v4.map(IpAddr::V4).map_err(|_| {
            format!("{addr}: is no IPv4 address (names are not looked up, IPv6 is in brackets)")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Transport, String, Option<String>, (u16, u16), Option<String>, u16) {
        let f = forward(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        let ports = (*f.host_ports.start(), *f.host_ports.end());
        let guest = f.guest_addr.map(|a| a.to_string());
        (f.transport, f.host_addr.to_string(), f.interface, ports, guest, f.guest_port)
    }

    #[test]
    fn every_spelling() {
        use Transport::{Tcp, Udp};
        for (text, transport, host, interface, ports, guest, port) in [
            ("8080:80", Tcp, "0.0.0.0", "", (8080, 8080), "", 80),
            ("8080", Tcp, "0.0.0.0", "", (8080, 8080), "", 8080),
            ("8080:80/tcp", Tcp, "0.0.0.0", "", (8080, 8080), "", 80),
            ("5353:53/udp", Udp, "0.0.0.0", "", (5353, 5353), "", 53),
            ("127.0.0.1:8080:80", Tcp, "127.0.0.1", "", (8080, 8080), "", 80),
            ("127.0.0.1:8080", Tcp, "127.0.0.1", "", (8080, 8080), "", 8080),
            ("[::1]:8080:80", Tcp, "::1", "", (8080, 8080), "", 80),
            ("[::]:53:53/udp", Udp, "::", "", (53, 53), "", 53),
            ("8000-8009:80", Tcp, "0.0.0.0", "", (8000, 8009), "", 80),
            ("8000-8009:9000-9009", Tcp, "0.0.0.0", "", (8000, 8009), "", 9000),
            ("8000-8009", Tcp, "0.0.0.0", "", (8000, 8009), "", 8000),
            ("1-65535", Tcp, "0.0.0.0", "", (1, 65535), "", 1),
            ("8000-8000:65535", Tcp, "0.0.0.0", "", (8000, 8000), "", 65535),
            ("%eth0:8080:80", Tcp, "0.0.0.0", "eth0", (8080, 8080), "", 80),
            ("192.0.2.7%eth0:8080:80", Tcp, "192.0.2.7", "eth0", (8080, 8080), "", 80),
            ("[fe80::1%eth0]:8080:80", Tcp, "fe80::1", "eth0", (8080, 8080), "", 80),
            ("[fe80::1]%eth0:8080:80/udp", Udp, "fe80::1", "eth0", (8080, 8080), "", 80),
            ("8080:10.0.2.15:80", Tcp, "0.0.0.0", "", (8080, 8080), "10.0.2.15", 80),
            ("127.0.0.1:8080:10.0.2.15:80", Tcp, "127.0.0.1", "", (8080, 8080), "10.0.2.15", 80),
            ("[::1]:8080:[fd00::5]:80", Tcp, "::1", "", (8080, 8080), "fd00::5", 80),
            ("8080:[fd00::5]:80", Tcp, "::", "", (8080, 8080), "fd00::5", 80),
        ] {
            let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            let wanted = (transport, host.to_owned(), some(interface), ports, some(guest), port);
            assert_eq!(of(text), wanted, "{text}");
        }
    }

    #[test]
    fn every_mistake() {
        for (text, why) in [
            ("", SHAPE),
            (":80", SHAPE),
            ("8080:", SHAPE),
            ("127.0.0.1::80", SHAPE),
            ("::1:8080:80", SHAPE),
            ("fd00::1", SHAPE),
            ("1:2:3:4:5", SHAPE),
            ("1:2:3", SHAPE),
            ("[::1:8080:80", SHAPE),
            ("[::1]x:8080:80", SHAPE),
            ("[fe80::1%a]%b:8080:80", SHAPE),
            ("/udp", SHAPE),
            ("8080:80/sctp", "/sctp: must be /tcp or /udp"),
            ("8080:80/UDP", "/UDP: must be /tcp or /udp"),
            ("10.0.0.0/8:80", "/8:80: must be /tcp or /udp"),
            ("127.0.0.1", "a port is missing, as in 127.0.0.1:8080:80"),
            ("8080:10.0.2.15", "the guest's port is missing"),
            ("0:80", "port 0: must be from 1 to 65535"),
            ("8080:0", "port 0: must be from 1 to 65535"),
            ("65536:80", "port 65536: must be from 1 to 65535"),
            ("8080:70000", "port 70000: must be from 1 to 65535"),
            ("-80:80", "port : must be from 1 to 65535"),
            ("80-:80", "port : must be from 1 to 65535"),
            ("1-2-3:80", "port 2-3: must be from 1 to 65535"),
            ("9-8:80", "9-8: the second port of a range must not be below the first"),
            ("8000-8009:80-81", "both ranges must have as many ports"),
            ("8000:80-81", "both ranges must have as many ports"),
            ("8000-8009:65530", "from 65530 on, 10 ports go beyond 65535"),
            (
                "localhost:8080:80",
                "localhost: is no IPv4 address (names are not looked up, IPv6 is in brackets)",
            ),
            ("http:80", "http: is no IPv4 address (names are not looked up, IPv6 is in brackets)"),
            ("[127.0.0.1]:8080:80", "[127.0.0.1]: is no IPv6 address"),
            ("[]:8080:80", "[]: is no IPv6 address"),
            ("[%eth0]:8080:80", "[]: is no IPv6 address"),
            ("%:8080:80", "%: is no name of an interface"),
            ("%a234567890123456:1:1", "%a234567890123456: is no name of an interface"),
            ("127.0.0.1:8080:[::1]:80", "::1 and 127.0.0.1: both must be IPv4, or both IPv6"),
        ] {
            assert_eq!(forward(text), Err(why.to_owned()), "{text}");
        }
    }
}
