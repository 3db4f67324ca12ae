//! Installs Codex, from npm or from the operator's release URL. What could stop it is checked before anything is fetched
//! or changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::codex::{self, Codex};
use crate::download;
use crate::files::{self, Temporary};
use crate::home::{Home, shown};
use crate::messages::{Result, clean, failure, say};
use crate::{Prepared, update};

/// Why Codex cannot be installed here, and the remedy.
#[derive(Debug, PartialEq, Eq)]
struct Obstacle {
    why: String,
    fix: String,
}

type Planned<T> = std::result::Result<T, Obstacle>;

fn obstacle<T>(why: impl Into<String>, fix: &str) -> Planned<T> {
    Err(Obstacle { why: why.into(), fix: fix.to_owned() })
}

/// The installer asks for it, if there is no codex.
pub async fn install_missing(home: &Home, prepared: &Prepared) -> Result<u8> {
    let present = prepared.find_codex(home);
    let wanted = update::ask(home, prepared, present.as_ref()).await?.client_version;
    install(home, prepared, present.as_ref(), wanted.as_deref()).await?;
    Ok(0)
}

/// Installs codex, or another version of it, and prints where it is.
pub async fn install(home: &Home, prepared: &Prepared, present: Option<&Codex>, wanted: Option<&str>) -> Result<()> {
    let values = &prepared.config.values;
    let impossible = |found: Obstacle| {
        failure(1, format!("codex cannot be installed: {}; {}, then 'cdx --update'", found.why, found.fix))
    };
    if values.codex_release_url.is_empty() {
        let prefix = plan_npm(home, present, &values.codex_npm).map_err(impossible)?;
        install_from_npm(home, &prefix, &format!("{}@{}", values.codex_npm, wanted.unwrap_or("latest")))?;
    } else {
        let place = present.map_or_else(|| home.program.with_file_name("codex"), |codex| codex.program.clone());
        let release = plan_release(home, prepared, &place, wanted).map_err(impossible)?;
        install_release(prepared, &release, &place, wanted).await?;
    }
    let codex = prepared.find_codex(home).ok_or_else(|| {
        failure(1, "codex was installed, but is not found: put npm's bin directory (npm prefix -g) on PATH")
    })?;
    say(format_args!("codex {} is at {}", codex.version.unwrap_or_default(), shown(&codex.program)));
    Ok(())
}

/// The prefix for npm.
fn plan_npm(home: &Home, present: Option<&Codex>, package: &str) -> Planned<PathBuf> {
    const FIX: &str = "install Node.js with npm (Debian: apt install npm; macOS: brew install node), or ask the operator for a release URL";
    if home.which("npm").is_none() {
        return obstacle("there is no npm here, and the operator of codex-authd has set no release URL", FIX);
    }
    let version = output(home, "node", &["--version"]);
    let version = version.strip_prefix('v').unwrap_or(&version);
    let Ok(major) = version.split('.').next().unwrap_or_default().parse::<u32>() else {
        return obstacle("there is npm, but no node that runs", FIX);
    };
    // The requirement of the package ("engines" of @openai/codex 0.163 to 0.171).
    if major < 16 {
        return obstacle(format!("codex from npm needs Node.js 16 or later, but this is {}", clean(version, 40)), FIX);
    }
    let own = present.and_then(|codex| codex::npm_prefix(&codex.program)).map(Path::to_owned);
    let own = own.filter(|prefix| prefix.join("lib/node_modules").join(package).is_dir());
    let mut prefix = own.unwrap_or_else(|| PathBuf::from(output(home, "npm", &["prefix", "-g"])));
    let modules = prefix.join("lib/node_modules");
    let is_writable = if modules.exists() { files::is_writable(&modules) } else { files::is_writable(&prefix) };
    if !is_writable || !prefix.is_absolute() {
        prefix = home.directory.join(".local");
    }
    // The installed size is 404 MiB (0.169).
    has_room(&prefix.join("lib/node_modules"), 450)?;
    Ok(prefix)
}

fn output(home: &Home, program: &str, arguments: &[&str]) -> String {
    let mut command = command(home, program);
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    String::from_utf8_lossy(&output.map(|output| output.stdout).unwrap_or_default()).trim_end().to_owned()
}

