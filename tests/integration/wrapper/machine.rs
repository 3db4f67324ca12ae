//! Damage that `cdx` and its installer must not do to a machine: spend the fleet's login, trust another user's home,
//! leave secrets behind. They must also work in unusual environments.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::commands::newer_program;
use super::{bare_host, codex_is_installed_here, in_step, litter, login, pipe_installer, plain_installer, sparse_path};
use crate::support::host::{Host, HostConfig, Program, Ran, is_root};
use crate::support::standin::{KEY, StandIn};
use crate::support::upstream::Upstream;

crate::for_both_programs!(
    a_group_can_be_given_the_key_and_nobody_else,
    login_and_logout_are_stopped_and_explained,
    the_fleets_login_is_not_revoked_by_one_host,
    root_trusts_nothing_in_somebody_elses_home,
    root_updates_by_way_of_nobodys_cache,
    root_with_a_home_of_its_own_leaves_no_files_where_sudo_pointed,
    root_is_told_of_the_path_that_root_has,
    a_login_on_its_way_is_in_no_file_but_its_own,
    what_a_killed_cdx_left_is_swept,
    the_root_directory_can_be_the_home,
    an_odd_shell_setup_changes_nothing,
    a_codex_that_is_a_script_around_cdx_is_passed_over,
    a_plain_text_answer_within_the_handshake_is_absence,
    half_an_installer_fails,
    missing_tools_are_named_before_anything_is_done,
    an_installer_survives_an_odd_shell_setup,
);

fn login_and_logout_are_stopped_and_explained(program: Program) {
    for shell in program.shells() {
        let (_daemon, mut host, _) = in_step(program);
        host.shell = shell;
        for (arguments, command) in [
            (&["login"][..], "codex-authd auth upload"),
            (&["login", "--device-auth"], "codex-authd auth upload"),
            (&["login", "--with-api-key"], "cdx -- login"),
            (&["-c", "model=\"o3\"", "--search", "--profile=x", "login"], "codex-authd auth upload"),
            (&["logout"], "cdx --uninstall"),
            (&["-m", "o3", "logout"], "cdx -- logout"),
        ] {
            let ran = host.run(arguments);
            assert_eq!((ran.code, host.codex_was_started()), (Some(64), false), "{arguments:?} {ran:?}");
            assert!(ran.err.contains("whole fleet") && ran.err.contains(command), "{arguments:?} {ran:?}");
        }
        for arguments in [
            &["--", "login"][..],
            &["--", "logout"],
            &["login", "status"],
            &["logout", "--help"],
            &["help", "login"],
            &["exec", "login"],
            &["-m", "logout", "exec", "x"],
            &["--search", "--", "logout"],
            &["mcp", "login", "server"],
        ] {
            assert_eq!(host.run(arguments).code, Some(0), "{arguments:?}");
            assert!(host.codex_was_started(), "{arguments:?}");
            fs::remove_file(host.file("codex.arguments")).unwrap();
        }
    }
}

fn the_fleets_login_is_not_revoked_by_one_host(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    let host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    for command in ["logout", "login"] {
        assert_eq!(host.run(&[command]).code, Some(64));
        assert_eq!((upstream.calls_to("POST", "/oauth/revoke").len(), host.auth()), (0, Some(canonical.clone())));
    }
    // The harm that cdx prevents.
    assert_eq!(host.run(&["--", "logout"]).code, Some(0));
    assert_eq!((upstream.calls_to("POST", "/oauth/revoke").len(), host.auth()), (1, None));
}

// ------------------------------------------------------------------------------------------------ somebody else's home

/// A home of user 4242 with traps in it, and the `cdx` of a machine that root runs with that home (`sudo -E`).
struct Borrowed {
    home: Host,
    machine: Host,
}

