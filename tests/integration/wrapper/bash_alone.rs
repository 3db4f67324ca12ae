//! Tests of the bash `cdx` that have no meaning for the native program: it runs no curl, no shell and no tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::tls::trusting_both;
use super::{in_step, login};
use crate::support::answers::refusal;
use crate::support::authority::authority;
use crate::support::host::{Host, Program, is_root};
use crate::support::standin::StandIn;

#[test]
fn a_curlrc_cannot_weaken_the_call() {
    let (daemon, host, _) = in_step(Program::Bash);
    host.write_program(".curlrc", "header = \"X-From-Curlrc: 1\"\ninsecure\n", 0o600);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.server.calls()[0].header("x-from-curlrc"), None);
}

/// curl gets the login through a pipe, which can be read only once.
#[test]
fn a_store_whose_certificate_changed_meanwhile_is_sent_whole_by_the_second_attempt() {
    for shell in Program::Bash.shells() {
        let (daemon, mut host, _) = in_step(Program::Bash);
        host.shell = shell;
        host.install(&trusting_both(&daemon.server.url(), "a CA"));
        // The second call fails like an unknown certificate, after curl has read all of its input.
        let curl = "#!/bin/sh\nn=$(cat \"$HOME/calls\" 2>/dev/null); n=$((n + 1)); echo $n >\"$HOME/calls\"\n\
                    if [ $n = 2 ]; then cat >/dev/null; cat <&9 >\"$HOME/given\"; printf 000; exit 60; fi\n\
                    exec /usr/bin/curl \"$@\"\n";
        host.write_program("bin/curl", curl, 0o755);
        let renewed = login(20).to_string();
        let script = format!("printf '%s' '{renewed}' >\"$HOME/.codex/auth.json\"");
        let ran = host.run_codex(&script, &["x"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(daemon.commands(), ["retrieve", "store"], "{ran:?}");
        assert_eq!(daemon.canonical(), Some(renewed.clone()), "{ran:?}");
        assert!(fs::read_to_string(host.file("given")).unwrap().contains(&renewed));
        assert_eq!(fs::read_to_string(host.file("calls")).unwrap(), "3\n");
    }
}

/// curl reports why a call failed by its exit code.
#[test]
fn only_a_failed_verification_is_distrust() {
    let (_daemon, host, _) = in_step(Program::Bash);
    for code in [51, 60, 77, 90, 91] {
        host.write_program("bin/curl", &format!("#!/bin/sh\ncat >/dev/null\nprintf 000\nexit {code}\n"), 0o755);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(76), false), "{code}: {ran:?}");
        assert!(ran.err.contains("cannot be trusted"), "{code}: {ran:?}");
    }
    for code in [2, 5, 6, 7, 16, 26, 28, 35, 52, 53, 54, 55, 56, 58, 59, 66, 80, 82, 92, 97] {
        host.write_program("bin/curl", &format!("#!/bin/sh\ncat >/dev/null\nprintf 000\nexit {code}\n"), 0o755);
        let ran = host.run(&["x"]);
        assert_eq!(ran.code, Some(0), "the recent login is used: {code}: {ran:?}");
        assert!(!ran.err.contains("trusted") && ran.err.contains("continuing with the login"), "{code}: {ran:?}");
        let local = ran.err.contains("a problem on this machine");
        assert_eq!(local, matches!(code, 26 | 53 | 54 | 58 | 59 | 66 | 82), "{code}: {ran:?}");
    }
}

/// curl reads the CA from a file.
#[test]
fn a_bad_ca_file_of_its_own_is_named() {
    let (ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    daemon.set_canonical(&login(10));
    let mut host = Host::with_ca(Program::Bash, &daemon.server.url(), &ca);
    // These have no effect if cdx has a CA.
    host.env("CURL_CA_BUNDLE", "/does/not/exist");
    host.env("SSL_CERT_FILE", "/does/not/exist");
    assert_eq!(host.run(&["x"]).code, Some(0));
    let file = host.state_file().parent().unwrap().join("ca.pem");
    fs::write(&file, "garbage").unwrap();
    assert_eq!(host.run(&["x"]).code, Some(0), "cdx writes it again");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(76), "{ran:?}");
    let wanted = format!("{} is no file; remove it, then run cdx again", file.display());
    assert!(ran.err.contains(&wanted), "{ran:?}");
}

/// The script gives curl the login through /dev/fd.
#[test]
fn where_a_login_cannot_be_handed_over_it_stays() {
    if !is_root("mounts of the test's own") {
        return;
    }
    for shell in Program::Bash.shells() {
        let (daemon, mut host, canonical) = in_step(Program::Bash);
        host.shell = shell;
        host.set_auth(&login(5).to_string());
        // Without /proc there is no /dev/fd.
        let ran = host.cdx_within("mount -t tmpfs none /proc", &["--sync"]);
        assert_eq!((ran.code, host.auth()), (Some(69), Some(login(5).to_string())), "{ran:?}");
        assert!(ran.err.contains("/dev/fd"), "{ran:?}");
        assert_eq!(daemon.canonical(), Some(canonical));
    }
}

/// The points are calls of `rm`.
#[test]
fn a_crash_after_the_daemon_was_asked_is_finished_by_the_next_uninstall() {
    // Killed before it removes the login, before its remembered state, and before the program itself.
    for point in 1..=3 {
        let (daemon, host, _) = in_step(Program::Bash);
        host.write_program("bin/rm", "#!/bin/sh\necho >>\"$HOME/removals\"\n[ \"$(wc -l <\"$HOME/removals\")\" != \"$(cat \"$HOME/point\")\" ] || { kill -9 $PPID; exit 1; }\nexec /bin/rm \"$@\"\n", 0o755);
        fs::write(host.file("point"), point.to_string()).unwrap();
        let ran = host.run(&["--uninstall"]);
        assert_eq!((ran.code, daemon.commands()), (None, vec!["DELETE".into()]), "{point}: {ran:?}");
        assert!(host.cdx_file().exists(), "{point}: it was killed too late");
        fs::remove_file(host.file("bin/rm")).unwrap();
        // The daemon's answer to an unknown key.
        daemon.answer_always(401, refusal("Invalid API key"));
        let ran = host.run(&["--uninstall"]);
        assert_eq!(ran.code, Some(0), "{point}: {ran:?}");
        assert!(!host.cdx_file().exists() && !host.file(".cache/cdx").exists(), "{point}: {ran:?}");
        assert!(!host.auth_file().exists(), "{point}: {ran:?}");
    }
}

#[test]
fn the_scripts_are_clean_to_shellcheck() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hosts = ["wrapper/cdx", "wrapper/install.sh", "wrapper/start.sh"];
    let scripts = hosts.into_iter().chain(["tests/install-codex.sh", "tests/install-oidc-provider.sh"]);
    let output = Command::new("shellcheck").args(scripts).current_dir(root).output().expect("shellcheck is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
