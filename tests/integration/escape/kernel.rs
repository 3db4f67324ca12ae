//! System calls that a program in the sandbox does not need, and other interfaces of the kernel.

use super::{By, Hostile, REFUSED, assert_escapes, assert_refused, lines};

/// Each call of a group is refused as if the kernel did not have it; outside, nearly each is executed.
#[track_caller]
fn assert_all_refused(group: &str, unknown_here: &[&str]) {
    let hostile = Hostile::build();
    let control = hostile.contained(&[group]);
    assert_escapes(&control);
    let control = String::from_utf8_lossy(&control.stdout).into_owned();
    let control = lines(&control);
    let unreached: Vec<_> = control.iter().filter(|(_, how)| !how.starts_with("ESCAPED")).collect();
    println!(
        "control: {} of {} are executed outside; not so {unreached:?}",
        control.len() - unreached.len(),
        control.len()
    );
    for (name, how) in unreached {
        // Calls that this kernel was built without prove nothing here.
        assert!(unknown_here.contains(name), "the control: {name}: {how}");
    }
    for by in [By::Root, By::Nobody] {
        let ran = hostile.inside(by, &[group]);
        let inside = lines(&ran.output);
        let names = |lines: &[(&str, &str)]| lines.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&inside), names(&control), "it did not try them all");
        for (name, how) in inside {
            assert_eq!(how, "refused: ENOSYS", "{by:?}: {name}");
        }
        assert_eq!(ran.ending, REFUSED);
    }
}

#[test]
fn system_calls_that_ask_for_more_than_a_process_are_not_there() {
    assert_all_refused(
        "calls",
        // Modules, kexec and I/O ports may be disabled.
        &[
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "kexec_file_load",
            "iopl",
            "ioperm",
            "uselib",
            "memfd_secret",
            "bpf",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "statmount",
            "listmount",
            "modify_ldt",
            "landlock_create_ruleset",
            "perf_event_open",
            "remap_file_pages",
        ],
    );
}

#[test]
fn sockets_that_are_no_connections_are_not_there() {
    let may_be_missing =
        ["ping", "alg", "key", "can", "bluetooth", "xdp", "tipc", "rds", "smc", "sctp", "mptcp", "vsock"];
    assert_all_refused("sockets", &may_be_missing);
}

#[test]
fn no_program_is_put_into_the_kernel_by_a_socket() {
    assert_all_refused("options", &["iptables", "ip6tables"]);
}

#[test]
fn no_new_namespace_is_made() {
    assert_all_refused("namespaces", &[]);
}

#[test]
fn nothing_is_mounted_and_no_root_is_changed() {
    assert_all_refused("mounts", &[]);
}

#[test]
fn its_own_restrictions_are_not_changed() {
    // The kernel itself refuses two of these with invalid arguments.
    assert_all_refused("prctls", &["securebits", "mm"]);
}

#[test]
fn the_calls_of_other_abis_are_not_there() {
    let hostile = Hostile::build();
    for by in [By::Root, By::Nobody] {
        let ran = hostile.inside(by, &["x32-calls"]);
        assert!(lines(&ran.output).len() > 90, "it did not try them all");
        assert!(lines(&ran.output).iter().all(|(_, how)| *how == "refused: ENOSYS"), "{ran:#?}");
    }
    if cfg!(target_arch = "x86_64") {
        let control = hostile.outside(&["i386"]);
        println!("control: {}", String::from_utf8_lossy(&control.stdout).trim_end());
        assert_refused(&hostile, &["i386"], "signal 31");
    }
}

#[test]
fn no_capability_is_had_and_none_can_be() {
    let hostile = Hostile::build();
    assert_escapes(&hostile.outside(&["capabilities"]));
    assert_refused(&hostile, &["capabilities"], "none, and no new ones");
    // An operation that a capability would allow in its own namespaces.
    assert_escapes(&hostile.contained(&["bind", "0.0.0.0", "80"]));
    assert_refused(&hostile, &["bind", "0.0.0.0", "80"], "EACCES");
}

#[test]
fn it_traces_neither_the_first_process_nor_its_own_child() {
    let hostile = Hostile::build();
    assert_escapes(&hostile.outside(&["trace-child"]));
    assert_refused(&hostile, &["trace-child"], "ENOSYS");
    assert_refused(&hostile, &["trace", "1"], "ENOSYS");
}

#[test]
fn the_first_process_takes_no_harm_by_signals() {
    let hostile = Hostile::build();
    assert_refused(&hostile, &["signal-first"], "the first process is still there");
}
