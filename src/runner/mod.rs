//! Proving the canonical login by running the real Codex on it, in a sandbox that nothing gets out of.
//!
//! This room knows how a probe is made and what it found; not what follows from it, which `service/probing` decides.

mod codex;
pub mod delegation;
mod doctor;
mod output;
mod probe;
mod proxy;
pub mod sandbox;

pub use codex::CodexError;
#[cfg(any(test, fuzzing))]
pub(crate) use proxy::head as proxy_head;

pub use probe::{Finding, Prober, Probing, Runner, Settings, Told};

/// Something that probes need, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub found: String,
    /// What mends it.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Probes are made, and something is weaker than it could be.
    Weak,
    /// No probe can be made.
    Missing,
}
