//! The signed repository of `packaging/repo.sh`: apt installs and upgrades from it, and refuses any content that the
//! signatures do not cover.
//!
//! The key is made here and removed with the test. The files are served at 127.0.0.1, which the booted machine shares.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::fleet::Fleet;
use super::install::{UNIT, runs};
use super::machine::Machine;
use super::package::Package;
use crate::support::host::Ran;
use crate::support::http::{HttpServer, Reply};

const KEYRING: &str = "/usr/share/keyrings/codex-authd-archive-keyring.gpg";
const SOURCES: &str = "/etc/apt/sources.list.d/codex-authd.sources";

/// Changes a file in transit: its path in the repository and its bytes; `None` is a 404.
type Transfer = fn(&str, Vec<u8>) -> Option<Vec<u8>>;

pub struct Repository {
    /// Contains `gnupg`, `dist` and `repo`.
    directory: TempDir,
    key: String,
    server: HttpServer,
    transfer: Arc<Mutex<Transfer>>,
}

impl Repository {
    /// A served repository with `package`.
    pub fn of(package: &Package) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["gnupg", "dist", "repo"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // gpg warns about a directory that other users can read.
        succeeds(Command::new("chmod").arg("0700").arg(directory.path().join("gnupg")));
        let transfer: Arc<Mutex<Transfer>> = Arc::new(Mutex::new(unchanged as Transfer));
        let (root, transferred) = (directory.path().join("repo"), Arc::clone(&transfer));
        let server = HttpServer::plain(move |call| {
            // apt escapes these characters of our names.
            let path = call.path.trim_start_matches('/').replace("%2b", "+").replace("%7e", "~");
            let transfer = *transferred.lock().unwrap();
            match fs::read(root.join(&path)).ok().and_then(|bytes| transfer(&path, bytes)) {
                Some(bytes) => Reply::new(200, "application/octet-stream", bytes),
                None => Reply::new(404, "text/plain", "not here"),
            }
        });
        let mut repository = Self { directory, key: String::new(), server, transfer };
        repository.make_key();
        repository.add(package);
        repository
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn gpg(&self, arguments: &[&str]) -> String {
        succeeds(Command::new("gpg").arg("--homedir").arg(self.place("gnupg")).arg("--batch").args(arguments))
    }

    fn make_key(&mut self) {
        let without_passphrase = ["--pinentry-mode", "loopback", "--passphrase", ""];
        let key = ["--quick-generate-key", "archive of a test <archive@codex-authd.test>", "rsa2048", "sign", "1d"];
        self.gpg(&[&without_passphrase[..], &key].concat());
        let listed = self.gpg(&["--list-keys", "--with-colons"]);
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        self.key = line.trim_end_matches(':').rsplit(':').next().unwrap().to_owned();
    }

    /// Runs `packaging/repo.sh`, with this package in its `dist`.
    pub fn add(&self, package: &Package) {
        let file = self.place("dist").join(package.file.file_name().unwrap());
        fs::copy(&package.file, &file).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/repo.sh");
        let mut made = Command::new(script);
        made.arg(self.place("dist")).arg(self.place("repo"));
        made.env("GNUPGHOME", self.place("gnupg")).env("AUTHD_REPO_KEY", &self.key);
        made.env("AUTHD_REPO_URL", self.server.url()).env("AUTHD_REPO_ALLOW_PLACEHOLDERS", "1");
        succeeds(&mut made);
        fs::remove_file(file).unwrap();
    }

    /// Adds the key and the sources to the machine, and installs, as README says; returns apt's output.
    pub fn install(&self, machine: &Machine) -> String {
        // Debian's own sources are not reachable from the machine's network.
        machine.write("/etc/apt/sources.list", "");
        let url = self.server.url();
        for (path, name) in [(KEYRING, "codex-authd-archive-keyring.gpg"), (SOURCES, "codex-authd.sources")] {
            machine.done(&["curl", "-fsSLo", path, &format!("{url}/{name}")]);
        }
        self.update(machine);
        let ran = machine.run(&["apt-get", "install", "--yes", "-o", "Dpkg::Use-Pty=0", "codex-authd"]);
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
        let owner = machine.done(&["dpkg-query", "--search", KEYRING]);
        assert!(owner.starts_with("codex-authd-archive-keyring:"), "a later key reaches this machine: {owner}");
        ran.out + &ran.err
    }

    /// Updates without a warning.
    fn update(&self, machine: &Machine) {
        let ran = machine.run(&["apt-get", "update"]);
        let told = ran.out + &ran.err;
        let complains = told.lines().any(|line| ["W:", "E:", "N:"].iter().any(|sign| line.starts_with(sign)));
        assert!(ran.code == Some(0) && !complains, "{told}");
    }

    /// `apt-get upgrade` installs a newer version without a question, and an older one is still offered.
    pub fn upgrades_and_goes_back(&self, fleet: &Fleet, package: &Package) {
        let (machine, newer, process) = (fleet.machine, next(package, 1), fleet.main_pid());
        self.add(&newer);
        self.update(machine);
        let ran = upgrade(machine);
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
        assert_eq!(machine.version(), newer.version);
        assert_ne!(fleet.main_pid(), process, "{UNIT} was not restarted");
        runs(machine);
        fleet.everybody_goes_on();

        self.refuses_what_is_not_signed(machine, &newer, &next(package, 2));

        let older = format!("codex-authd={}", package.version);
        machine.done(&["apt-get", "install", "--yes", "--allow-downgrades", &older]);
        assert_eq!(machine.version(), package.version);
        runs(machine);
        fleet.everybody_goes_on();
    }

    /// Offers `newest` in a repository that is changed in transit, and then in an unchanged one.
    fn refuses_what_is_not_signed(&self, machine: &Machine, installed: &Package, newest: &Package) {
        self.add(newest);
        // Each with apt's message if it knows the repository, and at its first sight of the repository.
        let changes: [(&str, Transfer, [&str; 2]); 4] = [
            ("without signatures", without_signatures, ["is no longer signed", "is not signed"]),
            (
                "with another InRelease",
                with_another_release,
                ["error occurred during the signature verification", "is not signed"],
            ),
            ("with other indexes", with_other_indexes, ["Hash Sum mismatch"; 2]),
            ("with another package", with_another_package, ["Hash Sum mismatch"; 2]),
        ];
        for (what, transfer, [told, _]) in changes {
            self.refuses(machine, installed, what, transfer, told);
        }
        // apt requires signatures if it knows a repository as signed, whatever the sources say. At first sight the
        // sources decide.
        for (what, transfer, [_, told]) in changes {
            machine.done(&["rm", "-r", "/var/lib/apt/lists"]);
            self.refuses(machine, installed, &format!("{what}, at first sight"), transfer, told);
        }
        *self.transfer.lock().unwrap() = unchanged;
        self.update(machine);
        let ran = upgrade(machine);
        assert_eq!((ran.code, machine.version()), (Some(0), newest.version.clone()), "{}{}", ran.out, ran.err);
    }

    fn refuses(&self, machine: &Machine, installed: &Package, what: &str, transfer: Transfer, wanted: &str) {
        *self.transfer.lock().unwrap() = transfer;
        let (updated, upgraded) = (machine.run(&["apt-get", "update"]), upgrade(machine));
        let told = [updated.out, updated.err, upgraded.out, upgraded.err].concat();
        assert_eq!(machine.version(), installed.version, "{what}: {told}");
        assert!(told.contains(wanted), "{what}: {told}");
    }

    /// Removes everything of it from the machine.
    pub fn forget(self, machine: &Machine) {
        machine.done(&["apt-get", "purge", "--yes", "codex-authd-archive-keyring"]);
        assert!(!machine.file(KEYRING).exists(), "the keyring package did not take over the key");
        machine.done(&["rm", SOURCES]);
        // Otherwise the downloaded files stay.
        machine.done(&["apt-get", "clean"]);
        machine.done(&["apt-get", "update"]);
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // The agent holds the key, and outlives the process that started it.
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.place("gnupg")).args(["--kill", "all"]).output();
    }
}

fn unchanged(_: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes)
}

fn without_signatures(path: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    (!path.ends_with("InRelease") && !path.ends_with("Release.gpg")).then_some(bytes)
}

fn with_another_release(path: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if !path.ends_with("InRelease") {
        return Some(bytes);
    }
    Some(String::from_utf8(bytes).unwrap().replace("Suite: stable", "Suite: stabIe").into_bytes())
}

fn with_other_indexes(path: &str, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if path.contains("/by-hash/") || path.contains("/Packages") {
        *bytes.last_mut().unwrap() ^= 1;
    }
    Some(bytes)
}

fn with_another_package(path: &str, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if path.ends_with(".deb") {
        *bytes.last_mut().unwrap() ^= 1;
    }
    Some(bytes)
}

fn upgrade(machine: &Machine) -> Ran {
    machine.run(&["apt-get", "upgrade", "--yes", "-o", "Dpkg::Use-Pty=0"])
}

/// The same program as a later version.
fn next(package: &Package, number: u32) -> Package {
    package.remade(&format!("{}+next{number}", package.version), |tree| {
        fs::write(tree.join("usr/share/doc/codex-authd/NEXT"), number.to_string()).unwrap();
    })
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {told}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
