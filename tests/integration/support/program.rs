//! Programs and libraries in C: replacements for Codex, and libraries that are preloaded into the daemon.

use std::path::Path;
use std::process::Command;

/// Builds a C program; every machine that can link Rust has `cc`.
pub fn build(source: impl AsRef<Path>, program: &Path) {
    let source = source.as_ref();
    let built = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(program).arg(source).status();
    assert!(built.unwrap().success(), "cc builds {}", source.display());
}

/// Builds `tests/integration/support/SOURCE` into a library that `LD_PRELOAD` names.
pub fn build_preloaded(source: &str, library: &Path) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/support").join(source);
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(library).arg(path).status();
    assert!(built.unwrap().success(), "cc builds {source}");
}
