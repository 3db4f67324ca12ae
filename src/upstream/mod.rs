//! Requests to services outside. `releases` runs in background jobs only; `oidc` also while a browser waits for its
//! sign-in.

pub mod oidc;
pub mod releases;
