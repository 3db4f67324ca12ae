//! The printed installer command, run by bash and curl as people run it; and calls with HEAD, which must have no
//! effect.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::refusals::{Needs, OPERATIONS, Targets, call, operation, upload_again};
use crate::support::daemon::Daemon;
use crate::support::host::{Host, Ran as OfHost, is_root};
use crate::support::http::{HttpServer, Reply};
use crate::support::people::{ask, redeeming, register, tell};
use crate::vectors::expire;
use crate::wrapper::{codex_is_installed_here, sparse_path};

/// The output of the command.
#[derive(Debug)]
struct Ran {
    /// The exit codes of curl and of bash.
    pipe: String,
    /// The exit code of the whole command.
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the exact command, in an empty home.
fn run(command: &str) -> Ran {
    let home = tempfile::tempdir().unwrap();
    let line = format!(
        "{command}; status=(\"$?\" \"${{PIPESTATUS[@]}}\"); echo \"${{status[@]:1}}\" >&3; exit ${{status[0]}}"
    );
    let pipe = home.path().join("pipe");
    let output = Command::new("bash")
        .args(["-c", &format!("exec 3>'{}'; {line}", pipe.display())])
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(!home.path().join(".local").exists(), "something was installed");
    Ran {
        pipe: std::fs::read_to_string(pipe).unwrap().trim().to_owned(),
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Asserts that the command fails and prints only this reason.
fn assert_refused(command: &str, reason: &str) {
    let ran = run(command);
    assert_eq!((ran.code, ran.pipe.as_str()), (Some(1), "0 1"), "{command}: {ran:?}");
    assert_eq!(ran.stdout, "", "{command}");
    assert!(ran.stderr.starts_with(reason) && ran.stderr.lines().count() == 1, "{command}: {ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_of_an_installer_is_printed_and_fails_the_pipe() {
    let mut daemon = Daemon::prepare(&[("LIMITS__GLOBAL_PER_MINUTE", "20")]);
    let expired = "3936e765-8d56-418a-b138-60d0ac2ea1f1";
    expire(&daemon, expired).await;
    daemon.launch();
    let (used, revoked) = (register(&daemon, "used.test").await, register(&daemon, "revoked.test").await);
    let instead = |token: &str| used.command.replace(&used.token, token);

    // A machine redeemed it and kept the script.
    let kept = redeeming(&used.command);
    assert!(run(&kept).stdout.contains("CDX_API_KEY="), "{kept}");
    assert_refused(&used.command, "Installer already used");
    assert_refused(&instead(expired), "Installer expired");
    assert_refused(&instead("00000000-0000-4000-8000-000000000000"), "Installer not found");
    assert_refused(&instead("%ff"), "");
    let listed = ask(&daemon, "/admin/installers").await;
    let of_revoked = listed["installers"].as_array().unwrap().iter().find(|it| it["fqdn"] == "revoked.test").unwrap();
    let id = of_revoked["id"].as_str().unwrap();
    tell(&daemon, &format!("/admin/installers/{id}/revoke"), &json!({})).await;
    let (client, url) = (daemon.client(), daemon.hosts_url(&format!("/install/{}", revoked.token)));
    // Checks the URL first: if it worked by mistake, the token is spent now, and bash below installs nothing on this
    // machine.
    assert_eq!(client.get(url).send().await.unwrap().status(), 404);
    assert_refused(&revoked.command, "Installer not found");

    tell(&daemon, "/admin/api/state", &json!({ "disabled": true })).await;
    assert_refused(&used.command, "API disabled by administrator");
    tell(&daemon, "/admin/api/state", &json!({ "disabled": false })).await;

    // Too many requests from this address: each attempt is one more.
    let throttled = (0..100).map(|_| run(&used.command)).find(|ran| !ran.stderr.starts_with("Installer already used"));
    let throttled = throttled.expect("the limit is never reached");
    assert_eq!((throttled.code, throttled.pipe.as_str()), (Some(1), "0 1"), "{throttled:?}");
    assert!(throttled.stderr.starts_with("Rate limit"), "{throttled:?}");
    let url = daemon.hosts_url(&format!("/install/{}", used.token));
    let refusal = client.get(url).send().await.unwrap();
    assert_eq!(refusal.status(), 429);
    assert!(refusal.headers().contains_key("retry-after"), "the refusal has its headers");
    assert_eq!(refusal.headers()["content-type"], "text/x-shellscript; charset=utf-8");

    // Another server answers, or none.
    let foreign = Daemon::start();
    let elsewhere = used.command.replace(&daemon.hosts_url(""), &foreign.hosts_url(""));
    for (command, curl) in [(elsewhere, "90"), (used.command.clone(), "7")] {
        if curl == "7" {
            daemon.stop();
        }
        let ran = run(&command);
        assert_eq!((ran.code, ran.pipe.as_str()), (Some(1), format!("{curl} 1").as_str()), "{ran:?}");
    }
}

/// An ordinary user's machine, with a `codex` and only the necessary tools.
fn machine() -> Host {
    let mut host = Host::bare();
    host.write_program("bin/id", "#!/bin/sh\necho 1000\n", 0o755);
    host.write_program("bin/codex", "#!/bin/sh\necho codex-cli 0.1.2\n", 0o755);
    host.write_program("bin/df", "#!/bin/sh\nexec /usr/bin/df \"$@\"\n", 0o755);
    host.path = sparse_path(&host, &["bin/id", "bin/codex", "bin/df"]);
    host
}

/// Runs the command with its own mounts, after a shell line that makes them.
fn within(host: &Host, setup: &str, command: &str) -> OfHost {
    let mut shell = host.command("/usr/bin/unshare");
    let line = format!("PATH=/usr/bin:/bin; {setup} && PATH=$0 exec bash -c \"$1\"");
    shell.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &line, &host.path, command]);
    OfHost::from(shell.output().unwrap())
}

/// Asserts that the first stage names the reason and the remedy, and that the token is not spent.
fn assert_still_good(ran: &OfHost, reason: &str, remedy: &str) {
    assert_eq!(ran.code, Some(1), "{reason}: {ran:?}");
    let said =
        format!("codex-authd: {reason}. Nothing was done and the command is still good: {remedy} and run it again\n");
    assert_eq!((ran.err.as_str(), ran.out.as_str()), (said.as_str(), ""), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lacks_something_does_not_spend_the_token() {
    let daemon = Daemon::start();
    upload_again(&daemon).await;
    let registered = register(&daemon, "h.test").await;
    let host = machine();
    let install = || OfHost::from(host.command("bash").args(["-c", &registered.command]).output().unwrap());
    let hidden = |tool: &str| (host.file("sparse").join(tool), host.file(format!("{tool}.hidden")));

    for (tools, named) in [(&["tar"][..], "tar"), (&["sha256sum", "uname", "id"], "uname sha256sum id")] {
        tools.iter().map(|tool| hidden(tool)).for_each(|(tool, away)| std::fs::rename(tool, away).unwrap());
        assert_still_good(&install(), &format!("missing here: {named}"), "install them");
        tools.iter().map(|tool| hidden(tool)).for_each(|(tool, away)| std::fs::rename(away, tool).unwrap());
    }
    if !codex_is_installed_here() {
        let (codex, away) = hidden("codex");
        std::fs::rename(&codex, &away).unwrap();
        let remedy = "install Node.js with npm (Debian: apt install npm; macOS: brew install node), or ask the operator for a \
                      release URL";
        let no_npm = "there is no npm here, and the operator of codex-authd has set no release URL";
        assert_still_good(&install(), &format!("codex cannot be installed: {no_npm}"), remedy);
        host.write_program("sparse/npm", "#!/bin/sh\necho /nonexistent\n", 0o755);
        assert_still_good(&install(), "codex cannot be installed: there is npm, but no node that runs", remedy);
        host.write_program("sparse/node", "#!/bin/sh\necho v14.21.3\n", 0o755);
        let old = "codex cannot be installed: codex from npm needs Node.js 16 or later, but this is 14.21.3";
        assert_still_good(&install(), old, remedy);
        host.write_program("sparse/node", "#!/bin/sh\necho v16.20.2\n", 0o755);
        if is_root("mounts of the test's own") {
            // npm cannot write to its prefix, so cdx installs into the home, which is small.
            std::fs::create_dir(host.file(".local")).unwrap();
            let ran = within(&host, r#"mount -t tmpfs -o size=8m none "$HOME/.local""#, &registered.command);
            let full = format!(
                "codex cannot be installed: {} has 8 MiB left, but 450 are needed",
                host.file(".local").display()
            );
            assert_still_good(&ran, &full, "make room");
            std::fs::remove_dir(host.file(".local")).unwrap();
        }
        std::fs::rename(&away, &codex).unwrap();
    }
    let local = host.file(".local");
    std::fs::write(&local, "in the way").unwrap();
    assert_still_good(&install(), &format!("{} is not a directory", local.display()), "move it away");
    std::fs::remove_file(&local).unwrap();
    for place in [".codex", ".cache"] {
        std::fs::write(host.file(place), "in the way").unwrap();
        assert_still_good(&install(), &format!("{} is not a directory", host.file(place).display()), "move it away");
        std::fs::remove_file(host.file(place)).unwrap();
    }
    std::fs::create_dir_all(host.auth_file()).unwrap();
    let unreadable = format!("{} is no file that can be read", host.auth_file().display());
    assert_still_good(&install(), &unreadable, "move it away");
    std::fs::remove_dir(host.auth_file()).unwrap();
    if is_root("mounts of the test's own") {
        let read_only = r#"mount --bind "$HOME/.codex" "$HOME/.codex" && mount -o remount,ro,bind "$HOME/.codex""#;
        let ran = within(&host, read_only, &registered.command);
        assert_still_good(&ran, &format!("cannot write in {}", host.codex_home.display()), "make it writable");
    }
    std::fs::remove_dir(&host.codex_home).unwrap();
    let directory = host.file(".local/bin/cdx");
    std::fs::create_dir_all(&directory).unwrap();
    assert_still_good(&install(), &format!("{} is a directory", directory.display()), "move it away");
    std::fs::remove_dir_all(&local).unwrap();

    // The same command, after the machine was completed.
    let ran = install();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(std::fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(host.auth().is_some(), "{ran:?}");
    let litter = std::fs::read_dir(host.file("")).unwrap().map(|file| file.unwrap().file_name());
    assert!(litter.into_iter().all(|name| !name.to_string_lossy().contains("probe")), "no litter");
    // The command works only once.
    let ran = install();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.starts_with("Installer already used") && ran.err.lines().count() == 1, "{ran:?}");
}

#[test]
fn a_release_that_cannot_come_does_not_spend_the_token() {
    if codex_is_installed_here() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = machine();
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let program = format!("codex-{target}");
    std::fs::rename(host.file("bin/codex"), host.file(&program)).unwrap();
    std::fs::remove_file(host.file("sparse/codex")).unwrap();
    assert!(host.command("tar").args(["czf", "release.tar.gz", &program]).status().unwrap().success());
    let archive = std::fs::read(host.file("release.tar.gz")).unwrap();
    let digest = codex_authd::model::digest::Digest::of(&archive).to_string();
    let is_there = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let there = is_there.clone();
    let releases = HttpServer::plain(move |_| match there.load(std::sync::atomic::Ordering::SeqCst) {
        true => Reply::new(200, "application/gzip", archive.clone()),
        false => Reply::new(200, "text/html", "<h1>Sign in first</h1>"),
    });
    let url = format!("{}/codex-{{target}}.tar.gz", releases.url());
    let install = |command: &str| OfHost::from(host.command("bash").args(["-c", command]).output().unwrap());
    let with_digest = |digest: &str| {
        let settings = [("INSTALL__CODEX_RELEASE_URL", url.as_str()), ("INSTALL__CODEX_RELEASE_SHA256", digest)];
        let daemon = Daemon::start_with(&settings);
        runtime.block_on(upload_again(&daemon));
        let command = runtime.block_on(register(&daemon, "h.test")).command;
        (daemon, command)
    };

    let (_other, command) = with_digest(&format!("sparc-unknown-linux={digest}"));
    let unnamed = format!("codex cannot be installed: the operator named no SHA-256 of codex for {target}");
    let remedy = "ask the operator of codex-authd to mend that";
    assert_still_good(&install(&command), &format!("{unnamed} (install.codex_release_sha256)"), remedy);
    assert_eq!(releases.calls().len(), 0);

    let (_daemon, command) = with_digest(&format!("{target}={digest}"));
    let fetched = format!("{}/codex-{target}.tar.gz", releases.url());
    let broken = format!("codex cannot be fetched: the operator's release URL gives no tar.gz ({fetched})");
    assert_still_good(&install(&command), &broken, "have that mended");
    is_there.store(true, std::sync::atomic::Ordering::SeqCst);
    std::fs::rename(host.file("sparse/gzip"), host.file("gzip.hidden")).unwrap();
    assert_still_good(&install(&command), "codex cannot be installed: there is no gzip for tar", "install gzip");
    std::fs::rename(host.file("gzip.hidden"), host.file("sparse/gzip")).unwrap();

    let ran = install(&command);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(host.file(".local/bin/codex").exists() && host.auth().is_some(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_and_the_directory_of_root_are_checked_before_the_token_is_spent() {
    if !is_root("an installation by root") {
        return;
    }
    let daemon = Daemon::start();
    upload_again(&daemon).await;
    let command = register(&daemon, "h.test").await.command;
    let host = Host::bare();
    host.write_program("bin/codex", "#!/bin/sh\necho codex-cli 0.1.2\n", 0o755);
    std::fs::create_dir(host.file("usr-local-bin")).unwrap();
    let install = |group: &str, how: &str| {
        let own = format!("mount --bind \"$HOME/usr-local-bin\" /usr/local/bin && {how} exec bash -c \"$1\"");
        let mut shell = host.command("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", &own, "sh", &command]);
        OfHost::from(shell.env("CDX_GROUP", group).output().unwrap())
    };
    let remedy = "make it (groupadd no-such-group), or leave CDX_GROUP out,";
    assert_still_good(&install("no-such-group", ""), "there is no group no-such-group", remedy);
    let ran = install("daemon", "mount -o remount,bind,ro /usr/local/bin &&");
    assert_still_good(&ran, "cannot write in /usr/local/bin", "make it writable");
    assert_eq!(std::fs::read_dir(host.file("usr-local-bin")).unwrap().count(), 0, "no litter");

    let ran = install("daemon", "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let placed = std::fs::metadata(host.file("usr-local-bin/cdx")).unwrap();
    let gid = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    assert_eq!((placed.mode() & 0o7777, placed.gid()), (0o750, gid), "the group reached the installer");
    assert_eq!(std::fs::read_dir(host.file("usr-local-bin")).unwrap().count(), 1, "no litter");
}

/// HEAD is answered or refused without the effect of GET: it runs none of the operations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_has_no_effect_on_any_operation() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let people = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    let before = (ask(&daemon, "/admin/audit?limit=1000").await, ask(&daemon, "/admin/hosts").await);
    let mut tried = 0;
    for get in OPERATIONS.iter().filter(|operation| operation.0 == "GET") {
        let head = ("HEAD", get.1, get.2, get.3);
        let call = match get.2 {
            Needs::Certificate | Needs::ControlSocket => call(&admin, &daemon.admin_url(""), &head, &people),
            Needs::Session => call(&daemon.client(), &daemon.hosts_url(""), &head, &people).bearer_auth(&people.token),
            _ => call(&daemon.client(), &daemon.hosts_url(""), &head, &host).header("X-API-Key", &host.api_key),
        };
        let answer = call.send().await.unwrap();
        let wanted = if ["/healthz", "/readyz"].contains(&get.1) { 200 } else { 405 };
        assert_eq!(answer.status(), wanted, "{}", get.1);
        assert_eq!(answer.headers().get("allow").is_some(), wanted == 405, "{}", get.1);
        tried += 1;
    }
    assert!(tried > 30, "{tried}");
    let pages = ["/", "/hosts/new", "/certificates", "/certificates/file/x", "/hosts/installer/x"];
    for (path, wanted) in pages.map(|page| (page, 405)).into_iter().chain([("/docs", 200), ("/openapi.json", 200)]) {
        let answer = admin.request(Method::HEAD, daemon.admin_url(path)).send().await.unwrap();
        assert_eq!(answer.status(), wanted, "{path}");
    }
    let slash = daemon.hosts_url(&format!("/install/{}/", host.token));
    assert_eq!(daemon.client().head(slash).send().await.unwrap().status(), 405);
    assert_eq!((ask(&daemon, "/admin/audit?limit=1000").await, ask(&daemon, "/admin/hosts").await), before);
    // The token is still valid, and the host is not bound to this address.
    let install = call(&daemon.client(), &daemon.hosts_url(""), operation("GET", "/install/{token}"), &host);
    assert_eq!(install.send().await.unwrap().status(), StatusCode::OK);
}
