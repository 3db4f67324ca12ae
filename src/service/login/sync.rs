//! Retrieve and store of the canonical login: the most important call.
//!
//! A retrieve is answered from memory. A store is answered when it is durable. Whether it replaces the canonical login
//! is decided against one version ([`decide`]). The records replace exactly that version or none: if another version
//! became canonical meanwhile, the store is decided again. A crash before the transaction loses nothing that was
//! acknowledged. A crash after it leaves the new version, which the host finds on its next call.
//!
//! A new version is served from memory once it is durable, without a catch-up; hot state follows with the next poll.
//! Each knows its epoch, so that neither replaces a later version.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::hot::HotHost;
use crate::metrics::Refusal;
use crate::model::audit::{Actor, AuditNote};
use crate::model::auth_document::{
    Allowed, AuthDocument, DocumentText, RenewalVerdict, RequestMembers, decide, split_request, uploaded_text,
};
use crate::model::digest::Digest;
use crate::model::host::{HostActivity, HostId};
use crate::model::instant::{BadInstant, Instant};
use crate::model::version::Version;
use crate::records::{AuthEntry, CanonicalSource, NewCanonical, ProbeTrigger, ReplaceCondition, Replacement};
use crate::service::core::canonical::{Canonical, body_place, token_place};
use crate::service::core::initiator::log_note;
use crate::service::hosts::programs::NativeTarget;
use crate::service::{Initiator, Login, Result, ServiceError};

/// How often a store is decided again because the canonical version changed meanwhile.
const MAX_STORE_ATTEMPTS: usize = 64;

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

    /// Whether the host must send its document.
    pub fn asks_for_store(self) -> bool {
        matches!(self, Self::UploadRequired | Self::Missing)
    }

    /// Whether the answer holds the canonical document.
    pub fn carries_auth(self) -> bool {
        matches!(self, Self::Outdated | Self::Updated | Self::Unchanged)
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

/// The calling host, as the answer describes it.
pub struct SyncHost {
    pub host: Arc<HotHost>,
    pub activity: HostActivity,
    /// What the host says its machine is; `None`: it did not, or there is no such target.
    pub wrapper_target: Option<NativeTarget>,
}

/// Versions from query parameters, for bodies that have none.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryVersions<'a> {
    pub client_version: Option<&'a str>,
    pub wrapper_version: Option<&'a str>,
}

impl Login {
    /// `POST /auth` of an admitted host.
    pub async fn sync(&self, host: Arc<HotHost>, from: IpAddr, body: &str, query: QueryVersions<'_>) -> Result<Sync> {
        let request = SyncRequest::read(body, query)?;
        match request.command {
            SyncCommand::Retrieve => self.retrieve(host, &request),
            // Boxed, so that a retrieve does not need the memory of a store.
            SyncCommand::Store(place) => Box::pin(self.store_of_host(host, from, &request, place)).await,
        }
    }

    /// Must not wait for a store.
    fn retrieve(&self, host: Arc<HotHost>, request: &SyncRequest<'_>) -> Result<Sync> {
        let now = self.core.platform.now();
        self.queue.note_call(now);
        let canonical = self.core.canonical();
        let delivered = canonical.as_deref().map(|it| self.delivered_digest(it, Some(&host))).transpose()?;
        let outcome = compare(canonical.as_deref().zip(delivered), &request.members, now)?;
        let in_hand = canonical
            .as_ref()
            .filter(|_| matches!(outcome, Outcome::Valid | Outcome::Outdated))
            .map(|canonical| canonical.in_hand());
        let seen = host.seen(now, in_hand, request.client_version(), request.wrapper_version());
        let mut activity = seen.activity;
        // The answer describes the host's previous call, not this one: the former service reads before it writes.
        if let Some(before) = seen.replaced_last_refresh {
            activity.last_refresh = before;
        }
        Ok(Sync {
            outcome,
            canonical,
            stored: false,
            host: Some(SyncHost { host, activity, wrapper_target: request.wrapper_target() }),
        })
    }

