//! Secrets of the configuration that systemd brings as files (`LoadCredential=`): the password of the database, and the
//! client secret of the identity provider. Both win over the file and the environment.
//!
//! A credential is ignored if its section is not configured: the unit names them all, and most never exist. The master
//! key is not part of the configuration, but comes the same way (`seal`).

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;
use zeroize::Zeroizing;

use super::{Config, ConfigError};
use crate::model::percent;

const DATABASE_PASSWORD: &str = "database.password";
const OIDC_CLIENT_SECRET: &str = "oidc.client_secret";
const MAX_CREDENTIAL_BYTES: u64 = 4096;
/// The content of a credential that the unit names but nobody brought (`SetCredential=` of the units). Without it,
/// systemd 254 and later logs each missing credential at each start.
const ABSENT: &[u8] = b"\0";

/// The directory of the credentials, if systemd started this process with any.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The file of the credential `name` in `directory`; `None`: nobody brought it. A file that cannot be read counts as
/// present.
pub fn file(directory: &Path, name: &str) -> Option<PathBuf> {
    let path = directory.join(name);
    match beginning(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Ok(bytes) if *bytes == ABSENT => None,
        _ => Some(path),
    }
}

/// Reads one byte more than the placeholder has. Non-blocking, so that a FIFO in its place does not block the boot.
fn beginning(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(ABSENT.len() + 1));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.take(ABSENT.len() as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts the credentials of `directory` into the configuration.
pub(super) fn apply(config: &mut Config, directory: &Path) -> Result<(), ConfigError> {
    if !config.database.url.is_empty()
        && let Some(password) = read(directory, DATABASE_PASSWORD)?
        && let Ok(mut url) = reqwest::Url::parse(&config.database.url)
    {
        let encoded = Zeroizing::new(percent::encoded(&password));
        // Fails only without a host; the checks refuse that later by its key.
        if url.set_password(Some(&encoded)).is_ok() {
            config.database.url = url.into();
        }
    }
    if config.oidc.is_configured()
        && let Some(secret) = read(directory, OIDC_CLIENT_SECRET)?
    {
        config.oidc.client_secret = secret.to_string();
    }
    Ok(())
}

/// Reads one credential without its line ending; `None`: there is no such credential.
fn read(directory: &Path, name: &str) -> Result<Option<Zeroizing<String>>, ConfigError> {
    let Some(path) = file(directory, name) else { return Ok(None) };
    let bad = |message: String| ConfigError::Credential { path: path.clone(), message };
    let file = std::fs::File::open(&path).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_CREDENTIAL_BYTES as usize + 1));
    file.take(MAX_CREDENTIAL_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(bad("is empty".into()));
    }
    if text.len() as u64 > MAX_CREDENTIAL_BYTES || line.contains(['\n', '\r', '\0']) {
        return Err(bad("is more than one line of at most 4096 bytes".into()));
    }
    Ok(Some(Zeroizing::new(line.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    fn applied(text: &str, files: &[(&str, &[u8])]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let mut config = load_text(text, []).unwrap();
        apply(&mut config, directory.path())?;
        Ok(config)
    }

    #[test]
    fn the_databases_password_takes_its_place_in_the_url() {
        for (url, password, wanted) in [
            ("mysql://authd@db.test/authd", "secret\n", "mysql://authd:secret@db.test/authd"),
            (
                "mysql://authd:old@db.test:3307/authd?pool_min=1",
                "new",
                "mysql://authd:new@db.test:3307/authd?pool_min=1",
            ),
            (
                "mysql://authd@db.test/authd",
                "a@b/c%20:\u{e9} \r\n",
                "mysql://authd:a%40b%2Fc%2520%3A%C3%A9%20@db.test/authd",
            ),
        ] {
            let text = format!("[database]\nurl = \"{url}\"");
            let config = applied(&text, &[(DATABASE_PASSWORD, password.as_bytes())]).unwrap();
            assert_eq!(config.database.url, wanted);
            let options = mysql_async::Opts::from_url(&config.database.url).unwrap();
            assert_eq!(options.pass(), Some(password.trim_end_matches(['\r', '\n'])));
        }
    }

    #[test]
    fn the_clients_secret_wins_over_the_file() {
        let text = "[oidc]\nissuer = \"https://id.test\"\nclient_id = \"c\"\nclient_secret = \"old\"";
        let config = applied(text, &[(OIDC_CLIENT_SECRET, b"new\n")]).unwrap();
        assert_eq!(config.oidc.client_secret, "new");
        assert_eq!(applied(text, &[]).unwrap().oidc.client_secret, "old");
    }

    #[test]
    fn what_nothing_is_configured_for_is_left_alone() {
        let config = applied("", &[(DATABASE_PASSWORD, b""), (OIDC_CLIENT_SECRET, b"\xff")]).unwrap();
        assert!(config.database.url.is_empty() && config.oidc.client_secret.is_empty());
    }

    #[test]
    fn what_the_unit_puts_in_place_of_a_missing_credential_is_none() {
        let text = "[database]\nurl = \"mysql://authd:old@db.test/authd\"\n\
                    [oidc]\nissuer = \"https://id.test\"\nclient_id = \"c\"\nclient_secret = \"old\"";
        let config = applied(text, &[(DATABASE_PASSWORD, ABSENT), (OIDC_CLIENT_SECRET, ABSENT)]).unwrap();
        assert_eq!(config.database.url, "mysql://authd:old@db.test/authd");
        assert_eq!(config.oidc.client_secret, "old");

        // Its placeholder is the known one, and each credential that it loads may be missing.
        for unit in [
            include_str!("../../systemd/codex-authd.service"),
            include_str!("../../systemd/codex-authd-backup.service"),
        ] {
            let names = |key: &str| {
                let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.split_once(':'));
                lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
            };
            let (loaded, set) = (names("LoadCredential="), names("SetCredential="));
            assert!(loaded.len() >= 3, "{loaded:?}");
            assert!(loaded.iter().map(|it| &it.0).eq(set.iter().map(|it| &it.0)), "{loaded:?}, {set:?}");
            assert!(set.iter().all(|(_, value)| value == "\\x00"), "{set:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        let place = |content: &[u8]| std::fs::write(directory.path().join("x"), content).unwrap();
        assert_eq!(file(directory.path(), "x"), None);
        for content in [&b""[..], b"\0\0", b"secret"] {
            place(content);
            assert_eq!(file(directory.path(), "x"), Some(directory.path().join("x")), "{content:?}");
        }
        place(ABSENT);
        assert_eq!(file(directory.path(), "x"), None);
    }

    #[test]
    fn a_credential_that_is_none_is_refused_with_its_name_and_without_what_it_holds() {
        let text = "[database]\nurl = \"mysql://authd@db.test/authd\"";
        for (content, reason) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"canary\nmore\n", "more than one line"),
            (b"can\xffary", "cannot be read"),
            (&[b'x'; 5000], "more than one line"),
        ] {
            let error = applied(text, &[(DATABASE_PASSWORD, content)]).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(DATABASE_PASSWORD), "{error}");
            assert!(error.contains("LoadCredential") && !error.contains("canary"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(DATABASE_PASSWORD)).unwrap();
        let mut config = load_text(text, []).unwrap();
        let error = apply(&mut config, directory.path()).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}
