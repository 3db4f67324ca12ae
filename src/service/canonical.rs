//! The canonical snapshot that calls are answered from: the newest version, opened, swapped as one when it changes.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Result, Service, ServiceError};
use crate::model::digest::Digest;
use crate::model::instant::Instant;
use crate::records::{CanonicalSummary, CanonicalVersion, NewCanonical};
use crate::seal::Place;

pub struct Canonical {
    pub summary: CanonicalSummary,
    /// `summary.last_refresh`, parsed once.
    pub last_refresh: Instant,
    /// The canonical text; its SHA-256 is `summary.digest`.
    pub text: Zeroizing<String>,
}

/// Where the text of a version stands sealed.
pub fn body_place(id: uuid::Uuid) -> Place {
    Place::new("auth_payloads", "body", id)
}

/// Where a target's token of a version stands sealed.
pub fn token_place(id: uuid::Uuid, target: &str) -> Place {
    Place::new("auth_entries", "token", format_args!("{id}/{target}"))
}

impl Service {
    /// The canonical version as this node knows it; `None` until one was uploaded.
    pub fn canonical(&self) -> Option<Arc<Canonical>> {
        self.canonical.load_full()
    }

    /// Every version, newest first, without the secrets.
    pub async fn canonical_history(&self, limit: usize) -> Result<Vec<CanonicalSummary>> {
        Ok(self.records.canonical_history(limit).await?)
    }

    pub(super) fn open_canonical(&self, version: &CanonicalVersion) -> Result<Canonical> {
        let plain = self.ring.load().open(&body_place(version.id), &version.body)?;
        let text = std::str::from_utf8(&plain).map_err(ServiceError::internal)?;
        if Digest::of(text.as_bytes()) != version.summary.digest {
            return Err(ServiceError::internal(format!(
                "version {} of the canonical auth does not have the digest it was stored with",
                version.summary.version
            )));
        }
        Ok(Canonical {
            summary: version.summary.clone(),
            last_refresh: Instant::parse(&version.summary.last_refresh).map_err(ServiceError::internal)?,
            text: Zeroizing::new(text.to_owned()),
        })
    }

    /// Makes `candidate` the canonical version if the present one still is `expected`; durable when this returns.
    pub(super) async fn replace_canonical(&self, expected: Option<u64>, candidate: &NewCanonical) -> Result<bool> {
        let replacement = self.records.replace_canonical(expected, candidate).await?;
        self.catch_up().await?;
        Ok(matches!(replacement, crate::records::Replacement::Replaced(_)))
    }
}
