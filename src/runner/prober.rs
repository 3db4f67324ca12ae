//! What makes probes, as others see it: a probe begins, tells of a refreshed login, and ends with a finding.

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::Check;

/// What makes probes.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Begins a probe of a login. A probe that is dropped ends.
    async fn begin(&self, login: &str) -> Result<Box<dyn Probing>, Finding>;
    /// How long one may take.
    fn time(&self) -> Duration;
    /// What probes need, and whether it is there.
    async fn examine(&self) -> Vec<Check>;
}

/// A probe under way.
#[async_trait]
pub trait Probing: Send {
    /// The finding comes last.
    async fn next(&mut self) -> Told;
    /// It is to end now, whatever it has found; what it has to tell is still told, and `why` is its finding.
    fn end(&mut self, why: &str);
}

pub enum Told {
    /// Codex wrote another login in the place of the one it was given.
    Refreshed(Zeroizing<String>),
    Found(Finding),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Works,
    /// Why not, for people. Holds no secret.
    Fails(String),
    /// It could not be tried: what is missing, and what mends it.
    Unavailable(String),
}
