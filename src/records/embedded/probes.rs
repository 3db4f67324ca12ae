//! Probes by number, which is the order of the claims.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Embedded, rows, transaction};
use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::records::copy::NumberedProbe;
use crate::records::probes::{MAX_PROBES, ProbeMark};
use crate::records::{ClaimOutcome, Probe, ProbeClaim, ProbeOutcome, ProbeRecords, ProbeSummary, Result};

#[async_trait]
impl ProbeRecords for Embedded {
    async fn probe_claim(&self, claim: &ProbeClaim, note: Option<&AuditNote>) -> Result<ClaimOutcome> {
        self.change(|staged| {
            if number_of(staged, claim.id)?.is_some() {
                return Ok(ClaimOutcome::Begun);
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
            let stay: Vec<_> = ProbeMark::ALL.into_iter().filter_map(stays).collect();
            let oldest_first = all.iter().rev().filter(|known| !stay.contains(&known.number));
            for NumberedProbe { number, probe } in oldest_first.take((all.len() + 1).saturating_sub(MAX_PROBES)) {
                staged.remove(rows::probe(*number));
                staged.remove(rows::probe_id(probe.id));
            }
            note.map_or(Ok(()), |note| transaction::note(staged, note))?;
            Ok(ClaimOutcome::Begun)
        })
        .await
    }

    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, note: Option<&AuditNote>) -> Result<bool> {
        self.change(|staged| {
            let Some(number) = number_of(staged, id)? else { return Ok(false) };
            let mut probe: Probe = rows::get(staged, rows::probe(number))?.ok_or_else(|| rows::missing("probe"))?;
            let outcome = outcome.cut();
            if let Some(known) = &probe.outcome {
                return Ok(*known == outcome);
            }
            probe.outcome = Some(outcome);
            rows::put(staged, rows::probe(number), &probe)?;
            note.map_or(Ok(()), |note| transaction::note(staged, note))?;
            Ok(true)
        })
        .await
    }

    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>> {
        self.read_much(move |data| all(data).take(limit).collect()).await
    }

    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary> {
        self.read_much(move |data| ProbeSummary::of(all(data), since)).await
    }
}

pub(super) fn all(data: &Snapshot) -> impl Iterator<Item = Result<Probe>> + '_ {
    newest_first(data.scan(rows::PROBE)).map(|known| known.map(|known| known.probe))
}

/// Writes a new probe.
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
