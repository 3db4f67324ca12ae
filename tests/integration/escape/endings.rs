//! The sandbox always ends when its time is up or the program ends, and leaves nothing.

use std::time::Duration;

use codex_authd::runner::sandbox::Ending;

use super::{By, Hostile, REFUSED};

const BOTH: [By; 2] = [By::Root, By::Nobody];

#[test]
fn what_runs_for_ever_is_ended_when_its_time_is_up() {
    let hostile = Hostile::build();
    for attempt in ["spin", "stop", "flood", "fork-storm"] {
        for by in BOTH {
            let mut plan = hostile.plan(&[attempt]);
            plan.limits.time = Duration::from_secs(1);
            let ran = hostile.run(by, &plan);
            println!("{by:?}: {attempt}: ended after {:?}", ran.took);
            assert_eq!(ran.ending, Ending::OutOfTime, "{attempt}");
            // The sandbox's clock began before the test's.
            assert!(
                ran.took >= Duration::from_millis(500) && ran.took < Duration::from_secs(11),
                "{attempt}: {:?}",
                ran.took
            );
        }
    }
}

#[test]
fn processor_time_has_a_limit_of_its_own() {
    let hostile = Hostile::build();
    for by in BOTH {
        let mut plan = hostile.plan(&["spin"]);
        plan.limits.cpu_seconds = 1;
        let ran = hostile.run(by, &plan);
        println!("{by:?}: ended by {:?} after {:?}", ran.ending, ran.took);
        assert_eq!(ran.ending, Ending::Killed(9), "the hard limit: the soft one's signal it ignores");
    }
}

#[test]
fn a_daemon_that_it_leaves_behind_ends_with_it() {
    let hostile = Hostile::build();
    // Outside the sandbox the process stays: so the attempt works.
    let control = hostile.command(&[], &["linger"]).stdout(std::process::Stdio::null()).status().unwrap();
    let left = hostile.left();
    assert_eq!((control.code(), left.len()), (Some(10), 1), "the control");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left[0] as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    crate::support::eventually("the process is gone", || hostile.left().is_empty().then_some(()));
    for by in BOTH {
        // The process holds the outputs open, and the run waits for their end.
        hostile.inside(by, &["linger"]).assert_refused("one is left behind");
    }
}

#[test]
fn a_program_that_closes_its_outputs_is_still_watched_over() {
    let hostile = Hostile::build();
    for by in BOTH {
        let ran = hostile.inside(by, &["close-outputs"]);
        assert_eq!((ran.output.as_str(), ran.ending), ("refused: its outputs are closed\n", Ending::Exited(7)));
        assert!(ran.took >= Duration::from_millis(100));
    }
}

#[test]
fn a_flood_that_nobody_reads_ends_in_time() {
    let hostile = Hostile::build();
    for by in BOTH {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut plan = hostile.plan(&["flood"]);
        plan.limits.time = Duration::from_secs(1);
        runtime.block_on(async {
            let launcher = hostile.launcher(by);
            let mut sandbox = codex_authd::runner::sandbox::Sandbox::start(&launcher, &plan).await.unwrap();
            sandbox.go().unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(15), sandbox.next()).await.unwrap().unwrap();
            assert_eq!(ended, codex_authd::runner::sandbox::Event::Ended(Ending::OutOfTime));
            sandbox.end().await.unwrap();
        });
        assert_eq!(hostile.left(), Vec::<u32>::new());
    }
}

#[test]
fn the_exit_code_is_the_programs_and_the_control_is_refused_nothing() {
    // The control: the suite detects an escape.
    let hostile = Hostile::build();
    for by in BOTH {
        assert_eq!(hostile.inside(by, &["executed"]).ending, Ending::Exited(0));
        assert_eq!(hostile.inside(by, &["no-such-attempt"]).ending, Ending::Exited(11));
        assert_eq!(hostile.inside(by, &["ids"]).ending, REFUSED);
    }
}
