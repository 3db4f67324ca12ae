//! Which versions of Codex and of the wrapper a host should have.

use time::OffsetDateTime;

use super::{Result, Service, bake};
use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::version::Version;
use crate::records::{ClientRelease, Settings};

pub struct Versions {
    /// The newest Codex that upstream is known to have released.
    pub client_version: Option<String>,
    pub client_version_checked_at: Option<OffsetDateTime>,
    pub wrapper_version: &'static str,
    /// Of the host's own wrapper; without a host, of the wrapper with nothing baked in.
    pub wrapper_digest: Digest,
    /// What the calling host said it has.
    pub reported_client_version: Option<String>,
}

impl Service {
    pub fn versions(&self, host: Option<&HotHost>) -> Result<Versions> {
        let settings = self.settings.load();
        let release = settings.client_release.as_ref();
        Ok(Versions {
            client_version: release.map(|release| release.version.clone()),
            client_version_checked_at: release.map(|release| release.checked_at),
            wrapper_version: bake::WRAPPER_VERSION,
            wrapper_digest: match host {
                Some(host) => self.wrapper_digest(host)?,
                None => bake::plain_wrapper_digest(),
            },
            reported_client_version: host.and_then(|host| host.activity().client_version),
        })
    }

    /// Keeps what upstream said its newest release is. `tag` is what the release is called there (`rust-v0.169.0`).
    pub async fn note_client_release(&self, tag: &str) -> Result<()> {
        let Some(version) = Version::reported(tag) else {
            return Err(super::ServiceError::internal("upstream named a release that is no version"));
        };
        let release = ClientRelease { version: version.as_str().to_owned(), checked_at: self.outside.now() };
        self.change_settings(|settings| settings.client_release = Some(release)).await?;
        Ok(())
    }

    pub fn api_disabled(&self) -> bool {
        self.settings.load().api_disabled
    }

    /// The kill switch.
    pub async fn disable_api(&self, disabled: bool) -> Result<()> {
        self.change_settings(|settings| settings.api_disabled = disabled).await?;
        log::warn!(event = "kill_switch", disabled; "the API for hosts was switched {}", if disabled { "off" } else { "on" });
        Ok(())
    }

    async fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        let _one_at_a_time = self.changing_settings.lock().await;
        let mut settings = self.records.settings().await?;
        change(&mut settings);
        self.records.change_settings(&settings).await?;
        self.catch_up().await
    }
}
