//! `/admin/audit`: reads and verifies the audit log.

use std::collections::BTreeMap;
use std::net::IpAddr;

use poem_openapi::param::Query;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use super::flags::Flag;
use super::guards::Viewer;
use super::pages::{self, default_limit};
use crate::model::audit::{Actor, AuditEntry, AuditFilter};
use crate::model::digest::Digest;
use crate::service::{Audit, ServiceError};

pub struct AdminAuditApi;

#[OpenApi(tag = "Tag::AdminAudit", prefix_path = "/admin")]
impl AdminAuditApi {
    /// Entries of the audit log as the former service told them, the newest first
    ///
    /// `details` is a JSON text; `GET /admin/audit` has its members.
    #[oai(path = "/logs", method = "get", operation_id = "listLogs")]
    async fn logs(
        &self,
        audit: Area<'_, Audit>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<LogPage> {
        let filter = AuditFilter { before: pages::number(&cursor)?, ..AuditFilter::default() };
        let (entries, next) = audit.audit_page(&filter, limit.0 as usize).await?;
        ok(LogPage { logs: entries.into_iter().map(LogBody::from).collect(), next: next.map(|next| next.to_string()) })
    }

    /// Entries of the audit log, the newest first
    ///
    /// Who did what, when and from where, what was refused, and what the daemon did by itself.
    #[oai(path = "/audit", method = "get", operation_id = "listAudit")]
    #[allow(clippy::too_many_arguments)] // One parameter each of the operation.
    async fn list(
        &self,
        audit: Area<'_, Audit>,
        _viewer: Viewer,
        /// `host.register`, or the noun alone: `host`.
        action: Query<Option<String>>,
        /// Part of the actor's name.
        actor: Query<Option<String>>,
        /// Exactly this target: a host's name, a version's number.
        target: Query<Option<String>>,
        /// Exactly this address.
        from: Query<Option<String>>,
        /// Only what somebody should look at.
        alarms: Query<Option<Flag>>,
        /// RFC 3339; entries from then on.
        since: Query<Option<OffsetDateTime>>,
        /// RFC 3339; entries before that.
        until: Query<Option<OffsetDateTime>>,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<AuditPage> {
        let from: Option<std::result::Result<IpAddr, _>> = from.0.map(|from| from.parse());
        let filter = AuditFilter {
            before: pages::number(&cursor)?,
            action: action.0,
            actor: actor.0,
            target: target.0,
            from: from.transpose().map_err(|_| ServiceError::invalid("from", "must be an IP address"))?,
            alarms_only: alarms.0.is_some_and(Flag::is_set),
            since: since.0,
            until: until.0,
        };
        let (entries, next) = audit.audit_page(&filter, limit.0 as usize).await?;
        ok(AuditPage {
            entries: entries.into_iter().map(AuditBody::from).collect(),
            next: next.map(|next| next.to_string()),
        })
    }

    /// Follow the audit log's chain from its first entry to the newest
    ///
    /// Each entry has a hash over itself and the hash before it, so a change of an earlier entry is found.
    #[oai(path = "/audit/verify", method = "get", operation_id = "verifyAudit")]
    async fn verify(
        &self,
        audit: Area<'_, Audit>,
        _viewer: Viewer,
        /// A hash that was noted elsewhere; it must be part of the chain.
        hash: Query<Option<String>>,
    ) -> Answer<AuditVerification> {
        let noted: Option<std::result::Result<Digest, _>> = hash.0.map(|hash| hash.trim().parse());
        let noted = noted.transpose().map_err(|_| ServiceError::invalid("hash", "must be 64 hex digits"))?;
        let found = audit.verify_audit(noted).await?;
        ok(AuditVerification {
            intact: found.broken.is_none() && found.noted_found != Some(false),
            entries: found.good.number,
            hash: found.good.hash.to_string(),
            broken: found.broken.map(|broken| broken.to_string()),
            noted_found: found.noted_found,
        })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct LogPage {
    logs: Vec<LogBody>,
    next: Option<String>,
}

/// An entry of the audit log in few words.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct LogBody {
    id: u64,
    /// The host that did it; null: somebody else did.
    host_id: Option<u64>,
    action: String,
    /// A JSON text: what `/admin/audit` tells in members of its own.
    details: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<AuditEntry> for LogBody {
    fn from(entry: AuditEntry) -> Self {
        let host_id = match &entry.note.actor {
            Actor::Host { id, .. } => Some(id.0),
            _ => None,
        };
        let AuditBody { number, at, actor, from, action, target, outcome, details, .. } = entry.into();
        let details = serde_json::json!({
            "actor": actor, "from": from, "target": target, "outcome": outcome, "details": details,
        });
        Self { id: number, host_id, action, details: details.to_string(), created_at: at }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuditPage {
    pub entries: Vec<AuditBody>,
    pub next: Option<String>,
}

pages::listed!(AuditPage: entries);

closed_set! {
    /// `control`: root or the daemon's user, over the control socket. `offline`: a command that used the state while no
    /// daemon ran. `anybody`: a caller that is not known.
    pub enum ActorKind {
        Certificate = "certificate",
        Control = "control",
        Offline = "offline",
        Host = "host",
        User = "user",
        Anybody = "anybody",
        Daemon = "daemon",
    }
}

/// An entry of the audit log.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuditBody {
    /// 1, 2, 3, … without a gap.
    pub number: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub actor_kind: ActorKind,
    /// Who it was, in words.
    pub actor: String,
    /// SHA-256 of the certificate, where the actor is one.
    pub fingerprint: Option<String>,
    /// The address of the call.
    pub from: Option<String>,
    pub action: String,
    /// What it was done to.
    pub target: Option<String>,
    /// `done`, `refused`, or the HTTP status of the refusal.
    pub outcome: String,
    /// Somebody should look at it.
    pub alarm: bool,
    pub details: BTreeMap<String, String>,
    /// SHA-256 over this entry and the hash before it.
    pub hash: String,
}

impl From<AuditEntry> for AuditBody {
    fn from(AuditEntry { number, note, hash }: AuditEntry) -> Self {
        let (kind, fingerprint) = match &note.actor {
            Actor::Certificate { fingerprint, .. } => (ActorKind::Certificate, Some(fingerprint.to_string())),
            Actor::Control { .. } => (ActorKind::Control, None),
            Actor::Offline { .. } => (ActorKind::Offline, None),
            Actor::Host { .. } => (ActorKind::Host, None),
            Actor::User { .. } => (ActorKind::User, None),
            Actor::Anybody => (ActorKind::Anybody, None),
            Actor::Daemon => (ActorKind::Daemon, None),
        };
        Self {
            number,
            at: note.at,
            actor_kind: kind,
            actor: note.actor.to_string(),
            fingerprint,
            from: note.from.map(|from| from.to_string()),
            action: note.action,
            target: note.target,
            outcome: note.outcome,
            alarm: note.alarm,
            details: note.details,
            hash: hash.to_string(),
        }
    }
}

/// What following the chain found.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuditVerification {
    pub intact: bool,
    /// How many entries fit, from the first on.
    pub entries: u64,
    /// The hash of the last of them: to be noted elsewhere.
    pub hash: String,
    /// What does not fit.
    pub broken: Option<String>,
    /// Whether the hash that was asked for is part of the chain.
    pub noted_found: Option<bool>,
}
