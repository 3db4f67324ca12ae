//! Whose files a command makes: those of the daemon's user, also where root types it.
//!
//! A root-owned file in the state directory is one that the daemon, which is not root, cannot open. So a command takes the
//! identity of the owner of the state directory for whatever concerns files (`setfsuid(2)`), once, in `cli::run`, while it
//! has one thread: the identity belongs to a thread, and each thread inherits that of the one which begins it. The process
//! stays root otherwise, and gets back to that where a file was named on the command line ([`as_caller`]).
//!
//! A program that is executed starts as root again: the sandbox of a probe, which touches no file of the state.
//!
//! Nothing is stored here. Where the state directory is root's, or not there yet, or the caller is not root, nothing is
//! changed.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups, setfsgid, setfsuid, setgroups};

/// A user as far as files are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerIdentity {
    pub uid: Uid,
    pub gid: Gid,
    /// All of the user's groups.
    groups: Vec<Gid>,
}

impl OwnerIdentity {
    /// With the groups that the system knows of the user.
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

    /// By name, where it has one.
    pub fn user(&self) -> String {
        user_name(self.uid)
    }

    /// By name, where it has one.
    pub fn group(&self) -> String {
        let found = Group::from_gid(self.gid).ok().flatten();
        found.map_or_else(|| self.gid.to_string(), |group| group.name)
    }
}

pub fn user_name(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// From here on files are the directory's owner's. Refused if there is another thread already: its files would be root's.
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
    // In an image that is being built there may be no /proc.
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

/// Does `act` with the rights of the caller who typed the command. It must begin no thread that outlives it.
pub fn as_caller<T>(act: impl FnOnce() -> T) -> T {
    let _back = Back(setfsuid(geteuid()), setfsgid(getegid()));
    act()
}

/// Does `act` with the file rights of `identity`. The groups belong to the whole process: to be called while it has one
/// thread. Nothing is changed where the caller is not root.
pub fn act_as<T>(identity: &OwnerIdentity, act: impl FnOnce() -> T) -> io::Result<T> {
    struct Groups(Vec<Gid>);
    impl Drop for Groups {
        fn drop(&mut self) {
            // They were in force before, and whoever could set others can set them again.
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

/// What was in force before.
struct Back(Uid, Gid);

impl Drop for Back {
    fn drop(&mut self) {
        // The user last: with it goes the right to choose a group.
        setfsgid(self.1);
        setfsuid(self.0);
    }
}

fn become_for_files(uid: Uid, gid: Gid) -> io::Result<()> {
    setfsgid(gid);
    setfsuid(uid);
    // Neither says whether it was done; both answer what was in force.
    if (setfsuid(uid), setfsgid(gid)) == (uid, gid) {
        return Ok(());
    }
    Err(io::Error::other(format!("the system does not let this process make files of user {uid} and group {gid}")))
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
        // Others may pass through.
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