/// The program of the `PATH` that `cdx` uses, which may be another one than its own environment's.
fn command(home: &Home, program: &str) -> Command {
    home.command(home.which(program).unwrap_or_else(|| program.into()))
}

fn install_from_npm(home: &Home, prefix: &Path, package: &str) -> Result<()> {
    say(format_args!("installing {package} through npm into {}", shown(prefix)));
    let mut npm = command(home, "npm");
    npm.args(["install", "--global", "--no-fund", "--no-audit", "--loglevel=error", "--prefix"])
        .arg(prefix)
        .arg(package);
    // What npm prints is for people.
    let stderr = std::io::stderr();
    npm.stdin(Stdio::null())
        .stdout(std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from));
    if npm.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(failure(1, format!("npm could not install {package} (see above): correct that, then 'cdx --update'")))
}

struct Release {
    target: &'static str,
    url: String,
    digests: String,
}

fn plan_release(home: &Home, prepared: &Prepared, place: &Path, wanted: Option<&str>) -> Planned<Release> {
    const FIX: &str = "ask the operator of codex-authd to mend that";
    let values = &prepared.config.values;
    let Some(target) = release_target() else {
        return obstacle(
            format!("there is no codex for {}/{}", std::env::consts::OS, std::env::consts::ARCH),
            "install it yourself",
        );
    };
    let digests = values.codex_release_sha256.clone();
    if !digests.trim().is_empty() && !digests.split(' ').any(|pair| pair.starts_with(&format!("{target}="))) {
        return obstacle(
            format!("the operator named no SHA-256 of codex for {target} (install.codex_release_sha256)"),
            FIX,
        );
    }
    if values.codex_release_url.contains("{version}") && wanted.is_none() {
        return obstacle("the release URL needs a version, but the daemon knows none yet", "try later");
    }
    let url = values.codex_release_url.replace("{version}", wanted.unwrap_or_default()).replace("{target}", target);
    if home.which("tar").is_none() {
        return obstacle("there is no tar", "install tar");
    }
    // GNU tar runs gzip; other tars unpack by themselves.
    if home.which("gzip").is_none() && output(home, "tar", &["--version"]).contains("GNU tar") {
        return obstacle("there is no gzip for tar", "install gzip");
    }
    // Space for the archive next to the program, and for the program in its final place.
    has_room(&home.cache, 600)?;
    has_room(place, 450)?;
    Ok(Release { target, url, digests })
}

fn release_target() -> Option<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Some("x86_64-unknown-linux-musl"),
        ("linux", "aarch64") => Some("aarch64-unknown-linux-musl"),
        ("macos", "x86_64") => Some("x86_64-apple-darwin"),
        ("macos", "aarch64") => Some("aarch64-apple-darwin"),
        _ => None,
    }
}

async fn install_release(prepared: &Prepared, release: &Release, place: &Path, wanted: Option<&str>) -> Result<()> {
    let Release { target, url, digests } = release;
    let work = Temporary::beside(&prepared.state.directory.join("release"));
    let unpacked = work.path().join("x");
    files::make_private_directory(&unpacked).map_err(|_| failure(74, format!("cannot make {}", shown(&unpacked))))?;
    let directory = shown(place.parent().unwrap_or(Path::new("/")));
    say(format_args!(
        "installing codex {} from the operator's release URL into {directory}",
        wanted.unwrap_or_default()
    ));
    let archive = work.path().join("codex.tar.gz");
    let digest = download::fetch(url, &archive).await.map_err(|why| {
        failure(
            1,
            format!(
                "codex cannot be fetched from the release URL: ask the operator to check it ({})",
                clean(&why, 200)
            ),
        )
    })?;
    if !digests.is_empty() && !digests.split(' ').any(|pair| pair == format!("{target}={digest}")) {
        return Err(failure(
            1,
            "the release is not the archive that the operator named (another SHA-256): nothing is installed; tell the operator",
        ));
    }
    let mut tar = Command::new("tar");
    tar.arg("-xzof").arg(&archive).arg("-C").arg(&unpacked).stdin(Stdio::null()).stderr(Stdio::null());
    if !tar.status().is_ok_and(|status| status.success()) {
        return Err(failure(1, "the file from the release URL is not a tar.gz"));
    }
    let program = unpacked_program(&unpacked, target)
        .ok_or_else(|| failure(1, format!("the release contains no codex for {target}")))?;
    let runs = || {
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).ok()?;
        let mut command = Command::new(&program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().ok().filter(std::process::ExitStatus::success)
    };
    if runs().is_none() {
        return Err(failure(1, "the codex from the release does not run here"));
    }
    let placed = Temporary::beside(place);
    let copied = fs::copy(&program, placed.path()).and_then(|_| fs::File::open(placed.path())?.sync_all());
    copied
        .and_then(|()| placed.persist(place))
        .map_err(|_| failure(1, format!("cannot write {}: run this as its owner (sudo cdx --update)", shown(place))))
}

