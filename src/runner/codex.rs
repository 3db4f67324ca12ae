//! Finds the Codex program to run: a static ELF file for this machine.
//!
//! npm installs a script in the PATH, which starts the native program from a separate package. The sandbox has no
//! interpreter for scripts, so this module finds the native program.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodexError {
    #[error(
        "there is no Codex: {0} is not in the PATH of the daemon; install it (npm install -g @openai/codex), or name \
         the program with runner.codex"
    )]
    NotInPath(String),
    #[error(
        "there is no Codex at {0}; install it (npm install -g @openai/codex), or name the program with runner.codex"
    )]
    NotThere(PathBuf),
    #[error("{path} cannot be run by the daemon: {cause}; give it read and execute permission on the file, and search permission on the directories", path = .path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error(
        "{0} is a script, and the program it starts is not beside it; name the Codex program itself with runner.codex"
    )]
    Script(PathBuf),
    #[error("{0} is not a program for this machine; name the Codex program itself with runner.codex")]
    NoProgram(PathBuf),
    #[error(
        "{0} needs shared libraries, which the sandbox does not have; install the static release of Codex (from npm, or …-unknown-linux-musl)"
    )]
    NotStatic(PathBuf),
}

/// Finds the program for `codex`: a path, or a name that is looked up in `path` (the value of PATH).
pub fn find(codex: &str, path: Option<&OsStr>) -> Result<PathBuf, CodexError> {
    let found = if codex.contains('/') {
        PathBuf::from(codex)
    } else {
        let mut candidates = std::env::split_paths(path.unwrap_or_default()).map(|directory| directory.join(codex));
        candidates.find(|candidate| is_executable(candidate)).ok_or_else(|| CodexError::NotInPath(codex.into()))?
    };
    // Resolves links: npm puts a link into the PATH, and the native program is next to the target of that link.
    let found = match found.canonicalize() {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(CodexError::NotThere(found)),
        Err(error) => return Err(CodexError::Unreadable { path: found, cause: error.to_string() }),
    };
    match ProgramKind::of(&found)? {
        ProgramKind::Program => Ok(found),
        ProgramKind::NeedsLibraries => Err(CodexError::NotStatic(found)),
        ProgramKind::Other => Err(CodexError::NoProgram(found)),
        ProgramKind::Script => {
            let program = beside(&found).ok_or(CodexError::Script(found))?;
            match ProgramKind::of(&program)? {
                ProgramKind::Program => Ok(program),
                ProgramKind::NeedsLibraries => Err(CodexError::NotStatic(program)),
                ProgramKind::Script | ProgramKind::Other => Err(CodexError::NoProgram(program)),
            }
        }
    }
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Finds the native program that npm's script starts. The script is `bin/codex.js` of the package `@openai/codex`. The
/// program is in a package for the machine's architecture, inside that package or next to it.
fn beside(script: &Path) -> Option<PathBuf> {
    let (package, triple) = match std::env::consts::ARCH {
        "x86_64" => ("codex-linux-x64", "x86_64-unknown-linux-musl"),
        "aarch64" => ("codex-linux-arm64", "aarch64-unknown-linux-musl"),
        _ => return None,
    };
    let home = script.parent()?.parent()?;
    let packages = [home.join("node_modules/@openai").join(package), home.parent()?.join(package), home.to_path_buf()];
    let vendors = packages.into_iter().map(|package| package.join("vendor").join(triple));
    vendors.flat_map(|vendor| [vendor.join("bin/codex"), vendor.join("codex/codex")]).find(|path| is_executable(path))
}

enum ProgramKind {
    /// For this architecture, and statically linked.
    Program,
    NeedsLibraries,
    Script,
    Other,
}

/// Offsets and values in an ELF file (ELF-64, little-endian).
const HEAD: usize = 64;
const MACHINE: usize = 18;
const TABLE_AT: usize = 32;
const ENTRY_SIZE: usize = 54;
const ENTRIES: usize = 56;
const INTERPRETER: u32 = 3;
/// More than any real program has.
const MAX_PROGRAM_HEADERS: u16 = 256;

impl ProgramKind {
    fn of(path: &Path) -> Result<Self, CodexError> {
        let unreadable = |cause: std::io::Error| CodexError::Unreadable { path: path.into(), cause: cause.to_string() };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Ok(Self::Other);
        }
        if about.permissions().mode() & 0o111 == 0 {
            return Err(unreadable(std::io::ErrorKind::PermissionDenied.into()));
        }
        let mut head = Vec::with_capacity(HEAD);
        file.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
        if head.starts_with(b"#!") {
            return Ok(Self::Script);
        }
        let machine: u16 = match std::env::consts::ARCH {
            "x86_64" => 62,
            "aarch64" => 183,
            _ => return Ok(Self::Other),
        };
        // 64 bits, little-endian.
        if !head.starts_with(b"\x7fELF\x02\x01") || number(&head, MACHINE) != Some(machine) {
            return Ok(Self::Other);
        }
        let table = head.get(TABLE_AT..TABLE_AT + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let (Some(table), Some(size), Some(entries)) = (table, number(&head, ENTRY_SIZE), number(&head, ENTRIES))
        else {
            return Ok(Self::Other);
        };
        for entry in 0..u64::from(entries.min(MAX_PROGRAM_HEADERS)) {
            let mut kind = [0; 4];
            let at = table.saturating_add(entry * u64::from(size));
            if file.read_exact_at(&mut kind, at).is_err() {
                return Ok(Self::Other);
            }
            if u32::from_le_bytes(kind) == INTERPRETER {
                return Ok(Self::NeedsLibraries);
            }
        }
        Ok(Self::Program)
    }
}

fn number(head: &[u8], at: usize) -> Option<u16> {
    head.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of this machine's kind, with one entry in its table.
    fn elf(entry: u32) -> Vec<u8> {
        let mut file = vec![0; HEAD + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
        file[MACHINE..MACHINE + 2].copy_from_slice(&machine.to_le_bytes());
        file[TABLE_AT] = HEAD as u8;
        file[ENTRY_SIZE] = 56;
        file[ENTRIES] = 1;
        file[HEAD..HEAD + 4].copy_from_slice(&entry.to_le_bytes());
        file
    }

    fn put(path: &Path, content: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_program_behind_the_script_of_npm_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let home = root.join("lib/node_modules/@openai/codex");
        put(&home.join("bin/codex.js"), b"#!/usr/bin/env node\n");
        std::fs::create_dir(root.join("bin")).unwrap();
        std::os::unix::fs::symlink("../lib/node_modules/@openai/codex/bin/codex.js", root.join("bin/codex")).unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), &root.join("bin")]).unwrap();
        let script = home.join("bin/codex.js");
        assert_eq!(find("codex", Some(&path)), Err(CodexError::Script(script)), "without the program");
        let (package, triple) = if cfg!(target_arch = "aarch64") {
            ("codex-linux-arm64", "aarch64-unknown-linux-musl")
        } else {
            ("codex-linux-x64", "x86_64-unknown-linux-musl")
        };
        let program = home.join("node_modules/@openai").join(package).join("vendor").join(triple).join("bin/codex");
        put(&program, &elf(1));
        assert_eq!(find("codex", Some(&path)), Ok(program));
    }

    #[test]
    fn what_cannot_be_run_in_the_sandbox_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().canonicalize().unwrap().join(name);
            put(&path, content);
            (path.to_str().unwrap().to_owned(), path)
        };
        let (text, path) = file("static", &elf(1));
        assert_eq!(find(&text, None), Ok(path));
        let (text, path) = file("dynamic", &elf(INTERPRETER));
        assert_eq!(find(&text, None), Err(CodexError::NotStatic(path)));
        let (text, path) = file("other", b"MZ");
        assert_eq!(find(&text, None), Err(CodexError::NoProgram(path)));
        let (text, path) = file("cut", &elf(1)[..HEAD + 2]);
        assert_eq!(find(&text, None), Err(CodexError::NoProgram(path)));
        let (text, path) = file("locked", &elf(1));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(find(&text, None), Err(CodexError::Unreadable { .. })));
        assert_eq!(find("/nowhere/codex", None), Err(CodexError::NotThere("/nowhere/codex".into())));
        assert_eq!(find("codex", None), Err(CodexError::NotInPath("codex".into())));
        assert_eq!(find("codex", Some(OsStr::new("/nowhere"))), Err(CodexError::NotInPath("codex".into())));
    }
}
