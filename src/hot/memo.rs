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

/// A text in pieces.
pub struct Pieces<const N: usize> {
    text: Box<str>,
    ends: [u32; N],
}

impl<const N: usize> Pieces<N> {
    /// `None`: too long.
    pub fn of(pieces: [&str; N]) -> Option<Self> {
        let mut ends = [0; N];
        let mut length = 0;
        for (end, piece) in ends.iter_mut().zip(pieces) {
            length += piece.len();
            *end = u32::try_from(length).ok()?;
        }
        Some(Self { text: pieces.concat().into(), ends })
    }

    pub fn get(&self) -> [&str; N] {
        let mut from = 0;
        self.ends.map(|end| {
            let piece = self.text.get(from..end as usize).unwrap_or_default();
            from = end as usize;
            piece
        })
    }
}
