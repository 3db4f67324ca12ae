//! The readings for the metrics, taken when they are asked for. A reading that fails is left out: a degraded daemon
//! must still say that it is degraded.

use crate::metrics::{CanonicalReading, CertificateReading, Readings};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::records::{AdminCertificate, AuthoritySlot};
use crate::service::core::authorities::HeldAuthority;
use crate::service::{Result, ServiceError, Status};

/// A store that hangs must not delay the answer that says so.
const READINESS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// How many admins' certificates are reported, those that end soonest first.
const MAX_CERTIFICATES: usize = 500;
/// How long an expired certificate is still reported, so that somebody notices.
const EXPIRED_SHOWN_FOR: time::Duration = time::Duration::days(7);

impl Status {
    /// Everything that is measured, in the Prometheus text format.
    pub async fn metrics_text(&self) -> Result<String> {
        let readings = self.readings().await;
        self.core.metrics.render(&readings).map_err(ServiceError::internal)
    }

    async fn readings(&self) -> Readings {
        let canonical = self.core.canonical().map(|canonical| CanonicalReading {
            version: canonical.summary.version,
            last_refresh: canonical.last_refresh.unix_seconds(),
        });
        let hosts = self.core.hot.host_states().map(|states| {
            vec![
                ("active", states.active),
                ("unbound", states.unbound),
                ("insecure", states.insecure),
                ("disabled", states.disabled),
            ]
        });
        let mut certificates: Vec<_> = self.core.authorities().all().iter().filter_map(of_authority).collect();
        certificates.extend(self.admins_certificates());
        let settings = self.core.settings.load();
        Readings {
            now: self.core.platform.now(),
            canonical,
            hosts: hosts.unwrap_or_default(),
            outbox_depth: self.core.hot.outbox_depth(),
            conflicts: self.core.records.conflicts(),
            certificates,
            api_disabled: settings.api_disabled,
            verified_backup: settings.verified_backup.as_ref().map_or(0, |backup| backup.made_at.unix_timestamp()),
            hot_state_set_aside: self.core.hot.set_aside().is_some(),
            degraded: !matches!(tokio::time::timeout(READINESS_TIMEOUT, self.core.health.ready()).await, Ok(Ok(()))),
        }
    }

    fn admins_certificates(&self) -> Vec<CertificateReading> {
        let since = self.core.platform.now() - EXPIRED_SHOWN_FOR;
        let known = self.core.certificates.load();
        let told = |it: &&AdminCertificate| it.revoked_at.is_none() && it.expires_at >= since;
        let mut certificates: Vec<AdminCertificate> = known.values().filter(told).cloned().collect();
        certificates.sort_by_key(|certificate| certificate.expires_at);
        certificates.truncate(MAX_CERTIFICATES);
        let reading = |certificate: AdminCertificate| CertificateReading {
            kind: "admin",
            fingerprint: beginning(&certificate.fingerprint),
            name: certificate.name,
            expires: certificate.expires_at.unix_timestamp(),
        };
        certificates.into_iter().map(reading).collect()
    }
}

/// Only the active authority: `next` ends later, and `old` is about to be retired.
fn of_authority(held: &HeldAuthority) -> Option<CertificateReading> {
    let kind = match held.role {
        AuthorityRole::Server => "server_authority",
        AuthorityRole::Client => "client_authority",
    };
    (held.slot == AuthoritySlot::Active).then(|| CertificateReading {
        kind,
        name: String::new(),
        fingerprint: String::new(),
        expires: held.key.not_after().unix_timestamp(),
    })
}

fn beginning(fingerprint: &Digest) -> String {
    fingerprint.to_string().chars().take(16).collect()
}
