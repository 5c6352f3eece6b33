//! `ringtap port`: asks a program that runs, by its API socket. It speaks to slirp4netns's as well.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use super::protocol::{self, Reply};
use crate::boot::{Context, Failure};
use crate::config::{Forward, ForwardId, PortCommand, PortRequest};

/// How long an answer may take: longer than the other side waits for its workers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks, and returns what is to be printed.
///
/// # Errors
/// One line: nobody listens there, or what it says.
pub fn run(PortCommand { api, request }: &PortCommand) -> Result<String, Failure> {
    let what = match request {
        PortRequest::Add(forward) => {
            format!("port add {}/{}", host_side(forward), forward.transport.name())
        }
        PortRequest::List => "port list".to_owned(),
        PortRequest::Remove(ForwardId(id)) => format!("port remove {id}"),
    };
    let bytes = ask(api, &protocol::request(request)).map_err(|e| unheard(api, e))?;
    match protocol::reply(request, &bytes) {
        Ok(Reply::Added(ForwardId(id))) => Ok(id.to_string()),
        Ok(Reply::Removed) => Ok(String::new()),
        Ok(Reply::Listed(forwards)) => Ok(table(&forwards)),
        Err(_) if is_unknown_id(request, &bytes) => Err(Failure::new(format!(
            "{what}: there is no such forward; see ringtap port list --api {}",
            api.display()
        ))),
        Err(why) => Err(Failure::new(format!("{what}: {why}"))),
    }
}

fn ask(api: &Path, request: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(api)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    if reply.is_empty() {
        return Err(io::Error::other("it has ended without an answer"));
    }
    Ok(reply)
}

/// Nobody there, or nobody who answers.
fn unheard(api: &Path, error: io::Error) -> Failure {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTSOCK) => {
            "; no ringtap that runs was given this path by --api (or slirp4netns by --api-socket)"
        }
        Some(Errno::EAGAIN) => "; it does not answer",
        _ => "",
    };
    let step = || format!("--api {}", api.display());
    match Err::<(), _>(error).context(step) {
        Err(failure) => Failure::new(format!("{failure}{remedy}")),
        Ok(()) => Failure::new(step()),
    }
}

/// Whether the answer is that of a number that no forward has.
fn is_unknown_id(request: &PortRequest, bytes: &[u8]) -> bool {
    let answer = protocol::refused(&protocol::Problem::no_such_id());
    matches!(request, PortRequest::Remove(_)) && bytes == answer.as_bytes()
}

/// One line for each forward, below a line of headings.
fn table(forwards: &[(ForwardId, Forward)]) -> String {
    let heading = ["ID", "PROTO", "HOST", "GUEST"].map(str::to_owned);
    let rows = forwards.iter().map(|(ForwardId(id), forward)| {
        let proto = forward.transport.name().to_owned();
        [id.to_string(), proto, host_side(forward), guest_side(forward)]
    });
    let rows: Vec<[String; 4]> = std::iter::once(heading).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (id, proto, host) = (width(0), width(1), width(2));
    let line = |[a, b, c, d]: &[String; 4]| format!("{a:<id$}  {b:<proto$}  {c:<host$}  {d}");
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn host_side(forward: &Forward) -> String {
    let interface = forward.interface.as_ref().map(|i| format!("%{i}")).unwrap_or_default();
    let (first, end) = (*forward.host_ports.start(), *forward.host_ports.end());
    let addr = match forward.host_addr {
        IpAddr::V4(a) => format!("{a}{interface}"),
        IpAddr::V6(a) => format!("[{a}{interface}]"),
    };
    format!("{addr}:{}", ports(first, end))
}

fn guest_side(forward: &Forward) -> String {
    let ports = ports(forward.guest_port, forward.guest_port_end().unwrap_or(u16::MAX));
    match forward.guest_addr {
        Some(IpAddr::V4(a)) => format!("{a}:{ports}"),
        Some(IpAddr::V6(a)) => format!("[{a}]:{ports}"),
        None => ports,
    }
}

fn ports(first: u16, end: u16) -> String {
    if first == end { first.to_string() } else { format!("{first}-{end}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Transport;

    #[test]
    fn a_table_of_forwards() {
        let one = Forward {
            transport: Transport::Tcp,
            host_addr: [127, 0, 0, 1].into(),
            interface: None,
            host_ports: 8080..=8080,
            guest_addr: Some([10, 0, 2, 100].into()),
            guest_port: 80,
        };
        let two = Forward {
            transport: Transport::Udp,
            host_addr: "fe80::1".parse().unwrap(),
            interface: Some("eth0".into()),
            host_ports: 5000..=5010,
            guest_addr: "fd00::100".parse().ok(),
            guest_port: 6000,
        };
        assert_eq!(
            table(&[(ForwardId(1), one), (ForwardId(12), two)]),
            "ID  PROTO  HOST                      GUEST\n\
             1   tcp    127.0.0.1:8080            10.0.2.100:80\n\
             12  udp    [fe80::1%eth0]:5000-5010  [fd00::100]:6000-6010"
        );
        assert_eq!(table(&[]), "ID  PROTO  HOST  GUEST");
    }
}
