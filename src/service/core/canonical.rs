//! The canonical version in memory, opened, from which calls are answered. It is swapped as a whole when it changes.

use std::sync::Arc;

use crate::hot::InHand;
use crate::model::auth_document::{DocumentText, LoginFacts, Present, without_host_members};
use crate::model::digest::Digest;
use crate::model::instant::Instant;
use crate::records::{CanonicalSource, CanonicalSummary, CanonicalVersion, Epoch};
use crate::seal::Place;
use crate::service::{Core, Result, ServiceError};

pub struct Canonical {
    pub summary: CanonicalSummary,
    /// `summary.last_refresh`, parsed once.
    pub last_refresh: Instant,
    /// The account of the login.
    pub(in crate::service) login: LoginFacts,
    /// The canonical text without the members of one host or one sign-in; its SHA-256 is `summary.digest`. The records
    /// hold another digest for a version that was stored with such members.
    pub text: Arc<DocumentText>,
    /// The records' epoch at which this was the canonical version.
    pub(in crate::service) as_of: Epoch,
}

impl Canonical {
    /// The facts that decide whether a document replaces it.
    pub(in crate::service) fn present(&self) -> Present<'_> {
        let is_decided =
            matches!(self.summary.source, CanonicalSource::Rollback { .. } | CanonicalSource::Override { .. });
        Present {
            digest: self.summary.digest,
            last_refresh: &self.last_refresh,
            login: &self.login,
            decided_at: is_decided.then_some(self.summary.stored_at),
        }
    }

    /// What is noted of a host that has this version.
    pub(in crate::service) fn in_hand(&self) -> InHand<'_> {
        InHand { last_refresh: &self.summary.last_refresh, digest: &self.summary.digest }
    }
}

/// The place under which the text of a version is sealed.
pub fn body_place(id: uuid::Uuid) -> Place {
    Place::new("auth_payloads", "body", id)
}

/// The place under which a target's token of a version is sealed.
pub fn token_place(id: uuid::Uuid, target: &str) -> Place {
    Place::new("auth_entries", "token", format_args!("{id}/{target}"))
}

impl Core {
    /// The canonical version as this node knows it; `None`: none was uploaded yet.
    pub fn canonical(&self) -> Option<Arc<Canonical>> {
        self.canonical.load_full()
    }

    pub(in crate::service) fn open_canonical(&self, version: &CanonicalVersion, as_of: Epoch) -> Result<Canonical> {
        let plain = self.ring.load().open(&body_place(version.id), &version.body)?;
        let text = std::str::from_utf8(&plain).map_err(ServiceError::internal)?;
        let mut summary = version.summary.clone();
        if Digest::of(text.as_bytes()) != version.summary.digest {
            return Err(ServiceError::internal(format!(
                "version {} of the canonical auth does not have the digest it was stored with",
                version.summary.version
            )));
        }
        let without = without_host_members(text).map_err(ServiceError::internal)?;
        if let Some(without) = &without {
            summary.digest = Digest::of(without.as_bytes());
        }
        let text = without.as_deref().map_or(text, String::as_str);
        let last_refresh = Instant::parse(&summary.last_refresh).map_err(ServiceError::internal)?;
        let login = LoginFacts::read(text, &self.policy.load().document_rules).map_err(ServiceError::internal)?;
        let text = Arc::new(DocumentText::new(text).map_err(ServiceError::internal)?);
        Ok(Canonical { summary, last_refresh, login, text, as_of })
    }

    /// Serves `canonical`, which is durable, from now on, unless a version of a later epoch is served already.
    pub(in crate::service) fn adopt_canonical(&self, canonical: Canonical) {
        let new = Arc::new(canonical);
        self.canonical.rcu(|present| match present {
            Some(present) if present.as_of > new.as_of => Some(Arc::clone(present)),
            _ => Some(Arc::clone(&new)),
        });
    }
}
