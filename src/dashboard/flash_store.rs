//! Values that a page shows once. Each is kept in memory for five minutes under a random id, for one admin.
//!
//! The id is in a URL, so it is not a secret: only the same admin can take the value, and only once. The number of
//! values is limited. A crash loses all of them, which costs an admin a message, an installer command or a certificate
//! file.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

use crate::api::guards::Principal;
use crate::model::digest::Digest;
use crate::platform::{Platform, random};

const LIFETIME: Duration = Duration::minutes(5);
const MAX_ENTRIES: usize = 256;

pub struct FlashStore<T>(Mutex<HashMap<Digest, FlashEntry<T>>>);

struct FlashEntry<T> {
    owner: String,
    until: OffsetDateTime,
    value: T,
}

impl<T> FlashStore<T> {
    pub fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Keeps `value` for `principal`. Returns the id for `take`.
    pub fn put(&self, principal: &Principal, value: T, platform: &dyn Platform) -> String {
        let id = hex::encode(random::<16>(platform));
        let now = platform.now();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| now < entry.until);
        if entries.len() >= MAX_ENTRIES
            && let Some(oldest) = entries.iter().min_by_key(|(_, entry)| entry.until).map(|(id, _)| *id)
        {
            entries.remove(&oldest);
        }
        entries.insert(
            Digest::of(id.as_bytes()),
            FlashEntry { owner: principal.by.actor.to_string(), until: now + LIFETIME, value },
        );
        id
    }

    /// Removes and returns the value of `id`, if it belongs to `principal`.
    pub fn take(&self, principal: &Principal, id: &str, now: OffsetDateTime) -> Option<T> {
        let id = Digest::of(id.as_bytes());
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.get(&id).is_none_or(|entry| entry.owner != principal.by.actor.to_string()) {
            return None;
        }
        entries.remove(&id).filter(|entry| now < entry.until).map(|entry| entry.value)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::model::audit::Actor;
    use crate::model::people::Role;
    use crate::platform::{Clock, SecureRandom, System};
    use crate::service::Initiator;

    struct At(OffsetDateTime);

    impl Clock for At {
        fn now(&self) -> OffsetDateTime {
            self.0
        }
    }

    impl SecureRandom for At {
        fn fill(&self, buffer: &mut [u8]) {
            System.fill(buffer);
        }
    }

    const NOW: OffsetDateTime = datetime!(2026-11-21 10:00 UTC);
    const ALICE: Principal = asking(1);
    const BOB: Principal = asking(2);

    const fn asking(uid: u32) -> Principal {
        Principal {
            by: Initiator { actor: Actor::Control { uid }, from: None },
            role: Role::Admin,
            signed_in: None,
            certificate: None,
        }
    }

    #[test]
    fn what_is_kept_is_given_once_and_to_its_admin_only() {
        let store = FlashStore::new();
        let id = store.put(&ALICE, "a command", &At(NOW));
        assert_eq!(store.take(&BOB, &id, NOW), None);
        assert_eq!(store.take(&ALICE, "another", NOW), None);
        assert_eq!(store.take(&ALICE, &id, NOW), Some("a command"));
        assert_eq!(store.take(&ALICE, &id, NOW), None);
    }

    #[test]
    fn what_is_kept_too_long_is_gone() {
        let store = FlashStore::new();
        let id = store.put(&ALICE, 1, &At(NOW));
        assert_eq!(store.take(&ALICE, &id, NOW + LIFETIME), None);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_makes_room() {
        let store = FlashStore::new();
        let first = store.put(&ALICE, 0, &At(NOW - Duration::seconds(1)));
        let ids: Vec<String> = (0..MAX_ENTRIES).map(|n| store.put(&ALICE, n, &At(NOW))).collect();
        assert_eq!(store.take(&ALICE, &first, NOW), None);
        assert!(ids.iter().all(|id| store.take(&ALICE, id, NOW).is_some()));
    }
}
