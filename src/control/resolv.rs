//! The host's resolvers: `/etc/resolv.conf`, read again when it has changed.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;

use crate::boot::sys;
use crate::config::NetConfig;
use crate::limits::RESOLVERS_MAX;

/// Where resolvers are listed: resolv.conf(5).
pub const PATH: &str = "/etc/resolv.conf";

/// The host's resolvers as last seen.
#[derive(Debug, Default)]
pub struct Resolvers {
    list: Vec<IpAddr>,
    /// Device, inode, size and time of change of the file that was read; `None`: there was none.
    seen: Option<(u64, u64, u64, i64, i64)>,
}

impl Resolvers {
    /// Reads them.
    pub fn read() -> Self {
        // The stamp first: a change in between is seen next time.
        let seen = stamp();
        Self { seen, list: resolvers(&fs::read(PATH).unwrap_or_default()) }
    }

    /// The resolvers, in order of preference.
    pub fn list(&self) -> &[IpAddr] {
        &self.list
    }

    /// Looks whether the file is another one now, or another text. The new list, if it differs.
    pub fn refresh(&mut self) -> Option<Vec<IpAddr>> {
        if stamp() == self.seen {
            return None;
        }
        let new = Self::read();
        let changed = new.list != self.list;
        *self = new;
        changed.then(|| self.list.clone())
    }
}

/// Tells when the list may have changed, before the guest asks in vain. Without it (no inotify instance is free),
/// [`Resolvers::refresh`] is called when the guest has asked, which is one question late.
#[derive(Debug)]
pub struct Watch(Inotify);

impl Watch {
    /// Watches the folder of the file, and the folder that it leads to where it is a link.
    pub fn new() -> Option<Self> {
        let this = Self(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?);
        this.rearm();
        Some(this)
    }

    /// Returns when something has happened in those folders.
    ///
    /// # Errors
    /// What `epoll(7)` says.
    pub async fn changed(&self) -> io::Result<()> {
        let readiness = sys::readiness(self.0.as_fd(), Interest::READABLE)?;
        drop(readiness.readable().await?);
        while self.0.read_events().is_ok() {}
        self.rearm();
        Ok(())
    }

    /// Folders, not the file: it is replaced by a rename, and its watch would end with it. A folder that
    /// is watched already is not watched twice.
    fn rearm(&self) {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let target = fs::canonicalize(PATH).ok();
        for file in [Some(Path::new(PATH)), target.as_deref()].into_iter().flatten() {
            if let Some(folder) = file.parent() {
                let _ = self.0.add_watch(folder, events);
            }
        }
    }
}

fn stamp() -> Option<(u64, u64, u64, i64, i64)> {
    let meta = fs::metadata(PATH).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

/// What to ask, given the text of resolv.conf: without a usable `nameserver` line, the host itself, as the
/// C library does.
fn resolvers(text: &[u8]) -> Vec<IpAddr> {
    let list = nameservers(text);
    if list.is_empty() {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    list
}

/// The addresses of all `nameserver` lines that hold one. An address with a scope (`fe80::1%eth0`) is left
/// out: the core has no interfaces, and would ask a neighbour on the wrong one.
pub(crate) fn nameservers(text: &[u8]) -> Vec<IpAddr> {
    let text = String::from_utf8_lossy(text);
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(addr) = words.next().and_then(|word| word.parse().ok())
            && !list.contains(&addr)
            && list.len() < RESOLVERS_MAX
        {
            list.push(addr);
        }
    }
    list
}

/// The resolv.conf for a guest: our forwarders as servers, and the host's search list and options.
pub fn for_guest(host: &[u8], net: &NetConfig) -> String {
    let mut text = String::from("# Made by ringtap\n");
    for line in String::from_utf8_lossy(host).lines() {
        let keyword = line.split_whitespace().next();
        if matches!(keyword, Some("search" | "domain" | "options")) {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    text.push_str(&format!("nameserver {}\n", net.v4.dns));
    if let Some(v6) = net.v6 {
        text.push_str(&format!("nameserver {}\n", v6.dns));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines() {
        let text = b"# nameserver 1.1.1.1\n;nameserver 1.1.1.2\nnameserver 192.0.2.1\n\
            nameserver\t2001:db8::53  trailing\n  nameserver 192.0.2.2\nnameserver fe80::1%eth0\n\
            nameserver\nnameserver 999.0.0.1\nnameserverx 192.0.2.9\nnameserver 192.0.2.1\r\n\
            search a\xff.example\n";
        let expected: Vec<IpAddr> = ["192.0.2.1", "2001:db8::53", "192.0.2.2"]
            .into_iter()
            .map(|a| a.parse().unwrap())
            .collect();
        assert_eq!(nameservers(text), expected);
        assert_eq!(resolvers(text), expected);
    }

    #[test]
    fn no_nameserver_is_the_host() {
        let host: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        assert_eq!(resolvers(b""), host);
        assert_eq!(resolvers(b"search example.org\n"), host);
    }

    #[test]
    fn a_bounded_number() {
        let text: String = (0..100).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(nameservers(text.as_bytes()).len(), RESOLVERS_MAX);
    }

    #[test]
    fn a_guest_keeps_the_search_list() {
        let host = b"nameserver 192.0.2.1\nsearch example.org sub.example.org\noptions ndots:2\n";
        let text = for_guest(host, &NetConfig::native());
        assert_eq!(
            text,
            "# Made by ringtap\nsearch example.org sub.example.org\noptions ndots:2\n\
             nameserver 10.0.2.3\nnameserver fd00::3\n"
        );
    }
}
