//! Installer tokens: each is redeemed once, for a script that makes the machine a host.
//!
//! The script is baked before the token is redeemed, and the token is redeemed only for the key in the script. So an
//! internal fault does not spend the token. Nothing that comes after the redemption can fail. A crash between the
//! redemption and the answer leaves a spent token: the admin registers the host again. The other order could hand the
//! same key to two machines.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::host::Fqdn;
use crate::model::secret::Secret;
use crate::records::{InstallToken, Redemption, Settings, SettingsChange};
use crate::service::core::commit::Written;
use crate::service::error::InstallerRefusal;
use crate::service::hosts::enrol::installer_url;
use crate::service::{Hosts, Initiator, Result, ServiceError, hosts::bake};

/// How long an expired or used installer is still told apart from an unknown one.
const INSTALLER_RETENTION: time::Duration = time::Duration::days(30);

pub struct InstallScript {
    pub script: Secret,
    pub expires_at: OffsetDateTime,
}

impl Hosts {
    /// The script that checks a machine before it fetches the installer. It does not redeem the token.
    pub fn start_install(&self, token: &str, from: IpAddr) -> Result<InstallScript> {
        let (pending, _) = self.pending_installer(token, from, self.core.platform.now())?;
        let (policy, url) = (self.core.policy(), installer_url(&pending.base_url, token));
        let settings = self.core.settings.load();
        let codex = bake::Codex {
            release_url: &policy.codex_release_url,
            release_sha256: &policy.codex_release_sha256,
            version: settings.client_release.as_ref().map_or("", |release| &release.version),
        };
        let script = bake::start(&url, policy.server_pin.as_deref(), self.programs.digests(), &codex)?;
        Ok(InstallScript { script, expires_at: pending.expires_at })
    }

    pub async fn redeem(&self, token: &str, from: IpAddr) -> Result<InstallScript> {
        let now = self.core.platform.now();
        let (pending, host) = self.pending_installer(token, from, now)?;
        let digest = pending.digest;
        let script = self.bake_installer(&host, &pending.base_url)?;
        let note = Initiator::anybody(from).note(now, "installer.redeem").on(&host.fqdn).with("installer", digest);
        let redeeming = self.core.records.installer_redeem(&digest, &host.key_digest, now, from, &note);
        let is_redeemed = |redemption: &Redemption| matches!(redemption, Redemption::Redeemed { .. });
        match self.core.commit(&note, redeeming, |redemption| is_redeemed(redemption).then(Written::default)).await? {
            Redemption::Redeemed { token, .. } => {
                // The script carries the wrapper, and with it the authorities that the host trusts from now on.
                host.fetched_wrapper(now);
                self.note_wrapper_fetched();
                Ok(InstallScript { script, expires_at: token.expires_at })
            }
            Redemption::AlreadyUsed => {
                self.used_again(&pending, from, now);
                Err(InstallerRefusal::Used.into())
            }
            Redemption::Expired => Err(InstallerRefusal::Expired.into()),
            Redemption::KeyChanged => {
                Err(ServiceError::Unavailable { cause: "the host was given another key a moment ago".into() })
            }
            Redemption::Unknown => Err(InstallerRefusal::Unknown.into()),
        }
    }

