//! Makes files that a command writes belong to the daemon's user, even if root runs the command.
//!
//! The daemon is not root, and cannot open a root-owned file in the state directory. So `cli::run` takes the file
//! identity of the owner of the state directory (`setfsuid(2)`), once, while the process has one thread. The identity
//! belongs to a thread, and a new thread inherits it from its creator. Otherwise the process stays root. It uses root's
//! file identity again for files that are named on the command line ([`as_caller`]).
//!
//! An executed program starts as root again: the sandbox of a probe, which touches no file of the state.
//!
//! Nothing is stored here. Nothing changes if the state directory belongs to root or does not exist yet, or if the
//! caller is not root.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups, setfsgid, setfsuid, setgroups};

/// The identity of a user for file access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerIdentity {
    pub uid: Uid,
    pub gid: Gid,
    /// All groups of the user.
    groups: Vec<Gid>,
}

impl OwnerIdentity {
    /// Looks up the groups of the user.
    pub fn new(uid: Uid, gid: Gid) -> Self {
        let name = User::from_uid(uid).ok().flatten().and_then(|user| CString::new(user.name).ok());
        let groups = name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_else(|| vec![gid]);
        Self { uid, gid, groups }
    }

    pub fn of_directory(directory: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(directory)?;
        Ok(Self::new(Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid())))
    }

    pub fn with_groups(mut self, more: impl IntoIterator<Item = Gid>) -> Self {
        self.groups.extend(more);
        self
    }

    /// The name, or the number if there is no name.
    pub fn user(&self) -> String {
        user_name(self.uid)
    }

    /// The name, or the number if there is no name.
    pub fn group(&self) -> String {
        let found = Group::from_gid(self.gid).ok().flatten();
        found.map_or_else(|| self.gid.to_string(), |group| group.name)
    }
}

pub fn user_name(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Takes the file identity of the directory's owner. Fails if another thread exists already: its files would belong to
/// root.
pub fn take_on(directory: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let identity = match OwnerIdentity::of_directory(directory) {
        Ok(identity) => identity,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if identity.uid.is_root() && identity.gid == getegid() {
        return Ok(());
    }
    // While an image is built there may be no /proc.
    let threads = match std::fs::read_dir("/proc/self/task") {
        Ok(threads) => threads.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
        Err(error) => return Err(error),
    };
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads exist before the identity is taken; report this")));
    }
    setgroups(&identity.groups)?;
    become_for_files(identity.uid, identity.gid)
}

/// Runs `act` with the file identity of the caller of the command. `act` must not start a thread that outlives it.
pub fn as_caller<T>(act: impl FnOnce() -> T) -> T {
    let _back = Back(setfsuid(geteuid()), setfsgid(getegid()));
    act()
}

/// Runs `act` with the file identity of `identity`. Groups belong to the whole process, so it must have only one
/// thread. Changes nothing if the caller is not root.
pub fn act_as<T>(identity: &OwnerIdentity, act: impl FnOnce() -> T) -> io::Result<T> {
    struct Groups(Vec<Gid>);
    impl Drop for Groups {
        fn drop(&mut self) {
            // Cannot fail: these groups were set before, and this process may set groups.
            let _ = setgroups(&self.0);
        }
    }
    if !geteuid().is_root() {
        return Ok(act());
    }
    let _groups = Groups(getgroups()?);
    setgroups(&identity.groups)?;
    let _back = Back(setfsuid(geteuid()), setfsgid(getegid()));
    become_for_files(identity.uid, identity.gid)?;
    Ok(act())
}

/// The previous identity, which a drop restores.
struct Back(Uid, Gid);

impl Drop for Back {
    fn drop(&mut self) {
        // The user last: after that, this process may not choose a group any more.
        setfsgid(self.1);
        setfsuid(self.0);
    }
}

fn become_for_files(uid: Uid, gid: Gid) -> io::Result<()> {
    setfsgid(gid);
    setfsuid(uid);
    // Neither call reports success; each returns the identity that was in force before.
    if (setfsuid(uid), setfsgid(gid)) == (uid, gid) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the system does not permit this process to make files for user {uid} and group {gid}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_of_another_user_end_with_what_was_to_be_done() {
        if !geteuid().is_root() {
            crate::skip::skipped("only root can take the rights of another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let reads = |identity: &OwnerIdentity| act_as(identity, || std::fs::File::open(&file).is_ok()).unwrap();
        let stranger = OwnerIdentity::new(Uid::from_raw(4711), Gid::from_raw(4712));
        assert!(!reads(&stranger));
        assert!(reads(&stranger.clone().with_groups([Gid::from_raw(0)])), "by a group");
        let groups = getgroups().unwrap();
        assert!(!reads(&stranger));
        assert_eq!(getgroups().unwrap(), groups);
        std::fs::File::open(&file).unwrap();
    }

    #[test]
    fn files_are_the_owners_and_those_of_the_caller_are_the_callers() {
        if !geteuid().is_root() {
            crate::skip::skipped("only root can be another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(4711), Some(4712)).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(0), Some(0)).unwrap();
        // Other users may pass through.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let owner = |path: &Path| std::fs::metadata(path).map(|it| (it.uid(), it.gid())).unwrap();
        std::thread::spawn(move || {
            take_on(&directory.path().join("nowhere")).unwrap();
            let refused = take_on(&state).unwrap_err().to_string();
            assert!(refused.contains("threads exist"), "{refused}");
            become_for_files(Uid::from_raw(4711), Gid::from_raw(4712)).unwrap();
            std::fs::write(state.join("made"), "").unwrap();
            let of_thread = state.join("by-thread");
            std::thread::spawn(move || std::fs::write(of_thread, "").unwrap()).join().unwrap();
            assert_eq!(owner(&state.join("made")), (4711, 4712));
            assert_eq!(owner(&state.join("by-thread")), (4711, 4712));
            let ours = directory.path().join("ours");
            assert!(std::fs::write(&ours, "").is_err(), "the directory is root's");
            as_caller(|| std::fs::write(&ours, "")).unwrap();
            assert_eq!(owner(&ours), (0, 0));
            std::fs::write(state.join("after"), "").unwrap();
            assert_eq!(owner(&state.join("after")), (4711, 4712));
        })
        .join()
        .unwrap();
    }
}
