//! The interface of probes for other rooms: a probe begins, reports refreshed logins, and ends with a finding.

use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::Check;

/// Runs probes.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Begins a probe of a login. Dropping the probe ends it.
    async fn begin(&self, login: &str) -> Result<Box<dyn Probing>, Finding>;
    /// The longest time that one probe may take.
    fn time(&self) -> Duration;
    /// Checks everything that probes need.
    async fn examine(&self) -> Vec<Check>;
}

/// A running probe.
#[async_trait]
pub trait Probing: Send {
    /// Returns the next event. The finding is the last one.
    async fn next(&mut self) -> Told;
    /// Ends the probe now. Pending events are still reported, and `why` becomes its finding.
    fn end(&mut self, why: &str);
}

pub enum Told {
    /// Codex replaced its login with this one.
    Refreshed(Zeroizing<String>),
    Found(Finding),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Works,
    /// The reason, for people. Holds no secret.
    Fails(String),
    /// The probe could not run. Says what is missing, and the remedy.
    Unavailable(String),
}
