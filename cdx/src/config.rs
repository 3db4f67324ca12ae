//! `host.toml`: which daemon this host belongs to, and the host's key. Unknown keys are tolerated, for newer daemons.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use codex_authd_client::Secret;
use nix::unistd::geteuid;
use serde::Deserialize;

use crate::files::{self, Temporary};
use crate::home::{Home, shown};
use crate::messages::{Result, failure};

/// The machine's configurations, of installations by root.
const MACHINE: &str = "/etc/cdx";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const SETUP: &str = "the installer command of codex-authd writes it";

#[derive(Debug, Deserialize)]
pub struct Values {
    pub base_url: String,
    pub api_key: Secret,
    #[serde(default)]
    pub fqdn: String,
    /// Empty: this machine's store is trusted.
    #[serde(default)]
    pub ca_pem: String,
    /// Whether this machine's store is trusted besides `ca_pem`.
    #[serde(default)]
    pub system_ca: bool,
    /// Empty: npm installs Codex.
    #[serde(default)]
    pub codex_release_url: String,
    /// `TARGET=SHA-256` pairs, separated by spaces.
    #[serde(default)]
    pub codex_release_sha256: String,
    #[serde(default)]
    pub codex_npm: String,
}

#[derive(Debug)]
pub struct Config {
    pub values: Values,
    pub file: PathBuf,
}

impl Config {
    pub fn read(home: &Home, profile: Option<&str>) -> Result<Self> {
        let Some(file) = place(home, profile)? else {
            return Err(failure(
                78,
                match profile {
                    Some(name) => {
                        format!("there is no profile {name}: no {name}.toml in {} or {MACHINE}", shown(&home.config))
                    }
                    None => format!(
                        "this cdx was never set up: there is no {}, and no {MACHINE}/host.toml; {SETUP}",
                        shown(&home.config.join("host.toml"))
                    ),
                },
            ));
        };
        check(&file)?;
        let unreadable = |why: &str| failure(78, format!("{} {why}; {SETUP}", shown(&file)));
        let content = files::read_limited(&file, MAX_CONFIG_BYTES)
            .map_err(|error| unreadable(&format!("cannot be read ({error})")))?;
        let values = parse(&content).map_err(|why| unreadable(&why))?;
        Ok(Self { values, file })
    }

    pub fn host(&self) -> &str {
        if self.values.fqdn.is_empty() { "this host" } else { &self.values.fqdn }
    }

    /// The name of the configuration, if it is not the usual one.
    pub fn profile(&self) -> Option<&str> {
        self.file.file_stem().and_then(|name| name.to_str()).filter(|name| *name != "host")
    }

    /// Writes other values into the file, which keeps its owner and mode.
    pub fn write(&self, values: &Values) -> std::io::Result<()> {
        let found = fs::metadata(&self.file)?;
        let temporary = Temporary::write(&self.file, render(values).as_bytes())?;
        std::os::unix::fs::chown(temporary.path(), Some(found.uid()), Some(found.gid()))?;
        fs::set_permissions(temporary.path(), found.permissions())?;
        temporary.persist(&self.file)
    }
}

/// Whether there is a configuration of this name.
pub fn knows(home: &Home, profile: Option<&str>) -> bool {
    matches!(place(home, profile), Ok(Some(_)))
}

/// The user's file, or else the machine's.
fn place(home: &Home, profile: Option<&str>) -> Result<Option<PathBuf>> {
    let name = profile.unwrap_or("host");
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.starts_with('.') || name.len() > 100 || !name.bytes().all(is_name) {
        return Err(failure(78, "a profile is named by letters, digits, '.', '_' and '-'"));
    }
    let candidates =
        [home.config.clone(), PathBuf::from(MACHINE)].map(|directory| directory.join(format!("{name}.toml")));
    Ok(candidates.into_iter().find(|file| fs::symlink_metadata(file).is_ok()))
}

/// Whether the file can be trusted, and its key is not for everybody.
fn check(file: &Path) -> Result<()> {
    let found = fs::metadata(file).map_err(|error| failure(78, format!("{} cannot be read ({error})", shown(file))))?;
    let refuse = |why: String| Err(failure(78, format!("{} is not used: {why}", shown(file))));
    if ![0, geteuid().as_raw()].contains(&found.uid()) {
        return refuse(format!("it belongs to user {}, and must be yours or root's: chown it", found.uid()));
    }
    let mode = found.permissions().mode();
    if mode & 0o006 != 0 {
        return refuse(format!(
            "everybody can read or write it, and it contains this host's key: chmod {:o} it",
            mode & 0o770
        ));
    }
    if !files::is_readable(file) {
        return refuse(format!(
            "you may not read it; root lets a group use it: chgrp NAME {0} && chmod 640 {0}",
            shown(file)
        ));
    }
    Ok(())
}

