//! Which versions of Codex and of the wrapper a host should have.

use time::OffsetDateTime;

use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::version::Version;
use crate::records::{ClientRelease, SettingsChange};
use crate::service::hosts::programs::NativeTarget;
use crate::service::{Hosts, Initiator, Result, ServiceError, hosts::bake};

pub struct Versions {
    /// The newest release of Codex that is known.
    pub client_version: Option<String>,
    pub client_version_checked_at: Option<OffsetDateTime>,
    pub wrapper_version: &'static str,
    /// The digest of the native program for `wrapper_target`; without one, of the host's own script; without a host, of
    /// the script with nothing baked in.
    pub wrapper_digest: Digest,
    /// The kind of machine whose native program the host should have.
    pub wrapper_target: Option<NativeTarget>,
}

impl Hosts {
    /// `target`: what the host says it is.
    pub fn versions(&self, host: Option<&HotHost>, target: Option<NativeTarget>) -> Result<Versions> {
        let native = target.and_then(|target| self.native_program(target).map(|program| (target, program.digest)));
        let settings = self.core.settings.load();
        let release = settings.client_release.as_ref();
        Ok(Versions {
            client_version: release.map(|release| release.version.clone()),
            client_version_checked_at: release.map(|release| release.checked_at),
            wrapper_version: bake::wrapper_version(self.wrappers_trust_system()),
            wrapper_digest: match (native, host) {
                (Some((_, digest)), _) => digest,
                (None, Some(host)) => self.wrapper_digest(host)?,
                (None, None) => bake::plain_wrapper_digest(),
            },
            wrapper_target: native.map(|(target, _)| target),
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
