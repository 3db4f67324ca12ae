//! Checks whether the daemon's user can read a file, with that user's rights. If not, it finds the directory or file in
//! the way.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::daemon::owner::{OwnerIdentity, act_as};
use crate::model::check::Check;

/// The reason why a user cannot read a file.
#[derive(Debug)]
enum Obstacle {
    /// A directory in the path that the user may not search.
    Directory(PathBuf),
    File(PathBuf),
    Other(io::Error),
}

/// `None` if `identity` can read the file. Call it while the process has one thread.
pub fn unreadable(name: &'static str, path: &Path, identity: &OwnerIdentity) -> Option<Check> {
    let place = path.display();
    let (user, group) = (identity.user(), identity.group());
    let (what, remedy) = match obstacle(path, identity)? {
        Obstacle::Other(error) => {
            return Some(Check::missing(name, format!("{place}: {error}"), format!("ls -l {place}")));
        }
        Obstacle::Directory(directory) => {
            let is_roots = std::fs::metadata(&directory).is_ok_and(|about| about.gid() == 0);
            let directory = directory.display();
            // If the directory belongs to root's group, the daemon's group gets it. Otherwise the group is kept.
            let remedy = match is_roots {
                true => format!("chgrp {group} {directory} && chmod g+x {directory}"),
                false => format!("chmod o+x {directory}"),
            };
            (format!("may not pass {directory}"), remedy)
        }
        Obstacle::File(file) => {
            let file = file.display();
            ("may not read it".to_owned(), format!("chgrp {group} {file} && chmod g+r {file}"))
        }
    };
    Some(Check::missing(name, format!("{place} cannot be read by the daemon's user {user}, who {what}"), remedy))
}

fn obstacle(path: &Path, identity: &OwnerIdentity) -> Option<Obstacle> {
    // As the caller, because links may lead anywhere.
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) => return Some(Obstacle::Other(error)),
    };
    let tried = act_as(identity, || match std::fs::File::open(path) {
        Ok(_) => None,
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Some(Obstacle::Other(error)),
        Err(_) => {
            let may_pass = |directory: &Path| match std::fs::metadata(directory.join(".")) {
                Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
                Ok(_) => true,
            };
            let ways = [path, &target].map(|way| way.ancestors().skip(1).collect::<Vec<_>>());
            let closed = ways.iter().find_map(|way| way.iter().rev().find(|directory| !may_pass(directory)));
            Some(
                closed
                    .map_or_else(|| Obstacle::File(target.clone()), |closed| Obstacle::Directory(closed.to_path_buf())),
            )
        }
    });
    tried.unwrap_or_else(|error| Some(Obstacle::Other(error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use nix::unistd::{Gid, Uid};

    use super::*;

    #[test]
    fn what_is_in_the_way_is_named_with_what_mends_it() {
        if !nix::unistd::geteuid().is_root() {
            crate::skip::skipped("only root can take the rights of another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (open, closed) = (directory.path().join("open"), directory.path().join("closed"));
        for (path, mode) in [(directory.path(), 0o711), (open.as_path(), 0o711), (closed.as_path(), 0o700)] {
            let _ = std::fs::create_dir(path);
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let identity = OwnerIdentity::new(Uid::from_raw(4711), Gid::from_raw(4712));
        let (key, hidden, link) = (open.join("key"), closed.join("key"), open.join("link"));
        for path in [&key, &hidden] {
            std::fs::write(path, "").unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
        }
        symlink(&hidden, &link).unwrap();
        let told = |path: &Path| unreadable("tls.private_key", path, &identity);
        let check = told(&key).unwrap();
        assert!(check.found.contains("user 4711, who may not read it"), "{check:?}");
        assert_eq!(check.remedy.unwrap(), format!("chgrp 4712 {0} && chmod g+r {0}", key.display()));
        for path in [&hidden, &link] {
            let check = told(path).unwrap();
            assert!(check.found.contains(&format!("may not pass {}", closed.display())), "{check:?}");
            assert_eq!(check.remedy.unwrap(), format!("chgrp 4712 {0} && chmod g+x {0}", closed.display()));
        }
        chown(&closed, None, Some(4713)).unwrap();
        assert_eq!(told(&hidden).unwrap().remedy.unwrap(), format!("chmod o+x {}", closed.display()));

        // The remedy works.
        chown(&key, None, Some(4712)).unwrap();
        assert_eq!(told(&key), None);
        let _ = std::fs::remove_file(&key);
        assert!(told(&key).unwrap().found.contains("No such file"));
    }
}
