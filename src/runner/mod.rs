//! Probes: prove the canonical login by running the real Codex on it, in a sandbox.
//!
//! This room knows how to run a probe and what the finding is. `service/probes` decides what follows from it.

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
