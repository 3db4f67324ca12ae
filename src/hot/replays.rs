//! Answers that are given again: a caller that repeats a request with its `Idempotency-Key` gets the first answer.
//!
//! They are in the outbox, so they survive a power cut. A row is `replay/`, the caller, the time and the key, the last
//! two so that the oldest rows of a caller come first. Rows older than [`KEPT`] are removed with the next one of the
//! same caller, who has at most [`MAX_PER_CALLER`].

use time::{Duration, OffsetDateTime};

use super::{Hot, HotError, Result, decode, put};
use crate::model::digest::Digest;
use crate::seal::Sealed;

pub(super) const REPLAY: &[u8] = b"replay/";
/// How long an answer is given again.
pub const KEPT: Duration = Duration::DAY;
const MAX_PER_CALLER: usize = 1000;

impl Hot {
    /// What was kept for `key` of `caller`, sealed at place `hot/replay/<key>`.
    pub fn kept_answer(&self, caller: &Digest, key: &Digest, now: OffsetDateTime) -> Result<Option<Sealed>> {
        let oldest = seconds(now - KEPT);
        for row in self.outbox.scan(prefix(caller)) {
            let (row, value) = row?;
            if is_of(&row, key) && begun(&row).is_some_and(|begun| begun >= oldest) {
                return decode("replay", &value).map(Some);
            }
        }
        Ok(None)
    }

    /// On return it survives a power cut.
    pub async fn keep_answer(&self, caller: &Digest, key: &Digest, answer: &Sealed, now: OffsetDateTime) -> Result<()> {
        let prefix = prefix(caller);
        let known = self.answers(&prefix)?;
        let too_many = (known.len() + 1).saturating_sub(MAX_PER_CALLER);
        let oldest = seconds(now - KEPT);
        let is_over = |row: &[u8]| is_of(row, key) || begun(row).is_none_or(|begun| begun < oldest);
        let row = [&prefix[..], &seconds(now).to_be_bytes(), key.as_bytes()].concat();
        self.outbox.write::<_, HotError>(|staged| {
            for (number, known) in known.into_iter().enumerate() {
                if number < too_many || is_over(&known) {
                    staged.remove(known);
                }
            }
            put(staged, row, answer)
        })?;
        Ok(self.outbox.settled().await?)
    }

    /// Forgets all of them: they are those of other records.
    pub(super) fn forget_answers(&self) -> Result<()> {
        let known = self.answers(REPLAY)?;
        self.outbox.write::<_, HotError>(|staged| {
            known.into_iter().for_each(|row| staged.remove(row));
            Ok(())
        })
    }

    fn answers(&self, prefix: &[u8]) -> Result<Vec<bytes::Bytes>> {
        self.outbox.scan(prefix).map(|row| Ok(row?.0)).collect()
    }
}

fn prefix(caller: &Digest) -> Vec<u8> {
    [REPLAY, caller.as_bytes()].concat()
}

/// Seconds since 1970; never negative, so that rows are in the order of time.
fn seconds(at: OffsetDateTime) -> u64 {
    at.unix_timestamp().try_into().unwrap_or_default()
}

fn begun(row: &[u8]) -> Option<u64> {
    let time = row.get(REPLAY.len() + 32..REPLAY.len() + 40)?;
    Some(u64::from_be_bytes(time.try_into().ok()?))
}

fn is_of(row: &[u8], key: &Digest) -> bool {
    row.get(REPLAY.len() + 40..) == Some(&key.as_bytes()[..])
}
