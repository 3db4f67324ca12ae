//! The authorities as they are used now, and rolling one over without cutting anybody off.
//!
//! An authority stands in one of three slots. All of them are trusted: hosts are given the certificates of every slot of
//! the server authority, and admins' certificates of every slot of the client authority are let in. Only `active` signs.
//! 1. *prepare* makes a new one, `next`: what is baked from here on trusts it. For hosts baked before, its key is also
//!    certified by the active one, and that certificate goes along in the handshake from step 2 on.
//! 2. *activate*: `next` signs from here on, the one before is `old` and still trusted.
//! 3. *retire*: `old` is trusted no more. Refused while somebody still depends on it, unless it is forced.
//!
//! Each step is one transaction of the records; a crash after it is caught up with by the next boot.

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use super::enrol::HostView;
use super::host_trust::has_wrapper;
use super::{By, Result, Service, ServiceError};
use crate::model::authority::AuthorityRole;
use crate::pki::authority::{self, AuthorityKey};
use crate::records::{AdminCertificate, Authority, AuthoritySlot, AuthorityStep};
use crate::seal::{KeyRing, Place};

/// How many certificates a refusal names.
const CERTIFICATES_NAMED: usize = 10;

/// Where an authority's key stands sealed.
pub fn authority_place(id: Uuid) -> Place {
    Place::new("authorities", "private_key", id)
}

/// Every authority there is, opened.
#[derive(Debug)]
pub struct Authorities(Vec<Held>);

/// An authority in its slot.
#[derive(Clone, Debug)]
pub struct Held {
    pub id: Uuid,
    pub role: AuthorityRole,
    pub slot: AuthoritySlot,
    pub key: Arc<AuthorityKey>,
    pub cross_certificate_pem: Option<String>,
    pub created_at: Option<OffsetDateTime>,
}

impl Authorities {
    pub fn open(rows: &[Authority], ring: &KeyRing) -> Result<Self> {
        let held = rows.iter().map(|row| {
            let key = ring.open(&authority_place(row.id), &row.private_key)?;
            Ok(Held {
                id: row.id,
                role: row.role,
                slot: row.slot,
                key: Arc::new(AuthorityKey::new(&row.certificate_pem, &key)?),
                cross_certificate_pem: row.cross_certificate_pem.clone(),
                created_at: row.created_at,
            })
        });
        let authorities = Self(held.collect::<Result<_>>()?);
        for role in [AuthorityRole::Server, AuthorityRole::Client] {
            if authorities.in_slot(role, AuthoritySlot::Active).is_none() {
                return Err(ServiceError::internal(format!("the records hold no active {role:?} authority")));
            }
        }
        Ok(authorities)
    }

    pub fn active(&self, role: AuthorityRole) -> Result<&Held> {
        let active = self.in_slot(role, AuthoritySlot::Active);
        active.ok_or_else(|| ServiceError::internal(format!("there is no active {role:?} authority")))
    }

    pub fn in_slot(&self, role: AuthorityRole, slot: AuthoritySlot) -> Option<&Held> {
        self.of(role).find(|held| held.slot == slot)
    }

    pub fn of(&self, role: AuthorityRole) -> impl Iterator<Item = &Held> {
        self.0.iter().filter(move |held| held.role == role)
    }

    pub fn all(&self) -> &[Held] {
        &self.0
    }

    /// The certificates of all slots, PEM after PEM: what is trusted. The active one first.
    pub fn bundle(&self, role: AuthorityRole) -> String {
        let mut held: Vec<&Held> = self.of(role).collect();
        held.sort_by_key(|held| (held.slot != AuthoritySlot::Active, held.slot != AuthoritySlot::Next));
        held.iter().map(|held| held.key.certificate_pem()).collect()
    }

    /// Whether a certificate was signed by an authority that is still trusted. Those of the first format do not say by
    /// which: then it was the only one there was.
    pub fn stands_for(&self, certificate: &AdminCertificate) -> bool {
        self.of(AuthorityRole::Client).any(|held| match certificate.authority {
            Some(id) => held.id == id,
            None => held.created_at.is_none(),
        })
    }
}

impl Service {
    pub fn authorities(&self) -> Arc<Authorities> {
        self.secrets.authorities.load_full()
    }

    pub async fn prepare_authority(&self, role: AuthorityRole, by: &By) -> Result<()> {
        let now = self.outside.now();
        let authorities = self.authorities();
        if authorities.in_slot(role, AuthoritySlot::Next).is_some() {
            return Err(ServiceError::Conflict("an authority is prepared already: activate it".into()));
        }
        let made = authority::create(role, now, &*self.outside)?;
        let active = authorities.active(role)?;
        let cross = match role {
            AuthorityRole::Server => authority::cross_certify(&active.key, &made, now, &*self.outside)?,
            AuthorityRole::Client => None,
        };
        let ring = self.ring.load_full();
        let authority = Authority {
            id: made.id,
            role,
            slot: AuthoritySlot::Next,
            private_key: ring.seal(&authority_place(made.id), &made.private_key, &*self.outside)?,
            certificate_pem: made.certificate_pem,
            cross_certificate_pem: cross,
            created_at: Some(now),
        };
        self.roll(
            role,
            AuthorityStep::Prepare { made: Box::new(authority), active: active.id },
            "authority.prepare",
            by,
        )
        .await
    }

