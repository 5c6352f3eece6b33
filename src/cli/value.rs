//! Option values: one function per kind of value, from text to what a [`Config`](crate::config::Config) holds.
//!
//! Personalities word their refusals differently, so these return a reason and never a whole message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Host;
use crate::config::{Outbound, V4Net};

/// Longest interface name: `IFNAMSIZ` (linux/if.h) is 16 with the terminating NUL.
const NAME_MAX: usize = 15;
/// Longest prefix that leaves room for the guest's address at +100.
const PREFIX_MAX: u8 = 25;

/// Why a network was refused, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadCidr {
    /// Not `a.b.c.d/n`.
    Shape,
    /// Its four numbers are no IPv4 address.
    Address,
    /// The prefix is not from 1 to 25.
    Prefix,
    /// Bits are set behind the prefix.
    NotNetwork,
    /// Our addresses would lie in 0/8, 127/8, multicast or reserved space, which no guest can talk to.
    NotUnicast,
}

/// Reads `10.0.2.0/24`.
pub(super) fn cidr(text: &str) -> Result<V4Net, BadCidr> {
    let (address, prefix) = text.split_once('/').ok_or(BadCidr::Shape)?;
    let digits =
        |s: &str, max| (1..=max).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(prefix, 2)
        || address.split('.').count() != 4
        || !address.split('.').all(|n| digits(n, 3))
    {
        return Err(BadCidr::Shape);
    }
    let network: Ipv4Addr = address.parse().map_err(|_| BadCidr::Address)?;
    let prefix: u8 = prefix.parse().map_err(|_| BadCidr::Shape)?;
    if !(1..=PREFIX_MAX).contains(&prefix) {
        return Err(BadCidr::Prefix);
    }
    let net = V4Net::new(network, prefix);
    if u32::from(network) & !u32::from(net.netmask()) != 0 {
        return Err(BadCidr::NotNetwork);
    }
    // All our addresses lie within the first 128 of the network, so they share its first byte.
    let [first, ..] = network.octets();
    if first == 0 || first == 127 || first >= 224 {
        return Err(BadCidr::NotUnicast);
    }
    Ok(net)
}

/// Why a MAC was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadMac {
    /// Not six bytes of one or two hexadecimal digits with colons between.
    Shape,
    /// More than six bytes.
    TooLong,
    /// A multicast address, or all zero: no interface takes it.
    NotUnicast,
}

/// Reads `52:54:00:12:34:56`.
pub(super) fn mac(text: &str) -> Result<[u8; 6], BadMac> {
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for byte in &mut mac {
        let digits = bytes.next().ok_or(BadMac::Shape)?;
        let hex = matches!(digits.len(), 1 | 2) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| hex).ok_or(BadMac::Shape)?;
    }
    if bytes.next().is_some() {
        return Err(BadMac::TooLong);
    }
    // IEEE 802-2014 section 8.2.2: the lowest bit of the first byte marks a group address.
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(BadMac::NotUnicast);
    }
    Ok(mac)
}

/// Whether the kernel takes this as the name of an interface (`dev_valid_name`), and takes it as it stands: a
/// `%` would be a pattern.
pub(super) fn is_interface_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        // Folders of net.ipv4.conf that are not of one interface.
        && name != "all"
        && name != "default"
        && !name.bytes().any(|b| b"/:%".contains(&b) || b.is_ascii_whitespace() || b == 0x0b)
}

/// An address family, as far as outbound addresses care.
pub(super) trait Family: Sized + Copy + PartialEq {
    /// The address, when it is of this family and can be the source of traffic to anywhere.
    fn of(addr: IpAddr) -> Option<Self>;
    /// Reads an address of this family.
    fn read(text: &str) -> Option<Self>;
}

