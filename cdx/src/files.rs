//! Files that are written whole or not at all, links, and mounts.
//!
//! A file is written beside its place, made durable, and renamed. A crash leaves the old file or the new one, and at
//! worst a file `*.cdx.PID.NUMBER`, which the next `cdx` removes (`state::sweep`).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{AccessFlags, access};

/// A file or directory that goes when its owner does, unless it was renamed to its place.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// The name of a file beside this one. `state::sweep` knows its form.
    pub fn beside(file: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let mut name = file.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".cdx.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        Self(file.with_file_name(name))
    }

    /// A new private file with this content, on the disk.
    pub fn write(file: &Path, content: &[u8]) -> io::Result<Self> {
        let (temporary, opened) = Self::create(file, content)?;
        opened.sync_all()?;
        Ok(temporary)
    }

    /// The same, not yet on the disk: waiting for it would be most of the time of a launch.
    pub fn write_quickly(file: &Path, content: &[u8]) -> io::Result<Self> {
        Self::create(file, content).map(|(temporary, _)| temporary)
    }

    fn create(file: &Path, content: &[u8]) -> io::Result<(Self, File)> {
        let temporary = Self::beside(file);
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary.0)?;
        opened.write_all(content)?;
        Ok((temporary, opened))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts the file into its place.
    pub fn persist(self, place: &Path) -> io::Result<()> {
        fs::rename(&self.0, place)?;
        sync_directory(place);
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if fs::remove_file(&self.0).is_err() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Some file systems cannot make a directory durable. The rename happened all the same.
pub fn sync_directory(file: &Path) {
    if let Some(Ok(directory)) = file.parent().map(File::open) {
        let _ = directory.sync_all();
    }
}

/// Replaces a private file.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    Temporary::write(file, content)?.persist(file)
}

/// Replaces a private file whose loss costs little: a power cut may leave it empty.
pub fn replace_quickly(file: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = Temporary::write_quickly(file, content)?;
    fs::rename(&temporary.0, file)?;
    std::mem::forget(temporary);
    Ok(())
}

/// A regular file of at most `limit` bytes. The length of a longer one is cut to `limit` + 1.
pub fn read_limited(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // A FIFO in its place would block.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file"));
    }
    let mut content = Vec::new();
    opened.take(limit + 1).read_to_end(&mut content)?;
    Ok(content)
}

pub fn make_private_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Follows symbolic links to the real file, which need not exist.
pub fn resolve_links(file: &Path) -> io::Result<PathBuf> {
    let mut file = file.to_owned();
    for _ in 0..=16 {
        match fs::read_link(&file) {
            Ok(link) => file = file.parent().unwrap_or(Path::new("/")).join(link),
            Err(_) => return Ok(file),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link with too many steps"))
}

pub fn same(one: &Path, other: &Path) -> bool {
    matches!((fs::metadata(one), fs::metadata(other)), (Ok(one), Ok(other)) if (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

pub fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

pub fn is_readable(path: &Path) -> bool {
    access(path, AccessFlags::R_OK).is_ok()
}

pub fn is_writable(path: &Path) -> bool {
    access(path, AccessFlags::W_OK).is_ok()
}

pub fn may_change(directory: &Path) -> bool {
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// Whether a file is a mount of its own: it can be written, but not renamed or removed.
pub fn is_mount_point(file: &Path) -> bool {
    let Some(name) = file.file_name() else {
        return false;
    };
    let Ok(directory) = file.parent().unwrap_or(Path::new("/")).canonicalize() else {
        return false;
    };
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else {
        return false;
    };
    let place = directory.join(name);
    mounts.split(|byte| *byte == b'\n').any(|line| mount_point(line).is_some_and(|point| place.as_os_str() == point))
}

/// The fifth field of a line of `mountinfo`; blanks and backslashes in it are octal.
fn mount_point(line: &[u8]) -> Option<OsString> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut point = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let octal = more
            .first_chunk::<3>()
            .filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        if let Some(digits) = octal {
            point.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = &more[3..];
        } else {
            point.push(*first);
            rest = more;
        }
    }
    Some(OsString::from_vec(point))
}

/// The bytes of a path, for names and texts that are made of it.
pub fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(file: &Path) -> Option<u32> {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(file).ok().map(|found| found.permissions().mode() & 0o7777)
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::write(&file, "old").unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"new".to_vec(), Some(0o600)));
        drop(Temporary::write(&file, b"newer").unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_followed_to_a_file_that_need_not_exist() {
        let directory = tempfile::tempdir().unwrap();
        let (link, next) = (directory.path().join("link"), directory.path().join("next"));
        std::os::unix::fs::symlink("next", &link).unwrap();
        std::os::unix::fs::symlink("missing", &next).unwrap();
        assert_eq!(resolve_links(&link).unwrap(), directory.path().join("missing"));
        fs::remove_file(&next).unwrap();
        std::os::unix::fs::symlink("link", &next).unwrap();
        assert!(resolve_links(&link).is_err());
    }

    #[test]
    fn a_mount_point_is_read_with_its_escapes() {
        let line = br"36 35 98:0 / /with\040space\011\134\012 rw - ext4 /dev/root rw";
        assert_eq!(mount_point(line).unwrap(), "/with space\t\\\n");
        assert_eq!(mount_point(b"short"), None);
    }

    #[test]
    fn a_long_file_and_a_fifo_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_limited(&file, 3).unwrap(), b"1234");
        nix::unistd::mkfifo(&directory.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(read_limited(&directory.path().join("fifo"), 3).is_err());
    }
}
