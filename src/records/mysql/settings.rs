//! The one row of settings, and what the first boot makes.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::changes::{self, Change, Set};
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::{authorities, sealed};
use crate::model::audit::AuditNote;
use crate::records::{ClientRelease, HostTrust, RestoredLogin, Seed, Settings, SettingsChange, VerifiedBackup};
use crate::seal::Sealed;

const TABLE: &str = "settings";

pub(super) async fn initialise(change: &mut Change<'_>, seed: &Seed, note: &AuditNote) -> Outcome<bool> {
    if initialised(change.connection).await? {
        return Ok(false);
    }
    sealed::put_key(change, &seed.sealing_key).await?;
    for authority in &seed.authorities {
        authorities::insert(change, authority).await?;
    }
    put_server_key(change, &seed.server_key).await?;
    change.run("UPDATE settings SET initialised = 1 WHERE id = 0", vec![]).await?;
    change.note(note);
    Ok(true)
}

pub(super) async fn put_server_key(change: &mut Change<'_>, key: &Sealed) -> Outcome<()> {
    let values = vec![rows::sealed(key), rows::key_of(key)];
    change.run("UPDATE settings SET server_key = ?, server_key_key = ? WHERE id = 0", values).await
}

pub(super) async fn is_initialised(connection: &mut Conn) -> Outcome<bool> {
    changes::check_whole(connection).await?;
    initialised(connection).await
}

/// Whatever is going on with the store as a whole.
pub(super) async fn initialised(connection: &mut Conn) -> Outcome<bool> {
    Ok(row(connection, "initialised").await?.truth()?)
}

pub(super) async fn server_key(connection: &mut Conn) -> Outcome<Option<Sealed>> {
    Ok(row(connection, "server_key").await?.optional_sealed()?)
}

pub(super) async fn present(connection: &mut Conn) -> Outcome<Settings> {
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

pub(super) async fn change(
    change: &mut Change<'_>,
    wanted: &SettingsChange,
    note: &AuditNote,
) -> Outcome<Option<Settings>> {
    let present = present(change.connection).await?;
    let Some(settings) = wanted.applied(&present).map(kept) else { return Ok(None) };
    put(change, &settings).await?;
    change.mark(Set::Settings);
    change.note(note);
    Ok(Some(settings))
}

/// As they are read back.
fn kept(mut settings: Settings) -> Settings {
    settings.client_release.iter_mut().for_each(|release| release.checked_at = rows::cut(release.checked_at));
    settings.restored_login.iter_mut().for_each(|login| login.backup_of = rows::cut(login.backup_of));
    settings.verified_backup.iter_mut().for_each(|backup| backup.made_at = rows::cut(backup.made_at));
    if let Some(trust) = &mut settings.host_trust {
        trust.system_since = trust.system_since.map(rows::cut);
        trust.switched_at = trust.switched_at.map(rows::cut);
    }
    settings
}

pub(super) async fn put(change: &mut Change<'_>, settings: &Settings) -> Outcome<()> {
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
