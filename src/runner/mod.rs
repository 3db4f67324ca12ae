//! Proving the canonical login by running the real Codex on it, in a sandbox that nothing gets out of.
//!
//! This room knows how a probe is made and what it found; not what follows from it, which `service/probing` decides.

pub mod sandbox;
