//! Authorities, admin certificates, data keys, and the values that are sealed with them.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Embedded;
use super::rows::{self, Marked, RowSource};
use super::tables::{authorities, hosts, people, sealed_index, versions};
use super::transaction::{self, ChangeKind};
use crate::durable::Staged;
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::model::people::UserId;
use crate::records::{
    AdminCertificate, Authority, AuthorityStep, CanonicalVersion, Host, Result, SealingKey, TrustRecords, rules,
};
use crate::seal::{KeyId, Place, Sealed};

#[async_trait]
impl TrustRecords for Embedded {
    async fn authority_list(&self) -> Result<Vec<Authority>> {
        self.read(|data| rows::all(data, rows::AUTHORITY)).await
    }

    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        note: &AuditNote,
    ) -> Result<Option<Vec<Authority>>> {
        self.change(|staged| {
            let mut present: Vec<Authority> = Vec::new();
            for row in staged.scan(rows::AUTHORITY) {
                let (key, value) = row?;
                present.push(rows::decode(&key, &value)?);
            }
            let Some((written, gone)) = rules::roll(&present, role, step) else { return Ok(None) };
            for authority in &written {
                authorities::put(staged, authority)?;
            }
            if let Some(gone) = &gone {
                staged.remove(rows::authority(gone.id));
                sealed_index::update(staged, &authorities::place(gone), Some(&gone.private_key), None);
            }
            let epoch = transaction::bump(staged)?;
            transaction::mark_set(staged, ChangeKind::Authorities, epoch)?;
            transaction::note(staged, note)?;
            Ok(Some(rules::rolled(present, written, gone)))
        })
        .await
    }

    async fn server_key_fetch(&self) -> Result<Option<Sealed>> {
        self.read(|data| rows::get(data, rows::SERVER_KEY)).await
    }

    async fn certificate_record(&self, certificate: &AdminCertificate, note: &AuditNote) -> Result<()> {
        self.change(|staged| {
            let known: Option<AdminCertificate> = rows::get(staged, rows::certificate(&certificate.fingerprint))?;
            if known.is_some() {
                return Ok(());
            }
            authorities::put_certificate(staged, certificate)?;
            transaction::note(staged, note)
        })
        .await
    }

    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>> {
        self.read(authorities::certificates).await
    }

    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| {
            let known: Option<AdminCertificate> = rows::get(staged, rows::certificate(&certificate.fingerprint))?;
            if known.is_some() {
                return Ok(known);
            }
            let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(old))?;
            let Some(old) = found.filter(|old| old.revoked_at.is_none()) else { return Ok(None) };
            let renewed = AdminCertificate { user: old.user, ..certificate.clone() };
            authorities::put_certificate(staged, &renewed)?;
            if revoke_at.is_some() {
                authorities::put_certificate(staged, &AdminCertificate { revoked_at: revoke_at, ..old })?;
            }
            transaction::note(staged, note)?;
            Ok(Some(renewed))
        })
        .await
    }

    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| {
            let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(fingerprint))?;
            let Some(certificate) = found.filter(|certificate| certificate.revoked_at.is_none()) else {
                return Ok(None);
            };
            let revoked = AdminCertificate { revoked_at: Some(at), ..certificate };
            authorities::put_certificate(staged, &revoked)?;
            transaction::note(staged, note)?;
            Ok(Some(revoked))
        })
        .await
    }

    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        note: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| {
            let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(fingerprint))?;
            let Some(certificate) = found else { return Ok(None) };
            if let Some(user) = user
                && people::user(staged, user)?.is_none()
            {
                return Ok(None);
            }
            if certificate.user == user {
                return Ok(Some(certificate));
            }
            let tied = AdminCertificate { user, ..certificate };
            authorities::put_certificate(staged, &tied)?;
            transaction::note(staged, note)?;
            Ok(Some(tied))
        })
        .await
    }

    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>> {
        self.read(|data| rows::all(data, rows::SEALING_KEY)).await
    }

    async fn sealing_key_add(&self, key: &SealingKey, note: &AuditNote) -> Result<bool> {
        self.change(|staged| {
            let place = rows::sealing_key(key.id);
            if staged.get(&place)?.is_some() {
                return Ok(false);
            }
            rows::put(staged, place, key)?;
            transaction::note(staged, note)?;
            Ok(true)
        })
        .await
    }

    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool> {
        self.change(|staged| {
            let key = rows::sealing_key(id);
            let highest = staged.scan(rows::SEALING_KEY).next_back().transpose()?;
            let is_highest = highest.is_none_or(|(highest, _)| highest == key);
            let in_use = staged.scan(rows::sealed_with(id)).next().transpose()?.is_some();
            if staged.get(&key)?.is_none() || is_highest || in_use {
                return Ok(false);
            }
            staged.remove(key);
            Ok(true)
        })
        .await
    }

    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
        self.read(|data| {
            let (from, to) = rows::sealed_before(active);
            data.range(from, to)
                .take(limit)
                .map(|row| {
                    let place = sealed_index::read_place(rows::read_sealed(&row?.0)?)?;
                    let value = SealedRow::find(data, &place)?.and_then(|holder| holder.value(&place).cloned());
                    let value = value.ok_or_else(|| rows::missing("sealed value"))?;
                    Ok((place, value))
                })
                .collect()
        })
        .await
    }

    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
        self.change(|staged| {
            let Some(mut holder) = SealedRow::find(staged, place)? else { return Ok(false) };
            match holder.value_mut(place) {
                Some(value) if value == old => *value = new.clone(),
                _ => return Ok(false),
            }
            sealed_index::update(staged, place, Some(old), Some(new));
            holder.put(staged)?;
            Ok(true)
        })
        .await
    }
}

