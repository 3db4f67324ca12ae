//! What hosts' calls leave behind, each batch once.

use uuid::Uuid;

use crate::durable::Staged;
use crate::model::host::HostActivity;
use crate::records::{Result, Telemetry};

use super::{audit, hosts, rows};

pub(super) fn append(staged: &mut Staged<'_>, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
    let applied: Option<u64> = rows::get(staged, rows::node(node))?;
    if applied.is_some_and(|applied| seq <= applied) {
        return Ok(());
    }
    rows::put(staged, rows::node(node), &seq)?;
    for telemetry in batch {
        match telemetry {
            // A host that was removed while this was under way leaves nothing behind.
            Telemetry::Noted { note } => audit::append(staged, note)?,
            Telemetry::Seen { host, .. } if !hosts::is_there(staged, *host)? => {}
            Telemetry::Seen { host, .. } => {
                let mut activity: HostActivity = rows::get(staged, rows::activity(*host))?.unwrap_or_default();
                telemetry.apply_to(&mut activity);
                rows::put(staged, rows::activity(*host), &activity)?;
            }
        }
    }
    Ok(())
}
