//! Every command, without a daemon: the owner of its files, and its behaviour if it cannot write its answer. The list
//! comes from the program's help, so a new command without a row fails.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::net::UdpSocket;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::daemon::{BINARY, Daemon, auth_json};
use crate::support::skip::skipped;

/// A command, and its arguments. `{login}`, `{passphrase}` and `{new}` (a path that does not exist yet) are replaced by
/// files.
const ROWS: [(&str, &str); 70] = [
    ("check-config", ""),
    ("openapi", ""),
    ("completions", "bash"),
    ("man", "{new}"),
    ("create-admin", "root@a.test correct-horse-battery-staple"),
    ("users add", "u@a.test"),
    ("users list", ""),
    ("users role", "u@a.test admin"),
    ("users password", "u@a.test another-long-password-of-words"),
    ("users max-hosts", "u@a.test 3"),
    ("users disable", "u@a.test"),
    ("users enable", "u@a.test"),
    ("link-identity", "--issuer https://id.test --subject s --user u@a.test"),
    ("identities list", ""),
    ("identities unlink", "--issuer https://id.test --subject s"),
    ("sessions list", ""),
    ("sessions end", "00000000-0000-4000-8000-000000000000"),
    ("hosts add", "a.test"),
    ("hosts list", ""),
    ("hosts disable", "a.test"),
    ("hosts enable", "a.test"),
    ("hosts clear", "a.test"),
    ("hosts roaming", "a.test"),
    ("hosts window", "a.test"),
    ("hosts expiry", "a.test never"),
    ("hosts networks", "a.test 192.0.2.0/24"),
    ("hosts remove", "a.test"),
    ("hosts removed", ""),
    ("hosts restore", "a.test"),
    ("auth upload", "{login}"),
    ("auth show", ""),
    ("auth history", ""),
    ("auth diff", "1 1"),
    ("auth rollback", "1"),
    ("admin-cert", "alice --pem {new}"),
    ("certificates list", ""),
    ("certificates renew", "alice --pem {new}"),
    ("certificates tie", "alice u@a.test"),
    ("certificates revoke", "alice"),
    ("authorities list", ""),
    ("authorities prepare", "server"),
    ("authorities activate", "server --force"),
    ("authorities retire", "server --force"),
    ("installers list", ""),
    ("installers revoke", "00000000-0000-4000-8000-000000000000"),
    ("audit list", ""),
    ("audit verify", ""),
    ("api disable", "--reason why"),
    ("api show", ""),
    ("api enable", ""),
    ("runner run", ""),
    ("runner show", ""),
    ("runner doctor", ""),
    ("keys rotate", ""),
    ("backup", "{backup} --passphrase-file {passphrase}"),
    ("backup", "--verify {backup} --passphrase-file {passphrase}"),
    ("restore", "{backup} --yes --passphrase-file {passphrase}"),
    ("restore", "{backup} --extract {new} --passphrase-file {passphrase}"),
    ("backup", "--into {new} --keep 2 --passphrase-file {passphrase}"),
    ("migrate", "--to mysql://u:p@127.0.0.1:1/n --no-database-tls"),
    ("migrate", "--abort"),
    ("records export", "{new}"),
    ("metrics", ""),
    ("doctor", ""),
    ("serve", ""),
    ("doctor", "--json"),
    ("hosts list", "--json"),
    ("audit list", "--json --all"),
    ("doctor", "--help"),
    ("hosts add", "--help"),
];

/// The user that owns the state directory.
const USER: u32 = 47_110;

/// The commands in the program's help, each with all its words.
fn commands(words: &[&str]) -> BTreeSet<String> {
    let help = Command::new(BINARY).args(words).arg("-h").output().unwrap();
    assert!(help.status.success(), "{words:?}");
    let help = String::from_utf8(help.stdout).unwrap();
    let Some((_, listed)) = help.split_once("Commands:\n") else { return [words.join(" ")].into() };
    let lines = listed.lines().take_while(|line| !line.is_empty());
    let names: Vec<&str> = lines
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(!names.is_empty(), "{help}");
    names.iter().flat_map(|name| commands(&[words, &[*name]].concat())).collect()
}

