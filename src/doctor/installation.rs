//! Checks of files: the configuration, the state directory and its lock, the disk, and file times as a hint about the
//! clock.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, User};
use time::OffsetDateTime;

use super::access::unreadable;
use crate::config::Config;
use crate::daemon::format;
use crate::daemon::owner::{OwnerIdentity, user_name};
use crate::hot;
use crate::model::check::Check;
use crate::model::checkup::{self, Room};

const CONFIGURATION: &str = "configuration";
const STATE: &str = "state directory";
/// Directories of the stores, in the state directory.
const STORES: [&str; 3] = ["records", hot::CACHE, hot::OUTBOX];
/// The user that the packages create.
const USER: &str = "codex-authd";

/// The user of the daemon: the owner of the state directory, or else the user that the packages create.
pub fn owner(state_dir: &Path) -> Option<OwnerIdentity> {
    match OwnerIdentity::of_directory(state_dir) {
        Ok(owner) => Some(owner),
        Err(_) => User::from_name(USER).ok().flatten().map(|user| OwnerIdentity::new(user.uid, user.gid)),
    }
}

/// `identity`: the daemon's user, if known.
pub fn configuration(file: Option<&Path>, config: &Config, identity: Option<&OwnerIdentity>) -> Check {
    let Some(file) = file else {
        return Check::good(CONFIGURATION, "there is no file: the defaults and the environment apply");
    };
    let place = file.display();
    let about = match std::fs::metadata(file) {
        Ok(about) => about,
        Err(error) => return Check::missing(CONFIGURATION, format!("{place}: {error}"), format!("ls -l {place}")),
    };
    let holds_secret = config.database.url.contains("://") && password_stands_in(file);
    if let Some(unreadable) = identity.and_then(|identity| unreadable(CONFIGURATION, file, identity)) {
        return unreadable;
    }
    if about.mode() & 0o022 != 0 {
        let found = format!("{place} can be written by others than its owner (mode {:o})", about.mode() & 0o777);
        return Check::weak(CONFIGURATION, found, format!("chmod go-w {place}"));
    }
    if about.mode() & 0o004 != 0 && (holds_secret || !config.oidc.client_secret.is_empty()) {
        let found = format!("{place} holds a secret and can be read by everybody (mode {:o})", about.mode() & 0o777);
        return Check::weak(CONFIGURATION, found, format!("chmod o-r {place}"));
    }
    Check::good(CONFIGURATION, format!("{place} is readable, and all its keys are valid"))
}

/// Whether the file itself contains a URL with a password. The password may also be in a credential.
fn password_stands_in(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::trim_start).any(|line| {
        line.starts_with("url")
            && line
                .split_once("://")
                .is_some_and(|(_, rest)| rest.split_once('@').is_some_and(|(user, _)| user.contains(':')))
    })
}

/// The holder of the state directory's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// Its process id, as far as it is in the file.
    Process(String),
}

pub struct StateFound {
    path: PathBuf,
    about: io::Result<std::fs::Metadata>,
    strangers: Strangers,
    pub holder: Holder,
    /// `None` if it was not written yet.
    pub format: Result<Option<u32>, String>,
}

/// Examines the state directory. `identity`: the daemon's user, if known. Nothing is locked, created or changed.
pub fn state(state_dir: &Path, identity: Option<&OwnerIdentity>) -> StateFound {
    StateFound {
        path: state_dir.into(),
        about: std::fs::metadata(state_dir),
        strangers: Strangers::look(state_dir, identity),
        holder: holder(state_dir),
        format: format::look(state_dir).map_err(|error| error.to_string()),
    }
}

impl StateFound {
    /// Whether a command may open it without doing work that only the daemon may do.
    pub fn is_ours_to_open(&self) -> bool {
        self.holder == Holder::Nobody && self.format == Ok(Some(format::CURRENT)) && self.strangers.count == 0
    }

