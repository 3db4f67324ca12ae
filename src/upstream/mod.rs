//! What the daemon asks of the outside world. Called by background jobs only, never on the way of a call.

pub mod oidc;
pub mod releases;
