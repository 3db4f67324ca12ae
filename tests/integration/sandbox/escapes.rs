//! A hostile program tries to get out, or to take more than it was given. Each attempt has its expected refusal.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::{Bench, EVERYBODY};

/// Each attempt, as everybody: what it says.
fn says(arguments: &[&str], wanted: &str) {
    let bench = Bench::new();
    for who in EVERYBODY {
        assert_eq!(bench.attempt(who, arguments).trim(), wanted, "{who:?}");
    }
}

#[test]
fn nothing_of_the_host_is_in_the_root() {
    let bench = Bench::new();
    for who in EVERYBODY {
        let seen = bench.attempt(who, &["look"]);
        let mut seen: Vec<&str> = seen.lines().collect();
        seen.sort_unstable();
        assert_eq!(
            seen,
            [
                "/bin/",
                "/bin/codex",
                "/dev/",
                "/dev/full",
                "/dev/null",
                "/dev/random",
                "/dev/urandom",
                "/dev/zero",
                "/etc/",
                "/etc/resolv.conf",
                "/etc/ssl/",
                "/etc/ssl/certs/",
                "/etc/ssl/certs/ca-certificates.crt",
                "/home/",
                "/home/probe/",
                "/home/probe/.codex/",
                "/home/probe/.codex/auth.json",
                "/proc/",
                "/proc/self/",
                "/proc/self/exe@",
                "/tmp/",
            ],
            "{who:?}"
        );
    }
}

#[test]
fn files_of_the_host_are_not_there() {
    says(
        &[
            "open",
            "/etc/shadow",
            "/old/etc/shadow",
            "/var/lib/codex-authd",
            "/proc/1/environ",
            "/proc/1/mem",
            "/dev/tty",
        ],
        "/etc/shadow ENOENT\n/old/etc/shadow ENOENT\n/var/lib/codex-authd ENOENT\n/proc/1/environ ENOENT\n\
         /proc/1/mem ENOENT\n/dev/tty ENOENT",
    );
}

#[test]
fn nothing_but_home_and_tmp_can_be_written() {
    says(
        &["write", "/x", "/bin/x", "/etc/x", "/dev/x", "/proc/sys/kernel/core_pattern", "/proc/x", "/tmp/x", "/home/x"],
        "/x EROFS\n/bin/x EROFS\n/etc/x EROFS\n/dev/x EROFS\n/proc/sys/kernel/core_pattern ENOENT\n/proc/x EROFS\n\
         /tmp/x ok\n/home/x EROFS",
    );
}

#[test]
fn symbolic_links_lead_nowhere_else() {
    let bench = Bench::new();
    for who in EVERYBODY {
        let said = bench.attempt(who, &["symlinks"]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 7, "{who:?}: {said}");
        for line in lines {
            let refused = ["EROFS", "EACCES", "EXDEV", "EBUSY", "EPERM"].iter().any(|errno| line.ends_with(errno));
            assert!(refused, "{who:?}: {line}");
        }
    }
}

#[test]
fn no_descriptor_variable_capability_or_group_is_inherited() {
    let bench = Bench::new();
    for (who, ids) in
        EVERYBODY.into_iter().zip(["65534 65534 65534 65534", "1000 1000 1000 1000", "1000 1000 1000 1000"])
    {
        let wanted = format!("HOME=/home/probe\nfd 0\nfd 1\nfd 2\nids {ids} groups 0\nno_new_privs 1\ncore 0\n");
        assert_eq!(bench.attempt(who, &["environment"]), wanted, "{who:?}");
    }
}

#[test]
fn no_process_but_its_own_is_seen_and_the_first_cannot_be_killed() {
    // Itself, and the first process, which the signal does not reach.
    says(&["processes"], "seen 2\nkill init ok\nparent 1\ngroup ESRCH");
}

#[test]
fn every_call_that_reaches_further_is_unknown() {
    let bench = Bench::new();
    for who in EVERYBODY {
        let said = bench.attempt(who, &["calls"]);
        assert!(said.lines().count() > 80, "{said}");
        let passed: Vec<&str> = said.lines().filter(|line| !line.ends_with(" ENOSYS")).collect();
        assert!(passed.is_empty(), "{who:?}: {passed:?}");
    }
}

#[test]
fn nothing_of_the_host_answers_and_no_network_is_there() {
    let bench = Bench::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = bench.file("control.sock");
    let _control = UnixListener::bind(&path).unwrap();
    let name = format!("codex-authd-test-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let (port, path) = (tcp.local_addr().unwrap().port().to_string(), path.to_str().unwrap());
    for who in EVERYBODY {
        let said = bench.attempt(who, &["connect", &port, path, &name]);
        let wanted = format!(
            "127.0.0.1 ECONNREFUSED\n169.254.169.254 ENETUNREACH\n10.0.0.1 ENETUNREACH\n192.0.2.1 ENETUNREACH\n\
             {path} ENOENT\n{name} ECONNREFUSED\n"
        );
        assert_eq!(said, wanted, "{who:?}");
    }
}

#[test]
fn a_setuid_program_is_not_run() {
    says(&["setuid"], "chmod ok\nexec EACCES");
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    says(&["forks"], "fork EAGAIN");
}

#[test]
fn a_gibibyte_of_memory_is_refused() {
    says(&["memory"], "1 GiB ENOMEM\nless than 800 MiB");
}

#[test]
fn the_disk_cannot_be_filled() {
    says(&["disk"], "/home/probe 64 MiB or less\n/tmp 64 MiB or less");
}

#[test]
fn a_hundred_thousand_files_are_refused() {
    says(&["files"], "open ENOSPC");
}

#[test]
fn descriptors_run_out() {
    says(&["descriptors"], "dup EMFILE");
}
