//! Probes, by their number: the order in which they were claimed.

use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::records::copy::NumberedProbe;
use crate::records::probes::{KEPT, Mark};
use crate::records::{Claimed, Probe, ProbeClaim, ProbeOutcome, Result};

use super::{audit, rows};

pub(super) fn claim(staged: &mut Staged<'_>, claim: &ProbeClaim, note: Option<&AuditNote>) -> Result<Claimed> {
    if number_of(staged, claim.id)?.is_some() {
        return Ok(Claimed::Begun);
    }
    let mut all = Vec::new();
    let known = newest_first(staged.scan(rows::PROBE)).map(|known| {
        let known = known?;
        all.push(known.clone());
        Ok(known.probe)
    });
    if let Some(refused) = claim.refused(known)? {
        return Ok(refused);
    }
    let number = all.first().map_or(0, |newest| newest.number) + 1;
    put(staged, &NumberedProbe { number, probe: Probe::begun(claim) })?;
    let stays = |mark| all.iter().find(|known| known.probe.is(mark)).map(|known| known.number);
    let stay: Vec<_> = Mark::ALL.into_iter().filter_map(stays).collect();
    let oldest_first = all.iter().rev().filter(|known| !stay.contains(&known.number));
    for NumberedProbe { number, probe } in oldest_first.take((all.len() + 1).saturating_sub(KEPT)) {
        staged.remove(rows::probe(*number));
        staged.remove(rows::probe_id(probe.id));
    }
    note.map_or(Ok(()), |note| audit::append(staged, note))?;
    Ok(Claimed::Begun)
}

pub(super) fn finish(
    staged: &mut Staged<'_>,
    id: Uuid,
    outcome: &ProbeOutcome,
    note: Option<&AuditNote>,
) -> Result<bool> {
    let Some(number) = number_of(staged, id)? else { return Ok(false) };
    let mut probe: Probe = rows::get(staged, rows::probe(number))?.ok_or_else(|| rows::missing("probe"))?;
    let outcome = outcome.cut();
    if let Some(known) = &probe.outcome {
        return Ok(*known == outcome);
    }
    probe.outcome = Some(outcome);
    rows::put(staged, rows::probe(number), &probe)?;
    note.map_or(Ok(()), |note| audit::append(staged, note))?;
    Ok(true)
}

pub(super) fn all(data: &Snapshot) -> impl Iterator<Item = Result<Probe>> + '_ {
    newest_first(data.scan(rows::PROBE)).map(|known| known.map(|known| known.probe))
}

/// Writes one that was not there.
pub(super) fn put(staged: &mut Staged<'_>, NumberedProbe { number, probe }: &NumberedProbe) -> Result<()> {
    rows::put(staged, rows::probe_id(probe.id), number)?;
    rows::put(staged, rows::probe(*number), probe)
}

fn number_of(staged: &Staged<'_>, id: Uuid) -> Result<Option<u64>> {
    rows::get(staged, rows::probe_id(id))
}

fn newest_first<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    scan: impl DoubleEndedIterator<Item = std::result::Result<(K, V), crate::durable::DurableError>>,
) -> impl Iterator<Item = Result<NumberedProbe>> {
    scan.rev().map(|row| {
        let (key, value) = row?;
        Ok(NumberedProbe {
            number: rows::read_probe(key.as_ref())?,
            probe: rows::decode(key.as_ref(), value.as_ref())?,
        })
    })
}
