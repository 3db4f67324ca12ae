//! The rows at one moment: the committed rows, overlaid by changes that are not committed yet.
//!
//! A change goes into `pending`. The flusher moves `pending` to `in_flight`, commits it, and then replaces the view and
//! `in_flight` in one step. So the three together hold the same rows before, during and after a flush. A copy of them
//! is a snapshot: the maps are copied on write, and the view keeps reading the file as it was.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{DiskError, DiskRow, DiskRows, Result, View, of_disk};

/// Changed rows; `None`: removed.
pub(super) type Layer = BTreeMap<Vec<u8>, Option<Bytes>>;

#[derive(Clone)]
pub struct Snapshot {
    pending: Arc<Layer>,
    in_flight: Arc<Layer>,
    /// Size of the rows in `pending`.
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

    /// Begins a flush. Rows that an earlier flush could not commit are never retried: the store has failed then.
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

    /// The rows whose key begins with `prefix`, in key order.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Rows {
        let prefix = prefix.as_ref();
        self.rows(prefix, end_of(prefix).as_deref())
    }

    /// The rows from `from` up to, but without, `to`.
    pub fn range(&self, from: Vec<u8>, to: Vec<u8>) -> Rows {
        self.rows(&from, Some(&to))
    }

    fn rows(&self, from: &[u8], to: Option<&[u8]>) -> Rows {
        let path = Arc::clone(&self.path);
        // A `BTreeMap` panics on a range whose end is before its start.
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

/// The first key after all keys that begin with `prefix`; `None`: there is none.
pub(super) fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Rows in key order, readable from either end: the committed rows, overlaid by the changes.
pub struct Rows {
    over: VecDeque<(Vec<u8>, Option<Bytes>)>,
    disk: DiskRows,
    /// Read from `disk` at either end, but not returned yet.
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
    /// The next row of the disk at this end.
    fn read(&mut self, end: End) -> Option<DiskRow> {
        let row = match end {
            End::Front => self.front.take().map(Ok).or_else(|| self.disk.next()),
            End::Back => self.back.take().map(Ok).or_else(|| self.disk.next_back()),
        };
        // The last remaining row may have been read from the other end.
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
            // Which of the two comes first at this end: `Less` is the stored row.
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
            // A change replaces a stored row with the same key. A stored row that comes later is kept for the next
            // step.
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
