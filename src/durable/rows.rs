//! The rows at one moment: what is committed, and over it what is not yet.
//!
//! A change goes into `pending`. The flusher moves that to `in_flight`, commits it, and puts a new view of the disk in the
//! place of both at once. So whatever the flusher does, the three together always say the same, and a copy of them is a
//! snapshot: the maps are shared until somebody changes one, and the view reads the file as it was.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{DiskError, DiskRow, DiskRows, Result, View, of_disk};

/// Rows that were changed; `None`: removed.
pub(super) type Layer = BTreeMap<Vec<u8>, Option<Bytes>>;

#[derive(Clone)]
pub struct Snapshot {
    pending: Arc<Layer>,
    in_flight: Arc<Layer>,
    /// Of the rows in `pending`.
    pending_bytes: usize,
    view: Arc<dyn View>,
    path: Arc<Path>,
}

impl Snapshot {
    pub(super) fn new(path: &Path, view: Arc<dyn View>) -> Self {
        Self { pending: Arc::default(), in_flight: Arc::default(), pending_bytes: 0, view, path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn in_memory(&self) -> usize {
        self.pending_bytes
    }

    pub(super) fn apply(&mut self, rows: Layer) {
        self.pending_bytes += rows.iter().map(|(key, value)| size_of(key, value.as_ref())).sum::<usize>();
        Arc::make_mut(&mut self.pending).extend(rows);
    }

    /// Begins a flush. What an earlier one could not commit is never tried again: the store has failed then.
    pub(super) fn begin_flush(&mut self) -> Arc<Layer> {
        if self.in_flight.is_empty() {
            self.in_flight = std::mem::take(&mut self.pending);
            self.pending_bytes = 0;
        }
        Arc::clone(&self.in_flight)
    }

    pub(super) fn end_flush(&mut self, view: Arc<dyn View>) {
        self.in_flight = Arc::default();
        self.view = view;
    }

    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let key = key.as_ref();
        match self.pending.get(key).or_else(|| self.in_flight.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(key).map_err(|error| of_disk(&self.path, error)),
        }
    }

    /// The rows whose key begins with `prefix`, in order of their keys.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Rows {
        let prefix = prefix.as_ref();
        self.rows(prefix, end_of(prefix).as_deref())
    }

    /// The rows from `from` on, up to and without `to`.
    pub fn range(&self, from: Vec<u8>, to: Vec<u8>) -> Rows {
        self.rows(&from, Some(&to))
    }

    fn rows(&self, from: &[u8], to: Option<&[u8]>) -> Rows {
        let path = Arc::clone(&self.path);
        // A map panics where a range ends before it begins.
        if to.is_some_and(|to| to <= from) {
            return Rows { over: VecDeque::new(), disk: Box::new(std::iter::empty()), front: None, back: None, path };
        }
        let bounds = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        let over = |layer: &Layer| -> Layer {
            layer.range::<[u8], _>(bounds).map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut changed = over(&self.in_flight);
        changed.extend(over(&self.pending));
        let disk = self.view.range(from, to).unwrap_or_else(|error| Box::new(std::iter::once(Err(error))));
        Rows { over: changed.into_iter().collect(), disk, front: None, back: None, path }
    }
}

fn size_of(key: &[u8], value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + std::mem::size_of::<(Vec<u8>, Option<Bytes>)>()
}

/// The first key after all that begin with `prefix`; `None`: there is none.
pub(super) fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Rows in order of their keys, from either end: those of the disk, with what was changed in their places.
pub struct Rows {
    over: VecDeque<(Vec<u8>, Option<Bytes>)>,
    disk: DiskRows,
    /// Read from `disk` and not told yet, at either end.
    front: Option<(Bytes, Bytes)>,
    back: Option<(Bytes, Bytes)>,
    path: Arc<Path>,
}

#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl Rows {
    /// The next row of the disk from this end.
    fn read(&mut self, end: End) -> Option<DiskRow> {
        let row = match end {
            End::Front => self.front.take().map(Ok).or_else(|| self.disk.next()),
            End::Back => self.back.take().map(Ok).or_else(|| self.disk.next_back()),
        };
        // The last row of all may have been read from the other end.
        row.or_else(|| match end {
            End::Front => self.back.take().map(Ok),
            End::Back => self.front.take().map(Ok),
        })
    }

    fn step(&mut self, end: End) -> std::result::Result<Option<(Bytes, Bytes)>, DiskError> {
        loop {
            let stored = self.read(end).transpose()?;
            let changed = match end {
                End::Front => self.over.front(),
                End::Back => self.over.back(),
            };
            // Which comes first from this end: `Less` is the stored one.
            let order = match (&stored, changed) {
                (None, None) => return Ok(None),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((stored, _)), Some((changed, _))) => match end {
                    End::Front => stored[..].cmp(&changed[..]),
                    End::Back => changed[..].cmp(&stored[..]),
                },
            };
            if order.is_lt() {
                return Ok(stored);
            }
            // An equal one is replaced; a later one is told later.
            if order.is_gt() {
                match end {
                    End::Front => self.front = stored,
                    End::Back => self.back = stored,
                }
            }
            let changed = match end {
                End::Front => self.over.pop_front(),
                End::Back => self.over.pop_back(),
            };
            if let Some((key, Some(value))) = changed {
                return Ok(Some((Bytes::from(key), value)));
            }
        }
    }

    fn told(&mut self, end: End) -> Option<Result<(Bytes, Bytes)>> {
        self.step(end).map_err(|error| of_disk(&self.path, error)).transpose()
    }
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.told(End::Front)
    }
}

impl DoubleEndedIterator for Rows {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.told(End::Back)
    }
}
