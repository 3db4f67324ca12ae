//! Retrieve and store: the call that matters most.
//!
//! A retrieve is answered from memory. A store is answered when it is durable; of two stores at once the records decide,
//! and the one that was second is compared again with what won. A crash before the records have it loses nothing that
//! was acknowledged; a crash after leaves the new version, which the host finds on its next call.

use std::sync::Arc;

use uuid::Uuid;

use super::canonical::{Canonical, body_place, token_place};
use super::delivery;
use super::{Result, Service, ServiceError};
use crate::hot::HotHost;
use crate::model::auth_document::{AuthDocument, RequestMembers, split_request, uploaded_text};
use crate::model::digest::Digest;
use crate::model::host::HostActivity;
use crate::model::instant::Instant;
use crate::model::version::Version;
use crate::records::{AuthEntry, NewCanonical, Source};

/// How often a store that lost a race is compared again before the host is asked to come back.
const STORE_ATTEMPTS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Valid,
    UploadRequired,
    Outdated,
    Missing,
    Updated,
    Unchanged,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::UploadRequired => "upload_required",
            Self::Outdated => "outdated",
            Self::Missing => "missing",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
        }
    }

    /// Whether the host is to send its document.
    pub fn asks_for_store(self) -> bool {
        matches!(self, Self::UploadRequired | Self::Missing)
    }

    /// Whether the answer holds the canonical document.
    pub fn carries_auth(self) -> bool {
        matches!(self, Self::Outdated | Self::Updated)
    }
}

/// The answer to `POST /auth`, and to an admin's upload.
pub struct Sync {
    pub outcome: Outcome,
    /// The canonical version after the call.
    pub canonical: Option<Arc<Canonical>>,
    /// Whether this was a store.
    pub stored: bool,
    pub host: Option<SyncHost>,
}

/// The calling host, as it is told of itself.
pub struct SyncHost {
    pub host: Arc<HotHost>,
    pub activity: HostActivity,
}

/// Versions that came as query parameters, for bodies that have none.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryVersions<'a> {
    pub client_version: Option<&'a str>,
    pub wrapper_version: Option<&'a str>,
}

impl Service {
    /// `POST /auth` of a host that was let in.
    pub async fn sync(&self, host: Arc<HotHost>, body: &str, query: QueryVersions<'_>) -> Result<Sync> {
        let request = split_request(body)?;
        let client_version = reported_version(request.text("client_version"), query.client_version);
        let wrapper_version = reported_version(request.text("wrapper_version"), query.wrapper_version);
        match command(&request, body)? {
            Command::Retrieve => {
                let (outcome, canonical) = self.compare(&host, &request)?;
                // The host is told of its last call, not of this one: the recorded service reads before it writes.
                let before = host.activity().last_refresh;
                let known = canonical
                    .as_ref()
                    .filter(|_| matches!(outcome, Outcome::Valid | Outcome::Outdated))
                    .map(|canonical| canonical.summary.last_refresh.as_str());
                host.seen(self.outside.now(), known, client_version.as_deref(), wrapper_version.as_deref());
                let activity = HostActivity { last_refresh: before, ..host.activity() };
                Ok(Sync { outcome, canonical, stored: false, host: Some(SyncHost { host, activity }) })
            }
            Command::Store(document) => {
                let document = delivery::accept(document, Some(&host));
                let source = Source::Host { id: host.id, fqdn: host.fqdn.clone() };
                let (outcome, canonical) = self.store(document, source).await?;
                let known = Some(canonical.summary.last_refresh.as_str());
                host.seen(self.outside.now(), known, client_version.as_deref(), wrapper_version.as_deref());
                let activity = host.activity();
                Ok(Sync { outcome, canonical: Some(canonical), stored: true, host: Some(SyncHost { host, activity }) })
            }
        }
    }

    /// An admin's upload: the document itself, or a text that holds it. It wins by the same rule as a host's.
    pub async fn upload(&self, body: &str, by: &str) -> Result<Sync> {
        let request = split_request(body)?;
        let raw = request.raw("auth").ok_or_else(|| ServiceError::invalid("auth", "Auth payload is required"))?;
        let (outcome, canonical) =
            self.store(&uploaded_text(raw)?, Source::Admin { by: by.into() }).await.map_err(|error| match error {
                ServiceError::InvalidJson { .. } => ServiceError::Refused("auth payload must be valid JSON".into()),
                error => error,
            })?;
        Ok(Sync { outcome, canonical: Some(canonical), stored: true, host: None })
    }