impl Borrowed {
    fn new(program: Program, daemon: &StandIn) -> Self {
        let (home, machine) = (Host::bare(), Host::new(program, &daemon.server.url()));
        // A configuration that sends the key of this machine elsewhere, if anybody reads it.
        home.write_host_toml(&HostConfig { base_url: "http://127.0.0.1:1", ..HostConfig::default() }.toml());
        let trap = format!("#!/bin/sh\ntouch {}\n", machine.file("trapped").display());
        for program in ["codex", "curl", "npm", "mv", "sha256sum"] {
            home.write_program(&format!("bin/{program}"), &trap, 0o755);
            home.write_program(&format!(".local/bin/{program}"), &trap, 0o755);
        }
        home.set_auth(&login(50).to_string());
        // npm cannot install a codex.
        machine.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
        assert!(Command::new("chown").args(["-R", "4242:4242"]).arg(home.file("")).status().unwrap().success());
        Self { home, machine }
    }

    /// Runs `cdx` as root, whose own home is new and empty for this call.
    fn run(&self, arguments: &[&str], then: &str) -> Ran {
        let mut command = self.machine.command("unshare");
        let configured = match self.machine.program {
            Program::Bash => String::new(),
            Program::Native => format!(
                "mkdir -p -m 700 /root/.config/cdx && cp {} /root/.config/cdx/ || exit 99;",
                self.machine.host_toml().display()
            ),
        };
        let script = format!(
            "mount -t tmpfs -o mode=700 none /root || exit 99; {configured} \"$@\"; code=$?; {then}; exit $code"
        );
        let path = format!(
            "{0}/bin:{0}/.local/bin:relative:{1}",
            self.home.file("").display().to_string().trim_end_matches('/'),
            self.machine.path
        );
        command.env("HOME", self.home.file("")).env("PATH", path).env("SUDO_UID", "4242");
        command.env("XDG_CACHE_HOME", self.home.file(".cache")).env("CODEX_HOME", &self.home.codex_home);
        command.env("FAKE_CODEX", r#"echo "$HOME ${CODEX_HOME-none} ${XDG_CACHE_HOME-none}""#);
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script, "sh"]);
        command.args(&self.machine.shell).arg(self.machine.cdx_file()).args(arguments);
        Ran::from(command.output().unwrap())
    }

    fn is_unharmed(&self, what: &str) {
        assert!(!self.machine.file("trapped").exists(), "{what}: a program of that home was run");
        let mut left = vec![self.home.file("")];
        while let Some(path) = left.pop() {
            assert_eq!(fs::symlink_metadata(&path).unwrap().uid(), 4242, "{what}: {}", path.display());
            if path.is_dir() {
                left.extend(fs::read_dir(path).unwrap().map(|file| file.unwrap().path()));
            }
        }
        assert_eq!(self.home.auth(), Some(login(50).to_string()), "{what}");
    }
}

fn root_trusts_nothing_in_somebody_elses_home(program: Program) {
    if !is_root("a home of another user") {
        return;
    }
    for shell in program.shells() {
        let daemon = StandIn::start();
        daemon.set_canonical(&login(10));
        let mut borrowed = Borrowed::new(program, &daemon);
        borrowed.machine.shell = shell;
        for (arguments, then) in [
            (&["x"][..], "cat /root/.codex/auth.json"),
            (&["--sync"], "cat /root/.codex/auth.json"),
            (&["--doctor"], ":"),
            (&["--version"], ":"),
        ] {
            let ran = borrowed.run(arguments, then);
            assert_eq!(ran.code, Some(0), "{arguments:?} {ran:?}");
            assert!(ran.err.contains("does not belong to root"), "{arguments:?} {ran:?}");
            if then != ":" {
                assert!(ran.out.contains("access-10"), "the login is in root's own home: {ran:?}");
            }
            if arguments == ["x"] {
                assert!(ran.out.starts_with("/root none none\n"), "{ran:?}");
            }
            borrowed.is_unharmed(&format!("{arguments:?}"));
        }
    }
}

fn root_updates_by_way_of_nobodys_cache(program: Program) {
    if !is_root("a home of another user") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let borrowed = Borrowed::new(program, &daemon);
    let newer = newer_program(&borrowed.machine.cdx_file(), program, &daemon);
    let ran = borrowed.run(&["--update"], "ls -A /root/.cache/cdx");
    assert!(ran.err.contains("cdx is now ") && ran.out.contains("http"), "{ran:?}");
    assert!(fs::read(borrowed.machine.cdx_file()).unwrap() == newer, "{ran:?}");
    borrowed.is_unharmed("--update");
}

