//! Reads the intact rows of a damaged durable store. Does not change the file.
//!
//! redb is not asked to verify or repair: pages are read as they are. A row counts only if its checksum is right and
//! its key is in order. A broken page ends the reading with an error, a panic, or rows out of order. Then the range is
//! read from its other end, and the gap is probed at keys in its middle, up to [`MAX_PROBES`] times. Only one root is
//! read: the commit before the last one could bring back removed rows.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use redb::{Builder, ConcurrencyMode, ReadOnlyDatabase, ReadableDatabase};

use super::held::{Header, Look};
use super::redb::{CACHE_BYTES, FILE, Table, definition, unchecked};
use super::rows::end_of;
use super::{DurableError, Result, lock};

/// How many keys inside a broken range are tried.
const MAX_PROBES: usize = 2000;
/// Limit for a disk that answers slowly.
const SALVAGE_TIMEOUT: Duration = Duration::from_secs(1800);

/// What a salvage found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    pub rows: u64,
    /// Rows with a wrong checksum.
    pub damaged_rows: u64,
    /// Ranges of keys that could not be read to their end.
    pub unreadable_ranges: u64,
}

impl Salvaged {
    pub fn is_whole(&self) -> bool {
        self.damaged_rows == 0 && self.unreadable_ranges == 0
    }
}

type Take<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<()>;

/// Calls `take` for every readable row under one of `prefixes`. Rows under other keys are not looked for. Fails if not
/// even the table can be opened.
pub fn salvage(dir: &Path, name: &'static str, prefixes: &[&str], take: Take<'_>) -> Result<Salvaged> {
    let _lock = lock::take(dir)?;
    let damaged = |cause: String| DurableError::Damaged { path: dir.into(), cause };
    let path = dir.join(FILE);
    let open = || File::open(&path).map_err(|error| damaged(format!("{FILE} cannot be opened: {error}")));
    let file = open()?;
    let header = Header::read(|bytes| file.read_exact_at(bytes, 0)).map_err(|error| damaged(error.to_string()))?;
    let header = header.ok_or_else(|| damaged(format!("{FILE} is no store of codex-authd: nothing can be read")))?;
    let mut last = String::new();
    for flags in header.flags_of_roots() {
        let mut reader =
            Reader { open: &open, flags, name, table: None, begun: Instant::now(), found: Salvaged::default() };
        match reader.table() {
            Ok(_) => {
                for prefix in prefixes {
                    reader.range(prefix.as_bytes().to_vec(), end_of(prefix.as_bytes()), take)?;
                }
                return Ok(reader.found);
            }
            Err(cause) => last = cause,
        }
    }
    Err(damaged(format!("not even its list of tables can be read ({last})")))
}

struct Reader<'a> {
    open: &'a dyn Fn() -> Result<File>,
    flags: u8,
    name: &'static str,
    /// Dropped after a panic: locks in it may be poisoned.
    table: Option<(ReadOnlyDatabase, Table)>,
    begun: Instant,
    found: Salvaged,
}

/// The keys between two bounds, both excluded; `None`: no upper bound.
type Gap = (Bound<Vec<u8>>, Option<Vec<u8>>);

