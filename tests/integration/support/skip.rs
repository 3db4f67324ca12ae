//! The skip of a check for which the machine lacks something. It prints the reason, and fails if `AUTHD_REQUIRE_ALL=1`
//! is set (CI sets it). There is no other way to skip a check.
//!
//! [`Unavailable`] lists what CI machines cannot have. A probe of the machine proves each entry, so a wrong entry fails
//! as well.
//!
//! The library's own tests include this file too (`src/lib.rs`). It must use only the standard library.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Reports that a check is skipped, and why.
#[track_caller]
pub fn skipped(reason: impl Display) {
    report(std::env::var_os("AUTHD_REQUIRE_ALL").is_some_and(|value| value == "1"), &reason);
}

#[track_caller]
fn report(all_is_required: bool, reason: &dyn Display) {
    assert!(!all_is_required, "skipped, and AUTHD_REQUIRE_ALL=1 allows no skip: {reason}");
    eprintln!("skipped: {reason}");
}

/// Things that a CI machine cannot have. `tests/needs.sh` installs everything else.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // The library's tests and the integration tests each use some.
pub enum Unavailable {
    /// No package registry has a bash of 2007, which macOS still ships.
    Bash32,
    /// Both hierarchies are mounted, and the controllers belong to version 1: then version 2 has none.
    MemoryControllerOfCgroup2,
}

impl Unavailable {
    /// The reason why it is missing; `None`: it is here.
    pub fn proof(self) -> Option<String> {
        match self {
            Self::Bash32 => match bash32() {
                Some(_) => None,
                None => Some("no bash 3.2 at AUTHD_TEST_BASH32, nor at bash-3.2/bash in the tests' cache".into()),
            },
            Self::MemoryControllerOfCgroup2 => {
                let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
                let controllers =
                    |mount: &str| std::fs::read_to_string(Path::new(mount).join("cgroup.controllers")).ok();
                let told: Vec<String> = mounts.into_iter().filter_map(controllers).collect();
                let is_there = told.iter().any(|all| all.split_whitespace().any(|one| one == "memory"));
                (!is_there)
                    .then(|| format!("cgroup version 2 has no memory controller here (its controllers: {told:?})"))
            }
        }
    }

    /// Reports that a check is skipped because this is missing. The caller must have checked that it is missing.
    #[track_caller]
    #[allow(dead_code)]
    pub fn skipped(self) {
        let proof =
            self.proof().unwrap_or_else(|| panic!("{self:?} is on this machine: nothing may be skipped for it"));
        eprintln!("cannot be had here: {proof}");
    }
}

/// The directory of the tests' downloads (`tests/needs.sh`).
#[allow(dead_code)]
pub fn cache() -> PathBuf {
    std::env::var_os("AUTHD_TEST_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/codex-authd-tests"))
}

/// A bash 3.2, as macOS has it.
#[allow(dead_code)]
pub fn bash32() -> Option<PathBuf> {
    let given = std::env::var_os("AUTHD_TEST_BASH32").map(PathBuf::from);
    given.or_else(|| Some(cache().join("bash-3.2/bash"))).filter(|bash| bash.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_told_and_fails_where_all_is_required() {
        report(false, &"the reason");
        let failed = std::panic::catch_unwind(|| report(true, &"the reason")).unwrap_err();
        let said = failed.downcast_ref::<String>().unwrap();
        assert_eq!(said, "skipped, and AUTHD_REQUIRE_ALL=1 allows no skip: the reason");
    }

    /// Something that is on this machine is no reason to skip.
    #[test]
    fn what_is_here_is_not_called_unavailable() {
        for lack in [Unavailable::Bash32, Unavailable::MemoryControllerOfCgroup2] {
            let skipped = std::panic::catch_unwind(|| lack.skipped());
            assert_eq!(skipped.is_ok(), lack.proof().is_some(), "{lack:?}");
        }
    }

    /// A skip that does not call this function would also be skipped in CI.
    #[test]
    fn nothing_is_skipped_but_by_this_function() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut directories, mut looked_at) = (vec![root.join("src"), root.join("tests/integration")], 0);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs")
                    && !path.ends_with("support/skip.rs")
                {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let own = text.lines().find(|line| line.contains("println!(\"") && line.contains("skipped"));
                    assert_eq!(own, None, "{}: call skipped()", path.display());
                    looked_at += 1;
                }
            }
        }
        assert!(looked_at > 100, "{looked_at}");
    }
}
