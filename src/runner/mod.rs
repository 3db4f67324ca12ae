//! Proving the canonical login by running the real Codex on it, in a sandbox that nothing gets out of.
//!
//! This room knows how a probe is made and what it found; not what follows from it, which `service/probes` decides.

mod codex;
pub mod delegation;
mod doctor;
mod output;
mod probe;
mod prober;
mod proxy;
pub mod sandbox;
mod setup;
mod tunnel;

pub use crate::model::check::{Check, Verdict};
pub use codex::CodexError;
#[cfg(any(test, fuzzing))]
pub(crate) use proxy::head as proxy_head;

pub use prober::{Finding, Prober, Probing, Told};
pub use setup::{Runner, Settings};
