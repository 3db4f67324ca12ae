//! From one format of the rows to the next, in place. What a format is, and what a crash leaves, is told by whoever asks
//! for it (`daemon/format.rs`); a step may be repeated after a crash, so it leaves alone what has its new form already.
//! One that touches many rows does so in several changes.
//!
//! A row that only gained members needs no step: they have defaults.

use crate::durable::Durable;
use crate::records::{RecordsError, Result};

/// Brings rows of the format `from` to the next one.
pub(super) fn step(from: u32, _data: &Durable) -> Result<()> {
    match from {
        // The number itself is new; the rows are what they were.
        1 => Ok(()),
        // New are rows of probes, and versions that come from one; an older daemon cannot read the latter.
        2 => Ok(()),
        // New are rows of users, of their sessions and of their identities; an older daemon cannot read what changed of them.
        3 => Ok(()),
        _ => Err(RecordsError::Corrupt(format!("rows of format {from}, which nobody ever wrote"))),
    }
}
