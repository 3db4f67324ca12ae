//! The installer, for an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use codex_authd::model::digest::Digest;

use super::{
    assert_has, bare_host, codex_is_installed_here, installer_of, login, pipe_installer, plain_installer, sparse_path,
};
use crate::support::host::{HostConfig, Program};
use crate::support::http::{HttpServer, Reply};
use crate::support::standin::StandIn;

crate::for_both_programs!(
    the_installer_says_in_which_file_the_path_is_set,
    half_an_installer_does_nothing,
    an_installer_that_fails_undoes_itself,
    codex_comes_from_the_release_url_that_the_operator_set,
    a_release_that_is_not_the_named_one_is_not_installed,
    the_installer_leaves_a_host_that_is_in_step,
);

fn the_installer_leaves_a_host_that_is_in_step(program: Program) {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    let mut host = bare_host(program);
    let installer = plain_installer(program, &daemon);
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    assert_has(&host, program);
    if program.is_native() {
        let mode = |file: PathBuf| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(host.host_toml()), 0o600);
        assert_eq!(mode(host.file(".config/cdx")), 0o700);
    }
    assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(ran.out.contains("not on your PATH") && ran.out.contains("type next:"), "{ran:?}");
    assert_eq!(fs::read_dir(host.file(".local/bin")).unwrap().count(), 1, "no litter");

    host.path = format!("{}:{}", host.file(".local/bin").display(), host.path);
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert!(ran.code == Some(0) && !ran.out.contains("not on your PATH"), "again is fine: {ran:?}");
    assert_has(&host, program);
    assert_eq!(fs::read_dir(host.file(".local/bin")).unwrap().count(), 1, "no litter");
    let beside = fs::read_dir(host.file(".config/cdx")).map_or(0, Iterator::count);
    assert_eq!(beside, usize::from(program.is_native()), "no litter");
}

fn the_installer_says_in_which_file_the_path_is_set(program: Program) {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let installer = plain_installer(program, &daemon);
    for (shell, said) in [
        ("/bin/bash", "at the end of ~/.bashrc:"),
        ("/usr/bin/zsh", "at the end of ~/.zshrc:"),
        ("/bin/dash", "at the end of ~/.profile:"),
        ("", "at the end of ~/.profile:"),
        ("/usr/bin/fish", "fish_add_path \"$HOME/.local/bin\""),
    ] {
        let mut host = bare_host(program);
        host.env("SHELL", shell);
        let ran = pipe_installer(&host, installer.expose().as_bytes());
        assert!(ran.code == Some(0) && ran.out.contains(said), "{shell}: {ran:?}");
        let line = ran.out.contains("  export PATH=\"$HOME/.local/bin:$PATH\"");
        assert_eq!(line, !shell.ends_with("fish"), "{shell}: {ran:?}");
    }
}

fn half_an_installer_does_nothing(program: Program) {
    let daemon = StandIn::start();
    let host = bare_host(program);
    let installer = plain_installer(program, &daemon);
    let script = installer.expose().as_bytes();
    for part in [script.len() / 3, script.len() - 300, script.len() - 32] {
        pipe_installer(&host, &script[..part]);
        assert!(!host.cdx_file().exists(), "cut at {part} of {}", script.len());
    }
}

fn an_installer_that_fails_undoes_itself(program: Program) {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let installer = plain_installer(program, &daemon);
    let npm = "#!/bin/sh\ncase $* in *uninstall*) rm -rf \"$HOME/.local/bin/codex\" \"$HOME/.local/lib\"; exit;; esac\n\
               case $1 in prefix) echo /; exit;; esac\n\
               mkdir -p \"$HOME/.local/lib/node_modules/@openai/codex\"; cp \"$HOME/codex.kept\" \"$HOME/.local/bin/codex\"\n";
    for previous in [None, Some("#!/bin/sh\n# the one before\n")] {
        for breakage in ["no codex to be had", "npm fails", "no home for the login"] {
            let host = bare_host(program);
            fs::rename(host.file("bin/codex"), host.file("codex.kept")).unwrap();
            daemon.answer_well();
            let sparse = sparse_path(&host, &["bin/id"]);
            match breakage {
                "npm fails" => host.write_program("sparse/npm", "#!/bin/sh\nexit 1\n", 0o755),
                "no home for the login" => host.write_program("sparse/npm", npm, 0o755),
                _ => {}
            }
            host.write_program("sparse/node", "#!/bin/sh\necho v18.19.0\n", 0o755);
            if let Some(previous) = previous {
                host.write_program(".local/bin/cdx", previous, 0o711);
                host.write_host_toml("# the one before\n");
            }
            if breakage == "no home for the login" {
                // The home cannot store a login, so the last step fails.
                fs::write(host.file(".codex"), "in the way").unwrap();
            }
            let mut host = host;
            host.path = sparse;
            let ran = pipe_installer(&host, installer.expose().as_bytes());
            assert_eq!(ran.code, Some(1), "{breakage}: {ran:?}");
            assert_eq!(fs::read_to_string(host.cdx_file()).ok().as_deref(), previous, "{breakage}: {ran:?}");
            let left = fs::read_dir(host.file(".local/bin")).unwrap().count();
            assert_eq!(left, usize::from(previous.is_some()), "{breakage}: no litter, no codex: {ran:?}");
            let config = previous.map(|_| "# the one before\n");
            assert_eq!(fs::read_to_string(host.host_toml()).ok().as_deref(), config, "{breakage}: {ran:?}");
            let beside = fs::read_dir(host.file(".config/cdx")).map_or(0, Iterator::count);
            assert_eq!(beside, usize::from(previous.is_some()), "{breakage}: no litter: {ran:?}");
            assert!(
                ran.err.contains("undone") && ran.err.contains("codex-authd hosts add --rotate h1.example.test"),
                "{ran:?}"
            );
            if breakage == "no codex to be had" {
                assert!(ran.err.contains("npm") && ran.err.contains("release URL"), "the reason and the fix: {ran:?}");
            }
        }
    }
}