    pub fn checks(&self, is_running: bool) -> Vec<Check> {
        let place = self.path.display();
        let about = match &self.about {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return vec![Check::weak(
                    STATE,
                    format!("{place} is not there: no daemon has run yet"),
                    "systemctl start codex-authd",
                )];
            }
            Err(error) => {
                let remedy = "run this as root, or as the daemon's user";
                return vec![Check::missing(STATE, format!("{place} cannot be examined: {error}"), remedy)];
            }
        };
        let mut checks = Vec::new();
        if !about.is_dir() {
            return vec![Check::missing(STATE, format!("{place} is not a directory"), "choose another state_dir")];
        }
        if let Some(check) = self.strangers.check(&self.path) {
            checks.push(check);
        } else if about.mode() & 0o077 != 0 {
            let found = format!("{place} is open to others (mode {:o})", about.mode() & 0o777);
            checks.push(Check::weak(STATE, found, format!("chmod 700 {place}")));
        }
        match &self.format {
            Ok(Some(found)) if *found > format::CURRENT => checks.push(Check::missing(
                STATE,
                format!("its format is {found}, and this version knows formats up to {}", format::CURRENT),
                format!("install the version that wrote it, or put the files of {place}/before-format-{found} in their places"),
            )),
            Ok(Some(found)) if *found < format::CURRENT => checks.push(Check::weak(
                STATE,
                format!("its format is {found}; the daemon upgrades it to {} at its next start", format::CURRENT),
                "systemctl restart codex-authd",
            )),
            Err(error) => checks.push(Check::missing(STATE, error.clone(), "restore it from a backup: codex-authd restore DIR")),
            Ok(_) => {}
        }
        if let (Holder::Process(id), false) = (&self.holder, is_running) {
            let found = format!("process {id} holds its lock, but no daemon answers on the control socket");
            checks.push(Check::missing(STATE, found, format!("systemctl restart codex-authd (or check process {id})")));
        }
        if checks.is_empty() {
            let format = self.format.as_ref().ok().copied().flatten();
            let format = format.map_or("empty".to_owned(), |format| format!("format {format}"));
            checks.push(Check::good(STATE, format!("{place}, {format}, accessible only to its owner")));
        }
        checks
    }
}

/// Files in the state directory that do not belong to the daemon's user. Commands of an earlier version left such
/// files.
#[derive(Default)]
struct Strangers {
    count: usize,
    /// One of these files, and its user.
    first: Option<(PathBuf, Uid)>,
    /// The right owner.
    owner: Option<OwnerIdentity>,
}

impl Strangers {
    /// Finds all of them; links are not followed.
    fn look(state_dir: &Path, identity: Option<&OwnerIdentity>) -> Self {
        let owner = identity.cloned().or_else(|| owner(state_dir));
        let mut strangers = Self { owner, ..Self::default() };
        // Root may write every file.
        let Some(uid) = strangers.owner.as_ref().map(|owner| owner.uid).filter(|uid| !uid.is_root()) else {
            return strangers;
        };
        let mut below = vec![state_dir.canonicalize().unwrap_or_else(|_| state_dir.into())];
        while let Some(path) = below.pop() {
            let Ok(about) = path.symlink_metadata() else { continue };
            if about.uid() != uid.as_raw() {
                strangers.count += 1;
                strangers.first.get_or_insert_with(|| (path.clone(), Uid::from_raw(about.uid())));
            }
            if about.is_dir() {
                let mut entries: Vec<_> =
                    std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
                entries.sort();
                below.extend(entries);
            }
        }
        strangers
    }

    fn check(&self, state_dir: &Path) -> Option<Check> {
        let (Some((path, uid)), Some(owner)) = (&self.first, &self.owner) else { return None };
        let (user, group) = (owner.user(), owner.group());
        let found = format!(
            "{} files in it do not belong to the daemon's user {user}, such as {} (user {}): the daemon cannot write them",
            self.count,
            path.display(),
            user_name(*uid)
        );
        Some(Check::missing(STATE, found, format!("chown -R {user}:{group} {}", state_dir.display())))
    }
}

