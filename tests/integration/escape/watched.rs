//! The daemon reads the program's login from outside the sandbox while the program writes it. If the program replaces
//! the file by something else, the daemon reads nothing of the host, and does not block.

use std::time::Duration;

use codex_authd::runner::sandbox::Ending;

use super::{By, Hostile, LOGIN, REFUSED};

const BOTH: [By; 2] = [By::Root, By::Nobody];
/// The largest reported content.
const LARGEST: usize = 1 << 20;

#[test]
fn what_is_no_file_of_its_own_is_not_told() {
    let hostile = Hostile::build();
    for (kind, target) in [
        ("symlink", "/etc/passwd"),
        ("symlink", "/etc/ssl/certs/ca-certificates.crt"),
        ("symlink", "/bin/codex"),
        ("symlink", "/dev/zero"),
        ("symlink", "auth.json"),
        ("moved-symlink", "/etc/ssl/certs/ca-certificates.crt"),
        ("moved-symlink", "/dev/urandom"),
        ("symlinked-directory", "/etc"),
        ("symlinked-directory", "/etc/ssl/certs"),
        ("directory", "-"),
        ("socket", "-"),
        ("large", "-"),
        ("sparse", "64"),
    ] {
        for by in BOTH {
            let ran = hostile.inside(by, &["watched", kind, target]);
            println!("{by:?}: {kind} {target}: {:?} told, after {:?}", ran.told.len(), ran.took);
            assert_eq!((ran.output.trim_end(), ran.ending), (format!("refused: a {kind} is there").as_str(), REFUSED));
            for told in &ran.told {
                // A file that is being written may be read partly, or empty.
                let is_its_own = kind == "large" && told.len() <= LARGEST && told.bytes().all(|byte| byte == 0);
                assert!(is_its_own || told.is_empty(), "{by:?}: {kind} {target}: {} bytes were told", told.len());
            }
        }
    }
}

#[test]
fn no_device_no_pipe_and_no_file_of_another_place_can_be_put_there() {
    let hostile = Hostile::build();
    for (kind, target, how) in [
        ("fifo", "-", "ENOSYS"),
        ("hard-link", "/etc/ssl/certs/ca-certificates.crt", "EXDEV"),
        ("hard-link", "/dev/null", "EXDEV"),
        ("hard-link", "/bin/codex", "EXDEV"),
        ("hard-link", "/etc/passwd", "ENOENT"),
    ] {
        for by in BOTH {
            let ran = hostile.inside(by, &["watched", kind, target]);
            ran.assert_refused(how);
            assert_eq!(ran.told, Vec::<String>::new());
        }
    }
}

#[test]
fn one_that_never_rests_is_heard_a_few_times_and_ended_in_time() {
    let hostile = Hostile::build();
    for kind in ["rewritten", "swapped", "grown"] {
        for by in BOTH {
            let mut plan = hostile.plan(&["watched", kind, "/etc/ssl/certs/ca-certificates.crt"]);
            plan.limits.time = Duration::from_secs(2);
            let ran = hostile.run(by, &plan);
            println!("{by:?}: {kind}: {} told, after {:?}", ran.told.len(), ran.took);
            assert_eq!(ran.ending, Ending::OutOfTime);
            assert!(ran.took < Duration::from_secs(12), "{kind}: {:?}", ran.took);
            assert!(ran.told.len() <= 65, "{kind}: {}", ran.told.len());
            for told in &ran.told {
                let rest = told.strip_prefix(LOGIN).unwrap_or(told);
                let is_its_own = match kind {
                    "swapped" => ["", "own"].contains(&rest),
                    _ => rest.bytes().all(|byte| byte.is_ascii_hexdigit()),
                };
                assert!(is_its_own && told.len() <= LARGEST, "{kind}: {} bytes were told", told.len());
            }
        }
    }
}
