//! `cdx --update`: this program, its configuration, and Codex become what the daemon has for this host.
//!
//! A new program is verified, and run once, before it replaces this one. A crash at any line leaves the old program or
//! the new one. On the way to the bash `cdx`, the script is in its place before the configuration goes; the script does not
//! read it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use codex_authd_client::sha256_hex;

use crate::baked;
use crate::codex::{ASKS_CODEX, Codex};
use crate::config::{Values, render};
use crate::daemon::{Answer, Daemon, Outcome, TARGET, VERSION};
use crate::download::Progress;
use crate::files::Temporary;
use crate::home::{Home, shown};
use crate::login::{Login, refusal};
use crate::messages::{Failure, Result, clean, failure, say};
use crate::{Prepared, install};

/// The daemon's programs have less than 4 MB.
const MAX_PROGRAM_BYTES: usize = 32 << 20;
const MAX_SCRIPT_BYTES: usize = 1 << 20;
/// In the environment of the program that has just replaced its predecessor.
const RESTARTED: &str = "CDX_RESTARTED";
const UNCHANGED: &str = "cdx was not changed";

/// The versions that the daemon has for this host.
pub async fn ask(home: &Home, prepared: &Prepared, codex: Option<&Codex>) -> Result<Answer> {
    let mut login = prepared.login(home, codex)?;
    asked(&mut login).await
}

async fn asked(login: &mut Login<'_>) -> Result<Answer> {
    login.ask().await.map_err(|trouble| match trouble.outcome {
        Outcome::Away | Outcome::Declined => failure(69, format!("{}; nothing was changed", trouble.reason)),
        Outcome::Refused | Outcome::Untrusted => refusal(&trouble),
    })
}

pub async fn update(home: &Home, prepared: &Prepared, to_bash: bool) -> Result<u8> {
    let codex = prepared.find_codex(home);
    let mut login = prepared.login(home, codex.as_ref())?;
    let answer = asked(&mut login).await?;
    let mut updater = Updater { home, prepared, daemon: login.daemon, answer };
    if to_bash {
        let script = updater.script().await?;
        updater.become_bash(&script)?;
    } else {
        updater.update_program().await?;
        let script = updater.script().await?;
        updater.renew_configuration(&script)?;
    }
    let wanted = updater.answer.client_version;
    let present = codex.as_ref().and_then(|codex| codex.version.as_deref());
    if codex.is_none() || wanted.is_some() && wanted.as_deref() != present {
        install::install(home, prepared, codex.as_ref(), wanted.as_deref()).await?;
    } else {
        say(format_args!("codex {} is the daemon's version", present.unwrap_or("(version unknown)")));
    }
    Ok(0)
}

struct Updater<'a> {
    home: &'a Home,
    prepared: &'a Prepared,
    daemon: Daemon<'a>,
    answer: Answer,
}