    async fn store_of_host(
        &self,
        host: Arc<HotHost>,
        from: IpAddr,
        request: &SyncRequest<'_>,
        place: DocumentPlace,
    ) -> Result<Sync> {
        let document = self.read_document(request.document(place)).map_err(|error| match (place, error) {
            (DocumentPlace::AuthText, ServiceError::InvalidJson { reason }) => {
                ServiceError::invalid("auth_text", reason)
            }
            (_, error) => error,
        })?;
        // The answer contains this digest. It is baked first, because nothing may fail after the store.
        self.hosts.wrapper_digest(&host)?;
        let source = CanonicalSource::Host { id: host.id, fqdn: host.fqdn.clone() };
        let by = Initiator { actor: Actor::Host { id: host.id, fqdn: host.fqdn.clone() }, from: Some(from) };
        // An identity that comes with a login of another account belongs to that account.
        let renews = self.core.canonical().is_none_or(|present| document.login().renews(&present.login));
        let host = if renews { self.accept(&document, host, &by).await? } else { host };
        let note = by.note(self.core.platform.now(), "auth.store");
        let (outcome, canonical) = self.store(&document, source, Allowed::default(), note).await?;
        if outcome == Outcome::Updated {
            self.queue.want_probe(ProbeTrigger::Store);
        }
        let in_hand = Some(canonical.in_hand());
        let seen = host.seen(self.core.platform.now(), in_hand, request.client_version(), request.wrapper_version());
        let activity = seen.activity;
        Ok(Sync {
            outcome,
            canonical: Some(canonical),
            stored: true,
            host: Some(SyncHost { host, activity, wrapper_target: request.wrapper_target() }),
        })
    }