impl Family for Ipv4Addr {
    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Family for Ipv6Addr {
    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            // A link-local address needs a scope and reaches one link only.
            IpAddr::V6(a) if !a.is_unicast_link_local() => Some(a),
            IpAddr::V6(_) | IpAddr::V4(_) => None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// Where outgoing sockets leave from: an address, or an interface that has one now. (Later it may lose it, and get
/// another; one that never had any is a mistake.)
pub(super) fn outbound<A: Family>(text: &str, host: &dyn Host) -> Option<Outbound<A>> {
    if let Some(addr) = A::read(text) {
        return Some(Outbound::Address(addr));
    }
    host.addresses()
        .into_iter()
        .any(|(name, addr)| name == text && A::of(addr).is_some())
        .then(|| Outbound::Interface(text.to_owned()))
}

/// Whether an interface of this host has the address.
pub(super) fn is_local<A: Family>(addr: A, host: &dyn Host) -> bool {
    host.addresses().into_iter().any(|(_, a)| A::of(a) == Some(addr))
}

/// The word of a list that was most likely meant: one that starts with what was typed, or one few letters away.
pub(super) fn nearest<'a>(
    typed: &str,
    words: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let distance = |word: &str| {
        if typed.len() >= 2 && word.starts_with(typed) { 0 } else { edits(typed, word) }
    };
    words
        .into_iter()
        .map(|word| (distance(word), word))
        .min_by_key(|&(d, _)| d)
        .filter(|&(d, word)| d <= word.len().div_ceil(3))
        .map(|(_, word)| word)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fake;
    use super::*;

    #[test]
    fn cidr_checks_in_order() {
        assert_eq!(cidr("10.0.2.0/24"), Ok(V4Net::new(Ipv4Addr::new(10, 0, 2, 0), 24)));
        assert_eq!(cidr("10.0.135.128/25").unwrap().guest, Ipv4Addr::new(10, 0, 135, 228));
        assert_eq!(cidr("128.0.0.0/1").unwrap().prefix, 1);
        for (text, why) in [
            ("", BadCidr::Shape),
            ("foo", BadCidr::Shape),
            ("10.0.2.0", BadCidr::Shape),
            ("10.0.2/24", BadCidr::Shape),
            ("10.0.2.0.0/24", BadCidr::Shape),
            ("10.0.2.0/240", BadCidr::Shape),
            ("10.0.2.0/", BadCidr::Shape),
            ("10.0.2.0/-1", BadCidr::Shape),
            (" 10.0.2.0/24", BadCidr::Shape),
            ("1000.0.2.0/24", BadCidr::Shape),
            ("fd00::/64", BadCidr::Shape),
            ("10.0.2.256/24", BadCidr::Address),
            ("10.0.2.0/0", BadCidr::Prefix),
            ("10.0.2.0/26", BadCidr::Prefix),
            // The prefix is looked at before the alignment.
            ("10.0.2.1/26", BadCidr::Prefix),
            ("10.0.2.100/24", BadCidr::NotNetwork),
            ("127.0.0.0/8", BadCidr::NotUnicast),
            ("0.0.0.0/1", BadCidr::NotUnicast),
            ("224.0.0.0/8", BadCidr::NotUnicast),
        ] {
            assert_eq!(cidr(text), Err(why), "{text}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(mac("52:54:0:12:34:fF"), Ok([0x52, 0x54, 0, 0x12, 0x34, 0xff]));
        for text in [
            "",
            "52",
            "52:54:00:12:34",
            "52:54:00:12:34:",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:567",
        ] {
            assert_eq!(mac(text), Err(BadMac::Shape), "{text}");
        }
        // u8::from_str_radix would take a sign.
        assert_eq!(mac("52:54:00:12:34:+5"), Err(BadMac::Shape));
        assert_eq!(mac("52:54:00:12:34:56:78"), Err(BadMac::TooLong));
        assert_eq!(mac("53:54:00:12:34:56"), Err(BadMac::NotUnicast));
        assert_eq!(mac("00:00:00:00:00:00"), Err(BadMac::NotUnicast));
    }

    #[test]
    fn interface_names() {
        assert!(is_interface_name("tap0") && is_interface_name("a23456789012345"));
        for name in [
            "",
            ".",
            "..",
            "a234567890123456",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\x0bb",
            "tap%d",
            "all",
        ] {
            assert!(!is_interface_name(name), "{name:?}");
        }
    }

    #[test]
    fn outbound_addresses() {
        let address = Outbound::Address(Ipv4Addr::new(198, 51, 100, 1));
        assert_eq!(outbound("198.51.100.1", &Fake), Some(address));
        let interface = Outbound::Interface("eth0".into());
        assert_eq!(outbound::<Ipv4Addr>("eth0", &Fake), Some(interface));
        assert_eq!(outbound::<Ipv4Addr>("eth1", &Fake), None);
        assert_eq!(outbound::<Ipv4Addr>("::1", &Fake), None);
        let interface = Outbound::Interface("eth0".into());
        assert_eq!(outbound::<Ipv6Addr>("eth0", &Fake), Some(interface));
        // It has a link-local address only.
        assert_eq!(outbound::<Ipv6Addr>("eth1", &Fake), None);
        assert!(is_local(Ipv4Addr::new(192, 0, 2, 8), &Fake));
        assert!(!is_local(Ipv4Addr::new(192, 0, 2, 9), &Fake));
    }

    #[test]
    fn nearest_word() {
        let words = ["mtu", "cidr", "no-ipv6", "ready-fd"];
        assert_eq!(nearest("mtuu", words), Some("mtu"));
        assert_eq!(nearest("noipv6", words), Some("no-ipv6"));
        assert_eq!(nearest("ready", words), Some("ready-fd"));
        assert_eq!(nearest("bandwidth", words), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
