//! The authorities and admins' certificates that this node trusts now.

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::model::authority::AuthorityRole;
use crate::pki::authority::AuthorityKey;
use crate::records::{AdminCertificate, Authority, AuthoritySlot};
use crate::seal::{KeyRing, Place};
use crate::service::{Core, Result, ServiceError};

/// The place under which an authority's key is sealed.
pub fn authority_place(id: Uuid) -> Place {
    Place::new("authorities", "private_key", id)
}

/// All authorities, with their keys opened.
#[derive(Debug)]
pub struct Authorities(Vec<HeldAuthority>);

/// An authority in its slot.
#[derive(Clone, Debug)]
pub struct HeldAuthority {
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
            Ok(HeldAuthority {
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

    pub fn active(&self, role: AuthorityRole) -> Result<&HeldAuthority> {
        let active = self.in_slot(role, AuthoritySlot::Active);
        active.ok_or_else(|| ServiceError::internal(format!("there is no active {role:?} authority")))
    }

    pub fn in_slot(&self, role: AuthorityRole, slot: AuthoritySlot) -> Option<&HeldAuthority> {
        self.of(role).find(|held| held.slot == slot)
    }

    pub fn of(&self, role: AuthorityRole) -> impl Iterator<Item = &HeldAuthority> {
        self.0.iter().filter(move |held| held.role == role)
    }

    pub fn all(&self) -> &[HeldAuthority] {
        &self.0
    }

    /// The certificates of all slots, PEM after PEM, the active one first: all of them are trusted.
    pub fn bundle(&self, role: AuthorityRole) -> String {
        let mut held: Vec<&HeldAuthority> = self.of(role).collect();
        held.sort_by_key(|held| (held.slot != AuthoritySlot::Active, held.slot != AuthoritySlot::Next));
        held.iter().map(|held| held.key.certificate_pem()).collect()
    }

    /// Whether a certificate was signed by an authority that is still trusted. Certificates of the first format do not
    /// name their authority: there was only one then.
    pub fn stands_for(&self, certificate: &AdminCertificate) -> bool {
        self.of(AuthorityRole::Client).any(|held| match certificate.authority {
            Some(id) => held.id == id,
            None => held.created_at.is_none(),
        })
    }
}

impl Core {
    pub fn authorities(&self) -> Arc<Authorities> {
        self.secrets.authorities.load_full()
    }

    /// Puts certificates and authorities in force, if they are given, and notifies [`Core::trust_changes`].
    pub(in crate::service) fn adopt_trust(
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

    /// Changes with the certificates, the authorities and the trust of hosts.
    pub fn trust_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.trust_changed.subscribe()
    }
}