    /// The token and its host, if hot state allows a redemption. Does not ask the records.
    fn pending_installer(
        &self,
        token: &str,
        from: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(InstallToken, Arc<HotHost>)> {
        // The token is not spent: it can be redeemed once hosts are served again.
        if let Some(refusal) = self.core.api_disabled() {
            return Err(refusal);
        }
        let digest = Digest::of(token.as_bytes());
        let pending = self.core.hot.install_token(&digest)?.ok_or(InstallerRefusal::Unknown)?;
        if pending.redeemed_at.is_some() {
            self.used_again(&pending, from, now);
            return Err(InstallerRefusal::Used.into());
        }
        if pending.revoked_at.is_some() {
            return Err(InstallerRefusal::Unknown.into());
        }
        if pending.is_over(now) {
            return Err(InstallerRefusal::Expired.into());
        }
        let host = self.core.hot.host_by_id(pending.host)?.ok_or(InstallerRefusal::Unknown)?;
        Ok((pending, host))
    }

    /// Reports that a spent token was used again. Either this caller has a command that was meant for another machine,
    /// or an intruder redeemed it first and holds the host's key.
    fn used_again(&self, token: &InstallToken, from: IpAddr, now: OffsetDateTime) {
        let host = self.core.hot.host_by_id(token.host).ok().flatten();
        let name = host.as_ref().map_or("", |host| host.fqdn.as_str());
        self.core.security_events.event("installer.used_again", name, from, true, now);
    }

    /// All installers, newest first, each with the name of its host; and the current time.
    pub async fn installers(&self) -> Result<(Vec<(InstallToken, Option<Fqdn>)>, OffsetDateTime)> {
        let mut tokens = self.core.records.installer_list().await?;
        // The next page starts after the last entry, so entries with equal times need a fixed order.
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.created_at), *token.digest.as_bytes()));
        let named = tokens.into_iter().map(|token| {
            let host = self.core.hot.host_by_id(token.host)?;
            Ok((token, host.map(|host| host.fqdn.clone())))
        });
        Ok((named.collect::<Result<_>>()?, self.core.platform.now()))
    }

    /// The addresses of the daemon that hosts were given by an installer or by an update of `cdx`: newest first, at
    /// most twice [`Settings::MAX_PUBLIC_URLS`]. If there are hosts, an update may give them the address of this
    /// process, so it is recorded.
    pub async fn public_urls(&self) -> Result<Vec<String>> {
        let url = self.core.policy().base_url.clone();
        if self.core.host_count() > 0 && self.core.settings().public_urls.first() != Some(&url) {
            let note = Initiator::daemon().note(self.core.platform.now(), "settings.public_url").on(&url);
            if let Err(error) = self.core.change_settings(&note, SettingsChange::PublicUrl(url)).await {
                log::warn!(event = "public_url_unrecorded", cause:% = error; "the address that hosts are given could not be recorded; the next start tries again");
            }
        }
        let mut urls = self.core.settings().public_urls.clone();
        let mut tokens = self.core.records.installer_list().await?;
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
        for token in tokens {
            if urls.len() < 2 * Settings::MAX_PUBLIC_URLS && !urls.contains(&token.base_url) {
                urls.push(token.base_url);
            }
        }
        Ok(urls)
    }

    /// Forgets, in hot state, installers that expired long ago; from then on they are reported as unknown.
    pub async fn purge_installers(&self) -> Result<()> {
        let (hot, when) = (self.core.hot.clone(), self.core.platform.now() - INSTALLER_RETENTION);
        let purged = tokio::task::spawn_blocking(move || hot.purge_install_tokens(when)).await;
        let purged = purged.map_err(ServiceError::internal)??;
        log::debug!(event = "installers_purged", installers = purged; "forgot installers that expired long ago");
        Ok(())
    }

    /// Revokes an installer that was not redeemed yet.
    pub async fn revoke_installer(&self, token: &Digest, by: &Initiator) -> Result<InstallToken> {
        let now = self.core.platform.now();
        let note = by.note(now, "installer.revoke").with("installer", token);
        let host = self
            .core
            .hot
            .install_token(token)?
            .map(|known| self.core.hot.host_by_id(known.host))
            .transpose()?
            .flatten();
        let note = host.iter().fold(note, |note, host| note.on(&host.fqdn));
        let revoking = self.core.records.installer_revoke(token, now, &note);
        let revoked = self.core.commit(&note, revoking, |revoked| revoked.as_ref().map(|_| Written::default())).await?;
        revoked.ok_or(ServiceError::NotFound("Outstanding installer"))
    }
}
