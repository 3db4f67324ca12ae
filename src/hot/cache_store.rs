//! The rows of hot state on sled, with a sum over them, so that damaged rows are detected and never served.
//!
//! sled checks each page of its log. A page that it cannot read may then be missing, or have older content: a host
//! would be unknown, or a replaced key valid again. So each change also writes the sum of the digests of all rows, in
//! the same batch. Opening reads every row and compares the sum ([`CacheStore::verify`], called by `opening.rs`). If
//! all rows went back to the same earlier state, the sum matches. Then the records and the outbox bring the later
//! changes.
//!
//! The rows of blocks ([`throttle`]) are not in the sum: losing one only ends a block early.
//!
//! After a failed read, or a row that cannot be decoded, nothing is read any more ([`CacheStore::broken`]), and the
//! daemon replaces its process. Every other module of this room reads and writes through this one.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::throttle;
use super::{HotError, Result};
use crate::durable::{self, DurableError, Staged, Store};
use crate::model::digest::Digest;

/// The sum of the first 128 bits of each row's digest.
const SUM: &[u8] = b"sum";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(u128);

impl Sum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(digest(key, value));
    }

    fn take_away(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(digest(key, value));
    }

    fn read(row: &[u8]) -> Option<Self> {
        Some(Self(u128::from_be_bytes(row.try_into().ok()?)))
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn digest(key: &[u8], value: &[u8]) -> u128 {
    let whole = Digest::of(&[&(key.len() as u64).to_be_bytes(), key, value].concat());
    let mut half = [0; 16];
    half.copy_from_slice(&whole.as_bytes()[..16]);
    u128::from_be_bytes(half)
}

fn is_summed(key: &[u8]) -> bool {
    key != SUM && !key.starts_with(throttle::ROWS)
}

pub(super) struct CacheStore {
    store: Store,
    broken: OnceLock<String>,
}

/// The result of reading every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    New,
    Good(Sum),
    /// Hot state of another format: its rows cannot be judged.
    OtherFormat,
}

impl CacheStore {
    pub(super) fn new(store: Store) -> Self {
        Self { store, broken: OnceLock::new() }
    }

    /// Reads every row. Fails if they are not the rows that were written.
    pub(super) fn verify(&self) -> Result<Verified> {
        let (mut sum, mut any) = (Sum::default(), false);
        for row in self.rows("") {
            let (key, value) = row?;
            if is_summed(&key) {
                sum.add(&key, &value);
                any = true;
            }
        }
        let format = self.get::<u32>(super::FORMAT);
        let Some(noted) = self.get_bytes(SUM)? else {
            return match format {
                _ if !any => Ok(Verified::New),
                Ok(Some(super::PRESENT_FORMAT)) => Err(damaged("the sum of its rows is missing")),
                _ => Ok(Verified::OtherFormat),
            };
        };
        if Sum::read(&noted) != Some(sum) {
            return Err(damaged("its rows differ from what was written"));
        }
        match format? {
            Some(super::PRESENT_FORMAT) => Ok(Verified::Good(sum)),
            _ => Ok(Verified::OtherFormat),
        }
    }

    pub(super) fn sum(&self) -> Result<Sum> {
        let row = self.get_bytes(SUM)?;
        Ok(row.and_then(|row| Sum::read(&row)).unwrap_or_default())
    }