    fn compare(&self, host: &HotHost, request: &RequestMembers<'_>) -> Result<(Outcome, Option<Arc<Canonical>>)> {
        let digest = ["digest", "auth_digest", "auth_sha"]
            .into_iter()
            .find_map(|name| request.text(name))
            .ok_or_else(|| ServiceError::invalid("digest", "digest is required"))?;
        let digest: Digest = digest
            .trim()
            .parse()
            .map_err(|error: crate::model::digest::NotADigest| ServiceError::invalid("digest", error.to_string()))?;
        let last_refresh = request
            .text("last_refresh")
            .filter(|text| !text.trim().is_empty())
            .ok_or_else(|| ServiceError::invalid("last_refresh", "last_refresh is required"))?;
        let last_refresh = Instant::parse(last_refresh)
            .and_then(|instant| instant.check(self.outside.now()).map(|()| instant))
            .map_err(|error| ServiceError::invalid("last_refresh", error.to_string()))?;
        let Some(canonical) = self.canonical() else {
            return Ok((Outcome::Missing, None));
        };
        let outcome = if digest == delivery::deliver(&canonical, Some(host)).digest {
            Outcome::Valid
        } else if last_refresh > canonical.last_refresh {
            Outcome::UploadRequired
        } else {
            Outcome::Outdated
        };
        Ok((outcome, Some(canonical)))
    }

    /// Stores `document` if it is newer than the canonical one. Durable when this returns `Updated`.
    async fn store(&self, document: &str, source: Source) -> Result<(Outcome, Arc<Canonical>)> {
        let now = self.outside.now();
        let document = AuthDocument::parse(document, now, &self.policy.load().document_rules)?;
        let id = Uuid::new_v4();
        for _ in 0..STORE_ATTEMPTS {
            let present = self.canonical();
            if let Some(present) = present.as_ref() {
                match document.last_refresh().cmp(&present.last_refresh) {
                    std::cmp::Ordering::Less => return Ok((Outcome::Outdated, present.clone())),
                    std::cmp::Ordering::Equal => return Ok((Outcome::Unchanged, present.clone())),
                    std::cmp::Ordering::Greater => {}
                }
            }
            // Sealed anew for each attempt: a rotation of the data keys may have come between.
            let candidate = self.seal_document(id, &document, &source)?;
            if self.replace_canonical(present.map(|present| present.summary.version), &candidate).await?
                && let Some(canonical) = self.canonical()
            {
                log::info!(event = "canonical_replaced", version = canonical.summary.version, digest:% = canonical.summary.digest, source:? = canonical.summary.source; "a new canonical auth was stored");
                return Ok((Outcome::Updated, canonical));
            }
        }
        Err(ServiceError::Unavailable { cause: "the canonical auth changed under every attempt to replace it".into() })
    }

    fn seal_document(&self, id: Uuid, document: &AuthDocument, source: &Source) -> Result<NewCanonical> {
        let ring = self.ring.load();
        let seal = |place, plain: &str| ring.seal(&place, plain.as_bytes(), &*self.outside);
        let entries = document
            .targets()
            .iter()
            .map(|target| {
                Ok(AuthEntry {
                    token: seal(token_place(id, &target.name), target.token.expose())?,
                    target: target.name.clone(),
                    token_type: target.token_type.clone(),
                    organization: target.organization.clone(),
                    project: target.project.clone(),
                    api_base: target.api_base.clone(),
                })
            })
            .collect::<Result<_>>()?;
        Ok(NewCanonical {
            id,
            digest: document.digest(),
            last_refresh: document.last_refresh().text().to_owned(),
            body: seal(body_place(id), document.text())?,
            entries,
            source: source.clone(),
            at: self.outside.now(),
        })
    }
}

enum Command<'a> {
    Retrieve,
    Store(&'a str),
}

/// Without a command it is a retrieve, unless the body is itself a document: no `auth`, but `last_refresh` and tokens.
fn command<'a>(request: &RequestMembers<'a>, body: &'a str) -> Result<Command<'a>> {
    let bad = || ServiceError::invalid("command", "command must be \"retrieve\" or \"store\"");
    let auth = request.raw("auth");
    let document = match auth {
        Some(raw) => raw.starts_with('{').then_some(raw),
        None => (request.has("last_refresh") && request.has("tokens")).then_some(body),
    };
    let given = match request.raw("command") {
        None | Some("null") => String::new(),
        Some(_) => request.text("command").ok_or_else(bad)?.trim().to_ascii_lowercase(),
    };
    match (given.as_str(), document) {
        ("retrieve", _) => Ok(Command::Retrieve),
        ("store", Some(document)) => Ok(Command::Store(document)),
        ("store", None) => Err(ServiceError::invalid("auth", "Auth payload is required")),
        ("", Some(document)) if auth.is_none() => Ok(Command::Store(document)),
        ("", _) => Ok(Command::Retrieve),
        _ => Err(bad()),
    }
}

fn reported_version(body: Option<&str>, query: Option<&str>) -> Option<String> {
    let reported = |text: &str| Version::reported(text).map(|version| version.as_str().to_owned());
    body.and_then(reported).or_else(|| query.and_then(reported))
}
