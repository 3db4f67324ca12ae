//! Which versions of Codex and of the wrapper a host should have.

use time::OffsetDateTime;

use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::version::Version;
use crate::records::{ClientRelease, SettingsChange};
use crate::service::{Hosts, Initiator, Result, ServiceError, hosts::bake};

pub struct Versions {
    /// The newest release of Codex that is known.
    pub client_version: Option<String>,
    pub client_version_checked_at: Option<OffsetDateTime>,
    pub wrapper_version: &'static str,
    /// The digest of the host's own wrapper; without a host, of the wrapper with nothing baked in.
    pub wrapper_digest: Digest,
}

impl Hosts {
    pub fn versions(&self, host: Option<&HotHost>) -> Result<Versions> {
        let settings = self.core.settings.load();
        let release = settings.client_release.as_ref();
        Ok(Versions {
            client_version: release.map(|release| release.version.clone()),
            client_version_checked_at: release.map(|release| release.checked_at),
            wrapper_version: bake::wrapper_version(self.wrappers_trust_system()),
            wrapper_digest: match host {
                Some(host) => self.wrapper_digest(host)?,
                None => bake::plain_wrapper_digest(),
            },
        })
    }

    /// Records the newest release of Codex. `tag`: its name upstream (`rust-v0.169.0`).
    pub async fn note_client_release(&self, tag: &str) -> Result<()> {
        let Some(version) = Version::reported(tag) else {
            return Err(ServiceError::internal("the name of upstream's newest release is not a version"));
        };
        let release = ClientRelease { version: version.as_str().to_owned(), checked_at: self.core.platform.now() };
        let note = Initiator::daemon().note(release.checked_at, "release.found").on(&release.version);
        self.core.change_settings(&note, SettingsChange::ClientRelease(release)).await?;
        Ok(())
    }
}
