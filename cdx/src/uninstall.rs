//! `cdx --uninstall`: deregisters the host, then removes `cdx`. Everything that could stop it half-way is checked before
//! the daemon is called.
//!
//! The configuration goes last but one: a crash before that leaves a `cdx` whose key is refused, and the next
//! `cdx --uninstall` removes the rest. After it, only the program is left, and the next one removes that.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;

use crate::Prepared;
use crate::daemon::{Outcome, Trouble};
use crate::files;
use crate::home::{Home, shown};
use crate::login::{Login, refusal};
use crate::messages::{Result, complain, failure, say};
use crate::store;

pub async fn uninstall(home: &Home, prepared: &Prepared, yes: bool, force: bool) -> Result<u8> {
    let (config, state) = (&prepared.config, &prepared.state);
    let mut login = prepared.login(home, None)?;
    let is_ours = login.local.exists && state.recall().is_some_and(|last| last.digest == login.local.digest);
    let mut files = state.files();
    let mut auth_files = Vec::new();
    if is_ours {
        let target = files::resolve_links(&home.auth_file)
            .map_err(|error| failure(1, format!("{} cannot be followed: {error}", shown(&home.auth_file))))?;
        auth_files = vec![target, home.auth_file.clone()];
        auth_files.dedup();
    }
    files.push(config.file.clone());
    for file in auth_files.iter().chain(std::iter::once(&home.program)).chain(&files) {
        check(file)?;
    }
    let address = login.daemon_address();
    confirm(yes, &format!("take this host ({}) out of {address} and remove cdx?", config.host()))?;
    leave(&mut login, force, config.host()).await?;
    if is_ours {
        for file in &auth_files {
            let _ = fs::remove_file(file);
        }
        say(format_args!("removed {}", shown(&home.auth_file)));
    } else if login.local.exists {
        say(format_args!("left {}: it is not the login from the daemon", shown(&home.auth_file)));
    }
    let kept = store::kept_file(home);
    if kept.exists() {
        say(format_args!("left {}: a login that cdx replaced; remove it when you do not need it", shown(&kept)));
    }
    remove(home, prepared)?;
    if let Some(codex) = prepared.find_codex(home) {
        say(format_args!("codex itself stays: {}", shown(&codex.program)));
    }
    Ok(0)
}

/// Removes a program without a configuration: there is no host to deregister.
pub fn remove_alone(home: &Home, yes: bool) -> Result<u8> {
    check(&home.program)?;
    confirm(yes, "this cdx has no configuration; remove it?")?;
    remove_empty(Some(&home.config));
    remove_program(home)?;
    Ok(0)
}

fn check(file: &Path) -> Result<()> {
    cannot_remove(file).map_or(Ok(()), |why| {
        let remedy = "Nothing was done: run this as the owner of cdx (sudo cdx --uninstall)";
        Err(failure(1, format!("cannot remove {}: {why}. {remedy}", shown(file))))
    })
}

/// Asks on a terminal.
fn confirm(yes: bool, question: &str) -> Result<()> {
    if yes || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let _ = write!(std::io::stderr().lock(), "cdx: {question} [y/N] ");
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    match answer.trim_end_matches('\n').to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(failure(1, "nothing was done")),
    }
}

async fn leave(login: &mut Login<'_>, force: bool, host: &str) -> Result<()> {
    let address = login.daemon_address();
    let trouble = match login.daemon.leave(force).await {
        Ok(()) => {
            say(format_args!("this host is taken out of {address}"));
            return Ok(());
        }
        Err(Trouble { outcome: Outcome::Refused, status: Some(401), .. }) => {
            say("the daemon does not know this host");
            return Ok(());
        }
        Err(trouble) => trouble,
    };
    if force {
        say(format_args!("{}; ask the daemon's admin to remove {host}", trouble.reason));
        return Ok(());
    }
    if trouble.outcome == Outcome::Refused {
        complain(
            "nothing was removed: this host cannot take itself out ('cdx --uninstall --force' removes cdx anyway)",
        );
        return Err(refusal(&trouble));
    }
    Err(failure(
        69,
        format!(
            "{}, so this host cannot be removed from the fleet now; nothing was removed ('cdx --uninstall --force' removes cdx anyway)",
            trouble.reason
        ),
    ))
}

fn remove(home: &Home, prepared: &Prepared) -> Result<()> {
    let (state, config) = (&prepared.state, &prepared.config.file);
    for file in state.files() {
        let _ = fs::remove_file(file);
    }
    remove_empty(Some(&state.directory));
    remove_empty(state.directory.parent());
    let _ = fs::remove_file(config);
    remove_empty(config.parent());
    remove_program(home)
}

/// Directories with files of others stay.
fn remove_empty(directory: Option<&Path>) {
    if let Some(directory) = directory {
        let _ = fs::remove_dir(directory);
    }
}

fn remove_program(home: &Home) -> Result<()> {
    let program = &home.program;
    fs::remove_file(program).map_err(|_| {
        failure(1, format!("cannot remove {}: correct that, then run 'cdx --uninstall' again", shown(program)))
    })?;
    say(format_args!("removed {}", shown(program)));
    if !program.starts_with(&home.directory) || home.directory == Path::new("/") {
        say(
            "other users of this machine keep their copies of the login: each removes ~/.codex/auth.json and ~/.cache/cdx",
        );
    }
    Ok(())
}

/// Why a file could not be removed.
fn cannot_remove(file: &Path) -> Option<String> {
    let found = fs::symlink_metadata(file).ok()?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    if !files::may_change(directory) {
        return Some(format!("you may not change {}/", shown(directory).trim_end_matches('/')));
    }
    if found.is_dir() {
        return Some("it is a directory".to_owned());
    }
    let user = geteuid().as_raw();
    if let Ok(parent) = fs::metadata(directory) {
        let is_sticky = parent.permissions().mode() & 0o1000 != 0;
        if user != 0 && is_sticky && found.uid() != user && parent.uid() != user {
            return Some("it belongs to somebody else (sticky bit)".to_owned());
        }
    }
    if files::is_mount_point(file) {
        return Some("it is mounted by itself; unmount it".to_owned());
    }
    // For the owner, this fails only for an immutable or append-only file. It changes nothing.
    let is_mine = found.is_file() && (user == 0 || found.uid() == user);
    if is_mine && fs::set_permissions(file, found.permissions()).is_err() {
        return Some("it cannot be changed (immutable? see lsattr)".to_owned());
    }
    None
}
