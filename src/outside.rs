//! The wall clock and randomness, as a parameter.
//!
//! Code that needs either gets an [`Outside`]; `clippy.toml` bans asking the system anywhere else. Tests pass a clock
//! that they set themselves.

use time::OffsetDateTime;

pub trait Outside: Send + Sync {
    /// The wall clock, UTC. It may step. An action that must happen once must not depend on it alone.
    fn now(&self) -> OffsetDateTime;
    /// Fills `buffer` from a cryptographically secure source.
    fn fill(&self, buffer: &mut [u8]);
}

pub fn random<const N: usize>(outside: &dyn Outside) -> [u8; N] {
    let mut bytes = [0; N];
    outside.fill(&mut bytes);
    bytes
}

/// The operating system's clock and random source.
pub struct System;

impl Outside for System {
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    #[allow(clippy::disallowed_methods, clippy::expect_used)]
    fn fill(&self, buffer: &mut [u8]) {
        // getrandom(2) cannot fail once the pool is initialised, and blocks until then. Without randomness no key may
        // be made, so the process cannot continue.
        getrandom::fill(buffer).expect("the operating system gives random bytes");
    }
}
