//! What `cdx` remembers for one daemon, in the cache directory, in the form of the bash `cdx`: when each `CODEX_HOME` was
//! last synchronised and with which digest (`synced-*`), the trust store that verified the daemon's certificate last
//! (`trust`), and the version of Codex (`codex-version`).
//!
//! A torn or lost file costs the day of grace, or one call of `codex --version`, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::files;
use crate::home::{Home, shown};
use crate::messages::{Result, failure};
use crate::platform;
use crate::quote::shell_quoted;

const MAX_STATE_BYTES: u64 = 65_536;
const MAX_NAME: usize = 120;

#[derive(Debug)]
pub struct State {
    pub directory: PathBuf,
    synced: PathBuf,
    /// Daemon and home, as bash quotes them: different ones may have the same file name.
    place: Vec<u8>,
}

/// The last synchronisation.
#[derive(Debug, PartialEq, Eq)]
pub struct Synced {
    pub moment: i64,
    pub digest: String,
}

impl State {
    pub fn open(home: &Home, base_url: &str) -> Result<Self> {
        let directory = home.cache.join(truncated(file_name(base_url.as_bytes()), MAX_NAME));
        let name = file_name(files::bytes(&home.codex));
        let name = &name[name.len().saturating_sub(MAX_NAME)..];
        let place = [shell_quoted(base_url.as_bytes()), shell_quoted(files::bytes(&home.codex))].join(&b' ');
        let state = Self { synced: directory.join(format!("synced-{name}")), directory, place };
        files::make_private_directory(&state.directory).map_err(|_| {
            failure(
                74,
                format!(
                    "cannot make {}: make it writable, or set XDG_CACHE_HOME to a writable directory",
                    shown(&state.directory)
                ),
            )
        })?;
        Ok(state)
    }

    pub fn remember(&self, digest: &str) -> std::io::Result<()> {
        let mut line = format!("{} {digest} ", platform::now()).into_bytes();
        line.extend_from_slice(&self.place);
        line.push(b'\n');
        files::replace_quickly(&self.synced, &line)
    }

    pub fn recall(&self) -> Option<Synced> {
        let text = files::read_limited(&self.synced, MAX_STATE_BYTES).ok()?;
        parse_synced(&text, &self.place)
    }

    pub fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        files::replace_quickly(&self.directory.join(name), format!("{text}\n").as_bytes())
    }

    pub fn read(&self, name: &str) -> Option<String> {
        let text = files::read_limited(&self.directory.join(name), MAX_STATE_BYTES).ok()?;
        String::from_utf8(text).ok().map(|text| text.trim_end_matches('\n').to_owned())
    }

    /// Everything that `cdx` keeps here, of all homes; `ca.pem` is the bash `cdx`'s.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut kept: Vec<PathBuf> = entries(&self.directory)
            .filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("synced-")))
            .collect();
        kept.extend(["ca.pem", "trust", "codex-version"].map(|name| self.directory.join(name)));
        kept
    }
}

fn parse_synced(text: &[u8], place: &[u8]) -> Option<Synced> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let (moment, digest) = (str::from_utf8(fields.next()?).ok()?, str::from_utf8(fields.next()?).ok()?);
    let is_moment = (1..=12).contains(&moment.len()) && moment.bytes().all(|byte| byte.is_ascii_digit());
    let is_whole = fields.next()? == place && is_moment && is_digest(digest);
    is_whole.then(|| Synced { moment: moment.parse().unwrap_or_default(), digest: digest.to_owned() })
}

/// 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Removes files of a killed `cdx` or installer: those with the number of a process that has ended.
pub fn sweep(home: &Home, state: &Path, config: &Path) {
    let auth_file = files::resolve_links(&home.auth_file).unwrap_or_else(|_| home.auth_file.clone());
    let beside = |file: &Path, marks: &[&str]| -> Vec<PathBuf> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let starts: Vec<String> = marks.iter().map(|mark| format!("{name}.{mark}.")).collect();
        let is_left = |entry: &PathBuf| {
            let entry = entry.file_name().unwrap_or_default().to_string_lossy();
            starts.iter().any(|start| entry.starts_with(start.as_str()))
        };
        entries(file.parent().unwrap_or(Path::new("/"))).filter(is_left).collect()
    };
    let left = entries(state)
        .chain(beside(&home.auth_file, &["cdx"]))
        .chain(beside(&auth_file, &["cdx"]))
        .chain(beside(&home.program, &["cdx", "new", "installing", "before"]))
        .chain(beside(config, &["cdx", "before"]));
    for file in left {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_left = !name.starts_with("synced-") && process_of(&name).is_some_and(|process| !is_running(process));
        if is_left && fs::remove_file(&file).is_err() {
            let _ = fs::remove_dir_all(&file);
        }
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The process in a name that ends in `.PID` or `.PID.MARK`.
fn process_of(name: &str) -> Option<i32> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (rest, last) = name.rsplit_once('.')?;
    let is_mark = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let before = rest.rsplit_once('.').filter(|_| is_mark).and_then(|(_, before)| number(before));
    before.or_else(|| number(last))
}

fn is_running(process: i32) -> bool {
    let own = u32::try_from(process).is_ok_and(|process| process == std::process::id());
    // A process of another user cannot be signalled, and runs. A number of no process, such as 0, is swept.
    !own && process > 0 && kill(Pid::from_raw(process), None) != Err(Errno::ESRCH)
}

/// A path or address as a file name: only letters, digits, `.` and `-`.
fn file_name(text: &[u8]) -> String {
    text.iter()
        .map(|byte| if byte.is_ascii_alphanumeric() || b".-".contains(byte) { char::from(*byte) } else { '_' })
        .collect()
}

fn truncated(mut text: String, limit: usize) -> String {
    text.truncate(limit);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_of_this_place_counts() {
        let digest = "a".repeat(64);
        let line = format!("123 {digest} https://a /home/x\n");
        let place = b"https://a /home/x";
        assert_eq!(parse_synced(line.as_bytes(), place), Some(Synced { moment: 123, digest: digest.clone() }));
        for spoiled in [
            "",
            "x",
            "08",
            "99999999999999999999 a b",
            &line.replace("/x", "/y"),
            &line.replace("123", "-1"),
            &line[..40],
        ] {
            assert_eq!(parse_synced(spoiled.as_bytes(), place), None, "{spoiled}");
        }
    }

    #[test]
    fn the_process_is_in_the_name() {
        for (name, process) in [
            ("auth.json.cdx.123.4", Some(123)),
            ("auth.json.cdx.123", Some(123)),
            ("cdx.123.head", Some(123)),
            ("trust", None),
            ("ca.pem", None),
            ("release.cdx.99999999999", None),
            ("x.1.-", None),
        ] {
            assert_eq!(process_of(name), process, "{name}");
        }
    }
}