/// Looks up the lock in the kernel's table. Taking it, even briefly, could keep a daemon from starting.
fn holder(state_dir: &Path) -> Holder {
    let path = state_dir.join("daemon.lock");
    let Ok(about) = std::fs::metadata(&path) else { return Holder::Nobody };
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    if !is_locked(&locks, about.dev(), about.ino()) {
        return Holder::Nobody;
    }
    let id = std::fs::read_to_string(&path).unwrap_or_default();
    Holder::Process(if id.trim().is_empty() { "(unknown)".into() } else { id.trim().to_owned() })
}

/// The format of a line is `1: FLOCK  ADVISORY  WRITE 4711 fe:01:131095 0 EOF`.
fn is_locked(locks: &str, device: u64, inode: u64) -> bool {
    let wanted = format!("{:02x}:{:02x}:{inode}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"FLOCK") && words.contains(&wanted.as_str())
    })
}

/// Finds hot state that a daemon found damaged and set aside. The daemon works without it.
pub fn set_aside(state_dir: &Path) -> Vec<Check> {
    let of = |directory: PathBuf| {
        let place = directory.display();
        let found =
            format!("{place} was damaged and set aside; the daemon rebuilt hot state, and does not need it any more");
        Check::weak("hot state", found, format!("check the disk of {}, then rm -r {place}", state_dir.display()))
    };
    hot::set_aside(state_dir).into_iter().map(of).collect()
}

pub fn disk(state_dir: &Path) -> Option<Check> {
    if !state_dir.exists() {
        return None;
    }
    let place = state_dir.display().to_string();
    let found = match statvfs(state_dir) {
        Ok(found) => found,
        Err(errno) => {
            return Some(Check::weak(
                "disk",
                format!("the free space of {place} cannot be read: {}", errno.desc()),
                format!("df {place}"),
            ));
        }
    };
    let room = Room {
        free_bytes: found.blocks_available() * found.fragment_size(),
        free_inodes: found.files_available(),
        inodes: found.files(),
        is_read_only: found.flags().contains(FsFlags::ST_RDONLY),
        used_bytes: STORES.iter().map(|store| size(&state_dir.join(store))).sum(),
    };
    Some(checkup::disk(room, &place))
}

fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let about = entry.metadata().ok()?;
        Some(if about.is_dir() { size(&entry.path()) } else { about.len() })
    });
    sizes.sum()
}

/// Compares the clock with the newest file of the stores, if the records cannot be read.
pub fn newest_file(state_dir: &Path, now: OffsetDateTime) -> Option<Check> {
    let times =
        STORES.iter().flat_map(|store| std::fs::read_dir(state_dir.join(store)).into_iter().flatten().flatten());
    let newest = times.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()?;
    Some(checkup::clock_and_records(now, Some(newest.into()), "the newest file of the stores"))
}

