//! A value that a caller derived from a host and keeps beside it, so that it is not computed for every call.
//!
//! The value is stored with the key that it was derived from, and is returned only for that key. It is in memory only
//! and is dropped with the host's state. It is one allocation, replaced when it changes, so the memory used does not
//! grow.

use std::sync::{Mutex, PoisonError};

pub struct Memo<K, T>(Mutex<Option<(K, T)>>);

impl<K, T> Default for Memo<K, T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<K: PartialEq, T> Memo<K, T> {
    pub fn with<R>(&self, of: &K, look: impl FnOnce(&T) -> R) -> Option<R> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(known, _)| known == of).map(|(_, value)| look(value))
    }

    pub fn put(&self, of: K, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((of, value));
    }
}
