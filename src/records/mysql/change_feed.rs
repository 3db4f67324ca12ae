//! The changes after an epoch, read in one snapshot.

use mysql_async::Conn;

use super::connections::Outcome;
use super::tables::{authorities, certificates, hosts, installers, sessions, settings, users, versions};
use super::transaction;
use crate::records::{Changes, Epoch};

pub(super) async fn since(connection: &mut Conn, since: Epoch) -> Outcome<Changes> {
    // Nearly every poll finds nothing.
    let now = transaction::epoch(connection).await?;
    if now <= since {
        return Ok(Changes { epoch: now, ..Changes::default() });
    }
    transaction::begin_snapshot(connection).await?;
    let read = read_since(connection, since).await;
    transaction::end_snapshot(connection).await?;
    read
}

async fn read_since(connection: &mut Conn, since: Epoch) -> Outcome<Changes> {
    let heads = transaction::heads(connection).await?;
    let mut changes = Changes {
        epoch: heads.epoch,
        hosts: hosts::changed(connection, since).await?,
        install_tokens: installers::changed(connection, since).await?,
        ..Changes::default()
    };
    if let Some(version) = heads.canonical_version.filter(|_| heads.canonical_epoch > since) {
        changes.canonical = versions::fetch(connection, version).await?;
    }
    if heads.settings_epoch > since {
        changes.settings = Some(settings::present(connection).await?);
    }
    if heads.certificates_epoch > since {
        changes.certificates = Some(certificates::all(connection).await?);
    }
    if heads.authorities_epoch > since {
        changes.authorities = Some(authorities::all(connection).await?);
    }
    if heads.users_epoch > since {
        changes.users = Some(users::all(connection).await?);
    }
    if heads.sessions_epoch > since {
        changes.sessions = sessions::changed(connection, since).await?;
    }
    Ok(changes)
}