impl Updater<'_> {
    /// This host's bash `cdx`, with its values. The daemon notes that the host has them.
    async fn script(&mut self) -> Result<Vec<u8>> {
        let script = self
            .daemon
            .download(false, MAX_SCRIPT_BYTES, |_| ())
            .await
            .map_err(|trouble| failure(1, format!("cdx cannot be fetched: {}; {UNCHANGED}", trouble.reason)))?;
        let announced = self.answer.wrapper.sha256.as_deref().filter(|_| !self.answer.wrapper.is_native);
        if announced.is_some_and(|announced| announced != sha256_hex(&script)) {
            return Err(mismatch());
        }
        Ok(script)
    }

    /// The daemon's authority or address may have changed.
    fn renew_configuration(&self, script: &[u8]) -> Result<()> {
        let config = &self.prepared.config;
        let new = parsed(script)?;
        if render(&new) == render(&config.values) {
            return Ok(());
        }
        config.write(&new).map_err(|_| {
            failure(1, format!("cannot replace {}: run this as its owner (sudo cdx --update)", shown(&config.file)))
        })?;
        say(format_args!("{} has the daemon's present values", shown(&config.file)));
        Ok(())
    }

    async fn update_program(&mut self) -> Result<()> {
        let program = &self.home.program;
        if !self.answer.wrapper.is_native {
            say(format_args!(
                "the daemon has no native cdx for {TARGET}; cdx {VERSION} stays ('cdx --update --to-bash' puts the script in its place)"
            ));
            return Ok(());
        }
        let present =
            fs::read(program).map_err(|error| failure(1, format!("cannot read {}: {error}", shown(program))))?;
        let wanted = self.answer.wrapper.sha256.clone().ok_or_else(mismatch)?;
        if sha256_hex(&present) == wanted {
            if std::env::var_os(RESTARTED).is_none() {
                say(format_args!("cdx {VERSION} is current"));
            }
            return Ok(());
        }
        if std::env::var_os(RESTARTED).is_some() {
            return Err(failure(1, "the daemon has another cdx than a moment ago: run 'cdx --update' again"));
        }
        let mut progress = Progress::new("cdx", None);
        let fetched = self.daemon.download(true, MAX_PROGRAM_BYTES, |bytes| progress.report(bytes as u64)).await;
        drop(progress);
        let fetched =
            fetched.map_err(|trouble| failure(1, format!("cdx cannot be fetched: {}; {UNCHANGED}", trouble.reason)))?;
        if sha256_hex(&fetched) != wanted {
            return Err(mismatch());
        }
        let found = fs::metadata(program).map_err(|_| cannot_replace(program))?;
        let temporary = placed(program, &fetched, found.uid(), found.gid(), found.permissions().mode() & 0o7777)?;
        let version = answered_version(temporary.path())
            .ok_or_else(|| failure(1, format!("the received file is not a cdx; {UNCHANGED}")))?;
        temporary.persist(program).map_err(|_| cannot_replace(program))?;
        say(format_args!("cdx is now {version}"));
        Err(self.restart())
    }

    /// The new program does the rest. Returns only if it cannot be started.
    fn restart(&self) -> Failure {
        let mut command = self.home.command(&self.home.program);
        command.arg("--update").env(RESTARTED, "1");
        if let Some(profile) = self.prepared.config.profile() {
            command.args(["--profile", profile]);
        }
        let error = command.exec();
        failure(1, format!("the new cdx does not start: {error}; run 'cdx --update' again"))
    }

    fn become_bash(&self, script: &[u8]) -> Result<()> {
        let (config, program) = (&self.prepared.config, &self.home.program);
        parsed(script)?;
        let found = fs::metadata(&config.file).map_err(|_| cannot_replace(&config.file))?;
        // The script contains the key: whoever could read the configuration can run it, and nobody else.
        let mode = if found.permissions().mode() & 0o040 == 0 { 0o700 } else { 0o750 };
        let temporary = placed(program, script, found.uid(), found.gid(), mode)?;
        let mut bash = Command::new("bash");
        bash.arg("-n").arg(temporary.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if !bash.status().is_ok_and(|status| status.success()) {
            return Err(failure(1, format!("the bash cdx does not run here; {UNCHANGED}")));
        }
        temporary.persist(program).map_err(|_| cannot_replace(program))?;
        fs::remove_file(&config.file).map_err(|error| {
            failure(1, format!("cdx is the script now, but {} could not be removed: {error}", shown(&config.file)))
        })?;
        if let Some(directory) = config.file.parent() {
            // Other profiles stay.
            let _ = fs::remove_dir(directory);
        }
        say(format_args!("cdx is now the script; {} is removed", shown(&config.file)));
        Ok(())
    }
}

fn parsed(script: &[u8]) -> Result<Values> {
    baked::values(script).ok_or_else(|| failure(1, format!("the received file is not a cdx; {UNCHANGED}")))
}

fn mismatch() -> Failure {
    failure(1, format!("the received cdx does not match its digest; {UNCHANGED}"))
}

fn cannot_replace(file: &Path) -> Failure {
    failure(1, format!("cannot replace {}: run this as its owner (sudo cdx --update)", shown(file)))
}

/// A file beside the program, ready to take its place.
fn placed(program: &Path, content: &[u8], owner: u32, group: u32, mode: u32) -> Result<Temporary> {
    let made = Temporary::write(program, content).and_then(|temporary| {
        std::os::unix::fs::chown(temporary.path(), Some(owner), Some(group))?;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(mode))?;
        Ok(temporary)
    });
    made.map_err(|_| cannot_replace(program))
}

/// What the program says its version is, if it runs here and is a `cdx`.
fn answered_version(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("--version").env(ASKS_CODEX, "1").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.strip_prefix("cdx ").map(|version| clean(version.trim_end(), 64))
}
