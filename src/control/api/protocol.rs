//! The words of the API: slirp4netns's requests and replies, and what is ours beside them.
//!
//! slirp4netns's, word for word: `add_hostfwd` with `proto` ("tcp", "udp"), `host_addr` (0.0.0.0 when missing or ""),
//! `host_port`, `guest_addr` (the guest's own when missing or "") and `guest_port`; `list_hostfwd`; `remove_hostfwd`
//! with `id`. `list_hostfwd` answers in both of the forms that its readers know: `entries` by itself, as slirp4netns
//! sends it, and within `return`, as its manual says.
//!
//! Ours, in `add_hostfwd` and in entries: IPv6 addresses (of both sides, or neither); `host_port_end`, the last port
//! of a range that begins with `host_port` and leads to as many ports from `guest_port` on; `host_interface`, which is
//! listened on alone. In an error, `cause` says beside `desc` what was wrong and what helps.
//!
//! Where we differ on purpose: a missing `proto` is refused (slirp4netns crashes), and so are ports beyond 65535,
//! and an address that is no text.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Deserializer, Value, json};

use crate::config::{Forward, ForwardId, PortRequest, Transport};
use crate::control::forwards::Refused;

/// A request that is not carried out.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// slirp4netns's words.
    pub desc: String,
    /// What was wrong, where those do not say it.
    pub cause: Option<String>,
}

impl Problem {
    /// slirp4netns's words alone.
    pub fn new(desc: &str) -> Self {
        Self { desc: format!("bad request: {desc}"), cause: None }
    }

    fn because(desc: &str, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(desc) }
    }

    fn argument(name: &str, cause: impl Into<String>) -> Self {
        Self::because(&format!("add_hostfwd: bad arguments.{name}"), cause)
    }

    /// It is longer than a request may be.
    pub fn too_large() -> Self {
        Self::new("too large message")
    }

    /// There is no forward of this number.
    pub fn no_such_id() -> Self {
        Self::new("remove_hostfwd: bad arguments.id")
    }

    /// A worker does not let go of the ports.
    pub fn not_removed() -> Self {
        let cause = "it is removed, but its ports are not free yet";
        Self::because("remove_hostfwd: slirp_remove_hostfwd failed", cause)
    }
}

impl From<Refused> for Problem {
    fn from(Refused { argument, line }: Refused) -> Self {
        match argument {
            Some(name) => Self::argument(name, line),
            None => Self::because("add_hostfwd: slirp_add_hostfwd failed", line),
        }
    }
}

/// The value that these bytes begin with. `None`: there may be more to come; at the end it is then a mistake.
pub fn value(bytes: &[u8], ended: bool) -> Option<Result<Value, Problem>> {
    let bad = || Some(Err(Problem::new("cannot parse JSON")));
    match Deserializer::from_slice(bytes).into_iter().next() {
        // A number goes on until something else comes.
        Some(Ok(Value::Number(_))) if !ended => None,
        Some(Ok(value)) => Some(Ok(value)),
        Some(Err(e)) if e.is_eof() && !ended => None,
        None if !ended => None,
        Some(Err(_)) | None => bad(),
    }
}

/// What a value asks for.
///
/// # Errors
/// What slirp4netns says of a request that it does not know.
pub fn parse(value: &Value) -> Result<PortRequest, Problem> {
    let request = value.as_object().ok_or_else(|| Problem::new("json_object() failed"))?;
    let execute = request.get("execute").and_then(Value::as_str);
    let arguments = request.get("arguments").unwrap_or(&Value::Null);
    match execute.ok_or_else(|| Problem::new("no execute found"))? {
        "add_hostfwd" => forward(arguments).map(PortRequest::Add),
        "list_hostfwd" => Ok(PortRequest::List),
        "remove_hostfwd" => {
            let id = arguments.get("id").and_then(number).ok_or_else(Problem::no_such_id)?;
            Ok(PortRequest::Remove(ForwardId(id)))
        }
        _ => Err(Problem::new("unknown execute")),
    }
}

