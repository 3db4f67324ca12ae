//! A cgroup that the service manager has delegated to the daemon: sandboxes get one each in it.
//!
//! Delegated means: a cgroup of version 2 that the daemon is in and that belongs to its user (`Delegate=` in a unit with
//! `User=`). The kernel hands limits on only from a cgroup that has no process of its own, so the daemon moves itself, and
//! who else is there, into a child. What a killed launcher left behind is removed at the start. Nothing else is written; a
//! crash leaves the daemon in either cgroup, and the next start finds both.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::sandbox::cgroup::put;

/// The daemon's own.
const DAEMON: &str = "daemon";
/// Where cgroups of version 2 are, alone or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const WANTED: [&str; 2] = ["memory", "pids"];

/// The cgroup in which sandboxes' own can be made; or why there is none.
pub fn prepare() -> Result<PathBuf, String> {
    if geteuid().is_root() {
        return Err("the daemon runs as root: none is delegated to it".into());
    }
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
    let mount = MOUNTS.iter().map(Path::new).find(|mount| mount.join("cgroup.controllers").is_file());
    let mount = mount.ok_or("this machine has no cgroups of version 2")?;
    prepare_in(mount, &own)
}

/// `own`: what `/proc/self/cgroup` says.
fn prepare_in(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path =
        own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this process is in no cgroup of version 2")?;
    let here = mount.join(path);
    // A process that took the place of another is in its child already.
    let ours = match here.parent() {
        Some(parent) if here.ends_with(DAEMON) && has_controllers(parent).is_ok() => parent.to_path_buf(),
        _ => here,
    };
    has_controllers(&ours)?;
    let failed = |what: &str| {
        let place = ours.display().to_string();
        let what = what.to_owned();
        move |error: io::Error| match error.kind() {
            ErrorKind::PermissionDenied => format!("{place} is not delegated to the daemon"),
            _ => format!("cannot {what} in {place}: {error}"),
        }
    };
    let daemon = ours.join(DAEMON);
    match fs::create_dir(&daemon) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed("make a cgroup")(error)),
        _ => {}
    }
    let processes = fs::read_to_string(ours.join("cgroup.procs")).map_err(failed("read who is"))?;
    for process in processes.lines() {
        match put(&daemon.join("cgroup.procs"), process) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            moved => moved.map_err(failed("move processes"))?,
        }
    }
    for controller in WANTED {
        put(&ours.join("cgroup.subtree_control"), &format!("+{controller}"))
            .map_err(failed(&format!("enable {controller}")))?;
    }
    remove_left_overs(&ours).map_err(failed("remove what was left"))?;
    Ok(ours)
}

fn has_controllers(cgroup: &Path) -> Result<(), String> {
    let path = cgroup.join("cgroup.controllers");
    let there = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match WANTED.iter().find(|wanted| !there.split_whitespace().any(|name| name == **wanted)) {
        Some(missing) => Err(format!("the cgroup {} has no {missing} controller", cgroup.display())),
        None => Ok(()),
    }
}

/// Of launchers that were killed: there is none when a daemon starts.
fn remove_left_overs(ours: &Path) -> io::Result<()> {
    for entry in fs::read_dir(ours)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || entry.file_name() == DAEMON {
            continue;
        }
        // Older kernels have no such file; what is busy stays, and is in nobody's way.
        let _ = put(&entry.path().join("cgroup.kill"), "1");
        let _ = fs::remove_dir(entry.path());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As much of a cgroup as ordinary files can be.
    fn cgroup(path: &Path, controllers: &str, processes: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        fs::write(path.join("cgroup.procs"), processes).unwrap();
        fs::write(path.join("cgroup.subtree_control"), "").unwrap();
    }

    #[test]
    fn the_daemon_moves_into_a_child_and_what_was_left_is_removed() {
        let mount = tempfile::tempdir().unwrap();
        let ours = mount.path().join("system.slice/codex-authd.service");
        cgroup(&ours, "cpu memory pids\n", "17\n");
        cgroup(&ours.join(DAEMON), "memory pids\n", "");
        fs::create_dir(ours.join("probe-1")).unwrap();
        let own = "1:name=systemd:/x\n0::/system.slice/codex-authd.service\n";
        assert_eq!(prepare_in(mount.path(), own), Ok(ours.clone()));
        assert_eq!(fs::read_to_string(ours.join("daemon/cgroup.procs")).unwrap(), "17");
        // A file keeps what was written last; the kernel adds up.
        assert!(fs::read_to_string(ours.join("cgroup.subtree_control")).unwrap().starts_with("+pids"));
        assert!(!ours.join("probe-1").exists());
        // The next process in the same place.
        assert_eq!(prepare_in(mount.path(), "0::/system.slice/codex-authd.service/daemon\n"), Ok(ours));
    }

    #[test]
    fn where_none_is_delegated_it_says_why() {
        let mount = tempfile::tempdir().unwrap();
        cgroup(&mount.path().join("bare"), "cpu\n", "17\n");
        let refused = prepare_in(mount.path(), "0::/bare\n").unwrap_err();
        assert!(refused.ends_with("has no memory controller"), "{refused}");
        assert!(prepare_in(mount.path(), "4:memory:/bare\n").unwrap_err().contains("no cgroup of version 2"));
        let gone = prepare_in(mount.path(), "0::/gone\n").unwrap_err();
        assert!(gone.contains("No such file"), "{gone}");
        assert!(!mount.path().join("bare").join(DAEMON).exists(), "nothing was changed");
    }
}
