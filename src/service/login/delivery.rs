//! What each host receives of the canonical login, and what is stored for that host alone.
//!
//! A host is served the document as stored. A host may bring an agent identity, a private key that Codex registered for
//! it. That host also gets the identity back, as the last member; no other host does. So its digest differs from the
//! canonical text's. Any other difference between hosts belongs here and nowhere else: [`Login::deliver`] turns the
//! canonical version and the host into bytes and digest, [`Login::accept`] goes back.
//!
//! An agent identity is durable before the store that brought it goes on. A crash after that leaves the identity
//! without the login. The host got no answer, so it stores both again.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::hot::HotHost;
use crate::model::auth_document::{AuthDocument, DocumentText, with_agent_identity};
use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::seal::Place;
use crate::service::core::canonical::Canonical;
use crate::service::core::initiator::log_note;
use crate::service::{Initiator, Login, Result, ServiceError};

/// The document that one host is served. `digest` is the SHA-256 of exactly `text`.
pub struct Delivery {
    pub text: Arc<DocumentText>,
    pub digest: Digest,
}

/// The longest agent identity that is kept.
const MAX_AGENT_IDENTITY_BYTES: usize = 16 * 1024;

/// The place under which a host's agent identity is sealed.
pub fn agent_identity_place(id: HostId) -> Place {
    Place::new("hosts", "agent_identity", id)
}

impl Login {
    /// The document that `host` receives; without a host, the canonical one.
    pub fn deliver(&self, canonical: &Canonical, host: Option<&HotHost>) -> Result<Delivery> {
        let shared = || Delivery { text: Arc::clone(&canonical.text), digest: canonical.summary.digest };
        let Some((host, kept)) = host.and_then(|host| Some((host, host.agent_identity.as_deref()?))) else {
            return Ok(shared());
        };
        let identity = self.open_agent_identity(host)?.unwrap_or_default();
        let delivery = match with_agent_identity(&canonical.text, &identity).map_err(ServiceError::internal)? {
            Some(text) => Delivery {
                digest: Digest::of(text.as_bytes()),
                text: Arc::new(DocumentText::new(&text).map_err(ServiceError::internal)?),
            },
            None => shared(),
        };
        kept.delivered.put(canonical.summary.digest, delivery.digest);
        Ok(delivery)
    }

    /// The document that `host` should have.
    pub fn document_of(&self, host: &HotHost) -> Result<Delivery> {
        let canonical = self.core.canonical().ok_or(ServiceError::NotFound("Canonical auth"))?;
        self.deliver(&canonical, Some(host))
    }

    /// The digest of what [`Self::deliver`] returns, without building the document for every call.
    pub fn delivered_digest(&self, canonical: &Canonical, host: Option<&HotHost>) -> Result<Digest> {
        let Some(kept) = host.and_then(|host| host.agent_identity.as_deref()) else {
            return Ok(canonical.summary.digest);
        };
        match kept.delivered.with(&canonical.summary.digest, |digest| *digest) {
            Some(digest) => Ok(digest),
            None => Ok(self.deliver(canonical, host)?.digest),
        }
    }

    /// Stores the part of a host's document that is for that host alone. Returns the host with it.
    pub(in crate::service) async fn accept(
        &self,
        document: &AuthDocument,
        host: Arc<HotHost>,
        by: &Initiator,
    ) -> Result<Arc<HotHost>> {
        let Some(identity) = document.agent_identity() else { return Ok(host) };
        if identity.len() > MAX_AGENT_IDENTITY_BYTES {
            let message = format!("must be {MAX_AGENT_IDENTITY_BYTES} bytes or less");
            return Err(ServiceError::invalid("auth.agent_identity", message));
        }
        // A stored identity that cannot be opened is replaced.
        if self.open_agent_identity(&host).ok().flatten().as_deref().map(String::as_str) == Some(identity) {
            return Ok(host);
        }
        // It counts against the host's hourly limit, as a new version does.
        self.take_store(host.id)?;
        let sealed =
            self.core.ring.load().seal(&agent_identity_place(host.id), identity.as_bytes(), &*self.core.platform)?;
        let note = by.note(self.core.platform.now(), "host.agent_identity").on(&host.fqdn);
        if !self.core.records.host_set_agent_identity(host.id, &host.key_digest, &sealed, &note).await? {
            // The host was removed, or was given a new key, since this call was admitted.
            return Err(ServiceError::KeyInvalid);
        }
        log_note(&note);
        // The identity is durable: nothing from here on may fail the call. The next poll catches up.
        if let Err(error) = self.core.catch_up().await {
            log::debug!(event = "catch_up_failed", cause:% = error; "an agent identity is stored, but not served yet");
        }
        Ok(self.core.hot.host_by_id(host.id).ok().flatten().unwrap_or(host))
    }

    /// `None`: the host has none.
    fn open_agent_identity(&self, host: &HotHost) -> Result<Option<Zeroizing<String>>> {
        let Some(kept) = host.agent_identity.as_deref() else { return Ok(None) };
        let opened = self.core.ring.load().open(&agent_identity_place(host.id), &kept.sealed);
        // If another node has just rotated the data keys, this node learns the newly sealed value a moment later.
        let plain = opened.map_err(|error| ServiceError::Unavailable {
            cause: format!("the agent identity of {} cannot be opened: {error}", host.fqdn),
        })?;
        let text = std::str::from_utf8(&plain).map_err(ServiceError::internal)?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }
}
