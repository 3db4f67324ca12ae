//! The cgroup in which sandboxes get one each: the one that the service manager has delegated to the daemon; for a daemon
//! that runs as root, one that is there.
//!
//! Delegated means: a cgroup of version 2 that the daemon is in and that belongs to its user (`Delegate=` in a unit with
//! `User=`). The kernel hands limits on only from a cgroup that has no process of its own, so the daemon moves itself, and
//! who else is there, into a child.
//!
//! Root may make a cgroup anywhere, and moves nobody: sandboxes get theirs in the nearest cgroup of version 2 above the
//! daemon that hands the limits on, or in the daemon's own of version 1's memory hierarchy.
//!
//! What a killed launcher left behind is removed at the start. Nothing else is written; a crash leaves the daemon in either
//! cgroup, and the next start finds both.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::sandbox::cgroup::{NAME, V1_LIMIT, put};

/// The daemon's own.
const DAEMON: &str = "daemon";
/// Where cgroups of version 2 are, alone or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const WANTED: [&str; 2] = ["memory", "pids"];
/// Where the memory hierarchy of version 1 is.
const V1_MOUNT: &str = "/sys/fs/cgroup/memory";

/// The cgroup in which sandboxes' own can be made; or why there is none.
pub fn prepare() -> Result<PathBuf, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
    let mount = MOUNTS.iter().map(Path::new).find(|mount| mount.join("cgroup.controllers").is_file());
    if geteuid().is_root() {
        return prepare_for_root(mount, Path::new(V1_MOUNT), &own);
    }
    let mount = mount.ok_or("this machine has no cgroups of version 2")?;
    prepare_in(mount, &own)
}

fn prepare_for_root(mount: Option<&Path>, v1: &Path, own: &str) -> Result<PathBuf, String> {
    let place = match mount.map_or(Err("no cgroups of version 2".into()), |mount| above_in_version_2(mount, own)) {
        Ok(place) => place,
        Err(none) => {
            in_version_1(v1, own).map_err(|nor| format!("the daemon runs as root, and finds {none}, and {nor}"))?
        }
    };
    // That it can be written is seen now, not by the first probe.
    let trial = place.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir(&trial)
        .and_then(|()| fs::remove_dir(&trial))
        .map_err(|error| format!("no cgroup can be made in {}: {error}", place.display()))?;
    remove_abandoned(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    Ok(place)
}

/// The nearest above this process that hands on what is wanted.
fn above_in_version_2(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup of version 2 that it is in")?;
    let here = mount.join(path);
    let hands_on = |cgroup: &Path| {
        let there = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
        WANTED.iter().all(|wanted| there.split_whitespace().any(|name| name == *wanted))
    };
    let found = here.ancestors().take_while(|cgroup| cgroup.starts_with(mount)).find(|cgroup| hands_on(cgroup));
    let none = || "no cgroup of version 2 above it that hands on limits of memory and processes";
    Ok(found.ok_or_else(none)?.to_path_buf())
}

fn in_version_1(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let path = path.ok_or("no memory hierarchy of version 1")?;
    // In a container the path may be that of the host's view: then its own is the mount point.
    let places = [mount.join(path.trim_start_matches('/')), mount.to_path_buf()];
    let place = places.into_iter().find(|place| place.join(V1_LIMIT).exists());
    place.ok_or_else(|| format!("no memory hierarchy of version 1 at {}", mount.display()))
}

/// Of launchers that are gone. Others may have cgroups here as well: nothing is touched that a process may be in.
fn remove_abandoned(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        let launcher = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if launcher.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // One that is busy stays, and is in nobody's way.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(())
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

    const OWN: &str = "4:cpu,memory:/system.slice/x.service\n0::/system.slice/x.service\n";

    #[test]
    fn for_root_it_is_the_nearest_of_version_2_that_hands_limits_on() {
        let mount = tempfile::tempdir().unwrap();
        let (slice, service) = (mount.path().join("system.slice"), mount.path().join("system.slice/x.service"));
        cgroup(&slice, "memory pids", "");
        cgroup(&service, "memory pids", "17");
        let nowhere = mount.path().join("nowhere");
        let none = prepare_for_root(Some(mount.path()), &nowhere, OWN).unwrap_err();
        assert!(none.contains("no cgroup of version 2 above it") && none.contains("nowhere"), "{none}");
        fs::write(slice.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        // Of a launcher that is gone, and of one that may be there.
        let [gone, there] = [u32::MAX, std::process::id() + 1].map(|pid| slice.join(format!("{NAME}{pid}")));
        fs::create_dir(&gone).unwrap();
        fs::create_dir(&there).unwrap();
        fs::write(there.join("a process"), "").unwrap();
        assert_eq!(prepare_for_root(Some(mount.path()), &nowhere, OWN), Ok(slice));
        assert!(!gone.exists() && there.exists());
        assert_eq!(fs::read_to_string(service.join("cgroup.procs")).unwrap(), "17", "nobody is moved");
    }

    #[test]
    fn for_root_without_version_2_it_is_its_own_of_version_1() {
        let mount = tempfile::tempdir().unwrap();
        let none = prepare_for_root(None, mount.path(), OWN).unwrap_err();
        assert!(
            none.contains("no cgroups of version 2") && none.contains("no memory hierarchy of version 1"),
            "{none}"
        );
        // As a container sees it, then as the host does.
        fs::write(mount.path().join(V1_LIMIT), "").unwrap();
        assert_eq!(prepare_for_root(None, mount.path(), OWN), Ok(mount.path().to_path_buf()));
        let own = mount.path().join("system.slice/x.service");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(V1_LIMIT), "").unwrap();
        assert_eq!(prepare_for_root(None, mount.path(), OWN), Ok(own));
        assert!(prepare_for_root(None, mount.path(), "4:cpu:/\n").is_err());
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
