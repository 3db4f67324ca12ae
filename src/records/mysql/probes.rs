//! Probes by number, which is the order of the claims.
//!
//! A claim without an audit note does not write `heads`. On a cluster, where a lock holds on one node only, two claims
//! insert the same number, and the second commit is refused. A standstill waits for claims on other nodes as for their
//! telemetry.

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};
use time::{OffsetDateTime, Time, UtcOffset};
use uuid::Uuid;

use super::MySql;
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::transaction::Change;
use crate::model::audit::AuditNote;
use crate::records::copy::NumberedProbe;
use crate::records::probes::{MAX_PROBES, ProbeMark};
use crate::records::{
    ClaimOutcome, Probe, ProbeClaim, ProbeOutcome, ProbeRecords, ProbeState, ProbeSummary, ProbeTrigger, Result,
};

const TABLE: &str = "probes";

const COLUMNS: [&str; 11] = [
    "number",
    "id",
    "node",
    "version",
    "caused_by",
    "started_at",
    "lease_until",
    "state",
    "reason",
    "adopted",
    "finished_at",
];

#[async_trait]
impl ProbeRecords for MySql {
    async fn probe_claim(&self, wanted: &ProbeClaim, audit: Option<&AuditNote>) -> Result<ClaimOutcome> {
        change!(self, |change| claim(change, wanted, audit).await)
    }

    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, note: Option<&AuditNote>) -> Result<bool> {
        change!(self, |change| {
            let outcome = ProbeOutcome { finished_at: rows::truncated(outcome.finished_at), ..outcome.cut() };
            let found = select(change.connection, "WHERE id = ?", vec![rows::id(id)]).await?.pop();
            let Some(NumberedProbe { number, probe }) = found else { return Ok(false) };
            if let Some(known) = probe.outcome {
                return Ok(known == outcome);
            }
            let values = Vec::from(written(Some(&outcome))).into_iter().chain([number.into()]).collect();
            change
                .run("UPDATE probes SET state = ?, reason = ?, adopted = ?, finished_at = ? WHERE number = ?", values)
                .await?;
            note.into_iter().for_each(|note| change.note(note));
            Ok(true)
        })
    }

    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>> {
        read!(self, |connection| {
            let known = select(connection, "ORDER BY number DESC LIMIT ?", vec![(limit as u64).into()]).await?;
            Ok(known.into_iter().map(|known| known.probe).collect())
        })
    }

    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary> {
        read!(self, |connection| {
            let which = format!("WHERE finished_at >= ? OR number IN ({}) ORDER BY number DESC", newest());
            let known = select(connection, &which, vec![rows::time(since)]).await?;
            Ok(ProbeSummary::of(known.into_iter().map(|known| Ok(known.probe)), since)?)
        })
    }
}

/// The SQL condition for probes with a mark.
const fn marked(mark: ProbeMark) -> &'static str {
    match mark {
        ProbeMark::Finished => "state IS NOT NULL",
        ProbeMark::Ok => "state = 'ok'",
        ProbeMark::Failed => "state = 'fail'",
        ProbeMark::Daily => "caused_by = 'daily'",
        ProbeMark::Adopted => "adopted IS NOT NULL",
    }
}

/// SQL columns: the number of the newest probe, and of the newest one with each mark.
fn newest() -> String {
    let marks = ProbeMark::ALL.map(|mark| format!("(SELECT MAX(number) FROM probes WHERE {})", marked(mark)));
    format!("(SELECT MAX(number) FROM probes), {}", marks.join(", "))
}

pub(super) async fn claim(
    change: &mut Change<'_>,
    claim: &ProbeClaim,
    note: Option<&AuditNote>,
) -> Outcome<ClaimOutcome> {
    let claim = ProbeClaim { at: rows::truncated(claim.at), until: rows::truncated(claim.until), ..claim.clone() };
    let day = claim.at.to_offset(UtcOffset::UTC).replace_time(Time::MIDNIGHT);
    // Reads the probes that may refuse the claim, and the one with its id.
    let statement = "WHERE id = ? OR (state IS NULL AND lease_until > ?) OR (caused_by = 'daily' AND started_at >= ?) \
                     ORDER BY number DESC";
    let known =
        select(change.connection, statement, vec![rows::id(claim.id), rows::time(claim.at), rows::time(day)]).await?;
    if known.iter().any(|known| known.probe.id == claim.id) {
        return Ok(ClaimOutcome::Begun);
    }
    if let Some(refused) = claim.refused(known.into_iter().map(|known| Ok(known.probe)))? {
        return Ok(refused);
    }
    let kept = kept(change.connection).await?;
    let number = kept.newest + 1;
    insert_all(change, &[&NumberedProbe { number, probe: Probe::begun(&claim) }]).await?;
    let too_many = (kept.count + 1).saturating_sub(MAX_PROBES as u64);
    if too_many > 0 {
        let but = if kept.stay.is_empty() {
            String::new()
        } else {
            format!("WHERE number NOT IN {} ", rows::places(1, kept.stay.len()))
        };
        let values = kept.stay.into_iter().chain([too_many]).map(Value::from).collect();
        change.run(&format!("DELETE FROM probes {but}ORDER BY number LIMIT ?"), values).await?;
    }
    note.into_iter().for_each(|note| change.note(note));
    Ok(ClaimOutcome::Begun)
}

