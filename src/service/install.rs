//! Redeeming an installer token: once, ever, for a script that makes the machine a host.
//!
//! The script is baked before the token is redeemed, so that a fault of ours does not spend it. A crash between the
//! redemption and the answer leaves a spent token: the admin registers the host again. The other order could hand the
//! same key to two machines.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::error::InstallerRefusal;
use super::{Result, Service, ServiceError};
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::records::Redemption;

pub struct InstallScript {
    pub script: Secret,
    pub expires_at: OffsetDateTime,
}

impl Service {
    pub async fn redeem(&self, token: &str, from: IpAddr) -> Result<InstallScript> {
        // The token stays good for when hosts are served again.
        if self.api_disabled() {
            return Err(ServiceError::ApiDisabled);
        }
        let now = self.outside.now();
        let digest = Digest::of(token.as_bytes());
        // Turned away without a question to the records: never issued, spent, revoked or too late.
        let pending = self.hot.install_token(&digest)?.ok_or(InstallerRefusal::Unknown)?;
        if pending.redeemed_at.is_some() {
            log::warn!(event = "installer_used_again", host:% = pending.host, address:% = from; "a spent installer token was presented again");
            return Err(InstallerRefusal::Used.into());
        }
        if pending.revoked_at.is_some() {
            return Err(InstallerRefusal::Unknown.into());
        }
        if pending.expires_at <= now {
            return Err(InstallerRefusal::Expired.into());
        }
        let host = self.hot.host_by_id(pending.host)?.ok_or(InstallerRefusal::Unknown)?;
        let script = self.bake_installer(&host, &pending.base_url)?;
        match self.records.redeem_install_token(&digest, now, from).await? {
            Redemption::Redeemed { host: redeemed, token } => {
                self.catch_up().await?;
                if redeemed.key_digest != host.key_digest {
                    return Err(ServiceError::Unavailable {
                        cause: "the host's key changed during the redemption".into(),
                    });
                }
                log::info!(event = "installer_redeemed", host = redeemed.fqdn.as_str(), address:% = from; "an installer token was redeemed");
                Ok(InstallScript { script, expires_at: token.expires_at })
            }
            Redemption::AlreadyUsed => Err(InstallerRefusal::Used.into()),
            Redemption::Expired => Err(InstallerRefusal::Expired.into()),
            Redemption::Unknown => Err(InstallerRefusal::Unknown.into()),
        }
    }
}
