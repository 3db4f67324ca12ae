//! The native `cdx` programs that this daemon gives to hosts, one for each kind of machine. A host without one gets the
//! bash `cdx`.
//!
//! The wiring reads them once, at the start. They hold no value of a host, so every host gets the same bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::model::digest::Digest;

/// A kind of machine, as hosts and file names spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NativeTarget {
    X86_64Linux,
    Aarch64Linux,
    X86_64Darwin,
    Aarch64Darwin,
}

impl NativeTarget {
    pub const ALL: [Self; 4] = [Self::X86_64Linux, Self::Aarch64Linux, Self::X86_64Darwin, Self::Aarch64Darwin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64Linux => "x86_64-linux",
            Self::Aarch64Linux => "aarch64-linux",
            Self::X86_64Darwin => "x86_64-darwin",
            Self::Aarch64Darwin => "aarch64-darwin",
        }
    }
}

impl fmt::Display for NativeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NativeTarget {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|target| target.as_str() == text).ok_or(())
    }
}

#[derive(Clone, Debug)]
pub struct NativeProgram {
    /// Cheap to clone.
    pub bytes: bytes::Bytes,
    pub digest: Digest,
}

#[derive(Debug, Default)]
pub struct NativePrograms {
    programs: BTreeMap<NativeTarget, NativeProgram>,
    /// `TARGET=SHA-256` pairs, separated by spaces, as installers carry them.
    digests: String,
}

impl NativePrograms {
    pub fn new(programs: impl IntoIterator<Item = (NativeTarget, bytes::Bytes)>) -> Self {
        let with_digest = |bytes: bytes::Bytes| NativeProgram { digest: Digest::of(&bytes), bytes };
        let programs: BTreeMap<_, _> =
            programs.into_iter().map(|(target, bytes)| (target, with_digest(bytes))).collect();
        let digests: Vec<String> =
            programs.iter().map(|(target, program)| format!("{target}={}", program.digest)).collect();
        Self { programs, digests: digests.join(" ") }
    }

    pub fn get(&self, target: NativeTarget) -> Option<&NativeProgram> {
        self.programs.get(&target)
    }

    pub fn digests(&self) -> &str {
        &self.digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installers_carry_the_digest_of_each_program() {
        assert_eq!(NativePrograms::default().digests(), "");
        let programs = [(NativeTarget::Aarch64Linux, "b".into()), (NativeTarget::X86_64Linux, "a".into())];
        let programs = NativePrograms::new(programs);
        let wanted = format!("x86_64-linux={} aarch64-linux={}", Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(programs.digests(), wanted);
        assert_eq!(programs.get(NativeTarget::X86_64Linux).unwrap().bytes, "a");
        assert!(programs.get(NativeTarget::X86_64Darwin).is_none());
    }

    #[test]
    fn a_target_is_read_as_it_is_printed() {
        for target in NativeTarget::ALL {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        assert_eq!("x86_64".parse::<NativeTarget>(), Err(()));
    }
}
