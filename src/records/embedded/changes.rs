//! The epoch, and what changed after which.
//!
//! A marked row carries the epoch that last changed it and stands at that epoch in the change index; changing it again
//! moves it there. So what changed after an epoch is a range of the index, each row once.

use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::host::HostId;
use crate::records::{Changes, Epoch, Host, InstallToken, Result, Session, Settings, SettingsChange};

use super::rows::{self, Marked, Source};
use super::{audit, authorities, canonical, users};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Host,
    InstallToken,
    Canonical,
    Settings,
    Certificates,
    Authorities,
    Users,
    Session,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Host,
        Self::InstallToken,
        Self::Canonical,
        Self::Settings,
        Self::Certificates,
        Self::Authorities,
        Self::Users,
        Self::Session,
    ];

    const fn byte(self) -> u8 {
        match self {
            Self::Host => b'h',
            Self::InstallToken => b't',
            Self::Canonical => b'c',
            Self::Settings => b's',
            Self::Certificates => b'C',
            Self::Authorities => b'A',
            Self::Users => b'U',
            Self::Session => b'S',
        }
    }
}

pub(super) fn epoch(source: &impl Source) -> Result<Epoch> {
    Ok(rows::get(source, rows::EPOCH)?.unwrap_or_default())
}

/// The epoch of the change that is being staged; to be called once within it.
pub(super) fn bump(staged: &mut Staged<'_>) -> Result<Epoch> {
    let next = Epoch(epoch(staged)?.0 + 1);
    rows::put(staged, rows::EPOCH, &next)?;
    Ok(next)
}

/// Moves a row in the index from where it was to `now`.
pub(super) fn mark(staged: &mut Staged<'_>, kind: Kind, id: &[u8], old: Option<Epoch>, now: Epoch) {
    if let Some(old) = old {
        staged.remove(rows::changed(old, kind.byte(), id));
    }
    staged.insert(rows::changed(now, kind.byte(), id), "");
}

/// Takes a row that is removed out of the index; nodes are not told.
pub(super) fn forget(staged: &mut Staged<'_>, kind: Kind, id: &[u8], epoch: Epoch) {
    staged.remove(rows::changed(epoch, kind.byte(), id));
}

/// Marks a set that nodes read as a whole.
pub(super) fn mark_set(staged: &mut Staged<'_>, kind: Kind, now: Epoch) -> Result<()> {
    let key = rows::set(kind.byte());
    let old: Option<Epoch> = rows::get(staged, &key)?;
    mark(staged, kind, b"", old, now);
    rows::put(staged, key, &now)
}

pub(super) fn since(data: &Snapshot, since: Epoch) -> Result<Changes> {
    let mut changes = Changes { epoch: epoch(data)?, ..Changes::default() };
    let (from, to) = rows::changed_after(since);
    for row in data.range(from, to) {
        let key = row?.0;
        let (kind, id) = rows::read_changed(&key)?;
        match Kind::ALL.into_iter().find(|known| known.byte() == kind) {
            Some(Kind::Host) => {
                let id = id.try_into().map_err(|_| rows::corrupt("changed", "a host's id is not 8 bytes"))?;
                let key = rows::host(HostId(u64::from_be_bytes(id)));
                let host: Marked<Host> = rows::get(data, key)?.ok_or_else(|| rows::missing("host"))?;
                changes.hosts.push(host.row);
            }
            Some(Kind::InstallToken) => {
                let digest: [u8; 32] =
                    id.try_into().map_err(|_| rows::corrupt("changed", "a token's digest is not 32 bytes"))?;
                let key = rows::token(&crate::model::digest::Digest::from_bytes(digest));
                let token: Marked<InstallToken> = rows::get(data, key)?.ok_or_else(|| rows::missing("token"))?;
                changes.install_tokens.push(token.row);
            }
            Some(Kind::Canonical) => changes.canonical = canonical::present(data)?,
            Some(Kind::Settings) => changes.settings = settings(data)?.map(|marked| marked.row),
            Some(Kind::Certificates) => changes.certificates = Some(authorities::certificates(data)?),
            Some(Kind::Authorities) => changes.authorities = Some(rows::all(data, rows::AUTHORITY)?),
            Some(Kind::Users) => changes.users = Some(users::all(data)?),
            Some(Kind::Session) => {
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

pub(super) fn settings(source: &impl Source) -> Result<Option<Marked<Settings>>> {
    rows::get(source, rows::SETTINGS)
}

pub(super) fn change_settings(
    staged: &mut Staged<'_>,
    change: &SettingsChange,
    note: &AuditNote,
) -> Result<Option<Settings>> {
    let (old, present) = match settings(staged)? {
        Some(Marked { epoch, row }) => (Some(epoch), row),
        None => (None, Settings::default()),
    };
    let Some(settings) = change.applied(&present) else { return Ok(None) };
    let epoch = bump(staged)?;
    mark(staged, Kind::Settings, b"", old, epoch);
    audit::append(staged, note)?;
    rows::put(staged, rows::SETTINGS, &Marked { epoch, row: &settings })?;
    Ok(Some(settings))
}
