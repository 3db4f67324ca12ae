//! Authorities, admin certificates, data keys, and the values that are sealed with them.

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Row, Value};
use time::OffsetDateTime;

use super::MySql;
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::tables::sealing::{self, SealedColumn};
use super::tables::{authorities, certificates, settings, users};
use super::transaction::{Change, Set};
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::records::{AdminCertificate, Authority, AuthorityStep, Result, SealingKey, TrustRecords, rules};
use crate::seal::{KeyId, Place, Sealed};

#[async_trait]
impl TrustRecords for MySql {
    async fn authority_list(&self) -> Result<Vec<Authority>> {
        read!(self, |connection| authorities::all(connection).await)
    }

    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        note: &AuditNote,
    ) -> Result<Option<Vec<Authority>>> {
        change!(self, |change| {
            let present = authorities::all(change.connection).await?;
            let Some((written, gone)) = rules::roll(&present, role, step) else { return Ok(None) };
            sealing::check(change, written.iter().map(|authority| &authority.private_key)).await?;
            for authority in &written {
                if present.iter().any(|known| known.id == authority.id) {
                    let values = vec![authorities::slot(authority.slot), rows::id(authority.id)];
                    change.run("UPDATE authorities SET slot = ? WHERE id = ?", values).await?;
                } else {
                    authorities::insert(change, authority).await?;
                }
            }
            if let Some(gone) = &gone {
                change.run("DELETE FROM authorities WHERE id = ?", vec![rows::id(gone.id)]).await?;
            }
            change.mark(Set::Authorities);
            change.note(note);
            Ok(Some(rules::rolled(present, written, gone)))
        })
    }

    async fn server_key_fetch(&self) -> Result<Option<Sealed>> {
        read!(self, |connection| settings::server_key(connection).await)
    }

    async fn certificate_record(&self, certificate: &AdminCertificate, note: &AuditNote) -> Result<()> {
        change!(self, |change| {
            if certificates::fetch(change.connection, &certificate.fingerprint).await?.is_some() {
                return Ok(());
            }
            certificates::insert(change, certificate).await?;
            change.mark(Set::Certificates);
            change.note(note);
            Ok(())
        })
    }

    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>> {
        read!(self, |connection| certificates::all(connection).await)
    }

    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |change| {
            let known = certificates::fetch(change.connection, &certificate.fingerprint).await?;
            if known.is_some() {
                return Ok(known);
            }
            let found = certificates::fetch(change.connection, old).await?;
            let Some(old) = found.filter(|old| old.revoked_at.is_none()) else { return Ok(None) };
            let renewed = AdminCertificate { user: old.user, ..certificate.clone() };
            certificates::insert(change, &renewed).await?;
            if let Some(at) = revoke_at {
                let values = vec![rows::time(at), rows::digest(&old.fingerprint)];
                change.run("UPDATE admin_certificates SET revoked_at = ? WHERE fingerprint = ?", values).await?;
            }
            change.mark(Set::Certificates);
            change.note(note);
            Ok(Some(renewed))
        })
    }

    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |change| {
            let found = certificates::fetch(change.connection, fingerprint).await?;
            let Some(certificate) = found.filter(|certificate| certificate.revoked_at.is_none()) else {
                return Ok(None);
            };
            let values = vec![rows::time(at), rows::digest(fingerprint)];
            change.run("UPDATE admin_certificates SET revoked_at = ? WHERE fingerprint = ?", values).await?;
            change.mark(Set::Certificates);
            change.note(note);
            Ok(Some(AdminCertificate { revoked_at: Some(rows::truncated(at)), ..certificate }))
        })
    }

    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |change| {
            let Some(certificate) = certificates::fetch(change.connection, fingerprint).await? else { return Ok(None) };
            if let Some(user) = user
                && users::by_id(change.connection, user).await?.is_none()
            {
                return Ok(None);
            }
            if certificate.user == user {
                return Ok(Some(certificate));
            }
            let values = vec![user.map(|user| user.0).into(), rows::digest(fingerprint)];
            change.run("UPDATE admin_certificates SET user_id = ? WHERE fingerprint = ?", values).await?;
            change.mark(Set::Certificates);
            change.note(note);
            Ok(Some(AdminCertificate { user, ..certificate }))
        })
    }

    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>> {
        read!(self, |connection| sealing::all(connection).await)
    }

    async fn sealing_key_add(&self, key: &SealingKey, note: &AuditNote) -> Result<bool> {
        change!(self, |change| {
            if sealing::all(change.connection).await?.iter().any(|known| known.id == key.id) {
                return Ok(false);
            }
            sealing::insert(change, key).await?;
            change.note(note);
            Ok(true)
        })
    }

    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool> {
        change!(self, |change| {
            let keys = sealing::all(change.connection).await?;
            let is_there = keys.iter().any(|key| key.id == id);
            if !is_there || keys.iter().all(|key| key.id <= id) {
                return Ok(false);
            }
            for SealedColumn { table, column, .. } in &sealing::SEALED_COLUMNS {
                let statement = format!("SELECT 1 FROM {table} WHERE {column}_key = ? LIMIT 1");
                let used: Option<u64> = change.connection.exec_first(statement, (id.0,)).await?;
                if used.is_some() {
                    return Ok(false);
                }
            }
            change.run("DELETE FROM sealing_keys WHERE id = ?", vec![id.0.into()]).await?;
            // No node caches the key. But a concurrent use of it on another node of a cluster must conflict, so this
            // writes `heads`.
            change.epoch();
            Ok(true)
        })
    }

    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
        read!(self, |connection| {
            let mut found = Vec::new();
            for holder in &sealing::SEALED_COLUMNS {
                let SealedColumn { table, column, id, .. } = holder;
                let statement = format!("SELECT {id}, {column} FROM {table} WHERE {column}_key < ? LIMIT ?");
                let rows: Vec<Row> = connection.exec(statement, (active.0, (limit - found.len()) as u64)).await?;
                for row in rows {
                    let mut columns = Columns::of(table, row);
                    found.push((holder.place(&columns.text()?)?, columns.sealed()?));
                }
                if found.len() >= limit {
                    break;
                }
            }
            Ok(found)
        })
    }

    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
        change!(self, |change| {
            let holder = sealing::SEALED_COLUMNS
                .iter()
                .find(|holder| holder.table == place.table && holder.column == place.column);
            let Some((holder, (which, id))) = holder.and_then(|holder| Some((holder, holder.find(&place.id)?))) else {
                return Ok(false);
            };
            sealing::check(change, [new]).await?;
            let SealedColumn { table, column, .. } = holder;
            let present = format!("SELECT {column} FROM {table} WHERE {which}");
            let row: Option<Row> = change.connection.exec_first(present, id.clone()).await?;
            let present = row.map(|row| Columns::of(table, row).optional_sealed()).transpose()?.flatten();
            if present.as_ref() != Some(old) {
                return Ok(false);
            }
            let mut values = vec![rows::sealed(new), rows::key_of(new)];
            values.extend(id.iter().cloned());
            change.run(&format!("UPDATE {table} SET {column} = ?, {column}_key = ? WHERE {which}"), values).await?;
            mark_resealed(change, holder, &id).await?;
            Ok(true)
        })
    }
}

/// Marks the part of the value's row that nodes cache.
async fn mark_resealed(change: &mut Change<'_>, holder: &SealedColumn, id: &[Value]) -> Outcome<()> {
    let epoch = change.epoch();
    match holder.table {
        "hosts" => {
            let values = [Value::from(epoch.0)].into_iter().chain(id.iter().cloned()).collect();
            change.run("UPDATE hosts SET epoch = ? WHERE id = ?", values).await?;
        }
        "authorities" => {
            change.mark(Set::Authorities);
        }
        "auth_payloads" | "auth_entries" => {
            // In both tables the id begins with the payload's id.
            let payload = id.first().cloned().unwrap_or(Value::NULL);
            let statement = "SELECT version FROM auth_payloads WHERE id = ?";
            let version: Option<u64> = change.connection.exec_first(statement, (payload,)).await?;
            if version.is_some() && version == change.heads.canonical_version {
                change.mark(Set::Canonical);
            }
        }
        _ => {}
    }
    Ok(())
}