#[test]
fn every_command_has_a_row() {
    let rows: BTreeSet<String> = ROWS.iter().map(|(command, _)| command.to_string()).collect();
    let commands = commands(&[]);
    assert!(commands.len() > 50, "{commands:?}");
    assert_eq!(rows, commands);
}

/// A state directory, and the files for the commands' arguments.
struct House {
    daemon: Daemon,
    directory: tempfile::TempDir,
    made: usize,
}

impl House {
    /// `names`: the names that `doctor` looks up. A slow lookup gets its own thread.
    fn new(names: [&str; 3]) -> Self {
        let daemon = Daemon::prepare(&[
            ("UPSTREAM__TOKEN_URL", &format!("http://{}:1/oauth/token", names[0])),
            ("UPSTREAM__RELEASES_URL", &format!("http://{}:1/latest", names[1])),
            ("PUBLIC_BASE_URL", &format!("https://{}:1", names[2])),
            ("RUNNER__ENABLED", "true"),
            ("RUNNER__CODEX", "/nowhere/codex"),
            ("RUNNER__EGRESS", &format!("{}:1", names[0])),
        ]);
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        write("login", &auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string());
        write("passphrase", "correct horse battery staple of six words\n");
        Self { daemon, directory, made: 0 }
    }

    /// The command of a row.
    fn command(&mut self, command: &str, more: &str) -> Command {
        self.made += 1;
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let mut more = more.replace("{new}", &at(&format!("new-{}", self.made)));
        for name in ["login", "passphrase", "backup"] {
            more = more.replace(&format!("{{{name}}}"), &at(name));
        }
        let words: Vec<&str> = command.split(' ').chain(more.split(' ')).filter(|word| !word.is_empty()).collect();
        let mut command = self.daemon.command(&words);
        command.stdin(Stdio::null());
        command
    }
}

/// A name server that never answers: a lookup takes a second, and other lookups run meanwhile.
struct SlowNames {
    resolv_conf: tempfile::NamedTempFile,
    _socket: UdpSocket,
}

impl SlowNames {
    const ADDRESS: &str = "127.0.0.77";

    fn new() -> Self {
        let socket = UdpSocket::bind((Self::ADDRESS, 53)).unwrap();
        let resolv_conf = tempfile::NamedTempFile::new().unwrap();
        let text = format!("nameserver {}\noptions timeout:1 attempts:1\n", Self::ADDRESS);
        std::fs::write(&resolv_conf, text).unwrap();
        std::fs::set_permissions(&resolv_conf, PermissionsExt::from_mode(0o644)).unwrap();
        Self { resolv_conf, _socket: socket }
    }

