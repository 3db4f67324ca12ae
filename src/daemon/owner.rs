//! Whose files a command makes that opens the state itself: those of the daemon's user, also where root types it.
//!
//! A root-owned file in the state directory is one that the daemon, which is not root, cannot open. So before a command
//! touches the state, this thread, and every thread that is begun by it, takes the owner of the state directory for
//! whatever concerns files (`setfsuid(2)`): what it makes is theirs, and what they may not read it may not either. The process
//! stays root otherwise, and gets back to that where a file was named on the command line, which is the caller's affair
//! ([`as_caller`]): each thread has this for itself, so no other one makes a file of root's meanwhile.
//!
//! Nothing is stored here. Where the state directory is root's, or not there yet, or whoever asks is not root, nothing is
//! changed.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

/// From here on files are the directory's owner's. To be called before there is another thread that touches the state.
pub fn take_on(directory: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    match std::fs::metadata(directory) {
        Ok(metadata) => become_for_files(Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Does `act` with the rights of whoever typed the command. It must begin no thread that outlives it.
pub fn as_caller<T>(act: impl FnOnce() -> T) -> T {
    struct Back(Uid, Gid);
    impl Drop for Back {
        fn drop(&mut self) {
            // The user last: with it goes the right to choose a group.
            setfsgid(self.1);
            setfsuid(self.0);
        }
    }
    let uid = setfsuid(geteuid());
    let _back = Back(uid, setfsgid(getegid()));
    act()
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
    fn files_are_the_owners_and_those_of_the_caller_are_the_callers() {
        if !geteuid().is_root() {
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
            take_on(&state).unwrap();
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