/// Whether systemd-timesyncd has set the clock since the boot. Other services (chrony, ntpd) leave no mark here.
pub fn time_service(directory: &Path) -> Check {
    const NAME: &str = "time service";
    if directory.join("synchronized").exists() {
        Check::good(NAME, "systemd-timesyncd has set the clock")
    } else if directory.exists() {
        Check::weak(NAME, "systemd-timesyncd runs, but has not set the clock yet", "timedatectl timesync-status")
    } else {
        Check::good(NAME, "systemd-timesyncd does not run here; the clock is compared with other clocks")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::fcntl::{Flock, FlockArg};

    use super::*;
    use crate::model::check::Verdict;

    #[test]
    fn a_lock_that_somebody_has_is_seen_without_taking_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path()), Holder::Nobody);
        let path = directory.path().join("daemon.lock");
        std::fs::write(&path, "4711\n").unwrap();
        assert_eq!(holder(directory.path()), Holder::Nobody);
        let file = std::fs::File::open(&path).unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap();
        assert_eq!(holder(directory.path()), Holder::Process("4711".into()));
        assert!(!state(directory.path(), None).is_ours_to_open());
        assert_eq!(state(directory.path(), None).checks(true).len(), 1);
        let found = state(directory.path(), None).checks(false);
        assert!(
            found.iter().any(|check| check.verdict == Verdict::Missing && check.found.contains("4711")),
            "{found:?}"
        );
        drop(lock);
        assert_eq!(holder(directory.path()), Holder::Nobody);
    }

    #[test]
    fn a_configuration_with_a_secret_is_not_for_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let text = "[database]\nurl = \"mysql://authd:canary@db.test/authd\"\n";
        std::fs::write(&file, text).unwrap();
        let config = crate::config::load_text(text, []).unwrap();
        let own = Some(OwnerIdentity::new(nix::unistd::getuid(), nix::unistd::getgid()));
        // Without root, this test tries with its own rights.
        let stranger = Some(OwnerIdentity::new(Uid::from_raw(4_000_000), nix::unistd::Gid::from_raw(4_000_000)));
        let stranger = stranger.filter(|_| nix::unistd::geteuid().is_root());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let refused = if stranger.is_some() { Verdict::Missing } else { Verdict::Good };
        for (mode, owner, verdict) in [
            (0o600, &own, Verdict::Good),
            (0o600, &stranger, refused),
            (0o640, &own, Verdict::Good),
            (0o644, &own, Verdict::Weak),
            (0o660, &own, Verdict::Weak),
        ] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let check = configuration(Some(&file), &config, owner.as_ref());
            assert_eq!(check.verdict, verdict, "{mode:o}: {check:?}");
            assert!(!check.found.contains("canary"));
        }
        std::fs::write(&file, "[limits]\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            configuration(Some(&file), &Config::default(), stranger.as_ref()).verdict,
            Verdict::Good,
            "it holds no secret"
        );
    }

    #[test]
    fn a_state_directory_is_told_with_what_is_wrong_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o700);
        let verdicts = || -> Vec<Verdict> {
            state(directory.path(), None).checks(false).iter().map(|check| check.verdict).collect()
        };
        assert_eq!(verdicts(), [Verdict::Good]);
        mode(0o755);
        assert_eq!(verdicts(), [Verdict::Weak]);
        mode(0o700);
        for (text, verdict) in
            [("5\n", Verdict::Good), ("4\n", Verdict::Weak), ("6\n", Verdict::Missing), ("four", Verdict::Missing)]
        {
            std::fs::write(directory.path().join("format"), text).unwrap();
            assert_eq!(verdicts(), [verdict], "{text}");
        }
        assert_eq!(state(&directory.path().join("none"), None).checks(false)[0].verdict, Verdict::Weak);
    }

    #[test]
    fn a_file_of_tomorrow_says_that_the_clock_is_behind() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("records")).unwrap();
        std::fs::write(directory.path().join("records/db"), "").unwrap();
        let now =
            OffsetDateTime::from(std::fs::metadata(directory.path().join("records/db")).unwrap().modified().unwrap());
        assert_eq!(newest_file(directory.path(), now).unwrap().verdict, Verdict::Good);
        assert_eq!(newest_file(directory.path(), now - time::Duration::DAY).unwrap().verdict, Verdict::Missing);
        assert!(newest_file(&directory.path().join("none"), now).is_none());
    }

    #[test]
    fn the_time_service_is_asked_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(time_service(directory.path()).verdict, Verdict::Weak);
        std::fs::write(directory.path().join("synchronized"), "").unwrap();
        assert_eq!(time_service(directory.path()).verdict, Verdict::Good);
        assert_eq!(time_service(&directory.path().join("none")).verdict, Verdict::Good);
    }
}
