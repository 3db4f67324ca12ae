//! Programs that need no library, to stand in for Codex where there is none.

use std::path::Path;
use std::process::Command;

/// Builds a C program; whoever can link Rust has `cc`.
pub fn build(source: impl AsRef<Path>, program: &Path) {
    let source = source.as_ref();
    let built = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(program).arg(source).status();
    assert!(built.unwrap().success(), "cc builds {}", source.display());
}
