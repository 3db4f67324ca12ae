//! Compares the files in systemd's credential stores with the credentials that the running daemon received.
//!
//! systemd reads credentials when the unit starts; from these directories only since version 252. So a file there may
//! not be in force. A master key is called superfluous only if the daemon has received the other copy. Messages contain
//! no secret.
//! received the other one. No secret is in what is said.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::systemctl::SERVICE;
use crate::config::credentials;
use crate::model::check::Check;

const NAME: &str = "credentials";
const PREFIX: &str = "codex-authd.";
const MASTER_KEY: &str = "master.key";
/// The credentials that the daemon reads.
const KNOWN: [&str; 3] = [MASTER_KEY, "database.password", "oidc.client_secret"];
/// Read by the unit that makes backups, which does not keep running.
const OF_BACKUPS: &str = "backup.passphrase";
const MAX_BYTES: u64 = 1024 * 1024;
const RESTART: &str = "systemctl restart codex-authd; if that does not help: systemd before 252 does not read this directory \
                       (systemctl --version), upgrade systemd";

pub struct Places {
    pub plain: PathBuf,
    pub encrypted: PathBuf,
    /// The credentials that the daemon received; it exists while the daemon runs.
    pub received: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            plain: "/etc/credstore".into(),
            encrypted: "/etc/credstore.encrypted".into(),
            received: Path::new("/run/credentials").join(SERVICE),
        }
    }
}

#[derive(Default, Debug)]
pub struct ComparedCredential {
    pub checks: Vec<Check>,
    /// Names of credentials that systemd provides only when the daemon starts; commands do not have them until then.
    pub awaiting_start: Vec<String>,
}

impl Places {
    /// `is_active`: the unit runs. Call it as root: other users may not read these directories.
    pub fn compare(&self, state_dir: &Path, is_active: bool) -> ComparedCredential {
        let mut compared = ComparedCredential::default();
        for (directory, is_encrypted) in [(&self.plain, false), (&self.encrypted, true)] {
            for name in names(directory) {
                let path = directory.join(format!("{PREFIX}{name}"));
                self.compare_one(&path, &name, is_encrypted, is_active, &mut compared);
            }
        }
        compared.checks.extend(self.two_master_keys(&state_dir.join(MASTER_KEY), is_active));
        compared
    }

    fn compare_one(
        &self,
        path: &Path,
        name: &str,
        is_encrypted: bool,
        is_active: bool,
        compared: &mut ComparedCredential,
    ) {
        let place = path.display();
        if name == OF_BACKUPS {
            return;
        }
        let sealed = self.encrypted.join(format!("{PREFIX}{name}"));
        if !is_encrypted && sealed.exists() {
            let found = format!("{place} contains the same secret unencrypted as {} encrypted", sealed.display());
            let remedy = format!(
                "move {place} to a safe place off this machine, and systemctl restart codex-authd: doctor then shows whether \
                 the daemon received the encrypted one"
            );
            compared.checks.push(Check::weak(NAME, found, remedy));
            return;
        }
        if !KNOWN.contains(&name) {
            let found =
                format!("nothing reads {place}; the daemon reads {PREFIX}{}", KNOWN.join(&format!(", {PREFIX}")));
            compared.checks.push(Check::weak(NAME, found, format!("give {place} the right name, or remove it")));
            return;
        }
        if !is_active {
            compared.awaiting_start.push(name.to_owned());
            compared.checks.push(Check::good(NAME, format!("{place} is read at the next start of the daemon")));
            return;
        }
        let Some(received) = self.received(name) else {
            let found = format!("{place} is not in force: the running daemon did not receive it");
            let remedy = match is_encrypted {
                true => {
                    "install the drop-in sealed-credentials.conf (OPERATIONS, Secrets from systemd), then systemctl \
                         daemon-reload && systemctl restart codex-authd"
                }
                false => RESTART,
            };
            compared.checks.push(Check::missing(NAME, found, remedy));
            return;
        };
        let is_same = content(path).is_some_and(|lies_there| lies_there == received);
        compared.checks.push(match (is_encrypted, is_same) {
            (true, _) => Check::good(NAME, format!("the daemon received {name} from {place}")),
            (false, true) => Check::good(NAME, format!("{place} is in force")),
            (false, false) if name == MASTER_KEY => Check::missing(
                NAME,
                format!("{place} differs from the key of the running daemon, which could not start with it"),
                format!("install the right key: install -m 0600 {} {place}", self.received.join(name).display()),
            ),
            (false, false) => Check::weak(
                NAME,
                format!("{place} was changed: the running daemon received the previous one at its start"),
                "systemctl restart codex-authd",
            ),
        });
    }