    /// The command, with these names. Needs root.
    fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(self.resolv_conf.path());
        command.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// Every file in the state directory that is not the user's, with its user, group and path.
fn strangers(state_dir: &Path) -> Vec<(u32, u32, PathBuf)> {
    let (mut found, mut below) = (Vec::new(), vec![state_dir.to_path_buf()]);
    while let Some(path) = below.pop() {
        let about = path.symlink_metadata().unwrap();
        if (about.uid(), about.gid()) != (USER, USER) {
            found.push((about.uid(), about.gid(), path.clone()));
        }
        if about.is_dir() {
            below.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

#[test]
fn whatever_root_runs_leaves_files_of_the_daemons_user_alone() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can be another user");
        return;
    }
    // Threads that existed before the state was opened made root-owned files.
    let (mut house, names) = (House::new(["slow-1.test", "slow-2.test", "slow-3.test"]), SlowNames::new());
    let (parent, state) = (house.daemon.state.path().to_path_buf(), house.daemon.state_dir());
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&parent, PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
    for path in [&parent, &state] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let mut done = 0;
    for (command, more) in ROWS {
        // The command rebuilds missing hot state, so each command that opens the state makes files.
        let _ = std::fs::remove_dir_all(state.join("hot"));
        if command == "serve" {
            // Run by root, on a state of another user.
            house.daemon.launch();
            assert!(house.daemon.cli_json(&["hosts", "list"])["hosts"].is_array());
            assert!(house.daemon.stop().success());
        } else {
            let output = names.command(&house.command(command, more)).output().unwrap();
            let said = format!("{command} {more}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
            println!("{} {}", output.status, said.lines().next().unwrap_or_default());
            done += usize::from(output.status.success());
        }
        assert_eq!(strangers(&state), Vec::new(), "after {command} {more}");
    }
    assert!(done > 50, "{done} commands were done");
    // Files that are named on the command line belong to the caller.
    for path in std::fs::read_dir(house.directory.path()).unwrap() {
        let path = path.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0, "{}", path.display());
    }
    house.daemon.within =
        ["setpriv", &format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"].map(String::from).into();
    house.daemon.launch();
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 1);
}

/// The target of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    Read,
    /// A pipe without a reader.
    Closed,
    /// Standard error too.
    BothClosed,
    /// A full disk.
    Full,
}

struct Ran {
    code: Option<i32>,
    printed: bool,
    said: String,
}

fn run_all(output: Output) -> Vec<Ran> {
    let mut house = House::new(["localhost"; 3]);
    let rows = ROWS.iter().filter(|(command, _)| *command != "serve");
    let ran = rows.map(|(command, more)| {
        let mut command = house.command(command, more);
        command.stderr(Stdio::piped());
        match output {
            Output::Read => command.stdout(Stdio::piped()),
            Output::Closed => command.stdout(closed()),
            Output::BothClosed => command.stdout(closed()).stderr(closed()),
            Output::Full => command.stdout(File::options().write(true).open("/dev/full").unwrap()),
        };
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ran { code: output.status.code(), printed: !output.stdout.is_empty(), said }
    });
    ran.collect()
}

/// A pipe whose reading end is closed.
fn closed() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn an_answer_that_nobody_reads_or_that_cannot_be_written_is_no_panic_and_no_success() {
    let modes = [Output::Read, Output::Closed, Output::BothClosed, Output::Full];
    let threads = modes.map(|output| std::thread::spawn(move || run_all(output)));
    let [read, closed, both_closed, full] = threads.map(|thread| thread.join().unwrap());
    let rows = ROWS.iter().filter(|(command, _)| *command != "serve");
    let mut printed = 0;
    for (at, (command, more)) in rows.enumerate() {
        let row = format!("{command} {more}");
        let [read, closed, both_closed, full] = [&read[at], &closed[at], &both_closed[at], &full[at]];
        assert!(matches!(read.code, Some(0 | 1)), "{row}: {:?} {}", read.code, read.said);
        for ran in [closed, full] {
            assert!(!ran.said.contains("panicked"), "{row}: {}", ran.said);
        }
        if !read.printed {
            assert_eq!([closed.code, both_closed.code, full.code], [read.code; 3], "{row}: {}", closed.said);
            continue;
        }
        printed += 1;
        assert_eq!([closed.code, both_closed.code], [Some(141); 2], "{row}: {}", closed.said);
        assert!(!closed.said.contains("codex-authd: "), "{row}: {}", closed.said);
        assert_eq!(full.code, Some(1), "{row}: {}", full.said);
        let errors: Vec<&str> = full.said.lines().filter(|line| line.starts_with("codex-authd: ")).collect();
        assert_eq!(
            errors,
            ["codex-authd: cannot write standard output: No space left on device (os error 28)"],
            "{row}"
        );
    }
    assert!(printed > 55, "{printed}");
}

#[test]
fn a_pager_that_is_left_ends_a_command_quietly() {
    let mut child = Command::new(BINARY).arg("openapi").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 10]).unwrap();
    drop(output);
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(141), ""));
}
