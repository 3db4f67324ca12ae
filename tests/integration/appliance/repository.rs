//! The signed repository that `packaging/repo.sh` makes: what it offers is installed and upgraded, and nothing of it is
//! taken once its signatures do not cover it.
//!
//! The key is made here and dies with the test. The files are served at 127.0.0.1, which the booted machine shares.

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

/// What becomes of a file on its way: its path in the repository and its bytes; `None` is a 404.
type Transfer = fn(&str, Vec<u8>) -> Option<Vec<u8>>;

pub struct Repository {
    /// `gnupg`, `dist` and `repo` are in it.
    directory: TempDir,
    key: String,
    server: HttpServer,
    transfer: Arc<Mutex<Transfer>>,
}

impl Repository {
    /// One that offers `package`, served.
    pub fn of(package: &Package) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["gnupg", "dist", "repo"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // gpg warns of a directory that others may read.
        succeeds(Command::new("chmod").arg("0700").arg(directory.path().join("gnupg")));
        let transfer: Arc<Mutex<Transfer>> = Arc::new(Mutex::new(unchanged as Transfer));
        let (root, transferred) = (directory.path().join("repo"), Arc::clone(&transfer));
        let server = HttpServer::plain(move |call| {
            // What apt escapes of our names.
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

    /// `packaging/repo.sh`, with this package in its `dist`.
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

    /// Adds the key and the sources to the machine, and installs, as README says; and what apt printed.
    pub fn install(&self, machine: &Machine) -> String {
        // Debian's own are not in the machine's network.
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

    /// Without a complaint.
    fn update(&self, machine: &Machine) {
        let ran = machine.run(&["apt-get", "update"]);
        let told = ran.out + &ran.err;
        let complains = told.lines().any(|line| ["W:", "E:", "N:"].iter().any(|sign| line.starts_with(sign)));
        assert!(ran.code == Some(0) && !complains, "{told}");
    }

    /// A newer version is brought by `apt-get upgrade`, which asks nothing; and an older one is still offered.
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

    /// `newest` is offered in a repository that somebody has changed on its way; then in an honest one.
    fn refuses_what_is_not_signed(&self, machine: &Machine, installed: &Package, newest: &Package) {
        self.add(newest);
        // With what apt says that knows the repository, and where it sees it for the first time.
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
        // apt holds to what it knows as signed, whatever the sources ask for; what they ask for shows at first sight.
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

    /// Nothing of it stays on the machine.
    pub fn forget(self, machine: &Machine) {
        machine.done(&["apt-get", "purge", "--yes", "codex-authd-archive-keyring"]);
        assert!(!machine.file(KEYRING).exists(), "the package owns the key that was there before it");
        machine.done(&["rm", SOURCES]);
        // What was downloaded stays otherwise.
        machine.done(&["apt-get", "clean"]);
        machine.done(&["apt-get", "update"]);
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // The agent holds the key, and outlives whoever started it.
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