/// The arguments of `add_hostfwd`, in slirp4netns's order.
fn forward(arguments: &Value) -> Result<Forward, Problem> {
    let transport = match text(arguments, "proto")? {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => return Err(Problem::argument("proto", "must be tcp or udp")),
    };
    let guest = text(arguments, "guest_addr");
    let host_addr = match (address(arguments, "host_addr")?, &guest) {
        (Some(addr), _) => addr,
        // Of the family of the guest's, where that is given.
        (None, Ok(Some(guest))) if guest.parse::<Ipv6Addr>().is_ok() => {
            Ipv6Addr::UNSPECIFIED.into()
        }
        (None, _) => Ipv4Addr::UNSPECIFIED.into(),
    };
    let interface = match text(arguments, "host_interface")? {
        Some(name) if (1..=15).contains(&name.len()) && !name.bytes().any(|b| b == 0) => {
            Some(name.to_owned())
        }
        None => None,
        Some(_) => {
            return Err(Problem::argument("host_interface", "must be the name of an interface"));
        }
    };
    let first = port(arguments, "host_port")?;
    let end = match arguments.get("host_port_end") {
        None | Some(Value::Null) => first,
        Some(_) => port(arguments, "host_port_end")?,
    };
    if end < first {
        let cause = format!("{end}: is below host_port, {first}");
        return Err(Problem::argument("host_port_end", cause));
    }
    let guest_addr = address(arguments, "guest_addr")?;
    let guest_port = port(arguments, "guest_port")?;
    let forward = Forward {
        transport,
        host_addr,
        interface,
        host_ports: first..=end,
        guest_addr,
        guest_port,
    };
    if forward.guest_port_end().is_none() {
        let cause = format!("{guest_port}: with {} ports it would go beyond 65535", forward.len());
        return Err(Problem::argument("guest_port", cause));
    }
    Ok(forward)
}

/// A text that is there and not empty.
fn text<'a>(arguments: &'a Value, name: &str) -> Result<Option<&'a str>, Problem> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::argument(name, "must be a text")),
    }
}

fn address(arguments: &Value, name: &str) -> Result<Option<IpAddr>, Problem> {
    let Some(text) = text(arguments, name)? else { return Ok(None) };
    let addr = text.parse();
    addr.map(Some).map_err(|_| Problem::argument(name, "must be an IPv4 or IPv6 address"))
}

fn port(arguments: &Value, name: &str) -> Result<u16, Problem> {
    let port = arguments.get(name).and_then(number).and_then(|n| u16::try_from(n).ok());
    port.filter(|&port| port > 0)
        .ok_or_else(|| Problem::argument(name, "must be a number from 1 to 65535"))
}

/// A whole number; some writers of JSON make every number one with a point.
fn number(value: &Value) -> Option<u64> {
    let whole = |n: &f64| n.fract() == 0.0 && (0.0..=9e15).contains(n);
    value.as_u64().or_else(|| value.as_f64().filter(whole).map(|n| n as u64))
}

