//! Finds Codex, and its version.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::daemon::is_version;
use crate::files;
use crate::home::{Home, shown};
use crate::messages::say;
use crate::state::State;

/// In the environment of a codex that is asked for its version: if it is a script around `cdx`, that `cdx` answers in
/// its place, and the script is passed over.
pub const ASKS_CODEX: &str = "CDX_ASKS_CODEX";

/// Variables that Codex would prefer to auth.json.
pub const OVERRIDES: [&str; 4] =
    ["CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_FEDERATION_RULE_ID", "OPENAI_IDENTITY_TOKEN_FILE"];

const MAX_DESCRIPTION_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Codex {
    pub program: PathBuf,
    pub version: Option<String>,
}

/// The codex to run. `state` remembers its version.
pub fn find(home: &Home, state: Option<&State>, npm_package: &str) -> Option<Codex> {
    let beside = home.program.with_file_name("codex");
    let fixed = [home.directory.join(".local/bin/codex"), beside, "/usr/local/bin/codex".into()];
    for program in home.path.iter().map(|directory| directory.join("codex")).chain(fixed) {
        if !files::is_program(&program) || files::same(&program, &home.program) || home.is_foreign(&program) {
            continue;
        }
        match version(home, state, npm_package, &program) {
            Asked::Codex(version) => return Some(Codex { program, version }),
            Asked::Cdx => say(format_args!("{} is a script around cdx, and is skipped", shown(&program))),
        }
    }
    None
}

enum Asked {
    Codex(Option<String>),
    /// `cdx` answered in place of codex.
    Cdx,
}

/// `codex --version` takes longer than everything else. So this reads npm's description of the package, or remembers
/// the answer while the program file does not change.
fn version(home: &Home, state: Option<&State>, npm_package: &str, program: &Path) -> Asked {
    if let Some(version) = described_version(program, npm_package) {
        return Asked::Codex(Some(version));
    }
    let mark = mark(program);
    let known = state.and_then(|state| state.read("codex-version"));
    let known =
        known.as_deref().and_then(|text| text.split_once('\n')).filter(|(known, _)| mark.as_deref() == Some(*known));
    if let Some((_, version)) = known.filter(|(_, version)| is_version(version)) {
        return Asked::Codex(Some(version.to_owned()));
    }
    let mut command = home.command(program);
    command.arg("--version").env(ASKS_CODEX, "1").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    let output = output.trim_end_matches('\n');
    if output.starts_with("cdx ") {
        return Asked::Cdx;
    }
    let version = output.rsplit(' ').next().filter(|text| is_version(text)).map(str::to_owned);
    if let (Some(state), Some(version), Some(mark)) = (state, &version, mark) {
        // Without the note it is asked again.
        let _ = state.write("codex-version", &format!("{mark}\n{version}"));
    }
    Asked::Codex(version)
}

/// npm links its programs to the packages beside them.
fn described_version(program: &Path, npm_package: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Package {
        version: String,
    }
    if !program.is_symlink() {
        return None;
    }
    let description = npm_prefix(program)?.join("lib/node_modules").join(npm_package).join("package.json");
    let text = files::read_limited(&description, MAX_DESCRIPTION_BYTES).ok()?;
    let package: Package = serde_json::from_slice(&text).ok()?;
    Some(package.version).filter(|version| is_version(version))
}

/// The prefix of an npm installation that a program may belong to: `PREFIX/bin/codex`.
pub fn npm_prefix(program: &Path) -> Option<&Path> {
    let bin = program.parent().filter(|bin| bin.ends_with("bin") && program.ends_with("codex"))?;
    bin.parent()
}

/// What changes if the program is another one, as the bash `cdx` writes it.
fn mark(program: &Path) -> Option<String> {
    let found = fs::metadata(program).ok()?;
    let name = program.to_str().filter(|name| !name.contains('\n'))?;
    Some(format!("{} {} {} {} {name}", found.mtime(), found.ctime(), found.size(), found.ino()))
}

/// The variables that are not passed to codex. Names them, if any is set.
pub fn cleared_overrides() -> Vec<&'static str> {
    OVERRIDES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_npm_is_above_bin() {
        assert_eq!(npm_prefix(Path::new("/usr/local/bin/codex")), Some(Path::new("/usr/local")));
        assert_eq!(npm_prefix(Path::new("/opt/codex")), None);
        assert_eq!(npm_prefix(Path::new("/opt/bin/other")), None);
    }
}
