//! Which versions of Codex and of the wrapper a host should have.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{By, Result, Service, ServiceError, bake};
use crate::hot::HotHost;
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::version::Version;
use crate::records::{ClientRelease, Settings, SettingsChange};

/// The longest reason of a kill switch, in characters.
const MAX_REASON: usize = 200;

pub struct Versions {
    /// The newest Codex that upstream is known to have released.
    pub client_version: Option<String>,
    pub client_version_checked_at: Option<OffsetDateTime>,
    pub wrapper_version: &'static str,
    /// Of the host's own wrapper; without a host, of the wrapper with nothing baked in.
    pub wrapper_digest: Digest,
}

impl Service {
    pub fn versions(&self, host: Option<&HotHost>) -> Result<Versions> {
        let settings = self.settings.load();
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

    /// Keeps what upstream said its newest release is. `tag` is what the release is called there (`rust-v0.169.0`).
    pub async fn note_client_release(&self, tag: &str) -> Result<()> {
        let Some(version) = Version::reported(tag) else {
            return Err(ServiceError::internal("upstream named a release that is no version"));
        };
        let release = ClientRelease { version: version.as_str().to_owned(), checked_at: self.outside.now() };
        let note = By::daemon().note(release.checked_at, "release.found").on(&release.version);
        self.change_settings(&note, SettingsChange::ClientRelease(release)).await?;
        Ok(())
    }

    /// The kill switch, as hosts are told of it.
    pub fn api_disabled(&self) -> Option<ServiceError> {
        let settings = self.settings.load();
        settings.api_disabled.then(|| ServiceError::ApiDisabled { reason: settings.api_disabled_reason.clone() })
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The kill switch.
    pub async fn disable_api(&self, disabled: bool, reason: Option<&str>, by: &By) -> Result<()> {
        let reason = reason.map(str::trim).filter(|reason| disabled && !reason.is_empty());
        if reason.is_some_and(|reason| reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control)) {
            return Err(ServiceError::invalid(
                "reason",
                format!("must be one line of at most {MAX_REASON} characters"),
            ));
        }
        let note = by.note(self.outside.now(), if disabled { "api.disable" } else { "api.enable" });
        let note = reason.iter().fold(note, |note, reason| note.with("reason", reason));
        self.change_settings(&note, SettingsChange::KillSwitch { disabled, reason: reason.map(String::from) }).await?;
        Ok(())
    }

    /// `None`: the change does not fit the settings as they are by now.
    pub(super) async fn change_settings(&self, note: &AuditNote, change: SettingsChange) -> Result<Option<Settings>> {
        let changing = self.records.settings_change(&change, note);
        self.commit(note, changing, |changed| changed.as_ref().map(Into::into)).await
    }
}