fn root_with_a_home_of_its_own_leaves_no_files_where_sudo_pointed(program: Program) {
    if !is_root("a directory of another user") {
        return;
    }
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    let mut host = Host::new(program, &daemon.server.url());
    let theirs = Host::bare();
    assert!(Command::new("chown").arg("4242:4242").arg(theirs.file("")).status().unwrap().success());
    host.env("XDG_CACHE_HOME", theirs.file(".cache").to_str().unwrap());
    host.env("CODEX_HOME", theirs.file(".codex").to_str().unwrap());
    host.env("SUDO_UID", "4242");
    assert_eq!(host.run(&["x"]).code, Some(0));
    assert_eq!(host.auth(), Some(canonical));
    assert_eq!(fs::read_dir(theirs.file("")).unwrap().count(), 0);
}

// ------------------------------------------------------------------------------------------------ who reads the key

/// A command of root with a /usr/local/bin and an /etc for this host only, which keep what it leaves there.
pub fn as_root(host: &Host, arguments: &[&str]) -> Command {
    fs::create_dir_all(host.file("usr-local-bin")).unwrap();
    fs::create_dir_all(host.file("etc")).unwrap();
    let mut command = host.command("unshare");
    let own = "[ -e \"$HOME/etc/passwd\" ] || cp -a /etc/. \"$HOME/etc/\"; mount --bind \"$HOME/etc\" /etc && \
               mount --bind \"$HOME/usr-local-bin\" /usr/local/bin && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", own, "sh"]).args(arguments);
    command
}

/// Runs the installer as root.
pub fn install_as_root(host: &Host, installer: &str, group: Option<&str>) -> Ran {
    host.write_program("installer", installer, 0o600);
    let mut command = as_root(host, &["bash"]);
    command.envs(group.map(|group| ("CDX_GROUP", group)));
    command.stdin(fs::File::open(host.file("installer")).unwrap());
    Ran::from(command.output().unwrap())
}

/// A host that root installs.
pub fn host_of_root(program: Program) -> Host {
    let host = Host::bare_for(program);
    host.write_codex();
    host
}