fn codex_comes_from_the_release_url_that_the_operator_set(program: Program) {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let host = bare_host(program);
    // The archive contains the program under the name of the project's own releases.
    let target = format!("codex-{}-unknown-linux-musl", std::env::consts::ARCH);
    fs::rename(host.file("bin/codex"), host.file(&target)).unwrap();
    let packed = host.command("tar").args(["czf", "release.tar.gz", &target]).status().unwrap();
    assert!(packed.success());
    let archive = fs::read(host.file("release.tar.gz")).unwrap();
    let releases = HttpServer::plain(move |_| Reply::new(200, "application/gzip", archive.clone()));
    let url = format!("{}/rust-v{{version}}/codex-{{target}}.tar.gz", releases.url());
    let config = HostConfig { base_url: &daemon.server.url(), codex_release_url: &url, ..HostConfig::default() };
    let installer = installer_of(program, &daemon, &config);
    let mut host = host;
    host.path = sparse_path(&host, &["bin/id"]);
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(releases.calls()[0].path, format!("/rust-v0.169.0/{target}.tar.gz"));
    assert_eq!(releases.calls()[0].header("x-api-key"), None, "the key was sent to the release server");
    assert!(host.file(".local/bin/codex").exists());
    assert_eq!(host.run(&["x"]).code, Some(0));
}

/// Over plain HTTP only the digest protects: a replaced archive is not installed.
fn a_release_that_is_not_the_named_one_is_not_installed(program: Program) {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    for (digests, wanted) in [
        (format!("aarch64-apple-darwin={} {target}={{}}", "0".repeat(64)), None),
        (format!("{target}={}", "0".repeat(64)), Some("another SHA-256")),
        (format!("x{target}={{}} other={{}}"), Some("no SHA-256 of codex for")),
    ] {
        let mut host = bare_host(program);
        let codex = format!("codex-{target}");
        fs::rename(host.file("bin/codex"), host.file(&codex)).unwrap();
        assert!(host.command("tar").args(["czf", "release.tar.gz", &codex]).status().unwrap().success());
        let archive = fs::read(host.file("release.tar.gz")).unwrap();
        let digests = digests.replace("{}", &Digest::of(&archive).to_string());
        let releases = HttpServer::plain(move |_| Reply::new(200, "application/gzip", archive.clone()));
        let url = format!("{}/codex-{{target}}.tar.gz", releases.url());
        let config = HostConfig {
            base_url: &daemon.server.url(),
            codex_release_url: &url,
            codex_release_sha256: &digests,
            ..HostConfig::default()
        };
        let installer = installer_of(program, &daemon, &config);
        host.path = sparse_path(&host, &["bin/id"]);
        let ran = pipe_installer(&host, installer.expose().as_bytes());
        // Without a digest nothing is fetched.
        let fetched = wanted != Some("no SHA-256 of codex for");
        assert_eq!(releases.calls().len(), usize::from(fetched), "{ran:?}");
        match wanted {
            None => assert_eq!(ran.code, Some(0), "{ran:?}"),
            Some(reason) => {
                assert_ne!(ran.code, Some(0), "{ran:?}");
                assert!(ran.err.contains(reason), "{ran:?}");
            }
        }
        assert_eq!(host.file(".local/bin/codex").exists(), wanted.is_none(), "{digests}");
    }
}