impl Reader<'_> {
    fn table(&mut self) -> std::result::Result<&Table, String> {
        if self.table.is_none() {
            let look = Look { file: (self.open)().map_err(|e| e.to_string())?, flags: self.flags };
            let name = self.name;
            let opened = catch_unwind(AssertUnwindSafe(|| {
                let mut builder = Builder::new();
                // In this mode redb opens the file as a reader beside a writer. It needs no structures that a damaged
                // file may have lost.
                builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::SingleWriter);
                let database = builder.open_read_only_with_backend(look).map_err(|e| e.to_string())?;
                let reading = database.begin_read().map_err(|e| e.to_string())?;
                let table = reading.open_table(definition(name)).map_err(|e| e.to_string())?;
                Ok((database, table))
            }));
            self.table = Some(opened.unwrap_or_else(|_| Err("reading it panicked".to_owned()))?);
        }
        self.table.as_ref().map(|(_, table)| table).ok_or_else(|| "it is closed".into())
    }

    fn range(&mut self, from: Vec<u8>, to: Option<Vec<u8>>, take: Take<'_>) -> Result<()> {
        let mut gaps: VecDeque<Gap> = VecDeque::new();
        let Some(rest) = self.ends((Bound::Included(from), to), take)? else { return Ok(()) };
        self.found.unreadable_ranges += 1;
        gaps.push_back(rest);
        for _ in 0..MAX_PROBES {
            if self.begun.elapsed() > SALVAGE_TIMEOUT {
                break;
            }
            let Some((from, to)) = gaps.pop_front() else { break };
            let Some(middle) = middle(&from, to.as_deref()) else { continue };
            let read = self.found.rows;
            let above = self.ends((Bound::Included(middle.clone()), to), take)?;
            let below = self.ends((from, Some(middle)), take)?;
            let found_any = self.found.rows > read;
            for gap in [below, above].into_iter().flatten() {
                // A half that gave rows is likely to give more.
                if found_any { gaps.push_front(gap) } else { gaps.push_back(gap) }
            }
        }
        Ok(())
    }

    /// Reads a gap from both ends. Returns the part between that could not be read.
    fn ends(&mut self, gap: Gap, take: Take<'_>) -> Result<Option<Gap>> {
        let Some(last) = self.one_end(&gap, false, take)? else { return Ok(None) };
        let from = last.map_or(gap.0, Bound::Excluded);
        let gap = (from, gap.1);
        let Some(first) = self.one_end(&gap, true, take)? else { return Ok(None) };
        let to = first.or(gap.1);
        Ok(Some((gap.0, to)))
    }

    /// The last key that was read before the end was reached; `None`: everything was read.
    #[allow(clippy::option_option)]
    fn one_end(&mut self, gap: &Gap, backwards: bool, take: Take<'_>) -> Result<Option<Option<Vec<u8>>>> {
        let mut last: Option<Vec<u8>> = None;
        let (from, to) = gap;
        let from = match from {
            Bound::Included(key) => Bound::Included(&key[..]),
            Bound::Excluded(key) => Bound::Excluded(&key[..]),
            Bound::Unbounded => Bound::Unbounded,
        };
        // redb panics on a range whose end is before its start.
        if let (Bound::Included(from) | Bound::Excluded(from), Some(to)) = (from, to)
            && from >= &to[..]
        {
            return Ok(None);
        }
        let bounds = (from, to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let Ok(table) = self.table() else { return Ok(Some(None)) };
        let rows = catch_unwind(AssertUnwindSafe(|| table.range_owned::<&[u8]>(bounds)));
        let Ok(Ok(mut rows)) = rows else {
            self.table = None;
            return Ok(Some(None));
        };
        loop {
            let next = catch_unwind(AssertUnwindSafe(|| {
                let row = if backwards { rows.next_back() } else { rows.next() };
                row.map(|row| row.map(|(key, stored)| (key.value().to_vec(), stored.value().to_vec())))
            }));
            let (key, stored) = match next {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(row))) => row,
                Ok(Some(Err(_))) => return Ok(Some(last)),
                Err(_) => {
                    self.table = None;
                    return Ok(Some(last));
                }
            };
            let is_in_order = last.as_ref().is_none_or(|last| if backwards { key < *last } else { key > *last });
            if !is_in_order || !within(&key, &bounds) || self.begun.elapsed() > SALVAGE_TIMEOUT {
                return Ok(Some(last));
            }
            match unchecked(&key, &stored) {
                Ok(value) => {
                    self.found.rows += 1;
                    take(&key, &value)?;
                }
                Err(_) => self.found.damaged_rows += 1,
            }
            last = Some(key);
        }
    }
}

fn within(key: &[u8], (from, to): &(Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    let is_after = match from {
        Bound::Included(from) => key >= *from,
        Bound::Excluded(from) => key > *from,
        Bound::Unbounded => true,
    };
    is_after && !matches!(to, Bound::Excluded(to) if key >= *to)
}

/// The key in the middle of a gap; keys are compared as numbers of equal length. `None`: there is no key between.
fn middle(from: &Bound<Vec<u8>>, to: Option<&[u8]>) -> Option<Vec<u8>> {
    let (Bound::Included(from) | Bound::Excluded(from)) = from else { return None };
    let to = to?;
    let length = from.len().max(to.len()) + 1;
    let digit = |key: &[u8], at: usize| u16::from(key.get(at).copied().unwrap_or_default());
    // The sum of both keys, with the carry in the first digit.
    let mut sum = vec![0u16; length + 1];
    for at in (0..length).rev() {
        let digits = digit(from, at) + digit(to, at) + sum[at + 1];
        sum[at + 1] = digits & 0xff;
        sum[at] = digits >> 8;
    }
    let mut middle = Vec::with_capacity(length);
    let mut rest = sum[0];
    for digits in &sum[1..] {
        let digits = (rest << 8) | digits;
        middle.push(u8::try_from(digits / 2).unwrap_or(u8::MAX));
        rest = digits % 2;
    }
    (middle[..] > from[..] && middle[..] < *to).then_some(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_between() {
        let of = |from: &[u8], to: &[u8]| middle(&Bound::Excluded(from.to_vec()), Some(to));
        assert_eq!(of(b"a", b"c"), Some(b"b\0".to_vec()));
        assert_eq!(of(&[1, 255], &[2, 1]), Some(vec![2, 0, 0]));
        assert_eq!(of(&[255, 255], &[255, 255, 0]), None);
        assert_eq!(middle(&Bound::Included(vec![1]), None), None);
        let (mut from, to) = (b"host/\0".to_vec(), b"host0".to_vec());
        for _ in 0..40 {
            let next = of(&from, &to).unwrap();
            assert!(next > from && next < to);
            from = next;
        }
    }
}
