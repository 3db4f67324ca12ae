//! Small file systems for one test, to be filled and broken. Only this test's thread, and processes that it starts, can
//! see the mounts. They end with the thread.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// A file system mounted at `at` until it is dropped.
pub struct Disk {
    at: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Tmpfs,
    /// In a file beside the mount point.
    Ext4,
}

impl Disk {
    /// `None`, with the reason printed, if mounting is not possible. The calling thread has its own mounts from here
    /// on. Call it on a test's thread before that starts anything.
    pub fn mount(kind: Kind, at: &Path, megabytes: u64) -> Option<Self> {
        if let Err(reason) = Self::try_mount(kind, at, megabytes) {
            super::skip::skipped(format!("no {kind:?} of the test's own: {reason}"));
            return None;
        }
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o700)).unwrap();
        Some(Self { at: at.into() })
    }

    fn try_mount(kind: Kind, at: &Path, megabytes: u64) -> Result<(), String> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("a mount namespace: {errno}"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|errno| errno.to_string())?;
        std::fs::create_dir_all(at).unwrap();
        match kind {
            Kind::Tmpfs => {
                mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(&*format!("size={megabytes}m")))
                    .map_err(|errno| errno.to_string())
            }
            Kind::Ext4 => {
                let image = Self::image(at);
                std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
                run("mkfs.ext4", [OsStr::new("-q"), "-m".as_ref(), "0".as_ref(), image.as_os_str()])?;
                mount_image(&image, at)
            }
        }
    }

    fn image(at: &Path) -> PathBuf {
        at.with_extension("img")
    }

    /// Writes a file that leaves no room; returns its path.
    pub fn fill(&self) -> PathBuf {
        let balloon = self.at.join("balloon");
        let mut file = std::fs::File::options().create(true).append(true).open(&balloon).unwrap();
        for size in [1 << 20, 64 << 10, 4096, 512, 1] {
            let piece = vec![1; size];
            while file.write_all(&piece).is_ok() {}
        }
        // Forces the allocation, so that delayed space is not given to other files.
        let _ = file.sync_all();
        balloon
    }

    /// Ends all writing with EROFS, for open files too, like a disk error. (The kernel refuses to remount read-only
    /// while files are open for writing.)
    pub fn break_down(&self) {
        run("mount", ["-o".as_ref(), "remount,abort".as_ref(), self.at.as_os_str()]).unwrap();
    }

    /// Replaces the broken disk by a repaired copy, as an operator would.
    pub fn replace_by_a_repaired_copy(&self) {
        let (image, copy) = (Self::image(&self.at), self.at.with_extension("repaired"));
        std::fs::copy(&image, &copy).unwrap();
        // 1: errors were found and repaired.
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(&copy).output().unwrap();
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&checked.stdout));
        umount2(&self.at, MntFlags::MNT_DETACH).unwrap();
        mount_image(&copy, &self.at).unwrap();
    }

    pub fn remount_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        run("mount", ["-o".as_ref(), options.as_ref(), self.at.as_os_str()]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detaches even if files are open there: the mount belongs to this namespace alone.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn mount_image(image: &Path, at: &Path) -> Result<(), String> {
    run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()])
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}