    fn received(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        credentials::file(&self.received, name).and_then(|path| content(&path))
    }

    /// Finds which of two master keys is in force.
    fn two_master_keys(&self, of_state: &Path, is_active: bool) -> Option<Check> {
        let stored = [&self.plain, &self.encrypted].map(|directory| directory.join(format!("{PREFIX}{MASTER_KEY}")));
        let stored_at = stored.iter().find(|path| path.exists())?;
        let key_of_state = content(of_state)?;
        let (stored_at, of_state) = (stored_at.display(), of_state.display());
        if !is_active {
            let found = format!(
                "the master key is in {of_state} and in {stored_at}; which one is in force can only be seen while the daemon runs"
            );
            return Some(Check::weak(NAME, found, "keep both, and systemctl start codex-authd"));
        }
        let Some(received) = self.received(MASTER_KEY) else {
            let found = format!("the running daemon works with {of_state}, not with {stored_at}");
            return Some(Check::weak(NAME, found, format!("keep {of_state}: without it the daemon cannot start")));
        };
        if received.trim_ascii() != key_of_state.trim_ascii() {
            let found = format!(
                "the running daemon works with the key from systemd; {of_state} is another one, which is not in force"
            );
            return Some(Check::weak(NAME, found, format!("keep a copy of {of_state}: older backups may need it")));
        }
        // The next start uses the file in the store, so it must be the same key.
        let is_lasting =
            stored.iter().all(|path| path == &stored[1] || content(path).is_none_or(|key| key == received));
        let found = format!("the running daemon works with the master key from systemd; {of_state} is a copy of it");
        let remedy = match is_lasting {
            true => format!("once a copy is in a safe place: rm {of_state}"),
            false => format!("keep both: {stored_at} has been changed since"),
        };
        Some(Check::weak(NAME, found, remedy))
    }
}

