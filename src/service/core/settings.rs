//! The settings in force on this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::model::audit::AuditNote;
use crate::records::{Settings, SettingsChange};
use crate::service::{Core, Result, ServiceError};

impl Core {
    /// The refusal that hosts get if the kill switch is on.
    pub fn api_disabled(&self) -> Option<ServiceError> {
        let settings = self.settings.load();
        settings.api_disabled.then(|| ServiceError::ApiDisabled { reason: settings.api_disabled_reason.clone() })
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Changes the settings. `None`: the change does not fit the present settings.
    pub(in crate::service) async fn change_settings(
        &self,
        note: &AuditNote,
        change: SettingsChange,
    ) -> Result<Option<Settings>> {
        let changing = self.records.settings_change(&change, note);
        self.commit(note, changing, |changed| changed.as_ref().map(Into::into)).await
    }

    /// Puts settings in force on this node.
    pub(in crate::service) fn adopt_settings(&self, settings: Arc<Settings>) {
        let now = settings.host_trust;
        if self.settings.swap(settings).host_trust != now {
            // Wrappers are baked with other values from now on.
            self.policy_revision.fetch_add(1, Ordering::SeqCst);
            self.trust_changed.send_modify(|changes| *changes += 1);
        }
    }
}
