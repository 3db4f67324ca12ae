//! The host's network from inside: there is only a loopback interface, and no route.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::{By, Hostile, assert_escapes, assert_refused};
use crate::support::daemon::Daemon;
use crate::support::mariadb::MariaDb;

const BOTH: [By; 2] = [By::Root, By::Nobody];

#[test]
fn no_listener_of_the_hosts_loopback_is_reached() {
    let hostile = Hostile::build();
    let daemon = Daemon::start();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port().to_string();
    let database = MariaDb::with(&["--bind-address=127.0.0.1", &format!("--port={port}")]);
    let (hosts, admin) = (daemon.listen.hosts.port().to_string(), daemon.listen.admin.port().to_string());
    for port in [&hosts, &admin, &port] {
        assert_escapes(&hostile.outside(&["connect", "127.0.0.1", port]));
        assert_refused(&hostile, &["connect", "127.0.0.1", port], "ECONNREFUSED");
        assert_refused(&hostile, &["connect", "::ffff:127.0.0.1", port], "ECONNREFUSED");
        assert_refused(&hostile, &["connect", "0.0.0.0", port], "ECONNREFUSED");
    }
    let socket = database.socket().display().to_string();
    assert_escapes(&hostile.outside(&["connect-unix", &socket]));
    assert_refused(&hostile, &["connect-unix", &socket], "ENOENT");
}

#[test]
fn no_socket_of_the_host_is_reached_by_its_path_or_its_name() {
    let hostile = Hostile::build();
    let daemon = Daemon::start();
    let control = daemon.state.path().join("control.sock").display().to_string();
    let name = format!("escape-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let name = format!("@{name}");
    for (socket, how) in [(&control, "ENOENT"), (&name, "ECONNREFUSED")] {
        assert_escapes(&hostile.outside(&["connect-unix", socket]));
        assert_refused(&hostile, &["connect-unix", socket], how);
    }
}

#[test]
fn there_is_no_way_off_the_machine() {
    let hostile = Hostile::build();
    // No packet is sent: a datagram socket gets the address, and the kernel reports that there is no route. Only then
    // the connection is tried, which cannot send anything either.
    for address in [
        "169.254.169.254",
        "100.100.100.200",
        "10.0.0.1",
        "192.168.0.1",
        "172.17.0.1",
        "192.0.2.1",
        "8.8.8.8",
        "255.255.255.255",
        "224.0.0.1",
        "fd00:ec2::254",
        "fe80::1",
        "2001:db8::1",
        "ff02::1",
    ] {
        for by in BOTH {
            for attempt in ["way-to", "connect"] {
                let ran = hostile.inside(by, &[attempt, address, "80"]);
                let said = ran.output.trim_end();
                let how = said.strip_prefix("refused: ").unwrap_or_else(|| panic!("{address}: {ran:#?}"));
                assert!(["ENETUNREACH", "EACCES", "EINVAL", "EADDRNOTAVAIL"].contains(&how), "{address}: {how}");
                println!("{by:?}: {attempt} {address}: {how}");
            }
        }
    }
}