/// A row that contains sealed values.
enum SealedRow {
    Host(Host),
    Authority(Authority),
    ServerKey(Sealed),
    Version(Box<CanonicalVersion>),
}

impl SealedRow {
    fn find(source: &impl RowSource, place: &Place) -> Result<Option<Self>> {
        Ok(match (place.table.as_str(), place.column.as_str()) {
            ("hosts", "api_key" | "agent_identity") => match place.id.parse() {
                Ok(id) => {
                    let marked: Option<Marked<Host>> = rows::get(source, rows::host(HostId(id)))?;
                    marked.map(|marked| Self::Host(marked.row))
                }
                Err(_) => None,
            },
            ("authorities", "private_key") => match Uuid::parse_str(&place.id) {
                Ok(id) => rows::get(source, rows::authority(id))?.map(Self::Authority),
                Err(_) => None,
            },
            ("settings", "server_key") if place.id == "0" => rows::get(source, rows::SERVER_KEY)?.map(Self::ServerKey),
            ("auth_payloads", "body") => Self::find_version(source, &place.id)?,
            ("auth_entries", "token") => match place.id.split_once('/') {
                Some((payload, _)) => Self::find_version(source, payload)?,
                None => None,
            },
            _ => None,
        })
    }

    fn find_version(source: &impl RowSource, id: &str) -> Result<Option<Self>> {
        let Ok(id) = Uuid::parse_str(id) else { return Ok(None) };
        let Some(number) = versions::number_of(source, id)? else { return Ok(None) };
        let version = versions::fetch(source, number)?.ok_or_else(|| rows::missing("version"))?;
        Ok(Some(Self::Version(Box::new(version))))
    }

    fn value(&self, place: &Place) -> Option<&Sealed> {
        match self {
            Self::Host(host) if place.column == "agent_identity" => host.agent_identity.as_ref(),
            Self::Host(host) => Some(&host.api_key),
            Self::Authority(authority) => Some(&authority.private_key),
            Self::ServerKey(key) => Some(key),
            Self::Version(version) if place.table == "auth_payloads" => Some(&version.body),
            Self::Version(version) => {
                let target = place.id.split_once('/')?.1;
                version.entries.iter().find(|entry| entry.target == target).map(|entry| &entry.token)
            }
        }
    }

    fn value_mut(&mut self, place: &Place) -> Option<&mut Sealed> {
        match self {
            Self::Host(host) => match place.column.as_str() {
                "agent_identity" => host.agent_identity.as_mut(),
                _ => Some(&mut host.api_key),
            },
            Self::Authority(authority) => Some(&mut authority.private_key),
            Self::ServerKey(key) => Some(key),
            Self::Version(version) => {
                let CanonicalVersion { body, entries, .. } = version.as_mut();
                if place.table == "auth_payloads" {
                    return Some(body);
                }
                let target = place.id.split_once('/')?.1;
                entries.iter_mut().find(|entry| entry.target == target).map(|entry| &mut entry.token)
            }
        }
    }

    /// Writes the row back and marks the part of it that nodes cache.
    fn put(self, staged: &mut Staged<'_>) -> Result<()> {
        let epoch = transaction::bump(staged)?;
        match self {
            Self::Host(host) => hosts::put(staged, &host, epoch),
            Self::Authority(authority) => {
                transaction::mark_set(staged, ChangeKind::Authorities, epoch)?;
                rows::put(staged, rows::authority(authority.id), &authority)
            }
            Self::ServerKey(key) => rows::put(staged, rows::SERVER_KEY, &key),
            Self::Version(version) => {
                versions::put(staged, &version)?;
                let number = version.summary.version;
                if let Some(pointer) = versions::pointer(staged)?.filter(|pointer| pointer.row == number) {
                    transaction::mark(staged, ChangeKind::Canonical, b"", Some(pointer.epoch), epoch);
                    rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
                }
                Ok(())
            }
        }
    }
}
