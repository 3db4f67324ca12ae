//! The rows as they were at one moment, while others go on changing them.
//!
//! As long as a snapshot is there, every batch first puts aside what it is about to replace. A reader takes the rows page
//! by page, with what was put aside in the place of what stands there now; so nobody waits for it for longer than a page
//! takes, and it costs the memory of what changed meanwhile. Nothing of it is on disk: a crash leaves nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sled::IVec;

use super::{Durable, Result, pieces_of};

/// What was replaced since a snapshot was taken, as it stood then.
type Before = BTreeMap<Vec<u8>, Option<IVec>>;

#[derive(Default)]
pub(super) struct Snapshots(Mutex<Vec<Arc<Mutex<Before>>>>);

pub struct Snapshot<'a> {
    durable: &'a Durable,
    before: Arc<Mutex<Before>>,
}

/// How many rows are read while changes wait.
const PAGE: usize = 256;

impl Durable {
    /// Taken between two batches. Not for an async task, as little as reading it.
    pub fn snapshot(&self) -> Snapshot<'_> {
        let before = Arc::default();
        let _no_batch = self.applying.write().unwrap_or_else(PoisonError::into_inner);
        lock(&self.snapshots.0).push(Arc::clone(&before));
        Snapshot { durable: self, before }
    }

    /// To be called before rows with these keys are changed, by whoever applies a batch.
    pub(super) fn keep_for_snapshots<'k>(&self, keys: impl Iterator<Item = &'k Vec<u8>>) -> Result<()> {
        let snapshots = lock(&self.snapshots.0);
        if snapshots.is_empty() {
            return Ok(());
        }
        for key in keys {
            let now = self.get(key)?;
            for before in &*snapshots {
                lock(before).entry(key.clone()).or_insert_with(|| now.clone());
            }
        }
        Ok(())
    }
}

impl Snapshot<'_> {
    pub fn get(&self, key: &[u8]) -> Result<Option<IVec>> {
        self.durable.together(|| match lock(&self.before).get(key) {
            Some(value) => Ok(value.clone()),
            None => self.durable.get(key),
        })
    }

    /// A value written by [`super::Staged::insert_large`].
    pub fn get_large(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = None;
        for piece in self.scan(pieces_of(key)) {
            value.get_or_insert_with(Vec::new).extend_from_slice(&piece?.1);
        }
        Ok(value)
    }

    /// The rows whose key begins with `prefix`, in order of their keys.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> impl Iterator<Item = Result<(Vec<u8>, IVec)>> + '_ {
        let prefix = prefix.as_ref().to_vec();
        let mut from = Some(prefix.clone());
        let mut page = BTreeMap::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(row) = page.next() {
                    return Some(Ok(row));
                }
                match self.page(&prefix, &from.take()?) {
                    Ok((rows, next)) => (page, from) = (rows.into_iter(), next),
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }

    /// Some rows from `from` on, and where the next page begins; `None`: this is the last.
    #[allow(clippy::type_complexity)] // Rows, and a key.
    fn page(&self, prefix: &[u8], from: &[u8]) -> Result<(BTreeMap<Vec<u8>, IVec>, Option<Vec<u8>>)> {
        self.durable.together(|| {
            let there = self.durable.tree.range(from..).take(PAGE);
            let there =
                there.map(|row| row.map_err(|error| self.durable.storage(error))).collect::<Result<Vec<_>>>()?;
            // Up to here everything is known; beyond the last key of a full page it is the next one's.
            let end = there.last().filter(|_| there.len() == PAGE).map(|(key, _)| key.to_vec());
            let mut rows: BTreeMap<Vec<u8>, IVec> =
                there.into_iter().map(|(key, value)| (key.to_vec(), value)).collect();
            let within = |key: &[u8]| key.starts_with(prefix) && end.as_ref().is_none_or(|end| key <= end.as_slice());
            for (key, value) in lock(&self.before).range(from.to_vec()..).take_while(|(key, _)| within(key)) {
                match value {
                    Some(value) => rows.insert(key.clone(), value.clone()),
                    None => rows.remove(key),
                };
            }
            rows.retain(|key, _| key.starts_with(prefix));
            let next = end.filter(|end| end.starts_with(prefix)).map(|end| [&end[..], &[0]].concat());
            Ok((rows, next))
        })
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        lock(&self.durable.snapshots.0).retain(|before| !Arc::ptr_eq(before, &self.before));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::{DurableError, Staged};
    use super::*;

    fn write(durable: &Durable, change: impl FnOnce(&mut Staged<'_>)) {
        let change = |staged: &mut Staged<'_>| {
            change(staged);
            Ok::<_, DurableError>(())
        };
        durable.write(change).unwrap();
    }

    fn key(number: u32) -> Vec<u8> {
        [&b"row/"[..], &number.to_be_bytes()].concat()
    }

    fn rows(snapshot: &Snapshot<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        snapshot.scan("row/").map(|row| row.map(|(key, value)| (key, value.to_vec())).unwrap()).collect()
    }

    /// More rows than a page has, changed, removed and added before and behind whoever reads.
    #[test]
    fn a_reader_sees_the_moment_it_began_at() {
        let dir = tempfile::tempdir().unwrap();
        let durable = Durable::open(dir.path()).unwrap();
        let even: Vec<u32> = (0..1000).map(|number| number * 2).collect();
        write(&durable, |staged| {
            even.iter().for_each(|number| staged.insert(key(*number), "old"));
            staged.insert("rox", "of others");
            staged.insert_large(b"large", &[7; 20_000]).unwrap();
        });
        let expected: Vec<_> = even.iter().map(|number| (key(*number), b"old".to_vec())).collect();
        let snapshot = durable.snapshot();
        let mut seen = Vec::new();
        for (number, row) in snapshot.scan("row/").enumerate() {
            let (found, value) = row.unwrap();
            seen.push((found, value.to_vec()));
            let number = number as u32;
            write(&durable, |staged| {
                staged.insert(key(number * 2 + 1), "new");
                staged.insert(key(1999 - number), "new");
                staged.remove(key((number * 7 + 900) % 2000));
                staged.remove_large(b"large").unwrap();
            });
        }
        assert_eq!(seen, expected);
        assert_eq!(rows(&snapshot), expected, "and again");
        assert_eq!(snapshot.get_large(b"large").unwrap(), Some(vec![7; 20_000]));
        assert_eq!(snapshot.get(&key(1)).unwrap(), None);
        let later = durable.snapshot();
        assert_ne!(rows(&later), expected);
        drop((snapshot, later));
        assert!(lock(&durable.snapshots.0).is_empty(), "nothing is put aside for nobody");
    }
}