/// Returns the names of our credentials in a directory, without the prefix, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn content(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let mut content = Zeroizing::new(Vec::with_capacity(4096));
    std::fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::Verdict;

    struct Machine(tempfile::TempDir);

    impl Machine {
        /// Creates files at these paths, relative to a test root.
        fn with(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for directory in ["plain", "encrypted", "received", "state"] {
                std::fs::create_dir(machine.0.path().join(directory)).unwrap();
            }
            for (path, content) in files {
                std::fs::write(machine.0.path().join(path), content).unwrap();
            }
            machine
        }

        fn compare(&self, is_active: bool) -> ComparedCredential {
            let at = |name: &str| self.0.path().join(name);
            let places = Places { plain: at("plain"), encrypted: at("encrypted"), received: at("received") };
            let compared = places.compare(&at("state"), is_active);
            let said = format!("{compared:?}");
            assert!(!said.contains("canary"), "{said}");
            compared
        }
    }

    /// Compares the verdict, a part of the finding, and a part of the remedy.
    #[track_caller]
    fn is(compared: &ComparedCredential, wanted: &[(Verdict, &str, &str)]) {
        let fits = compared.checks.len() == wanted.len()
            && compared.checks.iter().zip(wanted).all(|(check, (verdict, found, remedy))| {
                check.verdict == *verdict
                    && check.found.contains(found)
                    && check.remedy.as_deref().unwrap_or_default().contains(remedy)
            });
        assert!(fits, "{:#?}", compared.checks);
    }

    const STORED: (&str, &str) = ("plain/codex-authd.database.password", "canary-1\n");

    #[test]
    fn nothing_is_said_where_nothing_lies() {
        assert!(Machine::with(&[("state/master.key", "canary")]).compare(true).checks.is_empty());
        assert!(Machine::with(&[("plain/codex-authd.backup.passphrase", "canary")]).compare(true).checks.is_empty());
    }

    #[test]
    fn a_credential_that_is_not_in_force_is_told_with_what_brings_it_in() {
        let upgrade = "systemd before 252 does not read this directory";
        is(
            &Machine::with(&[STORED]).compare(true),
            &[(Verdict::Missing, "database.password is not in force: the running daemon did not receive it", upgrade)],
        );
        is(
            &Machine::with(&[STORED, ("received/database.password", "canary-2\n")]).compare(true),
            &[(Verdict::Weak, "was changed", "systemctl restart codex-authd")],
        );
        is(
            &Machine::with(&[STORED, ("received/database.password", STORED.1)]).compare(true),
            &[(Verdict::Good, "is in force", "")],
        );
        is(
            &Machine::with(&[("encrypted/codex-authd.oidc.client_secret", "canary")]).compare(true),
            &[(Verdict::Missing, "oidc.client_secret is not in force", "sealed-credentials.conf")],
        );
        is(
            &Machine::with(&[("plain/codex-authd.masterkey", "canary")]).compare(true),
            &[(Verdict::Weak, "nothing reads", "the right name")],
        );
        let stopped = Machine::with(&[STORED]).compare(false);
        is(&stopped, &[(Verdict::Good, "at the next start", "")]);
        assert_eq!(stopped.awaiting_start, ["database.password"]);
    }

    #[test]
    fn of_two_master_keys_the_one_in_force_is_named_and_none_is_given_up_that_may_be_needed() {
        const STATE: (&str, &str) = ("state/master.key", "canary-1\n");
        const PLAIN: (&str, &str) = ("plain/codex-authd.master.key", "canary-1\n");
        const RECEIVED: (&str, &str) = ("received/master.key", "canary-1\n");
        const OTHER: (&str, &str) = ("received/master.key", "canary-2\n");
        let both = "a copy of it";
        for (files, is_active, said, may_go) in [
            (vec![STATE, PLAIN, RECEIVED], true, both, true),
            (vec![STATE, ("encrypted/codex-authd.master.key", "x"), RECEIVED], true, both, true),
            (vec![STATE, ("plain/codex-authd.master.key", "canary-3\n"), RECEIVED], true, both, false),
            (vec![STATE, PLAIN], true, "works with", false),
            // The unit provides this file for a credential that does not exist.
            (vec![STATE, PLAIN, ("received/master.key", "\0")], true, "works with", false),
            (vec![STATE, PLAIN, RECEIVED], false, "seen while the daemon runs", false),
            (vec![STATE, PLAIN, OTHER], true, "is another one, which is not in force", false),
        ] {
            let compared = Machine::with(&files).compare(is_active);
            assert!(compared.checks.iter().any(|check| check.found.contains(said)), "{files:?}: {compared:#?}");
            let advice: Vec<&str> = compared.checks.iter().filter_map(|check| check.remedy.as_deref()).collect();
            let removes = advice.iter().any(|remedy| remedy.contains("rm ") || remedy.contains("remove it"));
            assert_eq!(removes, may_go, "{files:?}: {advice:?}");
        }
        let changed = Machine::with(&[("plain/codex-authd.master.key", "canary-3\n"), RECEIVED]).compare(true);
        is(&changed, &[(Verdict::Missing, "could not start with it", "install -m 0600")]);
    }
}
