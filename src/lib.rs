//! codex-authd keeps one canonical Codex `auth.json` and gives it to every host that may have it.
//!
//! A room uses only the rooms below it in the table of docs/ARCHITECTURE.md.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dashboard;
pub mod doctor;
pub mod durable;
/// Used by tests and `make fuzz` only.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hot;
pub mod listener;
pub mod metrics;
pub mod model;
pub mod pki;
pub mod platform;
pub mod records;
#[cfg(test)]
mod rooms;
pub mod runner;
pub mod seal;
pub mod service;
/// Used by the tests here and by the integration tests.
#[cfg(test)]
#[path = "../tests/integration/support/skip.rs"]
mod skip;
pub mod upstream;