/// The reason says what is wrong, and quotes nothing of the file.
pub fn parse(content: &[u8]) -> std::result::Result<Values, String> {
    if content.len() as u64 > MAX_CONFIG_BYTES {
        return Err("is longer than 1 MiB".to_owned());
    }
    let text = str::from_utf8(content).map_err(|_| "is not text in UTF-8".to_owned())?;
    let mut values: Values = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| {
            text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
        });
        let place = line.map(|line| format!(" (line {line})")).unwrap_or_default();
        format!("is no configuration of cdx{place}: base_url and api_key are needed, as strings")
    })?;
    values.base_url.truncate(values.base_url.trim_end_matches('/').len());
    values.check()?;
    if values.codex_npm.is_empty() {
        values.codex_npm = "@openai/codex".to_owned();
    }
    Ok(values)
}

impl Values {
    /// Each value goes into requests, messages, or arguments of npm.
    pub fn check(&self) -> std::result::Result<(), String> {
        let plain = |text: &str| text.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        if !plain(&self.base_url) || !is_base_url(&self.base_url) {
            return Err("has a base_url that is no http or https address of a host, without user and query".to_owned());
        }
        let key = self.api_key.expose();
        if key.is_empty() || !plain(key) {
            return Err("has an api_key that is none".to_owned());
        }
        if !plain(&self.fqdn) || !plain(&self.codex_release_url) {
            return Err("has an fqdn or codex_release_url with blanks or control characters".to_owned());
        }
        if self.codex_npm.starts_with('-') || !plain(&self.codex_npm) {
            return Err("has a codex_npm that is no package".to_owned());
        }
        Ok(())
    }
}

/// It is printed, so it must not contain a password.
fn is_base_url(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

/// As the bash `cdx` writes it.
pub fn render(values: &Values) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("base_url", values.base_url.as_str()),
        ("api_key", values.api_key.expose()),
        ("fqdn", &values.fqdn),
        ("ca_pem", &values.ca_pem),
        ("codex_release_url", &values.codex_release_url),
        ("codex_release_sha256", &values.codex_release_sha256),
        ("codex_npm", &values.codex_npm),
    ] {
        let _ = writeln!(text, "{name} = {}", quoted(value));
    }
    let _ = writeln!(text, "system_ca = {}", values.system_ca);
    text
}

/// A basic string of TOML.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "base_url = \"https://a.test:8443/\"\napi_key = \"canary-key\"\nfuture = [1]\n";

    #[test]
    fn unknown_keys_are_tolerated_and_defaults_are_filled() {
        let values = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((values.base_url.as_str(), values.codex_npm.as_str()), ("https://a.test:8443", "@openai/codex"));
        assert!(!values.system_ca && values.ca_pem.is_empty());
        assert!(!format!("{values:?}").contains("canary"));
    }

    #[test]
    fn hostile_files_are_refused_without_a_quotation() {
        for wrong in [
            "",
            "base_url = \"https://a.test\"",
            "base_url = \"file:///canary\"\napi_key = \"k\"",
            "base_url = \"http://user:canary@a.test\"\napi_key = \"k\"",
            "base_url = \"http://a.test/?canary\"\napi_key = \"k\"",
            "base_url = \"http://a.test/#canary\"\napi_key = \"k\"",
            "base_url = \"https://\"\napi_key = \"k\"",
            "base_url = \"https://a.test/\\r\\nX: canary\"\napi_key = \"k\"",
            "base_url = \"https://a.test\"\napi_key = \"canary\\n\"",
            "base_url = \"https://a.test\"\napi_key = [\"canary\"]",
            "base_url = \"https://a.test\"\napi_key = \"k\"\ncodex_npm = \"--prefix=canary\"",
            "canary = = 1",
        ] {
            let why = parse(wrong.as_bytes()).unwrap_err();
            assert!(!why.contains("canary"), "{wrong}: {why}");
        }
        assert!(parse(b"\xff").is_err());
        assert!(parse(&vec![b'#'; 2 << 20]).unwrap_err().contains("longer"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut values = parse(GOOD.as_bytes()).unwrap();
        values.ca_pem = "-----BEGIN\n\\ \" \u{1} é\r\n".to_owned();
        values.system_ca = true;
        let again = parse(render(&values).as_bytes()).unwrap();
        assert_eq!((again.ca_pem, again.system_ca, again.api_key), (values.ca_pem, true, values.api_key));
    }

    #[test]
    fn a_file_for_everybody_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("host.toml");
        fs::write(&file, GOOD).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check(&file).unwrap_err().message.unwrap().contains("chmod 640"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(check(&file), Ok(()));
    }
}
