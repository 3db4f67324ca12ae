//! Memory, processes and disk: how much of them one sandbox can take.

use std::fs;
use std::time::{Duration, Instant};

use codex_authd::runner::delegation;
use codex_authd::runner::sandbox::Ending;

use super::{By, HOME, Hostile, REFUSED, Ran, Running, assert_escapes, assert_refused, lines};
use crate::support::daemon::BOUND;
use crate::support::eventually;
use crate::support::skip::{Unavailable, skipped};

const BOTH: [By; 2] = [By::Root, By::Nobody];

/// `refused: ERROR after N…`: N.
#[track_caller]
fn after(ran: &Ran, error: &str) -> u64 {
    let rest = ran.output.strip_prefix(&format!("refused: {error} after ")).unwrap_or_else(|| panic!("{ran:#?}"));
    assert_eq!(ran.ending, REFUSED);
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_process_gets_no_gibibyte_of_memory() {
    let hostile = Hostile::build();
    assert_escapes(&hostile.outside(&["memory", "1024"]));
    for by in BOTH {
        let got = after(&hostile.inside(by, &["memory", "1024"]), "ENOMEM");
        println!("{by:?}: {got} MiB");
        assert!((512..=848).contains(&got), "{by:?}: {got} MiB");
    }
    // A shared mapping of /dev/zero is shared memory: the sandbox does not have the device.
    assert_escapes(&hostile.outside(&["zero-memory", "64"]));
    assert_refused(&hostile, &["zero-memory", "16"], "ENOENT");
    // The sandbox has no memory that no limit counts; memfd_create and shmget do not exist in it.
    assert_escapes(&hostile.outside(&["shared-memory", "1024"]));
    assert_refused(&hostile, &["shared-memory", "1024"], "ENOSYS");
    assert_refused(&hostile, &["shared-memory", "1"], "ENOSYS");
}

#[test]
fn the_memory_of_many_processes_is_bounded_by_their_number_and_the_first_that_the_machine_takes_back() {
    // Without a cgroup a limit is per process: together they may have the limit times their number. So the test asserts
    // another property: when memory runs out, the kernel takes it from the sandbox first.
    let hostile = Hostile::build();
    let mut plan = hostile.plan(&["memory-of-many", "12", "64"]);
    plan.limits.memory = 96 << 20;
    plan.limits.processes = 9;
    for by in BOTH {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let granted = runtime.block_on(async {
            plan.limits.time = Duration::from_secs(5);
            let running = Running::start(&hostile, by, &plan).await;
            let seen = eventually("the processes run", || Some(hostile.left()).filter(|pids| pids.len() >= 5));
            for pid in seen {
                let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or("1000".into());
                assert_eq!(score.trim(), "1000", "{by:?}");
            }
            let ran = running.end().await;
            assert_eq!(ran.ending, Ending::OutOfTime);
            let granted = ran.output.trim_end().strip_prefix("granted: ").and_then(|it| it.strip_suffix(" MiB"));
            granted.unwrap_or_else(|| panic!("{ran:#?}")).parse::<u64>().unwrap()
        });
        println!("{by:?}: 8 processes of at most 96 MiB each were granted {granted} MiB together");
        assert!(granted <= 8 * 96, "{by:?}: {granted}");
        assert_eq!(hostile.left(), Vec::<u32>::new());
    }
}

#[test]
fn a_probe_is_one_process_with_threads_that_share_its_files() {
    let hostile = Hostile::build();
    let ways = ["fork", "vfork", "clone", "clone-in-its-memory", "thread-with-its-own-files"];
    let control = hostile.contained(&["processes"]);
    let control = String::from_utf8_lossy(&control.stdout).into_owned();
    assert_eq!(lines(&control), ways.map(|way| (way, "ESCAPED: it has one")), "the control");
    for by in BOTH {
        let ran = hostile.run(by, &hostile.plan_of_one(&["processes"]));
        assert_eq!(lines(&ran.output), ways.map(|way| (way, "refused: ENOSYS")), "{by:?}");
        // Then a limit of the process is a limit of the sandbox.
        assert_eq!(after(&hostile.run(by, &hostile.plan_of_one(&["fork-bomb"])), "ENOSYS"), 0, "{by:?}");
        let got = after(&hostile.run(by, &hostile.plan_of_one(&["memory", "1024"])), "ENOMEM");
        assert!((512..=848).contains(&got), "{by:?}: {got} MiB");
    }
}

#[test]
fn the_kernel_keeps_little_for_the_sockets_of_a_probe_even_without_a_cgroup() {
    const MOST: u64 = 96;
    let hostile = Hostile::build();
    for kind in ["unix", "tcp"] {
        assert_escapes(&hostile.outside(&["socket-memory", kind, "8", "256"]));
        for by in BOTH {
            let ran = hostile.run(by, &hostile.plan_of_one(&["socket-memory", kind, "8", "4096"]));
            let rest = ran.output.strip_prefix("refused: no more after ").unwrap_or_else(|| panic!("{ran:#?}"));
            let held: u64 = rest.split_whitespace().next().unwrap().parse().unwrap();
            println!("{by:?}: {kind}: {held} MiB");
            assert!((1..=MOST).contains(&held), "{by:?}: {kind}: {held} MiB");
        }
    }
}

/// For a program that may start others, and with larger buffers: a cgroup counts all of it.
#[tokio::test]
async fn a_daemon_of_roots_has_a_cgroup_that_bounds_what_many_processes_have_together() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root makes itself a cgroup");
    }
    let place = match delegation::prepare() {
        Ok(place) => place,
        Err(why) => return skipped(format!("no memory controller of any version may be used here: {why}")),
    };
    if !place.join("cgroup.controllers").exists() {
        // The rest of the test uses version 1, and proves nothing about version 2.
        Unavailable::MemoryControllerOfCgroup2.skipped();
    }
    let hostile = Hostile::build();
    let limit = 192 << 20;
    let mut plan = hostile.plan(&["memory-of-many", "12", "64"]);
    plan.limits.memory = limit;
    plan.limits.time = Duration::from_secs(5);
    plan.cgroup = Some(place.clone());
    let running = Running::start(&hostile, By::Root, &plan).await;
    let seen = eventually("the process runs", || hostile.left().last().copied());
    let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let named = of(seen);
    assert!(named.lines().any(|line| line.contains("/codex-authd-sandbox-")), "{named}");
    let own = named.lines().find_map(|line| line.rsplit_once('/')?.1.strip_prefix("codex-authd-sandbox-"));
    let cgroup = place.join(format!("codex-authd-sandbox-{}", own.unwrap()));
    let highest = ["memory.max_usage_in_bytes", "memory.peak", "memory.current"].map(|name| cgroup.join(name));
    let (mut most, begun) = (0, Instant::now());
    while let Some(Ok(used)) = highest.iter().map(fs::read_to_string).find(|read| read.is_ok()) {
        most = most.max(used.trim().parse::<u64>().unwrap_or_default());
        assert!(begun.elapsed() < BOUND, "the cgroup is never removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ran = running.end().await;
    println!("{} MiB at most of {}: {ran:?}", most >> 20, limit >> 20);
    assert!((64 << 20..=limit).contains(&most), "{most}");
    assert_eq!(hostile.left(), Vec::<u32>::new());
    assert!(!cgroup.exists(), "the cgroup is removed");
}

#[test]
fn a_fork_bomb_has_as_many_processes_as_the_plan_says() {
    let hostile = Hostile::build();
    assert_escapes(&hostile.contained(&["fork-bomb"]));
    for by in BOTH {
        let count = after(&hostile.inside(by, &["fork-bomb"]), "EAGAIN");
        println!("{by:?}: {count} children");
        assert!((200..256).contains(&count), "{by:?}: {count}");
    }
}

#[test]
fn a_storm_of_forks_ends_with_its_time_and_others_fork_meanwhile() {
    let hostile = Hostile::build();
    let mut plan = hostile.plan(&["fork-storm"]);
    plan.limits.time = Duration::from_secs(3);
    for by in BOTH {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (most, ran) = runtime.block_on(async {
            let running = Running::start(&hostile, by, &plan).await;
            let most = eventually("the processes run", || Some(hostile.left().len()).filter(|count| *count > 200));
            for _ in 0..20 {
                assert!(std::process::Command::new("true").status().unwrap().success(), "others fork");
                assert!(hostile.left().len() <= 256);
            }
            (most, running.end().await)
        });
        println!("{by:?}: {most} processes at once, ended after {:?}", ran.took);
        assert_eq!(ran.ending, Ending::OutOfTime);
        assert!(ran.took < Duration::from_secs(13), "{:?}", ran.took);
        assert_eq!(hostile.left(), Vec::<u32>::new());
    }
}

#[test]
fn no_more_is_written_than_there_is_room_for() {
    let hostile = Hostile::build();
    for by in BOTH {
        for directory in [HOME, "/tmp"] {
            let got = after(&hostile.inside(by, &["fill", directory]), "ENOSPC");
            println!("{by:?}: {directory}: {got} MiB");
            assert!((60..=64).contains(&got), "{by:?}: {directory}: {got} MiB");
        }
        for directory in ["/", "/dev", "/etc", "/bin", "/home", "/proc"] {
            assert_eq!(after(&hostile.inside(by, &["fill", directory]), "EROFS"), 0, "{directory}");
        }
    }
    // One file has the limit of all files together, and a hole counts.
    assert_refused(&hostile, &["watched", "sparse", "65"], "EFBIG");
}

#[test]
fn no_more_files_are_made_than_there_may_be() {
    let hostile = Hostile::build();
    let outside = hostile.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    assert_escapes(&hostile.outside(&["files", outside.to_str().unwrap(), "file"]));
    for by in BOTH {
        for directory in [HOME, "/tmp"] {
            for kind in ["file", "directory", "symlink", "link"] {
                let made = after(&hostile.inside(by, &["files", directory, kind]), "ENOSPC");
                println!("{by:?}: {directory}: {made} of kind {kind}");
                assert!((4000..=4096).contains(&made), "{by:?}: {directory}: {kind}: {made}");
            }
        }
    }
}
