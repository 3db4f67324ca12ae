//! Rolls an authority over without cutting anybody off.
//!
//! An authority is in one of three slots, and all three are trusted. Hosts are given the certificates of every slot of
//! the server authority. Admins' certificates of every slot of the client authority are admitted. Only `active` signs.
//!
//! 1. *prepare* makes a new authority, `next`. Wrappers baked from then on trust it. For wrappers baked before, the
//!    active authority also certifies its key, and that certificate is sent in the handshake from step 2 on.
//! 2. *activate*: `next` becomes `active` and signs; the one before becomes `old` and stays trusted.
//! 3. *retire*: `old` is no longer trusted. Refused while a host or an admin depends on it, unless it is forced.
//!
//! Each step is one transaction of the records. After a crash the next boot catches up.

use time::OffsetDateTime;

use crate::model::authority::AuthorityRole;
use crate::pki::authority::{self};
use crate::records::{AdminCertificate, Authority, AuthoritySlot, AuthorityStep};
use crate::service::core::authorities::authority_place;
use crate::service::hosts::enrol::HostView;
use crate::service::hosts::host_trust::has_wrapper;
use crate::service::{Initiator, Result, ServiceError, Trust};

/// How many certificates a refusal names.
const MAX_CERTIFICATES_NAMED: usize = 10;

impl Trust {
    pub async fn prepare_authority(&self, role: AuthorityRole, by: &Initiator) -> Result<()> {
        let now = self.core.platform.now();
        let authorities = self.core.authorities();
        if authorities.in_slot(role, AuthoritySlot::Next).is_some() {
            return Err(ServiceError::Conflict("an authority is prepared already: activate it".into()));
        }
        let made = authority::create(role, now, &*self.core.platform)?;
        let active = authorities.active(role)?;
        let cross = match role {
            AuthorityRole::Server => authority::cross_certify(&active.key, &made, now, &*self.core.platform)?,
            AuthorityRole::Client => None,
        };
        let ring = self.core.ring.load_full();
        let authority = Authority {
            id: made.id,
            role,
            slot: AuthoritySlot::Next,
            private_key: ring.seal(&authority_place(made.id), &made.private_key, &*self.core.platform)?,
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

    /// `force`: even if hosts are cut off that do not know the new authority yet.
    pub async fn activate_authority(&self, role: AuthorityRole, force: bool, by: &Initiator) -> Result<()> {
        let authorities = self.core.authorities();
        let Some(next) = authorities.in_slot(role, AuthoritySlot::Next) else {
            return Err(ServiceError::Conflict("no authority is prepared: prepare one first".into()));
        };
        if authorities.in_slot(role, AuthoritySlot::Old).is_some() {
            return Err(ServiceError::Conflict("the old authority is still trusted: retire it first".into()));
        }
        // An authority of the first format may not certify another. So its hosts must know the new one.
        if role == AuthorityRole::Server && next.cross_certificate_pem.is_none() && !force {
            self.refuse_if_hosts_depend(next.created_at).await?;
        }
        self.roll(role, AuthorityStep::Activate(next.id), "authority.activate", by).await
    }

    /// `force`: even if hosts that know only the old authority are cut off, or admins with its certificates.
    pub async fn retire_authority(&self, role: AuthorityRole, force: bool, by: &Initiator) -> Result<()> {
        let authorities = self.core.authorities();
        let Some(old) = authorities.in_slot(role, AuthoritySlot::Old) else {
            return Err(ServiceError::Conflict("there is no old authority to retire".into()));
        };
        match role {
            _ if force => {}
            AuthorityRole::Server => self.refuse_if_hosts_depend(authorities.active(role)?.created_at).await?,
            AuthorityRole::Client => {
                let signed_by_old =
                    |certificate: &&AdminCertificate| certificate.authority.is_none_or(|id| id == old.id);
                let certificates = self.core.certificates.load();
                let depend = certificates.values().filter(|it| self.is_in_force(it)).filter(signed_by_old);
                let mut depend: Vec<String> = depend.map(|it| format!("{} ({})", it.name, it.fingerprint)).collect();
                if !depend.is_empty() {
                    let count = depend.len();
                    depend.sort();
                    if count > MAX_CERTIFICATES_NAMED {
                        depend.truncate(MAX_CERTIFICATES_NAMED);
                        depend.push(format!("{} more", count - MAX_CERTIFICATES_NAMED));
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

    /// Refuses if a host fetched its wrapper before `since`: it does not know the authority that was made then.
    async fn refuse_if_hosts_depend(&self, since: Option<OffsetDateTime>) -> Result<()> {
        let hosts = self.hosts.hosts().await?;
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

    async fn roll(&self, role: AuthorityRole, step: AuthorityStep, action: &str, by: &Initiator) -> Result<()> {
        let name = match role {
            AuthorityRole::Server => "server",
            AuthorityRole::Client => "client",
        };
        let note = by.note(self.core.platform.now(), action).on(name);
        let rolling = self.core.records.authority_roll(role, &step, &note);
        let rolled = self.core.commit(&note, rolling, |rolled| rolled.as_ref().map(Into::into)).await?;
        rolled.map(drop).ok_or_else(|| ServiceError::Conflict("the authorities changed meanwhile: look again".into()))
    }
}
