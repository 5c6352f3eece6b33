//! Programs that people use: iperf3, curl, nginx.

use std::fs;

use crate::harness::{Bed, Dir, Family, With, eventually, need};

fn bytes_per_second(report: &str) -> f64 {
    let json: serde_json::Value =
        serde_json::from_str(report).unwrap_or_else(|e| panic!("{e}: {report}"));
    json["end"]["sum_received"]["bits_per_second"].as_f64().expect("a number") / 8.0
}

#[test]
fn iperf3_both_ways() {
    need!("iperf3");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for family in Family::BOTH {
        for way in ["", "-R", "--bidir"] {
            let mut server = bed
                .remote
                .cmd(&format!("iperf3 -s -1 --forceflush -B {}", family.remote()))
                .start();
            server.wait_for("Server listening");
            let line = format!("iperf3 -c {} -n 50M -P 2 -J {way}", family.remote());
            let report = guest.ns.cmd(&line).ok();
            assert!(bytes_per_second(&report) > 0.0, "{report}");
        }
    }
}

#[test]
fn iperf3_udp() {
    need!("iperf3");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    for way in ["", "-R"] {
        let mut server = bed
            .remote
            .cmd(&format!("iperf3 -s -1 --forceflush -B {}", Family::V4.remote()))
            .start();
        server.wait_for("Server listening");
        let line = format!("iperf3 -u -b 10M -l 1200 -n 2M -c {} -J {way}", Family::V4.remote());
        let report = guest.ns.cmd(&line).ok();
        let json: serde_json::Value = serde_json::from_str(&report).expect("a report");
        assert!(json["end"]["sum"]["packets"].as_f64().expect("a number") > 1000.0, "{report}");
    }
}

/// nginx in `dir`, serving `dir/www` at these addresses.
fn nginx_config(dir: &Dir) -> String {
    let at = dir.path("");
    let at = at.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .concat();
    format!(
        "daemon off; user root; worker_processes 1; pid {at}/nginx.pid; error_log stderr;\n\
         events {{}}\nhttp {{ access_log off; sendfile on; root {at}/www;\n{temp}\
         server {{ listen {}:80; listen [{}]:80; }} }}\n",
        Family::V4.remote(),
        Family::V6.remote()
    )
}

#[test]
fn curl_fetches_from_nginx() {
    need!("curl", "nginx");
    let (bed, guest, _proc) = Bed::up(&With::defaults());
    let www = bed.dir.make("www");
    let file: Vec<u8> = (0..20_000_000_u32).flat_map(|n| [(n ^ (n >> 9)) as u8]).collect();
    fs::write(www.join("file"), &file).expect("write");
    let config = bed.dir.write("nginx.conf", nginx_config(&bed.dir));
    let mut nginx = bed.remote.cmd("nginx -e stderr -c").arg(config).start();
    for family in Family::BOTH {
        let to = std::net::SocketAddr::new(family.remote(), 80);
        eventually("nginx listens", || {
            assert!(nginx.alive(), "nginx: {}", nginx.stderr());
            bed.remote.connect(to).is_ok()
        });
        let got = bed.dir.path("got");
        let line = format!("curl -sS --fail --max-time 50 http://{to}/file -o");
        guest.ns.cmd(&line).arg(&got).ok();
        assert!(fs::read(&got).expect("the file") == file, "{family:?}: not what was sent");
        let missing = format!("curl -sS --fail --max-time 50 http://{to}/missing");
        assert_eq!(guest.ns.cmd(&missing).run().code(), Some(22), "HTTP 404");
    }
}