    /// `force`: also where hosts are cut off that do not know the new one yet.
    pub async fn activate_authority(&self, role: AuthorityRole, force: bool, by: &By) -> Result<()> {
        let authorities = self.authorities();
        let Some(next) = authorities.in_slot(role, AuthoritySlot::Next) else {
            return Err(ServiceError::Conflict("no authority is prepared: prepare one first".into()));
        };
        if authorities.in_slot(role, AuthoritySlot::Old).is_some() {
            return Err(ServiceError::Conflict("the old authority is still trusted: retire it first".into()));
        }
        // An authority of the first format may not certify another: its hosts must have heard of the new one.
        if role == AuthorityRole::Server && next.cross_certificate_pem.is_none() && !force {
            self.refuse_if_hosts_depend(next.created_at).await?;
        }
        self.roll(role, AuthorityStep::Activate(next.id), "authority.activate", by).await
    }

    /// `force`: also where hosts or admins are cut off that know, or have certificates of, the old one only.
    pub async fn retire_authority(&self, role: AuthorityRole, force: bool, by: &By) -> Result<()> {
        let authorities = self.authorities();
        let Some(old) = authorities.in_slot(role, AuthoritySlot::Old) else {
            return Err(ServiceError::Conflict("there is no old authority to retire".into()));
        };
        match role {
            _ if force => {}
            AuthorityRole::Server => self.refuse_if_hosts_depend(authorities.active(role)?.created_at).await?,
            AuthorityRole::Client => {
                let signed_by_old =
                    |certificate: &&AdminCertificate| certificate.authority.is_none_or(|id| id == old.id);
                let certificates = self.certificates.load();
                let depend = certificates.values().filter(|it| self.is_in_force(it)).filter(signed_by_old);
                let mut depend: Vec<String> = depend.map(|it| format!("{} ({})", it.name, it.fingerprint)).collect();
                if !depend.is_empty() {
                    let count = depend.len();
                    depend.sort();
                    if count > CERTIFICATES_NAMED {
                        depend.truncate(CERTIFICATES_NAMED);
                        depend.push(format!("{} more", count - CERTIFICATES_NAMED));
                    }
                    return Err(ServiceError::Conflict(format!(
                        "{count} certificate(s) in force were signed by the old authority: {}; renew each (codex-authd \
                         certificates renew FINGERPRINT --out NAME.p12 --revoke) or revoke it (codex-authd certificates \
                         revoke FINGERPRINT), or force it",
                        depend.join(", ")
                    )));
                }
            }
        }
        self.roll(role, AuthorityStep::Retire(old.id), "authority.retire", by).await
    }

    /// Hosts whose wrapper was fetched before `since` do not know the authority that was made then.
    async fn refuse_if_hosts_depend(&self, since: Option<OffsetDateTime>) -> Result<()> {
        let hosts = self.hosts().await?;
        // A host that was never installed has nothing to update.
        let is_installed =
            |host: &&HostView| host.activity.wrapper_fetched_at.is_some() || has_wrapper(&host.host, &host.activity);
        let behind: Vec<_> =
            hosts.iter().filter(is_installed).filter(|host| host.activity.wrapper_fetched_at < since).collect();
        let Some(first) = behind.first() else { return Ok(()) };
        Err(ServiceError::Conflict(format!(
            "{} host(s), {} among them, have a wrapper that does not know the new authority: run `cdx --update` there, \
             or force it",
            behind.len(),
            first.host.fqdn
        )))
    }

    async fn roll(&self, role: AuthorityRole, step: AuthorityStep, action: &str, by: &By) -> Result<()> {
        let name = match role {
            AuthorityRole::Server => "server",
            AuthorityRole::Client => "client",
        };
        let note = by.note(self.outside.now(), action).on(name);
        let rolling = self.records.authority_roll(role, &step, &note);
        let rolled = self.commit(&note, rolling, |rolled| rolled.as_ref().map(Into::into)).await?;
        rolled.map(drop).ok_or_else(|| ServiceError::Conflict("the authorities changed meanwhile: look again".into()))
    }

    /// Takes over who is trusted, as far as it is told, and tells whoever waits for it.
    pub(super) fn adopt_trust(
        &self,
        certificates: Option<Vec<AdminCertificate>>,
        authorities: Option<&[Authority]>,
    ) -> Result<()> {
        if let Some(certificates) = certificates {
            let by_fingerprint = certificates.into_iter().map(|certificate| (certificate.fingerprint, certificate));
            self.certificates.store(Arc::new(by_fingerprint.collect()));
        }
        if let Some(rows) = authorities {
            self.secrets.authorities.store(Arc::new(Authorities::open(rows, &self.ring.load())?));
        }
        self.trust_changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Changes whenever the certificates, the authorities, or what hosts trust did.
    pub fn trust_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.trust_changed.subscribe()
    }
}
