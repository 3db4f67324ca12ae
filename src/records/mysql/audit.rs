//! The audit log.

use async_trait::async_trait;
use mysql_async::{Conn, Value};

use super::connections::Outcome;
use super::tables::audit_log;
use super::{MySql, rows, transaction};
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::records::{AuditRecords, Result};

/// Entries read at a time if the database cannot filter them.
const PAGE_ROWS: usize = 1000;

#[async_trait]
impl AuditRecords for MySql {
    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()> {
        change!(self, |change| {
            notes.iter().for_each(|note| change.note(note));
            Ok(())
        })
    }

    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
        read!(self, |connection| {
            let mut found = Vec::new();
            let mut before = filter.before;
            loop {
                let page = if filter.actor.is_some() { PAGE_ROWS } else { limit - found.len() };
                let entries = page_before(connection, filter, before, page).await?;
                let (read, last) = (entries.len(), entries.last().map(|entry| entry.number));
                // The actor's name consists of several columns, so it is filtered here.
                found.extend(entries.into_iter().filter(|entry| filter.admits(entry)).take(limit - found.len()));
                before = last;
                if read < page || found.len() >= limit {
                    return Ok(found);
                }
            }
        })
    }

    async fn audit_list_from(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>> {
        read!(self, |connection| audit_log::page(connection, from, limit).await)
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        read!(self, |connection| Ok(transaction::heads(connection).await?.audit))
    }
}

async fn page_before(
    connection: &mut Conn,
    filter: &AuditFilter,
    before: Option<u64>,
    limit: usize,
) -> Outcome<Vec<AuditEntry>> {
    let mut conditions = vec!["1 = 1"];
    let mut values: Vec<Value> = Vec::new();
    let mut also = |condition, bound: Vec<Value>| {
        conditions.push(condition);
        values.extend(bound);
    };
    if let Some(before) = before {
        also("number < ?", vec![before.into()]);
    }
    if let Some(action) = &filter.action {
        let noun = format!("{action}.");
        also("(action = ? OR LEFT(action, CHAR_LENGTH(?)) = ?)", vec![action.into(), noun.clone().into(), noun.into()]);
    }
    if let Some(target) = &filter.target {
        also("target = ?", vec![target.into()]);
    }
    if let Some(from) = filter.from {
        also("source_ip = ?", vec![rows::address(Some(from.to_canonical()))]);
    }
    if filter.alarms_only {
        also("alarm = 1", vec![]);
    }
    if let Some(since) = filter.since {
        also("at >= ?", vec![rows::time(since)]);
    }
    if let Some(until) = filter.until {
        also("at < ?", vec![rows::time(until)]);
    }
    values.push((limit as u64).into());
    let conditions = conditions.join(" AND ");
    audit_log::select(connection, &format!("WHERE {conditions} ORDER BY number DESC LIMIT ?"), values).await
}
