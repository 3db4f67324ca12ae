//! The settings: one marked row.

use async_trait::async_trait;

use super::Embedded;
use super::rows::{self, Marked, RowSource};
use super::transaction::{self, ChangeKind};
use crate::model::audit::AuditNote;
use crate::records::{Result, Settings, SettingsChange, SettingsRecords};

#[async_trait]
impl SettingsRecords for Embedded {
    async fn settings_fetch(&self) -> Result<Settings> {
        self.read(|data| Ok(present(data)?.map(|marked| marked.row).unwrap_or_default())).await
    }

    async fn settings_change(&self, change: &SettingsChange, note: &AuditNote) -> Result<Option<Settings>> {
        self.change(|staged| {
            let (old, present) = match present(staged)? {
                Some(Marked { epoch, row }) => (Some(epoch), row),
                None => (None, Settings::default()),
            };
            let Some(settings) = change.applied(&present) else { return Ok(None) };
            let epoch = transaction::bump(staged)?;
            transaction::mark(staged, ChangeKind::Settings, b"", old, epoch);
            transaction::note(staged, note)?;
            rows::put(staged, rows::SETTINGS, &Marked { epoch, row: &settings })?;
            Ok(Some(settings))
        })
        .await
    }
}

pub(super) fn present(source: &impl RowSource) -> Result<Option<Marked<Settings>>> {
    rows::get(source, rows::SETTINGS)
}