/// The program is in the archive under the name of the project's own releases, or as `codex`, also in a directory.
fn unpacked_program(directory: &Path, target: &str) -> Option<PathBuf> {
    let mut candidates =
        vec![directory.join(format!("codex-{target}")), directory.join("codex"), directory.join("bin/codex")];
    let mut within: Vec<PathBuf> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    within.sort();
    candidates.extend(within.iter().map(|part| part.join("codex")));
    candidates.extend(within.iter().map(|part| part.join("bin/codex")));
    candidates.into_iter().find(|file| fs::symlink_metadata(file).is_ok_and(|found| found.is_file()))
}

/// Whether a path can be created with this many MiB of free space. The nearest existing directory above it decides.
fn has_room(path: &Path, needed: u64) -> Planned<()> {
    let nearest =
        if path.is_file() { path.parent() } else { path.ancestors().find(|part| fs::symlink_metadata(part).is_ok()) };
    let nearest = nearest.unwrap_or(Path::new("/"));
    if !nearest.is_dir() {
        return obstacle(format!("{} is not a directory", shown(nearest)), "move it away");
    }
    if !files::may_change(nearest) {
        return obstacle(format!("cannot write in {}", shown(nearest)), "make it writable");
    }
    match nix::sys::statvfs::statvfs(nearest) {
        Ok(found) => {
            #[allow(clippy::unnecessary_cast, reason = "on macOS they are narrower")]
            let free = (found.blocks_available() as u64).saturating_mul(found.fragment_size() as u64) >> 20;
            if free >= needed {
                return Ok(());
            }
            obstacle(format!("{} has {free} MiB left, but {needed} are needed", shown(nearest)), "make room")
        }
        // Then the download tells.
        Err(_) => Ok(()),
    }
}

/// The installer undoes an installation with it.
pub fn remove(home: &Home, prepared: &Prepared) -> Result<u8> {
    let Some(codex) = prepared.find_codex(home) else {
        return Ok(1);
    };
    let package = &prepared.config.values.codex_npm;
    let prefix =
        codex::npm_prefix(&codex.program).filter(|prefix| prefix.join("lib/node_modules").join(package).is_dir());
    if let Some(prefix) = prefix {
        let mut npm = command(home, "npm");
        npm.args(["uninstall", "--global", "--prefix"]).arg(prefix).arg(package);
        let status = npm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        return Ok(u8::from(!status.is_ok_and(|status| status.success())));
    }
    Ok(u8::from(fs::remove_file(&codex.program).is_err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(unpacked_program(directory.path(), "t"), None);
        fs::create_dir_all(directory.path().join("a/bin")).unwrap();
        fs::write(directory.path().join("a/bin/codex"), "").unwrap();
        assert_eq!(unpacked_program(directory.path(), "t"), Some(directory.path().join("a/bin/codex")));
        fs::write(directory.path().join("codex-t"), "").unwrap();
        assert_eq!(unpacked_program(directory.path(), "t"), Some(directory.path().join("codex-t")));
        fs::remove_file(directory.path().join("codex-t")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", directory.path().join("codex-t")).unwrap();
        assert_eq!(
            unpacked_program(directory.path(), "t"),
            Some(directory.path().join("a/bin/codex")),
            "a link leads out"
        );
    }

    #[test]
    fn room_is_measured_where_the_file_will_be() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(has_room(&directory.path().join("not/there"), 0), Ok(()));
        assert!(has_room(&directory.path().join("not/there"), 1 << 40).unwrap_err().why.contains("MiB left"));
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(has_room(&directory.path().join("file/x"), 1).unwrap_err().why.contains("not a directory"));
        assert_eq!(has_room(&directory.path().join("file"), 0), Ok(()));
    }
}
