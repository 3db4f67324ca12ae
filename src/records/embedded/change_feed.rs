//! The changes after an epoch: a range of the change index, each row once.

use uuid::Uuid;

use super::rows::{self, Marked};
use super::settings;
use super::tables::{authorities, people, versions};
use super::transaction::{self, ChangeKind};
use crate::durable::Snapshot;
use crate::model::host::HostId;
use crate::records::{Changes, Epoch, Host, InstallToken, Result, Session};

pub(super) fn since(data: &Snapshot, since: Epoch) -> Result<Changes> {
    let mut changes = Changes { epoch: transaction::epoch(data)?, ..Changes::default() };
    let (from, to) = rows::changed_after(since);
    for row in data.range(from, to) {
        let key = row?.0;
        let (kind, id) = rows::read_changed(&key)?;
        match ChangeKind::of(kind) {
            Some(ChangeKind::Host) => {
                let id = id.try_into().map_err(|_| rows::corrupt("changed", "a host's id is not 8 bytes"))?;
                let key = rows::host(HostId(u64::from_be_bytes(id)));
                let host: Marked<Host> = rows::get(data, key)?.ok_or_else(|| rows::missing("host"))?;
                changes.hosts.push(host.row);
            }
            Some(ChangeKind::InstallToken) => {
                let digest: [u8; 32] =
                    id.try_into().map_err(|_| rows::corrupt("changed", "a token's digest is not 32 bytes"))?;
                let key = rows::token(&crate::model::digest::Digest::from_bytes(digest));
                let token: Marked<InstallToken> = rows::get(data, key)?.ok_or_else(|| rows::missing("token"))?;
                changes.install_tokens.push(token.row);
            }
            Some(ChangeKind::Canonical) => changes.canonical = versions::canonical(data)?,
            Some(ChangeKind::Settings) => changes.settings = settings::present(data)?.map(|marked| marked.row),
            Some(ChangeKind::Certificates) => changes.certificates = Some(authorities::certificates(data)?),
            Some(ChangeKind::Authorities) => changes.authorities = Some(rows::all(data, rows::AUTHORITY)?),
            Some(ChangeKind::Users) => changes.users = Some(people::users(data)?),
            Some(ChangeKind::Session) => {
                let id =
                    Uuid::from_slice(id).map_err(|_| rows::corrupt("changed", "a session's id is not 16 bytes"))?;
                let session: Marked<Session> =
                    rows::get(data, rows::session(id))?.ok_or_else(|| rows::missing("session"))?;
                changes.sessions.push(session.row);
            }
            None => return Err(rows::corrupt("changed", "a kind written by another version")),
        }
    }
    Ok(changes)
}
