//! The wall clock and randomness, as parameters.
//!
//! Code that needs one of them gets a [`Clock`] or a [`SecureRandom`]; code that needs both, or hands them on, gets a
//! [`Platform`]. `clippy.toml` bans asking the operating system anywhere else. Tests pass a clock that they set themselves.

use time::OffsetDateTime;

pub trait Clock: Send + Sync {
    /// The wall clock, UTC. It may step. An action that must happen once must not depend on it alone.
    fn now(&self) -> OffsetDateTime;
}

pub trait SecureRandom: Send + Sync {
    /// Fills `buffer` from a cryptographically secure source.
    fn fill(&self, buffer: &mut [u8]);
}

pub trait Platform: Clock + SecureRandom {}

impl<T: Clock + SecureRandom> Platform for T {}

pub fn random<const N: usize>(rng: &dyn SecureRandom) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill(&mut bytes);
    bytes
}

/// The operating system's clock and random source.
pub struct System;

impl Clock for System {
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

impl SecureRandom for System {
    #[allow(clippy::disallowed_methods, clippy::expect_used)]
    fn fill(&self, buffer: &mut [u8]) {
        // getrandom(2) cannot fail once the pool is initialised, and blocks until then. Without randomness no key may
        // be made, so the process cannot continue.
        getrandom::fill(buffer).expect("the operating system gives random bytes");
    }
}