/// Mode, owner and group.
pub fn rights(file: &Path) -> (u32, u32, u32) {
    let metadata = fs::metadata(file).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

fn a_group_can_be_given_the_key_and_nobody_else(program: Program) {
    if !is_root("an installation by root") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let installer = plain_installer(program, &daemon);
    let mut host = host_of_root(program);
    let (placed, config) = (host.file("usr-local-bin/cdx"), host.file("etc/cdx/host.toml"));
    let gid = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    let assert_rights = |of_program: (u32, u32, u32), of_config: (u32, u32, u32)| {
        assert_eq!(rights(&placed), of_program);
        if program.is_native() {
            assert_eq!(rights(&config), of_config);
            assert_eq!(rights(config.parent().unwrap()), (0o755, 0, 0));
        } else {
            assert!(!config.exists());
        }
    };

    let ran = install_as_root(&host, installer.expose(), None);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_rights((0o755, 0, 0), (0o600, 0, 0));
    // Without a group, every user can read the key in the script; the native program keeps it from them.
    assert_eq!(
        ran.out.contains("only root can use it") && ran.out.contains("CDX_GROUP"),
        program.is_native(),
        "{ran:?}"
    );
    // With a group, over the first; again without one; and over an update: the group stays.
    let ran = install_as_root(&host, installer.expose(), Some("daemon"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_rights((0o750, 0, gid), (0o640, 0, gid));
    host.write_program("bash-env", "IFS=0a/\n", 0o600);
    host.env("BASH_ENV", host.file("bash-env").to_str().unwrap());
    let ran = install_as_root(&host, installer.expose(), None);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_rights((0o750, 0, gid), (0o640, 0, gid));
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    let newer = newer_program(&placed, program, &daemon);
    let ran = Ran::from(as_root(&host, &["/usr/local/bin/cdx", "--update"]).output().unwrap());
    assert!(ran.err.contains("cdx is now "), "{ran:?}");
    assert!(fs::read(&placed).unwrap() == newer);
    assert_rights((0o750, 0, gid), (0o640, 0, gid));

    let ran = install_as_root(&host, installer.expose(), Some("no-such-group"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("no-such-group"), "{ran:?}");
    assert!(fs::read(&placed).unwrap() == newer, "undone");
    assert_rights((0o750, 0, gid), (0o640, 0, gid));
    assert_eq!(fs::read_dir(host.file("usr-local-bin")).unwrap().count(), 1, "no litter");
}

fn root_is_told_of_the_path_that_root_has(program: Program) {
    if !is_root("an installation by root") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let installer = plain_installer(program, &daemon);
    let mut host = host_of_root(program);
    // The PATH that `sudo` sets if secure_path has no /usr/local/bin.
    let ran = install_as_root(&host, installer.expose(), None);
    assert!(ran.code == Some(0) && ran.out.contains("/usr/local/bin is not on root's PATH"), "{ran:?}");
    assert!(ran.out.contains("  export PATH=\"/usr/local/bin:$PATH\"") && !ran.out.contains(".local/bin:"), "{ran:?}");
    host.path = format!("{}:/usr/local/bin", host.path);
    let ran = install_as_root(&host, installer.expose(), None);
    assert!(ran.code == Some(0) && ran.out.contains("type next:  cdx\n") && !ran.out.contains("PATH"), "{ran:?}");
}

// ------------------------------------------------------------------------------------------------ what a kill leaves

fn a_login_on_its_way_is_in_no_file_but_its_own(program: Program) {
    for shell in program.shells() {
        let (daemon, mut host, _) = in_step(program);
        host.shell = shell;
        host.set_auth(&login(20).to_string());
        let (home, own) = (host.file(""), host.auth_file());
        let seen: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
        let found = Arc::clone(&seen);
        daemon.on_call(move || {
            let mut left = vec![home.clone()];
            while let Some(path) = left.pop() {
                if path.is_dir() {
                    left.extend(fs::read_dir(path).unwrap().map(|file| file.unwrap().path()));
                } else if path != own && String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("access-20") {
                    found.lock().unwrap().push(path);
                }
            }
        });
        assert_eq!(host.run(&["--sync"]).code, Some(0));
        assert_eq!(daemon.commands(), ["retrieve", "store"]);
        assert_eq!(*seen.lock().unwrap(), Vec::<PathBuf>::new(), "a kill -9 now would leave it");
    }
}

fn what_a_killed_cdx_left_is_swept(program: Program) {
    let mut gone = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let dead = gone.id();
    gone.wait().unwrap();
    for shell in program.shells() {
        for arguments in [&["--sync"][..], &["x"], &["--uninstall"]] {
            let (_daemon, mut host, _) = in_step(program);
            host.shell = shell.clone();
            let state = host.state_file().parent().unwrap().to_owned();
            let beside = |name: &str, process: u32| host.cdx_file().with_file_name(format!("cdx.{name}.{process}"));
            let files = |process: u32| {
                let mut files: Vec<PathBuf> = ["store", "head", "cdx", "codex-version.cdx"]
                    .map(|name| state.join(format!("{name}.{process}")))
                    .into();
                files.push(state.join(format!("cdx.{process}.head")));
                files.push(state.join(format!("ca.pem.{process}.12345")));
                files.push(host.codex_home.join(format!("auth.json.cdx.{process}.12345")));
                files.push(host.codex_home.join(format!("auth.json.cdx.{process}")));
                files.extend(["new", "installing", "before", "cdx"].map(|name| beside(name, process)));
                files
            };
            for file in files(dead).iter().chain(&files(std::process::id())) {
                fs::write(file, "refresh-token").unwrap();
            }
            assert_eq!(host.run(arguments).code, Some(0), "{arguments:?}");
            for file in files(dead) {
                assert!(!file.exists(), "{arguments:?}: {} is left", file.display());
            }
            for file in files(std::process::id()) {
                assert!(file.exists(), "{arguments:?}: {} belongs to a running process", file.display());
                fs::remove_file(file).unwrap();
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ odd environments

fn the_root_directory_can_be_the_home(program: Program) {
    if !is_root("a root directory of the test's own") {
        return;
    }
    for shell in program.shells() {
        for home in ["/", "//", "///"] {
            let (daemon, mut host, _) = in_step(program);
            host.shell = shell.clone();
            let canonical = daemon.set_canonical(&login(20));
            host.env("CODEX_HOME", home);
            let root = r#"R="$HOME/root"; mkdir "$R" && cp -P /bin /sbin /lib /lib64 "$R" &&
                for d in usr proc dev etc tmp; do mkdir "$R/$d" && mount --rbind "/$d" "$R/$d" || exit 99; done;
                exec /usr/sbin/chroot "$R" sh -c 'cd /tmp && exec "$@"' sh "$@""#;
            let ran = host.cdx_within(root, &["x"]);
            assert_eq!(ran.code, Some(0), "{home} {ran:?}");
            assert_eq!(fs::read_to_string(host.file("root/auth.json")).unwrap(), canonical, "{home} {ran:?}");
        }
    }
}

fn an_odd_shell_setup_changes_nothing(program: Program) {
    let functions = "curl() { exit 3; }\nmv() { :; }\nsha256sum() { echo 0; }\nsed() { :; }\nalias rm=false printf=false\n\
                     shopt -s expand_aliases\nset -Cefu\nIFS=0a/\ntrap 'exit 4' EXIT\nGLOBIGNORE=*\n";
    for shell in program.shells() {
        for (name, value) in [
            ("SHELLOPTS", "noclobber"),
            ("SHELLOPTS", "errexit:noglob:nounset:pipefail"),
            ("SHELLOPTS", "posix:keyword"),
            ("POSIXLY_CORRECT", "1"),
            ("BASHOPTS", "nullglob:failglob:nocasematch:dotglob:extglob:expand_aliases"),
            ("BASH_ENV", "bash-env"),
            ("BASH_FUNC_curl%%", "() { exit 3; }"),
        ] {
            let (daemon, mut host, _) = in_step(program);
            host.shell = shell.clone();
            host.write_program("bash-env", functions, 0o600);
            // The codex of this host is not bash, because bash would fail on it too.
            host.write_program(
                "bin/codex",
                "#!/bin/sh\n[ \"$1\" != --version ] || { echo codex 0.1.2; exit; }\nenv >\"$HOME/codex.environment\"\ncp \"$HOME/renewed.json\" \"$HOME/.codex/auth.json\"\nexit 7\n",
                0o755,
            );
            host.write_program("renewed.json", &login(30).to_string(), 0o600);
            let value = if name == "BASH_ENV" { host.file(value).display().to_string() } else { value.to_owned() };
            host.env(name, &value);
            daemon.set_canonical(&login(20));
            let ran = host.run(&["x"]);
            assert_eq!((ran.code, ran.err.as_str()), (Some(7), ""), "{name}={value} {shell:?}: {ran:?}");
            assert_eq!(daemon.canonical(), Some(login(30).to_string()), "{name}={value} {shell:?}: {ran:?}");
            assert_eq!(litter(&host), Vec::<PathBuf>::new(), "{name}={value} {shell:?}");
            if ["POSIXLY_CORRECT", "BASH_ENV"].contains(&name) {
                let environment = fs::read_to_string(host.file("codex.environment")).unwrap();
                assert!(environment.lines().any(|line| line == format!("{name}={value}")), "{environment}");
            }
        }
    }
}

fn a_codex_that_is_a_script_around_cdx_is_passed_over(program: Program) {
    for shell in program.shells() {
        for script in ["exec cdx \"$@\"", "cdx -m o3 \"$@\"", "exec cdx -- \"$@\""] {
            let (_daemon, mut host, _) = in_step(program);
            host.shell = shell.clone();
            host.write_program("around/codex", &format!("#!/bin/sh\n{script}\n"), 0o755);
            host.path =
                format!("{}:{}:{}", host.file("around").display(), host.file(".local/bin").display(), host.path);
            let ran = host.run_codex("exit 7", &["x"]);
            assert_eq!(ran.code, Some(7), "{script}: {ran:?}");
            assert_eq!(fs::read_to_string(host.file("codex.arguments")).unwrap(), "x\n", "{script}");
            assert!(ran.err.contains("around/codex is a script around cdx"), "{script}: {ran:?}");
            if !codex_is_installed_here() {
                fs::remove_file(host.file("bin/codex")).unwrap();
                assert_eq!(host.run(&["x"]).code, Some(127), "{script}");
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ the way to the daemon

fn a_plain_text_answer_within_the_handshake_is_absence(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    // A server without TLS takes the daemon's place, like a captive portal or a proxy.
    let url = daemon.server.url();
    host.install(&HostConfig { base_url: &url.replace("http:", "https:"), ..HostConfig::default() });
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(69), "it never had a login from this address: {ran:?}");
    assert!(ran.err.contains("handshake") && !ran.err.contains("trusted"), "{ran:?}");
    assert_eq!(host.auth(), Some(canonical));
}

// ------------------------------------------------------------------------------------------------ the installer

fn half_an_installer_fails(program: Program) {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let host = bare_host(program);
    let installer = plain_installer(program, &daemon);
    let script = installer.expose().as_bytes();
    // The first two lines are a complete script that does nothing.
    let cuts = [120, 200, 500]
        .into_iter()
        .chain((1..24).map(|part| script.len() * part / 24))
        .chain(script.len() - 20..script.len() - 1);
    for cut in cuts {
        for appended in [&b""[..], b"\n[ 200 = 200 ]"] {
            let ran = pipe_installer(&host, &[&script[..cut], appended].concat());
            assert_ne!(ran.code, Some(0), "cut at {cut} of {}", script.len());
            assert!(!host.cdx_file().exists() && host.auth().is_none(), "cut at {cut} of {}", script.len());
        }
    }
    assert!(daemon.server.calls().is_empty());
    let ran = pipe_installer(&host, &[script, b"\n[ 200 = 200 ]"].concat());
    assert_eq!((ran.code, host.cdx_file().exists()), (Some(0), true), "{ran:?}");
}

fn missing_tools_are_named_before_anything_is_done(program: Program) {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let installer = plain_installer(program, &daemon);
    for tools in [&["curl"][..], &["tar", "sed"], &["sha256sum"], &["head", "grep", "date"], &["id"]] {
        let mut host = bare_host(program);
        host.path = sparse_path(&host, &["bin/id", "bin/codex"]);
        for tool in tools {
            fs::remove_file(host.file("sparse").join(tool)).unwrap();
        }
        let ran = pipe_installer(&host, installer.expose().as_bytes());
        assert_eq!(ran.code, Some(1), "{tools:?}: {ran:?}");
        let named = tools.iter().all(|tool| ran.err.contains(&format!(" {tool}")));
        assert!(named && ran.err.contains("Nothing was done"), "{tools:?}: {ran:?}");
        assert!(!host.file(".local/bin").read_dir().is_ok_and(|mut files| files.next().is_some()), "{tools:?}");
    }
    assert!(daemon.server.calls().is_empty());
}

fn an_installer_survives_an_odd_shell_setup(program: Program) {
    let functions = "curl() { exit 3; }\nmv() { :; }\nsed() { :; }\nset -Cefu\nIFS=0a/\ntrap 'exit 4' EXIT\n";
    for shell in program.shells() {
        for (name, value) in [
            ("SHELLOPTS", "noclobber:noglob:errexit"),
            ("SHELLOPTS", "xtrace:verbose:allexport"),
            ("BASHOPTS", "nullglob:failglob:nocasematch"),
            ("POSIXLY_CORRECT", "1"),
            ("BASH_ENV", "bash-env"),
        ] {
            let daemon = StandIn::start();
            let canonical = daemon.set_canonical(&login(10));
            let mut host = bare_host(program);
            host.shell = shell.clone();
            host.write_program("bin/id", "#!/bin/sh\nenv >\"$HOME/id.environment\"\necho 1000\n", 0o755);
            host.write_program("bash-env", functions, 0o600);
            let value = if name == "BASH_ENV" { host.file(value).display().to_string() } else { value.to_owned() };
            host.env(name, &value);
            let installer = plain_installer(program, &daemon);
            let ran = pipe_installer(&host, installer.expose().as_bytes());
            assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{name}={value}: {ran:?}");
            assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
            let environment = fs::read_to_string(host.file("id.environment")).unwrap();
            assert!(!environment.contains(KEY) && !format!("{ran:?}").contains(KEY), "{name}={value}");
        }
    }
}