/// The answer to `add_hostfwd`.
pub fn added(ForwardId(id): ForwardId) -> String {
    format!(r#"{{"return":{{"id":{id}}}}}"#)
}

/// The answer to `remove_hostfwd`.
pub fn removed() -> String {
    r#"{"return":{}}"#.to_owned()
}

/// The answer to `list_hostfwd`. Forwards have their guest address.
pub fn listed<'a>(forwards: impl Iterator<Item = (ForwardId, &'a Forward)>) -> String {
    let mut entries = String::new();
    for (id, forward) in forwards {
        if !entries.is_empty() {
            entries.push(',');
        }
        entry(&mut entries, id, forward);
    }
    format!(r#"{{"return":{{"entries":[{entries}]}},"entries":[{entries}]}}"#)
}

/// One entry. slirp4netns's fields come in its order; serde_json would sort them.
fn entry(to: &mut String, ForwardId(id): ForwardId, forward: &Forward) {
    let (proto, host) = (forward.transport.name(), forward.host_addr);
    let guest = forward.guest_addr.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let (first, end) = (forward.host_ports.start(), forward.host_ports.end());
    let guest_port = forward.guest_port;
    // Writing to a String does not fail.
    let _ = write!(
        to,
        r#"{{"id":{id},"proto":"{proto}","host_addr":"{host}","host_port":{first},"guest_addr":"{guest}","guest_port":{guest_port}"#
    );
    if first != end {
        let _ = write!(to, r#","host_port_end":{end}"#);
    }
    if let Some(name) = &forward.interface {
        // As a value: a name may hold quotes.
        let _ = write!(to, r#","host_interface":{}"#, json!(name));
    }
    to.push('}');
}

/// The answer to what is not carried out.
pub fn refused(Problem { desc, cause }: &Problem) -> String {
    let cause = cause.as_ref().map(|c| format!(r#","cause":{}"#, json!(c))).unwrap_or_default();
    format!(r#"{{"error":{{"desc":{}{cause}}}}}"#, json!(desc))
}

/// A request as a client sends it.
pub fn request(request: &PortRequest) -> String {
    let (execute, arguments) = match request {
        PortRequest::List => return r#"{"execute":"list_hostfwd"}"#.to_owned(),
        PortRequest::Remove(ForwardId(id)) => ("remove_hostfwd", json!({ "id": id })),
        PortRequest::Add(forward) => {
            let (first, end) = (forward.host_ports.start(), forward.host_ports.end());
            let mut arguments = json!({
                "proto": forward.transport.name(),
                "host_addr": forward.host_addr.to_string(),
                "host_port": first,
                "guest_addr": forward.guest_addr.map(|a| a.to_string()).unwrap_or_default(),
                "guest_port": forward.guest_port,
            });
            if first != end {
                arguments["host_port_end"] = json!(end);
            }
            if let Some(name) = &forward.interface {
                arguments["host_interface"] = json!(name);
            }
            ("add_hostfwd", arguments)
        }
    };
    json!({ "execute": execute, "arguments": arguments }).to_string()
}

/// What a reply says.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The new forward's number.
    Added(ForwardId),
    /// All forwards.
    Listed(Vec<(ForwardId, Forward)>),
    /// It is gone.
    Removed,
}

/// Reads the reply to a request; an error is one in words for people.
///
/// # Errors
/// What the other side says, or that it says nothing that we know.
pub fn reply(request: &PortRequest, bytes: &[u8]) -> Result<Reply, String> {
    let unknown = || format!("an answer that ringtap does not know: {}", bytes.escape_ascii());
    let value: Value = serde_json::from_slice(bytes).map_err(|_| unknown())?;
    if let Some(error) = value.get("error") {
        let words = |key| error.get(key).and_then(Value::as_str).map(str::to_owned);
        return Err(words("cause").or_else(|| words("desc")).unwrap_or_else(unknown));
    }
    let returned = value.get("return");
    let reply = match request {
        PortRequest::Add(_) => returned
            .and_then(|r| r.get("id"))
            .and_then(number)
            .map(|id| Reply::Added(ForwardId(id))),
        PortRequest::Remove(_) => returned.map(|_| Reply::Removed),
        PortRequest::List => returned
            .and_then(|r| r.get("entries"))
            .or_else(|| value.get("entries"))
            .and_then(Value::as_array)
            .and_then(|entries| {
                let read = |entry: &Value| {
                    Some((ForwardId(entry.get("id").and_then(number)?), forward(entry).ok()?))
                };
                entries.iter().map(read).collect::<Option<_>>().map(Reply::Listed)
            }),
    };
    reply.ok_or_else(unknown)
}

#[cfg(test)]
mod tests;