    /// An admin's upload: the document, or a text that holds it. It replaces the canonical login by the same rule as a
    /// host's store, unless the request allows more.
    pub async fn upload(&self, body: &str, by: &Initiator) -> Result<Sync> {
        let request = split_request(body)?;
        if let Some(id) = request.raw("host_id").filter(|id| *id != "null") {
            let id = id.parse().map_err(|_| ServiceError::invalid("host_id", "host_id must be a host's number"))?;
            // The host must exist, but every host is given the canonical login.
            self.hosts.host(HostId(id)).await?;
        }
        let flag = |name: &str| match request.raw(name) {
            None | Some("null" | "false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ServiceError::invalid(name, format!("{name} must be true or false"))),
        };
        let probe = flag("probe")?;
        let allowed = Allowed { change_account: flag("change_account")?, even_if_older: flag("even_if_older")? };
        let raw = request.raw("auth_text").or_else(|| request.raw("auth"));
        let raw = raw.ok_or_else(|| ServiceError::invalid("auth", "Auth payload is required"))?;
        self.upload_text(&uploaded_text(raw)?, allowed, probe, by).await.map_err(|error| match error {
            ServiceError::InvalidJson { .. } => ServiceError::Refused("auth payload must be valid JSON".into()),
            error => error,
        })
    }

    /// Like [`Self::upload`], for the document alone. `probe`: a probe of the canonical login is requested at once.
    pub async fn upload_text(&self, document: &str, allowed: Allowed, probe: bool, by: &Initiator) -> Result<Sync> {
        let mut note = by.note(self.core.platform.now(), "auth.upload");
        let actor = by.actor.to_string();
        if allowed.even_if_older {
            note = note.with("even_if_older", true);
        }
        let document = self.read_document(document)?;
        let (outcome, canonical) = self.store(&document, CanonicalSource::Admin { by: actor }, allowed, note).await?;
        if probe {
            self.queue.want_probe(ProbeTrigger::Upload);
        }
        Ok(Sync { outcome, canonical: Some(canonical), stored: true, host: None })
    }

    fn read_document(&self, text: &str) -> Result<AuthDocument> {
        Ok(AuthDocument::parse(text, self.core.platform.now(), &self.core.policy.load().document_rules)?)
    }

    /// Counts a write that a host causes against its hourly limit.
    pub(in crate::service) fn take_store(&self, host: HostId) -> Result<()> {
        let limit = self.core.policy.load().versions.stores_per_host_per_hour;
        self.store_budget.take(host, limit, self.core.platform.now()).map_err(|throttled| {
            self.core.metrics.refused(Refusal::Stores);
            ServiceError::StoresLimited(throttled)
        })
    }

    /// Stores `document` if it replaces the canonical login. `Updated`: it became canonical, and is durable. If there
    /// is a newer version by then, that one is returned. A login of another account is refused, with an alarm.
    async fn store(
        &self,
        document: &AuthDocument,
        source: CanonicalSource,
        allowed: Allowed,
        note: AuditNote,
    ) -> Result<(Outcome, Arc<Canonical>)> {
        let now = self.core.platform.now();
        let host = match source {
            CanonicalSource::Host { id, .. } => Some(id),
            _ => None,
        };
        let mut is_caught_up = false;
        for _ in 0..MAX_STORE_ATTEMPTS {
            let present = self.core.canonical();
            let decide = |allowed| decide(document, present.as_deref().map(Canonical::present), allowed, now);
            let wins = |allowed| matches!(decide(allowed), Ok(RenewalVerdict::Replaces(_)));
            let document = match (decide(allowed)?, present.as_ref()) {
                (RenewalVerdict::Replaces(document), _) => document,
                (RenewalVerdict::Unchanged, Some(present)) => return Ok((Outcome::Unchanged, Arc::clone(present))),
                (RenewalVerdict::Outdated, Some(present)) => return Ok((Outcome::Outdated, Arc::clone(present))),
                // An admin on another node may have changed the account a moment ago.
                (RenewalVerdict::OtherAccount, Some(_)) if !is_caught_up => {
                    self.core.catch_up().await?;
                    is_caught_up = true;
                    continue;
                }
                (RenewalVerdict::OtherAccount, Some(present)) => {
                    // The refusal counts as a store, because it is written to the audit log.
                    host.map_or(Ok(()), |id| self.take_store(id))?;
                    let (present, new) = (present.login.to_string(), document.login().to_string());
                    let note = note.with("present", &present).with("new", &new);
                    self.audit.note_alone(note.refused("another account").alarm()).await?;
                    return Err(ServiceError::OtherAccount { present, new });
                }
                (_, None) => return Err(ServiceError::internal("a login was compared without a canonical one")),
            };
            let mut note = note.clone();
            if let Some(present) = present.as_ref().filter(|present| !document.login().renews(&present.login)) {
                note = note.with("present", &present.login).with("new", document.login()).alarm();
            }
            let source = match &source {
                CanonicalSource::Admin { by }
                    if allowed.even_if_older && !wins(Allowed { even_if_older: false, ..allowed }) =>
                {
                    CanonicalSource::Override { by: by.clone() }
                }
                source => source.clone(),
            };
            let condition = ReplaceCondition::Version(present.as_ref().map(|present| present.summary.version));
            host.map_or(Ok(()), |id| self.take_store(id))?;
            let stored = self.make_canonical(&document, source, condition, note).await;
            if let (Some(id), Err(_) | Ok(None)) = (host, &stored) {
                self.store_budget.give_back(id);
            }
            if stored?.is_some() {
                let canonical = self.core.canonical();
                let canonical =
                    canonical.ok_or_else(|| ServiceError::internal("the canonical auth disappeared after a store"))?;
                return Ok((Outcome::Updated, canonical));
            }
        }
        Err(ServiceError::Unavailable { cause: "the canonical auth changed under every attempt to replace it".into() })
    }

    /// Makes `document` the canonical version if the present one meets `condition`. When this returns its number, it is
    /// durable and served. `None`: another version is canonical, and this node serves that.
    pub(in crate::service) async fn make_canonical(
        &self,
        document: &AuthDocument,
        source: CanonicalSource,
        condition: ReplaceCondition,
        note: AuditNote,
    ) -> Result<Option<u64>> {
        let candidate = self.seal_document(Uuid::new_v4(), document, &source)?;
        let text = Arc::new(DocumentText::new(document.text()).map_err(ServiceError::internal)?);
        let note = note.with("digest", candidate.digest).with("last_refresh", &candidate.last_refresh);
        match self.core.records.canonical_replace(&condition, &candidate, &note).await? {
            Replacement::Replaced { version, epoch } => {
                let number = version.summary.version;
                log_note(&note.on(number));
                self.version_stored.notify_one();
                // The document was sealed here, so it is not read back. It is served from now on.
                self.core.adopt_canonical(Canonical {
                    summary: version.summary,
                    last_refresh: document.last_refresh().clone(),
                    login: document.login().clone(),
                    text,
                    as_of: epoch,
                });
                Ok(Some(number))
            }
            Replacement::Conflict(present) => {
                let present = present.map(|present| present.summary.version);
                if self.core.canonical().map(|known| known.summary.version) != present {
                    self.core.catch_up().await?;
                }
                Ok(None)
            }
        }
    }

    fn seal_document(&self, id: Uuid, document: &AuthDocument, source: &CanonicalSource) -> Result<NewCanonical> {
        let ring = self.core.ring.load();
        let seal = |place, plain: &str| ring.seal(&place, plain.as_bytes(), &*self.core.platform);
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
            at: self.core.platform.now(),
        })
    }
}

