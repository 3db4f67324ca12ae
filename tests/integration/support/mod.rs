//! Code that the integration tests share.

pub mod answers;
pub mod authority;
pub mod browser;
pub mod crash_points;
pub mod daemon;
pub mod disk;
pub mod documents;
pub mod galera;
pub mod host;
pub mod http;
pub mod load;
pub mod manager;
pub mod mariadb;
pub mod network;
pub mod oidc_provider;
pub mod people;
pub mod processes;
pub mod program;
pub mod provider;
pub mod random;
pub mod raw_tls;
pub mod record_disk;
pub mod skip;
pub mod standin;
pub mod upstream;
pub mod within;

use std::time::{Duration, Instant};

/// Polls until `condition` returns a value, for at most ten seconds.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

pub fn now() -> time::OffsetDateTime {
    use codex_authd::platform::{Clock as _, System};
    System.now()
}
