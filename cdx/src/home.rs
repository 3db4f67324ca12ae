//! Where the user's directories are, and which of them may be trusted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, geteuid};

use crate::files;
use crate::messages::{clean, say};

#[derive(Debug)]
pub struct Home {
    pub directory: PathBuf,
    /// `CODEX_HOME`.
    pub codex: PathBuf,
    /// `auth.json` in it.
    pub auth_file: PathBuf,
    pub cache: PathBuf,
    pub config: PathBuf,
    /// This program, without symbolic links.
    pub program: PathBuf,
    /// The directories of `PATH`.
    pub path: Vec<PathBuf>,
    /// The home of another user that root was given (`sudo -E`; any sudo on macOS).
    foreign: Option<PathBuf>,
    /// What the environment of Codex and npm differs in; `None`: unset.
    changes: Vec<(&'static str, Option<OsString>)>,
}

impl Home {
    pub fn find() -> Self {
        let directory =
            variable("HOME").map(PathBuf::from).or_else(|| home_of(geteuid())).unwrap_or_else(|| "/".into());
        let path = variable("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let mut home = Self {
            directory,
            codex: PathBuf::new(),
            auth_file: PathBuf::new(),
            cache: PathBuf::new(),
            config: PathBuf::new(),
            program: program(),
            path,
            foreign: None,
            changes: Vec::new(),
        };
        if geteuid().is_root() {
            home.leave_foreign_home();
        }
        let named = |name: &str| {
            let unset = home.changes.iter().any(|(changed, value)| *changed == name && value.is_none());
            variable(name).filter(|_| !unset).map(PathBuf::from)
        };
        let codex = named("CODEX_HOME").unwrap_or_else(|| home.directory.join(".codex"));
        // Without components that change nothing, such as a slash at the end.
        let codex: PathBuf = std::path::absolute(&codex).unwrap_or(codex).components().collect();
        let cache = named("XDG_CACHE_HOME").unwrap_or_else(|| home.directory.join(".cache")).join("cdx");
        let config = named("XDG_CONFIG_HOME").unwrap_or_else(|| home.directory.join(".config")).join("cdx");
        home.auth_file = codex.join("auth.json");
        (home.codex, home.cache, home.config) = (codex, cache, config);
        home
    }

    /// That user can change the files there, so none of them is run or trusted, and root leaves no file there. Root's
    /// own home is used instead, also for Codex and npm.
    fn leave_foreign_home(&mut self) {
        let own = home_of(Uid::from_raw(0)).unwrap_or_else(|| "/root".into());
        if !roots_own(&self.directory) && !files::same(&self.directory, &own) {
            let foreign = std::mem::replace(&mut self.directory, own);
            say(format_args!(
                "HOME was {}, which does not belong to root; it is {} now",
                shown(&foreign),
                shown(&self.directory)
            ));
            self.foreign = Some(foreign);
            let path: Vec<PathBuf> =
                self.path.iter().filter(|entry| entry.is_absolute() && !self.is_foreign(entry)).cloned().collect();
            self.changes.push(("HOME", Some(self.directory.clone().into())));
            self.changes.push(("PATH", std::env::join_paths(&path).ok()));
            self.path = path;
        } else if variable("SUDO_UID").is_none_or(|id| id == "0") {
            return;
        }
        for name in ["CODEX_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"] {
            if variable(name).is_some_and(|value| !roots_own(Path::new(&value))) {
                self.changes.push((name, None));
            }
        }
    }

    /// Whether a path is in the other user's home, also through a symbolic link.
    pub fn is_foreign(&self, path: &Path) -> bool {
        let Some(foreign) = &self.foreign else {
            return false;
        };
        let Ok(path) = files::resolve_links(path) else {
            return true;
        };
        path.ancestors().any(|part| part.parent().is_some() && files::same(part, foreign))
    }

    /// A command with the environment that Codex and npm get.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, value) in &self.changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// A program on the `PATH`.
    pub fn which(&self, name: &str) -> Option<PathBuf> {
        self.path.iter().map(|directory| directory.join(name)).find(|file| files::is_program(file))
    }
}

pub fn shown(path: &Path) -> String {
    clean(&path.to_string_lossy(), 4096)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn home_of(user: Uid) -> Option<PathBuf> {
    User::from_uid(user).ok().flatten().map(|user| user.dir)
}

fn program() -> PathBuf {
    let named = || std::env::args_os().next().map(PathBuf::from).unwrap_or_else(|| "cdx".into());
    let file = std::env::current_exe().unwrap_or_else(|_| named());
    let file = std::path::absolute(&file).unwrap_or(file);
    files::resolve_links(&file).unwrap_or(file)
}

/// Whether only root can change where a path leads.
fn roots_own(path: &Path) -> bool {
    path.is_absolute() && path.ancestors().all(|part| fs::metadata(part).map_or(true, |found| found.uid() == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_in_a_directory_of_another_user_is_not_roots() {
        assert!(!roots_own(Path::new("relative")));
        if geteuid().is_root() {
            let directory = tempfile::tempdir().unwrap();
            assert!(roots_own(&directory.path().join("not/there")));
            std::os::unix::fs::chown(directory.path(), Some(4242), None).unwrap();
            assert!(!roots_own(&directory.path().join("not/there")));
        }
    }
}
