//! The row of settings, which also holds the server key.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{ClientRelease, HostTrust, RestoredLogin, Settings, VerifiedBackup};
use crate::seal::Sealed;

const TABLE: &str = "settings";

pub async fn put_server_key(change: &mut Change<'_>, key: &Sealed) -> Outcome<()> {
    let values = vec![rows::sealed(key), rows::key_of(key)];
    change.run("UPDATE settings SET server_key = ?, server_key_key = ? WHERE id = 0", values).await
}

/// Works also during a fill.
pub async fn initialised(connection: &mut Conn) -> Outcome<bool> {
    Ok(row(connection, "initialised").await?.truth()?)
}

pub async fn server_key(connection: &mut Conn) -> Outcome<Option<Sealed>> {
    Ok(row(connection, "server_key").await?.optional_sealed()?)
}

pub async fn present(connection: &mut Conn) -> Outcome<Settings> {
    let columns = "api_disabled, api_disabled_reason, client_version, client_version_checked_at, restored_version, \
                   restored_backup_of, old_wrappers_trust_system, system_trust_since, switched_at, verified_backup_of, \
                   verified_backup_has_keys, public_urls";
    let mut columns = row(connection, columns).await?;
    let (api_disabled, api_disabled_reason) = (columns.truth()?, columns.optional_text()?);
    let (version, checked_at) = (columns.optional_text()?, columns.optional_time()?);
    let client_release = version.zip(checked_at).map(|(version, checked_at)| ClientRelease { version, checked_at });
    let (version, backup_of) = (columns.optional_number()?, columns.optional_time()?);
    let restored_login = version.zip(backup_of).map(|(version, backup_of)| RestoredLogin { version, backup_of });
    let (old_wrappers, system_since, switched_at) =
        (columns.optional_number()?, columns.optional_time()?, columns.optional_time()?);
    let host_trust =
        old_wrappers.map(|old| HostTrust { old_wrappers_trust_system: old != 0, system_since, switched_at });
    let (made_at, has_keys) = (columns.optional_time()?, columns.truth()?);
    let verified_backup = made_at.map(|made_at| VerifiedBackup { made_at, has_keys });
    let public_urls = columns.optional_text()?.unwrap_or_default().lines().map(String::from).collect();
    Ok(Settings {
        api_disabled,
        api_disabled_reason,
        client_release,
        restored_login,
        host_trust,
        verified_backup,
        public_urls,
    })
}

async fn row(connection: &mut Conn, columns: &str) -> Outcome<Columns> {
    let row: Option<Row> = connection.exec_first(format!("SELECT {columns} FROM settings WHERE id = 0"), ()).await?;
    Ok(Columns::of(TABLE, row.ok_or_else(|| rows::corrupt(TABLE, "its row is missing"))?))
}

pub async fn put(change: &mut Change<'_>, settings: &Settings) -> Outcome<()> {
    let release = settings.client_release.as_ref();
    let restored = settings.restored_login.as_ref();
    let backup = settings.verified_backup.as_ref();
    let trust = settings.host_trust.as_ref();
    let values = vec![
        settings.api_disabled.into(),
        settings.api_disabled_reason.as_deref().into(),
        release.map(|release| release.version.as_str()).into(),
        rows::optional_time(release.map(|release| release.checked_at)),
        restored.map(|restored| restored.version).into(),
        rows::optional_time(restored.map(|restored| restored.backup_of)),
        trust.map(|trust| trust.old_wrappers_trust_system).into(),
        rows::optional_time(trust.and_then(|trust| trust.system_since)),
        rows::optional_time(trust.and_then(|trust| trust.switched_at)),
        rows::optional_time(backup.map(|backup| backup.made_at)),
        backup.is_some_and(|backup| backup.has_keys).into(),
        // A URL has no line break.
        settings.public_urls.join("\n").into(),
    ];
    change
        .run(
            "UPDATE settings SET api_disabled = ?, api_disabled_reason = ?, client_version = ?, \
             client_version_checked_at = ?, restored_version = ?, restored_backup_of = ?, \
             old_wrappers_trust_system = ?, system_trust_since = ?, switched_at = ?, verified_backup_of = ?, \
             verified_backup_has_keys = ?, public_urls = ? WHERE id = 0",
            values,
        )
        .await
}