struct KeptProbes {
    count: u64,
    newest: u64,
    /// The numbers of the probes that are kept at any age.
    stay: Vec<u64>,
}

async fn kept(connection: &mut Conn) -> Outcome<KeptProbes> {
    let statement = format!("SELECT (SELECT COUNT(*) FROM probes), {}", newest());
    let row: Option<Row> = connection.exec_first(statement, ()).await?;
    let mut columns = Columns::of(TABLE, row.ok_or_else(|| rows::corrupt(TABLE, "no answer"))?);
    let (count, newest) = (columns.number()?, columns.optional_number()?.unwrap_or_default());
    let mut stay = Vec::new();
    for _ in ProbeMark::ALL {
        stay.extend(columns.optional_number()?);
    }
    Ok(KeptProbes { count, newest, stay })
}

/// Probes in the order of their numbers, after `after`.
pub(super) async fn page(connection: &mut Conn, after: u64, limit: usize) -> Outcome<Vec<NumberedProbe>> {
    select(connection, "WHERE number > ? ORDER BY number LIMIT ?", vec![after.into(), (limit as u64).into()]).await
}

pub(super) async fn insert_all(change: &mut Change<'_>, probes: &[&NumberedProbe]) -> Outcome<()> {
    let values = probes.iter().flat_map(|NumberedProbe { number, probe }| {
        let head: [Value; 7] = [
            (*number).into(),
            rows::id(probe.id),
            rows::id(probe.node),
            probe.version.into(),
            probe.trigger.as_str().into(),
            rows::time(probe.started_at),
            rows::time(probe.until),
        ];
        head.into_iter().chain(written(probe.outcome.as_ref()))
    });
    let places = rows::places(probes.len(), COLUMNS.len());
    let statement = format!("INSERT INTO probes ({}) VALUES {places}", COLUMNS.join(", "));
    change.run(&statement, values.collect()).await
}

fn written(outcome: Option<&ProbeOutcome>) -> [Value; 4] {
    [
        outcome.map(|outcome| outcome.state.as_str()).into(),
        outcome.and_then(|outcome| outcome.reason.as_deref()).into(),
        outcome.and_then(|outcome| outcome.adopted).into(),
        rows::optional_time(outcome.map(|outcome| outcome.finished_at)),
    ]
}

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<NumberedProbe>> {
    let statement = format!("SELECT {} FROM probes {which}", COLUMNS.join(", "));
    rows::read_all(connection, statement, values, read).await
}

fn read(row: Row) -> Result<NumberedProbe> {
    let mut columns = Columns::of(TABLE, row);
    let (number, id, node, version) = (columns.number()?, columns.id()?, columns.id()?, columns.number()?);
    let (trigger, started_at, until) = (columns.text()?, columns.time()?, columns.time()?);
    let unknown = || rows::corrupt(TABLE, format!("probe {number} was written by another version"));
    let trigger = ProbeTrigger::ALL.into_iter().find(|known| known.as_str() == trigger).ok_or_else(unknown)?;
    let (state, reason, adopted) = (columns.optional_text()?, columns.optional_text()?, columns.optional_number()?);
    let outcome = match state.zip(columns.optional_time()?) {
        Some((state, finished_at)) => {
            let state = ProbeState::ALL.into_iter().find(|known| known.as_str() == state).ok_or_else(unknown)?;
            Some(ProbeOutcome { state, reason, adopted, finished_at })
        }
        None => None,
    };
    Ok(NumberedProbe { number, probe: Probe { id, node, version, trigger, started_at, until, outcome } })
}
