//! What somebody worked out from a host, kept beside it, so that it need not be worked out for every call.
//!
//! It names what it was worked out from; asked for anything else, it is not there. In memory only, and gone with the host's
//! state. What a caller keeps is one allocation that is replaced when it changes, so a fleet of any size makes no garbage.

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
