//! The settings: one row.

use async_trait::async_trait;

use super::MySql;
use super::tables::settings;
use super::transaction::Set;
use crate::model::audit::AuditNote;
use crate::records::{Result, Settings, SettingsChange, SettingsRecords};

#[async_trait]
impl SettingsRecords for MySql {
    async fn settings_fetch(&self) -> Result<Settings> {
        read!(self, |connection| settings::present(connection).await)
    }

    async fn settings_change(&self, wanted: &SettingsChange, note: &AuditNote) -> Result<Option<Settings>> {
        change!(self, |change| {
            let present = settings::present(change.connection).await?;
            let Some(mut settings) = wanted.applied(&present) else { return Ok(None) };
            settings.truncate_times();
            settings::put(change, &settings).await?;
            change.mark(Set::Settings);
            change.note(note);
            Ok(Some(settings))
        })
    }
}
