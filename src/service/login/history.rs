//! The history of the canonical login: list versions, compare two of them, and roll back to one.
//!
//! A roll-back makes a **new** version with the login of an earlier one and the present instant as its `last_refresh`.
//! With the old `last_refresh`, every host that has a newer document would store that at once. For the same reason a
//! token that was issued before the roll-back is older than it. The records decide between a roll-back and a store at
//! the same time. The second one is compared with the winner, and both are in the history. A crash before the
//! transaction changes nothing; after it, the new version is the canonical one.
//!
//! A roll-back cannot bring back a login that upstream has withdrawn: a refresh token is good once.

use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;

use crate::model::auth_document::AuthDocument;
use crate::model::digest::Digest;
use crate::records::{CanonicalSource, CanonicalSummary, Epoch, ReplaceCondition};
use crate::service::core::canonical::Canonical;
use crate::service::{Initiator, Login, Result, ServiceError};

/// How often a roll-back that lost a race is retried.
const MAX_ROLLBACK_ATTEMPTS: usize = 16;

/// One member that differs between two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// A JSON pointer (RFC 6901).
    pub path: String,
    /// The value, if it is not a secret; else a fingerprint: `sha256:` and the first 12 hex digits. `None`: no such
    /// member.
    pub before: Option<String>,
    pub after: Option<String>,
}

/// A page of the versions.
pub struct History {
    pub versions: Vec<CanonicalSummary>,
    /// `before` of the next page; `None`: there is no next page.
    pub next: Option<u64>,
}

impl Login {
    /// The canonical version with its secrets, for an admin. The audit entry is durable before the secrets are
    /// returned.
    pub async fn reveal_canonical(&self, by: &Initiator) -> Result<Option<Arc<Canonical>>> {
        let Some(canonical) = self.core.canonical() else { return Ok(None) };
        self.audit.note_alone(by.note(self.core.platform.now(), "auth.reveal").on(canonical.summary.version)).await?;
        Ok(Some(canonical))
    }

    /// Up to `limit` of the kept versions below `before`, newest first, without the secrets.
    pub async fn canonical_history(&self, before: Option<u64>, limit: usize) -> Result<History> {
        let mut versions = self.core.records.canonical_list(before, limit.saturating_add(1)).await?;
        let is_more = versions.len() > limit;
        versions.truncate(limit);
        let next = versions.last().filter(|_| is_more).map(|last| last.version);
        Ok(History { versions, next })
    }

    /// The differences between two versions, without the secrets.
    pub async fn diff(&self, before: u64, after: u64) -> Result<Vec<Difference>> {
        let (before, after) = (self.version(before).await?, self.version(after).await?);
        let parse = |version: &Canonical| serde_json::from_str(&version.text).map_err(ServiceError::internal);
        let (before, after): (Value, Value) = (parse(&before)?, parse(&after)?);
        let mut differences = Vec::new();
        compare("", Some(&before), Some(&after), &mut differences);
        Ok(differences)
    }

    /// Makes the login of version `number` the canonical one again, as a new version.
    pub async fn roll_back(&self, number: u64, by: &Initiator) -> Result<Arc<Canonical>> {
        let wanted = self.version(number).await?;
        for _ in 0..MAX_ROLLBACK_ATTEMPTS {
            let present = self.core.canonical().ok_or(ServiceError::NotFound("Canonical auth"))?;
            if present.summary.version == number {
                return Err(ServiceError::Conflict(format!("version {number} is the canonical one already")));
            }
            let now = self.core.platform.now();
            let document = self.dated_after(&present, &wanted.text, now)?;
            let source = CanonicalSource::Rollback { by: by.actor.to_string(), of: number };
            let condition = ReplaceCondition::Version(Some(present.summary.version));
            let note = by.note(now, "auth.rollback").with("of", number);
            if self.make_canonical(&document, source, condition, note).await?.is_some()
                && let Some(canonical) = self.core.canonical()
            {
                return Ok(canonical);
            }
        }
        Err(ServiceError::Unavailable { cause: "the canonical auth changed under every attempt to replace it".into() })
    }

    pub(in crate::service) async fn version(&self, number: u64) -> Result<Canonical> {
        let Some(version) = self.core.records.canonical_fetch_version(number).await? else {
            let newest = self.core.canonical().map_or(0, |canonical| canonical.summary.version);
            let was_there = (1..=newest).contains(&number);
            return Err(if was_there {
                ServiceError::VersionNotKept(number)
            } else {
                ServiceError::NotFound("Version")
            });
        };
        // No epoch: the version is compared, never served.
        self.core.open_canonical(&version, Epoch(0))
    }

    /// The stored document `text`, dated now, or just after the present version if that is later.
    fn dated_after(&self, present: &Canonical, text: &str, now: OffsetDateTime) -> Result<AuthDocument> {
        let after = present.last_refresh.after().max(now);
        Ok(AuthDocument::parse_stored(text, now, &self.core.policy.load().document_rules)?.dated(after)?)
    }
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, differences: &mut Vec<Difference>) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for name in names {
                let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                compare(&path, before.get(name), after.get(name), differences);
            }
        }
        (before, after) if before == after => {}
        (before, after) => differences.push(Difference {
            path: path.into(),
            before: before.map(|value| shown(path, value)),
            after: after.map(|value| shown(path, value)),
        }),
    }
}

/// Only members that are known to hold no secret are shown.
fn shown(path: &str, value: &Value) -> String {
    const PLAIN: [&str; 4] = ["last_refresh", "auth_mode", "account_id", "token_type"];
    let name = path.rsplit('/').next().unwrap_or_default();
    match value {
        Value::String(text) if PLAIN.contains(&name) => text.clone(),
        Value::Null | Value::Bool(_) => value.to_string(),
        secret => {
            let digest = Digest::of(secret.to_string().as_bytes()).to_string();
            format!("sha256:{}", &digest[..12])
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_the_member_and_no_secret() {
        let before =
            json!({"tokens": {"access_token": "secret-one", "account_id": "acc"}, "a/b": 1, "last_refresh": "x"});
        let after =
            json!({"tokens": {"access_token": "secret-two", "account_id": "acc"}, "last_refresh": "y", "n": null});
        let mut found = Vec::new();
        compare("", Some(&before), Some(&after), &mut found);
        let paths: Vec<_> = found.iter().map(|difference| difference.path.as_str()).collect();
        assert_eq!(paths, ["/a~1b", "/last_refresh", "/n", "/tokens/access_token"]);
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        assert_eq!((found[1].before.as_deref(), found[1].after.as_deref()), (Some("x"), Some("y")));
        assert_eq!((found[2].before.as_deref(), found[2].after.as_deref()), (None, Some("null")));
        assert!(found[3].before.as_ref().unwrap().starts_with("sha256:"));
        assert_ne!(found[3].before, found[3].after);
    }
}
