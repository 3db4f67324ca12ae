//! Guards a canonical login that came back from a backup: no probe of it starts by itself.
//!
//! Its refresh token may have been spent after the backup was made, by a host or by a probe. The daemon cannot know
//! which of the two tokens is newer. Redeeming a spent token fails at best; at worst upstream withdraws the tokens that
//! came from it. So while this login is the canonical version, only an admin can start a probe of it, by confirming
//! that nothing was refreshed since. Hosts are served with it. A newer login from any source ends this state, and so
//! does a probe that finds this login to work.
//!
//! The state is in the settings ([`RestoredLogin`]), written by the restore before anybody can open the store. A crash
//! between the finding of such a probe and the settings leaves the mark. The next probe that an admin asks for removes
//! it.

use time::format_description::well_known::Rfc3339;

use crate::records::{RestoredLogin, Settings, SettingsChange};
use crate::service::{Initiator, Probes, Result, ServiceError};

impl Probes {
    /// The mark of the canonical login, if it came from a backup and was not proved since.
    pub fn restored_login(&self) -> Option<RestoredLogin> {
        let version = self.core.canonical()?.summary.version;
        of(&self.core.settings.load(), version)
    }

    /// Logs a warning at a start.
    pub fn warn_of_restored_login(&self) {
        if let Some(restored) = self.restored_login() {
            let reason = reason(&restored);
            log::warn!(event = "login_restored", version = restored.version; "{reason}");
        }
    }

    pub(in crate::service) fn check_not_restored(&self, is_confirmed: bool) -> Result<()> {
        match self.restored_login() {
            Some(restored) if !is_confirmed => Err(ServiceError::Conflict(reason(&restored))),
            _ => Ok(()),
        }
    }

    /// Asks the records: a restore may have replaced the store a moment ago, unknown to this node.
    pub(in crate::service) async fn may_be_redeemed(&self, version: u64, is_confirmed: bool) -> Result<bool> {
        Ok(is_confirmed || of(&self.core.records.settings_fetch().await?, version).is_none())
    }

    /// Removes the mark after a probe found the login to work.
    pub(in crate::service) async fn end_restored(&self, version: u64) {
        if self.restored_login().is_none_or(|restored| restored.version != version) {
            return;
        }
        let note = Initiator::daemon().note(self.core.platform.now(), "runner.restored_login_works").on(version);
        // `change_settings` logs the success.
        if let Err(error) = self.core.change_settings(&note, SettingsChange::ClearRestored { version }).await {
            log::warn!(event = "restored_login_kept", cause:% = error; "the login of a backup works, but that could not be written: {error}");
        }
    }
}

fn of(settings: &Settings, version: u64) -> Option<RestoredLogin> {
    settings.restored_login.clone().filter(|restored| restored.version == version)
}

/// Why no probe of it starts by itself, and what to do.
pub fn reason(restored: &RestoredLogin) -> String {
    let RestoredLogin { version, backup_of } = restored;
    let to_the_second = backup_of.replace_nanosecond(0).unwrap_or(*backup_of);
    let at = to_the_second.format(&Rfc3339).unwrap_or_default();
    format!(
        "version {version} of the canonical login came back from a backup of {at}: its refresh token may have been spent \
         since, so Codex is not run on it. Sign in on a machine with Codex and upload that login (`codex-authd auth \
         upload FILE`, or the dashboard); a newer login from a host will do as well. If you know that nothing was \
         refreshed since the backup: `codex-authd runner run --restored`"
    )
}
