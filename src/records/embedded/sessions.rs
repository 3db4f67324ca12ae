//! Sessions, by their id. Which of them are in force their users decide.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::records::{Begun, Epoch, Result, Session};

use super::changes::{self, Kind};
use super::rows::{self, Marked};
use super::{audit, identities, users};

pub(super) fn begin(staged: &mut Staged<'_>, session: &Session, note: &AuditNote) -> Result<Begun> {
    if let Some(known) = by_id(staged, session.id)? {
        return Ok(if known.row.token == session.token { Begun::Begun } else { Begun::Known });
    }
    let user = users::by_id(staged, session.user)?;
    let linked = match session.identity() {
        Some((issuer, subject)) => identities::find(staged, issuer, subject)?,
        None => None,
    };
    if !session.may_begin(user.as_ref(), linked.map(|identity| identity.user)) {
        return Ok(Begun::Refused);
    }
    let epoch = changes::bump(staged)?;
    put(staged, session, None, epoch)?;
    audit::append(staged, note)?;
    Ok(Begun::Begun)
}

pub(super) fn end(staged: &mut Staged<'_>, id: Uuid, at: OffsetDateTime, note: &AuditNote) -> Result<Option<Session>> {
    let known = by_id(staged, id)?.filter(|known| known.row.ended_at.is_none());
    let Some(Marked { epoch: old, row: session }) = known else { return Ok(None) };
    let ended = Session { ended_at: Some(at), ..session };
    let epoch = changes::bump(staged)?;
    put(staged, &ended, Some(old), epoch)?;
    audit::append(staged, note)?;
    Ok(Some(ended))
}

pub(super) fn touch(staged: &mut Staged<'_>, used: &[(Uuid, OffsetDateTime)]) -> Result<()> {
    for (id, at) in used {
        let Some(mut known) = by_id(staged, *id)? else { continue };
        if known.row.last_used_at < *at {
            known.row.last_used_at = *at;
            rows::put(staged, rows::session(*id), &known)?;
        }
    }
    Ok(())
}

/// The newest first.
pub(super) fn all(data: &Snapshot) -> Result<Vec<Session>> {
    let rows = rows::all::<Marked<Session>>(data, rows::SESSION)?;
    let mut sessions: Vec<_> = rows.into_iter().map(|marked| marked.row).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse((session.started_at, session.id)));
    Ok(sessions)
}

pub(super) fn purge(staged: &mut Staged<'_>, when: OffsetDateTime) -> Result<usize> {
    let mut gone = Vec::new();
    for row in staged.scan(rows::SESSION) {
        let (key, value) = row?;
        let known: Marked<Session> = rows::decode(&key, &value)?;
        if known.row.was_over(when) {
            gone.push((known.row.id, known.epoch));
        }
    }
    for (id, epoch) in &gone {
        changes::forget(staged, Kind::Session, id.as_bytes(), *epoch);
        staged.remove(rows::session(*id));
    }
    Ok(gone.len())
}

/// Writes a session and its mark, which was at `old`.
pub(super) fn put(staged: &mut Staged<'_>, session: &Session, old: Option<Epoch>, epoch: Epoch) -> Result<()> {
    changes::mark(staged, Kind::Session, session.id.as_bytes(), old, epoch);
    rows::put(staged, rows::session(session.id), &Marked { epoch, row: session })
}

fn by_id(staged: &Staged<'_>, id: Uuid) -> Result<Option<Marked<Session>>> {
    rows::get(staged, rows::session(id))
}