/// A split request body, with the versions from the query.
struct SyncRequest<'a> {
    body: &'a str,
    members: RequestMembers<'a>,
    query: QueryVersions<'a>,
    command: SyncCommand,
}

#[derive(Clone, Copy)]
enum SyncCommand {
    Retrieve,
    Store(DocumentPlace),
}

/// Where a store has its document.
#[derive(Clone, Copy)]
enum DocumentPlace {
    /// The string `auth_text`.
    AuthText,
    /// The object `auth`.
    Auth,
    /// The whole body.
    Body,
}

impl<'a> SyncRequest<'a> {
    fn read(body: &'a str, query: QueryVersions<'a>) -> Result<Self> {
        let members = split_request(body)?;
        Ok(Self { command: command(&members)?, body, members, query })
    }

    fn document(&self, place: DocumentPlace) -> &str {
        match place {
            DocumentPlace::AuthText => self.members.text("auth_text").unwrap_or_default(),
            DocumentPlace::Auth => self.members.raw("auth").unwrap_or_default(),
            DocumentPlace::Body => self.body,
        }
    }

    fn client_version(&self) -> Option<&str> {
        reported_version(self.members.text("client_version"), self.query.client_version)
    }

    fn wrapper_version(&self) -> Option<&str> {
        reported_version(self.members.text("wrapper_version"), self.query.wrapper_version)
    }

    fn wrapper_target(&self) -> Option<NativeTarget> {
        self.members.text("wrapper_target")?.parse().ok()
    }
}

/// `canonical`: the canonical version, and the digest of what the host receives.
fn compare(
    canonical: Option<(&Canonical, Digest)>,
    request: &RequestMembers<'_>,
    now: OffsetDateTime,
) -> Result<Outcome> {
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
    // A host with the canonical document sends its instant in the same spelling, which is parsed already.
    let (canonical, delivered) = canonical.unzip();
    let last_refresh = match canonical.filter(|canonical| canonical.last_refresh.text() == last_refresh) {
        Some(canonical) => Ok(Cow::Borrowed(&canonical.last_refresh)),
        None => Instant::parse(last_refresh).map(Cow::Owned),
    };
    let invalid = |error: BadInstant| ServiceError::invalid("last_refresh", error.to_string());
    let last_refresh = last_refresh.map_err(invalid)?;
    let is_ahead = match last_refresh.check(now) {
        Ok(()) => false,
        // The host's clock is wrong then. Its document may still be right, so it is asked for.
        Err(BadInstant::InFuture) => true,
        Err(error) => return Err(invalid(error)),
    };
    let Some(canonical) = canonical else { return Ok(Outcome::Missing) };
    Ok(if delivered == Some(digest) {
        Outcome::Valid
    } else if *last_refresh > canonical.last_refresh || (is_ahead && *last_refresh != canonical.last_refresh) {
        Outcome::UploadRequired
    } else {
        Outcome::Outdated
    })
}

/// Without a command it is a retrieve, unless the body is itself a document: no `auth`, but `last_refresh` and
/// `tokens`.
fn command(request: &RequestMembers<'_>) -> Result<SyncCommand> {
    let bad = || ServiceError::invalid("command", "command must be \"retrieve\" or \"store\"");
    let place = match (request.text("auth_text"), request.raw("auth")) {
        (Some(_), _) => Some(DocumentPlace::AuthText),
        (None, Some(raw)) => raw.starts_with('{').then_some(DocumentPlace::Auth),
        (None, None) => (request.has("last_refresh") && request.has("tokens")).then_some(DocumentPlace::Body),
    };
    let given = match request.raw("command") {
        None | Some("null") => "",
        Some(_) => request.text("command").ok_or_else(bad)?.trim(),
    };
    let is = |name: &str| given.eq_ignore_ascii_case(name);
    match place {
        _ if is("retrieve") => Ok(SyncCommand::Retrieve),
        Some(place) if is("store") => Ok(SyncCommand::Store(place)),
        None if is("store") => Err(ServiceError::invalid("auth", "Auth payload is required")),
        Some(DocumentPlace::Body) if is("") => Ok(SyncCommand::Store(DocumentPlace::Body)),
        _ if is("") => Ok(SyncCommand::Retrieve),
        _ => Err(bad()),
    }
}

fn reported_version<'a>(body: Option<&'a str>, query: Option<&'a str>) -> Option<&'a str> {
    body.and_then(Version::within).or_else(|| query.and_then(Version::within))
}
