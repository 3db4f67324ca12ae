//! Reads the native `cdx` programs for hosts: files `cdx-TARGET` in the directory `install.programs_dir`.
//!
//! They are read once, at the start: a package that is upgraded under a running daemon changes nothing until its restart.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::service::hosts::programs::{NativePrograms, NativeTarget};

/// The size of one program; ours is below 4 MiB.
const MAX_PROGRAM_BYTES: u64 = 32 * 1024 * 1024;

/// A program that cannot be used is logged and left out, as if it were missing: hosts of its kind then get the bash
/// `cdx`, and the daemon serves.
pub fn read_programs(directory: &Path) -> NativePrograms {
    let mut programs = Vec::new();
    for target in NativeTarget::ALL {
        let path = directory.join(format!("cdx-{target}"));
        match read_program(&path) {
            Ok(bytes) => programs.push((target, bytes.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                log::warn!(event = "native_program_unusable", machine = target.as_str(), path:% = path.display(), cause:% = error; "hosts of this kind get the bash cdx: {} cannot be used: {error}", path.display());
            }
        }
    }
    let programs = NativePrograms::new(programs);
    log::info!(event = "native_programs", directory:% = directory.display(), programs = programs.digests(); "native cdx programs for hosts: {}", if programs.digests().is_empty() { "none, all hosts get the bash cdx" } else { programs.digests() });
    programs
}

fn read_program(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    file.take(MAX_PROGRAM_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0 => Err(std::io::Error::other("it is empty")),
        size if size > MAX_PROGRAM_BYTES => {
            Err(std::io::Error::other(format!("it has more than {MAX_PROGRAM_BYTES} bytes")))
        }
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::Digest;

    #[test]
    fn a_program_that_cannot_be_used_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = |target: NativeTarget| directory.path().join(format!("cdx-{target}"));
        assert_eq!(read_programs(directory.path()).digests(), "");
        assert_eq!(read_programs(&directory.path().join("missing")).digests(), "");
        std::fs::write(file(NativeTarget::X86_64Linux), "program").unwrap();
        std::fs::write(file(NativeTarget::Aarch64Linux), "").unwrap();
        std::fs::create_dir(file(NativeTarget::X86_64Darwin)).unwrap();
        File::create(file(NativeTarget::Aarch64Darwin)).unwrap().set_len(MAX_PROGRAM_BYTES + 1).unwrap();
        let programs = read_programs(directory.path());
        assert_eq!(programs.digests(), format!("x86_64-linux={}", Digest::of(b"program")));
        // The bound itself is allowed.
        File::create(file(NativeTarget::Aarch64Darwin)).unwrap().set_len(MAX_PROGRAM_BYTES).unwrap();
        assert!(read_programs(directory.path()).get(NativeTarget::Aarch64Darwin).is_some());
    }
}
