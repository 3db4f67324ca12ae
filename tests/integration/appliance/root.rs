//! The Debian system for the installations: made once by debootstrap and kept in the cache, copied for each machine.
//!
//! It contains systemd, the package's dependencies and the tools of a host, and nothing of ours. A stamp is its last
//! file: an incomplete system is made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// 12, with systemd 252.
    Bookworm,
    /// 13, with systemd 257.
    Trixie,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

const INCLUDED: &[&str] =
    &["systemd", "systemd-sysv", "dbus", "adduser", "ca-certificates", "curl", "tar", "procps", "iproute2"];
const RELEASES: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];
const STAMP: &str = ".complete";

/// Its path, made on first use. That needs the network, so call it before a test leaves the network.
pub fn image(suite: Suite) -> Result<PathBuf, String> {
    let recipe = format!("{} {}", suite.name(), INCLUDED.join(","));
    let cache = std::env::var_os("AUTHD_TEST_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/codex-authd-tests")
    });
    let image = cache.join(format!("rootfs-{}", &hex::encode(Sha256::digest(&recipe))[..16]));
    if image.join(STAMP).exists() {
        return Ok(image);
    }
    fs::create_dir_all(&cache).unwrap();
    // Made beside its place and then renamed: of two processes at once, one wins.
    let making = tempfile::Builder::new().prefix("rootfs-making-").tempdir_in(&cache).unwrap();
    let root = making.path().join("root");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={}", INCLUDED.join(",")), suite.name()]).arg(&root);
    debootstrap.args(mirror()).env("DEBIAN_FRONTEND", "noninteractive");
    said(&mut debootstrap)?;
    // An installed machine has a name that resolves.
    fs::write(root.join("etc/hostname"), "appliance\n").unwrap();
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost appliance\n").unwrap();
    for package in fs::read_dir(root.join("var/cache/apt/archives")).unwrap().flatten() {
        let _ = fs::remove_file(package.path());
    }
    fs::write(root.join(STAMP), recipe).unwrap();
    if image.exists() && !image.join(STAMP).exists() {
        fs::remove_dir_all(&image).unwrap();
    }
    match fs::rename(&root, &image) {
        Err(_) if image.join(STAMP).exists() => Ok(image),
        Err(error) => Err(format!("{}: {error}", image.display())),
        Ok(()) => Ok(image),
    }
}

/// A copy for one machine.
pub fn copy(image: &Path) -> TempDir {
    let directory = tempfile::Builder::new().prefix("appliance-").tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(image).arg(directory.path().join("root"));
    said(&mut copy).unwrap();
    directory
}

/// This machine's mirror, if it has one.
fn mirror() -> Option<String> {
    let format = ["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let listed = Command::new("apt-get").args(format).output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    // The mirror of this machine's release has the other releases too.
    let is_debian = |line: &&str| RELEASES.iter().any(|suite| line.ends_with(&format!(" {} main", suite.name())));
    let line = listed.lines().find(is_debian)?;
    line.split(' ').next().map(String::from)
}

fn said(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let end = text.lines().rev().take(10).collect::<Vec<_>>();
    output.status.success().then_some(()).ok_or_else(|| format!("{command:?}: {}: {end:#?}", output.status))
}
