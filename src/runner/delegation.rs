//! Prepares the cgroup in which each sandbox gets its own cgroup.
//!
//! As an ordinary user, the daemon uses the cgroup that the service manager delegates to it: a cgroup of version 2 that
//! contains the daemon and belongs to its user (`Delegate=` in a unit with `User=`). The kernel passes limits on to
//! children only from a cgroup without processes. So the daemon moves itself, and any other process there, into a child
//! cgroup.
//!
//! As root, the daemon may make a cgroup anywhere and moves no process. Sandboxes get theirs in the nearest cgroup of
//! version 2 above the daemon that passes the limits on. If there is none, they get it in the daemon's own cgroup of
//! version 1's memory hierarchy.
//!
//! At start, cgroups that killed launchers left behind are removed. Nothing else is written. After a crash the daemon
//! is in either cgroup; the next start handles both cases.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::sandbox::cgroup::{NAME, V1_LIMIT, put};

/// The child cgroup for the daemon's own processes.
const DAEMON: &str = "daemon";
/// Mount points of cgroups of version 2, alone or next to version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const WANTED: [&str; 2] = ["memory", "pids"];
/// Mount point of the memory hierarchy of version 1.
const V1_MOUNT: &str = "/sys/fs/cgroup/memory";

/// Returns the cgroup in which the cgroups of sandboxes can be made, or the reason why there is none.
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
    // Check now that cgroups can be made, and not only at the first probe.
    let trial = place.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir(&trial)
        .and_then(|()| fs::remove_dir(&trial))
        .map_err(|error| format!("no cgroup can be made in {}: {error}", place.display()))?;
    remove_abandoned(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    Ok(place)
}

/// The nearest cgroup at or above this process that passes the wanted controllers on.
fn above_in_version_2(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path =
        own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup of version 2 for this process")?;
    let here = mount.join(path);
    let hands_on = |cgroup: &Path| {
        let there = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
        WANTED.iter().all(|wanted| there.split_whitespace().any(|name| name == *wanted))
    };
    let found = here.ancestors().take_while(|cgroup| cgroup.starts_with(mount)).find(|cgroup| hands_on(cgroup));
    let none = || "no cgroup of version 2 above it that passes on limits of memory and processes";
    Ok(found.ok_or_else(none)?.to_path_buf())
}

fn in_version_1(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let path = path.ok_or("no memory hierarchy of version 1")?;
    // In a container the path may be the one that the host sees. Then the container's own cgroup is the mount point.
    let places = [mount.join(path.trim_start_matches('/')), mount.to_path_buf()];
    let place = places.into_iter().find(|place| place.join(V1_LIMIT).exists());
    place.ok_or_else(|| format!("no memory hierarchy of version 1 at {}", mount.display()))
}

/// Removes cgroups of launchers that have ended. Other programs may have cgroups here too: a cgroup that may hold a
/// process is not touched.
fn remove_abandoned(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        let launcher = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if launcher.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // A busy cgroup cannot be removed. It stays, and does no harm.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

/// `own`: the content of `/proc/self/cgroup`.
fn prepare_in(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let path =
        own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this process is in no cgroup of version 2")?;
    let here = mount.join(path);
    // A process that replaced itself by exec (`daemon::recovery`) is already in its child cgroup.
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
    let processes = fs::read_to_string(ours.join("cgroup.procs")).map_err(failed("list the processes"))?;
    for process in processes.lines() {
        match put(&daemon.join("cgroup.procs"), process) {
            // The process has ended in the meantime.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            moved => moved.map_err(failed("move processes"))?,
        }
    }
    for controller in WANTED {
        put(&ours.join("cgroup.subtree_control"), &format!("+{controller}"))
            .map_err(failed(&format!("enable {controller}")))?;
    }
    remove_left_overs(&ours).map_err(failed("remove old sandboxes"))?;
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

/// Removes cgroups of killed launchers. When a daemon starts, no launcher is alive.
fn remove_left_overs(ours: &Path) -> io::Result<()> {
    for entry in fs::read_dir(ours)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || entry.file_name() == DAEMON {
            continue;
        }
        // Older kernels have no `cgroup.kill`. A busy cgroup stays, and does no harm.
        let _ = put(&entry.path().join("cgroup.kill"), "1");
        let _ = fs::remove_dir(entry.path());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Imitates a cgroup with ordinary files.
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
        // An ordinary file keeps the last write; the kernel adds up the writes.
        assert!(fs::read_to_string(ours.join("cgroup.subtree_control")).unwrap().starts_with("+pids"));
        assert!(!ours.join("probe-1").exists());
        // The next process of the same service.
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
        // One of a launcher that has ended, and one of a launcher that may be running.
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
        // First the view of a container, then the view of the host.
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
