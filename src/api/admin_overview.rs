//! `/admin/overview`: a summary of the fleet and of the caller's certificate.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::admin_runner::RestoredLoginBody;
use super::area::Area;
use super::errors::{Answer, ok};
use super::guards::Viewer;
use super::versions::VersionsBody;
use crate::model::audit::Actor;
use crate::service::Initiator;
use crate::service::core::health::{Degraded, GOES_ON, REFUSED};
use crate::service::{Core, Hosts, Probes, Status, Trust};

pub struct AdminOverviewApi;

#[OpenApi(tag = "Tag::AdminOverview", prefix_path = "/admin")]
impl AdminOverviewApi {
    /// The fleet at a glance
    ///
    /// Answered while the daemon is degraded, too.
    #[oai(path = "/overview", method = "get", operation_id = "getOverview")]
    async fn overview(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        trust: Area<'_, Trust>,
        probes: Area<'_, Probes>,
        status: Area<'_, Status>,
        viewer: Viewer,
    ) -> Answer<OverviewBody> {
        let overview = status.overview().await?;
        let canonical = core.canonical();
        let seed_reasons = if canonical.is_some() { vec![] } else { vec!["no_canonical_auth".into()] };
        ok(OverviewBody {
            mtls: MtlsBody::of(&trust, &viewer.0),
            totals: Totals { hosts: overview.hosts as u64 },
            latest_log_at: overview.noted_at,
            has_canonical_auth: canonical.is_some(),
            last_refresh: canonical.map(|canonical| canonical.summary.last_refresh.clone()),
            avg_refresh_age_days: overview.average_age_days,
            versions: hosts.versions(None, None)?.into(),
            seed_required: !seed_reasons.is_empty(),
            seed_reasons,
            quota_hard_fail: true,
            restored_login: probes.restored_login().map(RestoredLoginBody::from),
            degraded: overview.degraded.map(DegradedBody::from),
            store: StoreBody::of(&core),
        })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct OverviewBody {
    pub mtls: MtlsBody,
    pub totals: Totals,
    /// When the newest entry of the audit log was written; null while the log cannot be read.
    #[serde(with = "time::serde::rfc3339::option")]
    pub latest_log_at: Option<OffsetDateTime>,
    /// `last_refresh` of the canonical login.
    pub last_refresh: Option<String>,
    /// How old the logins are that hosts have in hand, on average; null: no host has one, as far as it told.
    pub avg_refresh_age_days: Option<f64>,
    pub versions: VersionsBody,
    pub has_canonical_auth: bool,
    /// Hosts cannot be served before something is done: `seed_reasons` says what is missing.
    pub seed_required: bool,
    /// `no_canonical_auth`: upload an `auth.json`.
    pub seed_reasons: Vec<String>,
    pub quota_hard_fail: bool,
    /// The canonical login came back from a backup, and is not proved by itself; left out: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_login: Option<RestoredLoginBody>,
    /// Left out: everything works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<DegradedBody>,
    pub store: StoreBody,
}

/// The records are away, or a store has failed.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct DegradedBody {
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// What the system or the database said.
    pub cause: String,
    /// Of when it is what hosts are served; null: not known.
    #[serde(with = "time::serde::rfc3339::option")]
    pub known_at: Option<OffsetDateTime>,
    /// What goes on, in words.
    pub goes_on: String,
    /// What is refused until it is over, in words.
    pub refused: String,
}

impl From<Degraded> for DegradedBody {
    fn from(Degraded { since, why, known_at }: Degraded) -> Self {
        Self { since, cause: why, known_at, goes_on: GOES_ON.into(), refused: REFUSED.into() }
    }
}

/// The records as a whole.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct StoreBody {
    /// Changes when they are restored from a backup or moved; null: they never were.
    pub incarnation: Option<String>,
    /// Since when they take no changes; null: they do.
    #[serde(with = "time::serde::rfc3339::option")]
    pub stands_still_since: Option<OffsetDateTime>,
    /// Why they take none, and what to do.
    pub stands_still_reason: Option<String>,
}

impl StoreBody {
    fn of(core: &Core) -> Self {
        let standstill = core.health.standstill();
        Self {
            incarnation: core.health.incarnation().map(|id| id.to_string()),
            stands_still_since: standstill.as_ref().map(|still| still.since),
            stands_still_reason: standstill.map(|still| still.reason.clone()),
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Totals {
    pub hosts: u64,
}

/// The certificate of who asks; all null on the control socket.
#[derive(Debug, Default, Object, Serialize, Deserialize)]
pub struct MtlsBody {
    /// SHA-256 of the certificate.
    pub fingerprint: Option<String>,
    /// The name it was issued to.
    pub subject: Option<String>,
    /// The id of the authority that signed it, as `/admin/authorities` lists it; null where it is not known.
    pub issuer: Option<String>,
}

impl MtlsBody {
    fn of(trust: &Trust, by: &Initiator) -> Self {
        let Actor::Certificate { name, fingerprint } = &by.actor else { return Self::default() };
        let authority = trust.admitted_certificate(fingerprint).and_then(|certificate| certificate.authority);
        Self {
            fingerprint: Some(fingerprint.to_string()),
            subject: Some(name.clone()),
            issuer: authority.map(|id| id.to_string()),
        }
    }
}