    pub(super) fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        // A row that the broken store does not find may exist.
        match self.broken.get() {
            Some(cause) => Err(damaged(cause)),
            None => self.noted(self.store.get(key).map_err(Into::into)),
        }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let value = self.get_bytes(key.as_ref())?;
        value.map(|value| self.decode(&super::table_of(key.as_ref()), &value)).transpose()
    }

    /// The rows whose key begins with `prefix`, in key order.
    pub(super) fn rows(&self, prefix: impl AsRef<[u8]>) -> impl Iterator<Item = Result<(Bytes, Bytes)>> + '_ {
        self.store.scan(prefix).map(|row| self.noted(row.map_err(Into::into)))
    }

    pub(super) fn decode<T: DeserializeOwned>(&self, what: &str, value: &[u8]) -> Result<T> {
        self.noted(super::decode(what, value))
    }

    /// Applies everything that `change` stages, or nothing.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut Change<'_, '_>) -> Result<T>) -> Result<T> {
        self.store.write(|staged| {
            let before = self.noted(staged.get(SUM).map_err(Into::into))?;
            let before = before.and_then(|row| Sum::read(&row)).unwrap_or_default();
            let mut staged = Change { cache: self, staged, sum: before };
            let value = change(&mut staged)?;
            if staged.sum != before {
                staged.staged.insert(SUM, staged.sum.0.to_be_bytes());
            }
            Ok(value)
        })
    }

    /// Removes these rows, batch by batch.
    pub(super) fn remove_all(&self, keys: &[Bytes]) -> Result<()> {
        for keys in keys.chunks(super::BATCH_ROWS) {
            self.write(|change| keys.iter().try_for_each(|key| change.remove(key.to_vec())))?;
        }
        Ok(())
    }

    /// Returns once everything written so far survives a kill.
    pub(super) async fn settled(&self) -> Result<()> {
        Ok(self.store.settled().await?)
    }

    /// [`CacheStore::settled`] for a thread.
    pub(super) fn flush_blocking(&self) -> Result<()> {
        Ok(self.store.commit_blocking()?)
    }

    pub(super) fn on_flush(&self, observe: impl Fn(Duration) + Send + Sync + 'static) {
        self.store.on_flush(observe);
    }

    pub(super) fn failure(&self) -> Option<(PathBuf, String)> {
        self.store.failure()
    }

    /// The cause, if the cache cannot be read and must be replaced.
    pub(super) fn broken(&self) -> Option<String> {
        let failed = || self.store.failure().map(|(_, cause)| cause).filter(|cause| durable::is_damage(cause));
        self.broken.get().cloned().or_else(failed)
    }

    fn noted<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && is_damage(error)
        {
            self.broken.get_or_init(|| error.to_string());
        }
        outcome
    }
}

/// Whether the error says that the cache cannot be read. `false`: it could only not be written.
pub(super) fn is_damage(error: &HotError) -> bool {
    matches!(error, HotError::Corrupt(_) | HotError::Store(DurableError::Damaged { .. } | DurableError::Storage { .. }))
}

fn damaged(cause: &str) -> HotError {
    HotError::Corrupt(cause.into())
}

/// The rows that one change writes. Reads include them.
pub(super) struct Change<'a, 'b> {
    cache: &'a CacheStore,
    staged: &'a mut Staged<'b>,
    sum: Sum,
}

impl Change<'_, '_> {
    pub(super) fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.cache.noted(self.staged.get(key).map_err(Into::into))
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let value = self.get_bytes(key.as_ref())?;
        value.map(|value| self.cache.decode(&super::table_of(key.as_ref()), &value)).transpose()
    }

    pub(super) fn put(&mut self, key: impl Into<Vec<u8>>, row: &impl Serialize) -> Result<()> {
        let key = key.into();
        let value = super::encode(&super::table_of(&key), row)?;
        self.insert(key, value)
    }

    pub(super) fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<()> {
        let (key, value) = (key.into(), value.into());
        if is_summed(&key) {
            self.replaced(&key)?;
            self.sum.add(&key, &value);
        }
        self.staged.insert(key, value);
        Ok(())
    }

    pub(super) fn remove(&mut self, key: impl Into<Vec<u8>>) -> Result<()> {
        let key = key.into();
        if is_summed(&key) {
            self.replaced(&key)?;
        }
        self.staged.remove(key);
        Ok(())
    }

    fn replaced(&mut self, key: &[u8]) -> Result<()> {
        if let Some(old) = self.get_bytes(key)? {
            self.sum.take_away(key, &old);
        }
        Ok(())
    }
}
