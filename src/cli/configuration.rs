//! Puts the configuration of a backup back, in place of the present one.
//!
//! The file is replaced atomically: a crash leaves the old one. Owner and group stay. If there was no file, the new one
//! belongs to root and the group of the state directory, which is the daemon's group.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use super::CliError;
use super::archive::create;
use crate::config::{self, Config};

/// Readable for root and for the daemon, which is in the group.
const FILE_MODE: u32 = 0o640;

/// The path of the configuration file of this run, even if it does not exist.
pub fn place(config: &Config) -> PathBuf {
    config.file.clone().unwrap_or_else(|| config::DEFAULT_PATH.into())
}

/// Refuses a configuration for another state: the restored records would be where no daemon looks for them.
pub fn check(config: &Config, text: &str) -> Result<(), CliError> {
    let of_backup = config::load_text(text, config::environment(std::env::vars_os())?)?;
    for (key, differs) in [
        ("state_dir", of_backup.state_dir != config.state_dir),
        ("database.url", of_backup.database.url != config.database.url),
    ] {
        if differs {
            return Err(CliError::Refused(format!(
                "the configuration of the backup has another {key} than the present one: extract it with \
                 `codex-authd restore DIR --extract OUT`, install it yourself, and then restore; nothing was changed"
            )));
        }
    }
    Ok(())
}

pub fn differs(config: &Config, text: &str) -> bool {
    std::fs::read_to_string(place(config)).map_or(true, |present| present != text)
}

pub fn put_back(config: &Config, text: &str) -> Result<PathBuf, CliError> {
    let path = place(config);
    replace(&path, text, &config.state_dir).map_err(|cause| CliError::Write { path: path.clone(), cause })?;
    Ok(path)
}

fn replace(path: &Path, text: &str, state_dir: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("toml.restored");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let present = match std::fs::metadata(path) {
        Ok(present) => Some((Some(present.uid()), Some(present.gid()))),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let of_daemon = || Ok::<_, std::io::Error>((None, Some(std::fs::metadata(state_dir)?.gid())));
    let (uid, gid) = present.map_or_else(of_daemon, Ok)?;
    let mut file = create(&temporary)?;
    file.write_all(text.as_bytes())?;
    fchown(&file, uid, gid)?;
    file.set_permissions(std::fs::Permissions::from_mode(FILE_MODE))?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn it_is_replaced_as_a_whole_and_stays_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        let (path, state) = (directory.path().join("config.toml"), directory.path().join("state"));
        std::fs::create_dir(&state).unwrap();
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            chown(&state, Some(4711), Some(4712)).unwrap();
        }
        let config = Config { file: Some(path.clone()), state_dir: state, ..Config::default() };
        let found = || {
            let metadata = std::fs::metadata(&path).unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
        };
        assert!(differs(&config, "# old\n"));
        put_back(&config, "# old\n").unwrap();
        assert!(!differs(&config, "# old\n") && differs(&config, "# new\n"));
        assert_eq!(found().2, 0o640);
        if is_root {
            assert_eq!(found(), (0, 4712, 0o640), "the daemon may read it");
            chown(&path, Some(4713), Some(4714)).unwrap();
        }
        // A crash left this file.
        std::fs::write(directory.path().join("config.toml.restored"), "half").unwrap();
        put_back(&config, "# new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# new\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        if is_root {
            assert_eq!(found(), (4713, 4714, 0o640));
        }
    }

    #[test]
    fn one_of_another_place_is_refused() {
        let config = Config::default();
        check(&config, "[runner]\nenabled = false\n").unwrap();
        for (text, key) in [
            ("state_dir = \"/elsewhere\"\n", "state_dir"),
            ("[database]\nurl = \"mysql://u:canary@h/n\"\n", "database.url"),
        ] {
            let refusal = check(&config, text).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains("--extract") && !refusal.contains("canary"), "{refusal}");
        }
    }
}
