//! Each request and each reply, byte for byte.

use super::*;

fn read(text: &str) -> Result<PortRequest, Problem> {
    parse(&value(text.as_bytes(), true).unwrap()?)
}

fn desc(text: &str) -> String {
    read(text).unwrap_err().desc
}

fn rule(host: &str, ports: std::ops::RangeInclusive<u16>, guest: Option<&str>) -> Forward {
    Forward {
        transport: Transport::Tcp,
        host_addr: host.parse().unwrap(),
        interface: None,
        host_ports: ports,
        guest_addr: guest.map(|g| g.parse().unwrap()),
        guest_port: 80,
    }
}

fn add(arguments: &str) -> String {
    format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#)
}

#[test]
fn what_callers_send() {
    let asked = read(&add(
        r#""proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80"#,
    ));
    assert_eq!(asked, Ok(PortRequest::Add(rule("0.0.0.0", 8080..=8080, Some("10.0.2.100")))));
    // Addresses that are missing or empty.
    for arguments in [
        r#""proto":"tcp","host_port":8080,"guest_port":80"#,
        r#""proto":"tcp","host_addr":"","host_port":8080,"guest_addr":"","guest_port":80"#,
        r#""proto":"tcp","host_addr":null,"host_port":8080.0,"guest_addr":null,"guest_port":80"#,
    ] {
        let asked = read(&add(arguments));
        assert_eq!(asked, Ok(PortRequest::Add(rule("0.0.0.0", 8080..=8080, None))), "{arguments}");
    }
    assert_eq!(read(r#" {"execute":"list_hostfwd"}"#), Ok(PortRequest::List));
    let id = r#"{"arguments":{"id":7},"execute":"remove_hostfwd"}"#;
    assert_eq!(read(id), Ok(PortRequest::Remove(ForwardId(7))));
}

#[test]
fn what_is_ours() {
    let asked = read(&add(
        r#""proto":"udp","host_addr":"::1","host_interface":"lo","host_port":1,"host_port_end":65535,"guest_port":1"#,
    ));
    let wanted = Forward {
        transport: Transport::Udp,
        interface: Some("lo".into()),
        guest_port: 1,
        ..rule("::1", 1..=65535, None)
    };
    assert_eq!(asked, Ok(PortRequest::Add(wanted)));
    // The host's family follows the guest's.
    let asked =
        read(&add(r#""proto":"tcp","host_port":8080,"guest_addr":"fd00::5","guest_port":80"#));
    assert_eq!(asked, Ok(PortRequest::Add(rule("::", 8080..=8080, Some("fd00::5")))));
}

#[test]
fn refusals_are_word_for_word() {
    for (text, words) in [
        ("", "cannot parse JSON"),
        ("hello", "cannot parse JSON"),
        (r#"{"execute":"#, "cannot parse JSON"),
        ("[]", "json_object() failed"),
        ("7", "json_object() failed"),
        (r#""list_hostfwd""#, "json_object() failed"),
        ("{}", "no execute found"),
        (r#"{"execute":5}"#, "no execute found"),
        (r#"{"execute":"dance"}"#, "unknown execute"),
        (r#"{"execute":"remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
        (
            r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#,
            "remove_hostfwd: bad arguments.id",
        ),
        (
            r#"{"execute":"remove_hostfwd","arguments":{"id":-1}}"#,
            "remove_hostfwd: bad arguments.id",
        ),
        (r#"{"execute":"add_hostfwd"}"#, "add_hostfwd: bad arguments.proto"),
        (r#"{"execute":"add_hostfwd","arguments":[]}"#, "add_hostfwd: bad arguments.proto"),
    ] {
        assert_eq!(desc(text), format!("bad request: {words}"), "{text}");
    }
    for (arguments, name) in [
        (r#""host_port":1,"guest_port":1"#, "proto"),
        (r#""proto":"sctp","host_port":1,"guest_port":1"#, "proto"),
        (r#""proto":6,"host_port":1,"guest_port":1"#, "proto"),
        (r#""proto":"tcp","host_addr":"localhost","host_port":1,"guest_port":1"#, "host_addr"),
        (r#""proto":"tcp","host_addr":1,"host_port":1,"guest_port":1"#, "host_addr"),
        (r#""proto":"tcp","guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":0,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":65536,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":-1,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":80.5,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":1e300,"guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":"80","guest_port":1"#, "host_port"),
        (r#""proto":"tcp","host_port":1,"guest_addr":"x","guest_port":1"#, "guest_addr"),
        (r#""proto":"tcp","host_port":1"#, "guest_port"),
        (r#""proto":"tcp","host_port":1,"guest_port":65536"#, "guest_port"),
        (r#""proto":"tcp","host_port":1,"guest_port":null"#, "guest_port"),
        (r#""proto":"tcp","host_port":9,"host_port_end":8,"guest_port":1"#, "host_port_end"),
        (r#""proto":"tcp","host_port":9,"host_port_end":65536,"guest_port":1"#, "host_port_end"),
        (r#""proto":"tcp","host_port":1,"host_port_end":9,"guest_port":65530"#, "guest_port"),
        (
            r#""proto":"tcp","host_interface":"a234567890123456","host_port":1,"guest_port":1"#,
            "host_interface",
        ),
        // In slirp4netns's order.
        (r#""proto":"tcp","host_addr":"x","guest_addr":"x""#, "host_addr"),
        (r#""proto":"tcp","guest_addr":"x""#, "host_port"),
        (r#""proto":"tcp","host_port":1,"guest_addr":"x""#, "guest_addr"),
    ] {
        let words = format!("bad request: add_hostfwd: bad arguments.{name}");
        assert_eq!(desc(&add(arguments)), words, "{arguments}");
    }
}

#[test]
fn a_value_is_whole_or_not_yet() {
    let whole = br#"{"execute":"list_hostfwd","a":[1,{"b":"}"}]}"#;
    for cut in 0..whole.len() {
        assert_eq!(value(&whole[..cut], false), None, "{cut}");
        assert!(value(&whole[..cut], true).unwrap().is_err(), "{cut}");
    }
    assert!(value(whole, false).unwrap().is_ok());
    // What follows does not matter.
    assert!(value(br#"{"execute":"x"} and more"#, false).unwrap().is_ok());
    // Nothing can make this whole: no wait.
    assert!(value(b"hello", false).unwrap().is_err());
    assert!(value(b"{]", false).unwrap().is_err());
    assert!(value(&[b'['; 1000], false).unwrap().is_err());
    assert_eq!((value(b"12", false), value(b"  ", false)), (None, None));
}

#[test]
fn replies_are_byte_for_byte() {
    assert_eq!(added(ForwardId(1)), r#"{"return":{"id":1}}"#);
    assert_eq!(removed(), r#"{"return":{}}"#);
    assert_eq!(
        refused(&Problem::too_large()),
        r#"{"error":{"desc":"bad request: too large message"}}"#
    );
    let failed = Refused { argument: None, line: "TCP \"x\"".into() };
    assert_eq!(
        refused(&failed.into()),
        r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed","cause":"TCP \"x\""}}"#
    );
    let slirp = rule("0.0.0.0", 18080..=18080, Some("10.0.2.100"));
    let entry = r#"{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":18080,"guest_addr":"10.0.2.100","guest_port":80}"#;
    assert_eq!(
        listed([(ForwardId(1), &slirp)].into_iter()),
        format!(r#"{{"return":{{"entries":[{entry}]}},"entries":[{entry}]}}"#)
    );
    assert_eq!(listed(std::iter::empty()), r#"{"return":{"entries":[]},"entries":[]}"#);
}

#[test]
fn a_client_reads_what_the_server_writes() {
    let mut odd = rule("::1", 8000..=8009, Some("fd00::100"));
    odd.interface = Some("a\"b".into());
    let rules =
        [(ForwardId(1), rule("127.0.0.1", 80..=80, Some("10.0.2.15"))), (ForwardId(9), odd)];
    let text = listed(rules.iter().map(|(id, f)| (*id, f)));
    assert_eq!(reply(&PortRequest::List, text.as_bytes()), Ok(Reply::Listed(rules.to_vec())));
    // slirp4netns's own form.
    assert_eq!(reply(&PortRequest::List, br#"{"entries":[]}"#), Ok(Reply::Listed(vec![])));
    for (_, forward) in rules {
        let asked = PortRequest::Add(forward);
        assert_eq!(read(&request(&asked)), Ok(asked.clone()));
        let id = added(ForwardId(3));
        assert_eq!(reply(&asked, id.as_bytes()), Ok(Reply::Added(ForwardId(3))));
        let failed = refused(&Problem::argument("guest_port", "why"));
        assert_eq!(reply(&asked, failed.as_bytes()), Err("why".into()));
    }
    let remove = PortRequest::Remove(ForwardId(u64::from(u32::MAX)));
    assert_eq!(read(&request(&remove)), Ok(remove.clone()));
    assert_eq!(reply(&remove, removed().as_bytes()), Ok(Reply::Removed));
    let words = "bad request: remove_hostfwd: bad arguments.id";
    let unknown = refused(&Problem::no_such_id());
    assert_eq!(reply(&remove, unknown.as_bytes()), Err(words.into()));
    assert_eq!(read(&request(&PortRequest::List)), Ok(PortRequest::List));
    assert!(reply(&remove, b"what?\n").unwrap_err().ends_with("know: what?\\n"));
    assert!(reply(&PortRequest::List, br#"{"return":{}}"#).is_err());
}
