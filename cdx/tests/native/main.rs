//! What only the native `cdx` does: configuration files and profiles, handing a login over while Codex runs, Codex's
//! locks, `status` and JSON. What it shares with the bash `cdx` is in the daemon's suite (`tests/integration/wrapper`).

mod configuration;
mod host;
mod running;
mod updates;
