//! Opens the cache, whatever state it is in. No damage to the cache stops the daemon.
//!
//! sled is opened on a thread of its own, which also reads every row. It may return an error, panic, hang, or end the
//! process. In the last case [`super::trust`] tells the next start. An unusable cache is set aside ([`super::aside`]),
//! and an empty one replaces it, which the records fill.
//!
//! Some errors do not come from the cache and are returned unchanged. Examples: another process has it open, the disk
//! is full or read-only, a permission is missing.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use time::OffsetDateTime;

use super::cache_store::{self, CacheStore, Verified};
use super::trust::{self, LeftState, Trust};
use super::{FORMAT, HotError, PRESENT_FORMAT, Result, aside};
use crate::durable::{self, DurableError, Store, panics};

/// On a slow disk, the cache of a large fleet takes some seconds.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Says that hot state was found damaged and set aside.
#[derive(Clone, Debug)]
pub struct SetAside {
    pub cause: String,
    /// Its new path; `None`: it could only be emptied.
    pub to: Option<PathBuf>,
}

#[derive(Debug)]
enum OpeningFailure {
    Damaged(String),
    OtherFormat,
    Unfinished,
    /// The error does not come from the cache.
    Machine(HotError),
}

/// What the row in the outbox says about the rows of the cache.
#[derive(Clone, Debug)]
enum Expected {
    Any,
    Some,
    /// Rows with this sum.
    Exactly(String),
}

/// Opens the cache in `directory`, and records in `outbox` that it is open.
pub(super) fn open(
    directory: &Path,
    outbox: &Store,
    boot: Option<&str>,
    now: OffsetDateTime,
) -> Result<(CacheStore, Option<SetAside>)> {
    let left = trust::left(outbox)?;
    let (mut found, mut expected) = (None, Expected::Any);
    match trust::trust(left.clone(), boot) {
        // An admin or an upgrade removed it: it is created again.
        _ if std::fs::symlink_metadata(directory).is_err() => {}
        Trust::Use(Some(sum)) => expected = Expected::Exactly(sum),
        Trust::Use(None) if left.is_some() => expected = Expected::Some,
        Trust::Use(None) => {}
        Trust::Discard => {
            log::warn!(event = "hot_state_discarded", directory:% = directory.display(); "the machine restarted while hot state was open and may have lost power: hot state is rebuilt from the records");
            aside::discard(directory).map_err(|error| failed(directory, &error))?;
        }
        Trust::SetAside(cause) => found = Some(set_aside(directory, cause, now)?),
    }
    note(outbox, boot, LeftState::Opening)?;
    let opened = attempt(directory, expected).or_else(|failure| {
        match failure {
            OpeningFailure::Damaged(cause) => {
                wait_until_released(directory)?;
                found = Some(set_aside(directory, cause, now)?);
            }
            OpeningFailure::OtherFormat => {
                wait_until_released(directory)?;
                log::info!(event = "hot_state_of_another_version"; "hot state is of another version: it is rebuilt from the records");
                aside::discard(directory).map_err(|error| failed(directory, &error))?;
            }
            OpeningFailure::Unfinished => return Err(HotError::Unfinished(directory.into())),
            OpeningFailure::Machine(error) => {
                // The next start must find the same state as this one.
                trust::put_back(outbox, left.as_ref())?;
                outbox.commit_blocking()?;
                return Err(error);
            }
        }
        attempt(directory, Expected::Any).map_err(|failure| match failure {
            OpeningFailure::Damaged(cause) => HotError::Corrupt(cause),
            OpeningFailure::OtherFormat => HotError::Corrupt("an empty directory holds rows".into()),
            OpeningFailure::Unfinished => HotError::Unfinished(directory.into()),
            OpeningFailure::Machine(error) => error,
        })
    })?;
    note(outbox, boot, LeftState::Open)?;
    Ok((opened, found))
}

fn note(outbox: &Store, boot: Option<&str>, state: LeftState) -> Result<()> {
    trust::leave(outbox, boot, state)?;
    Ok(outbox.commit_blocking()?)
}

fn attempt(directory: &Path, expected: Expected) -> std::result::Result<CacheStore, OpeningFailure> {
    let directory = directory.to_path_buf();
    within(TIME_LIMIT, move || read(&directory, &expected))
}

/// Runs `work` on a thread of its own and returns its result, or [`OpeningFailure::Unfinished`] after `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> std::result::Result<T, OpeningFailure> + Send + 'static,
) -> std::result::Result<T, OpeningFailure> {
    let (answer, answered) = sync_channel(1);
    let begun = std::thread::Builder::new().name("hot-open".into()).spawn(move || {
        let done =
            panics::caught(work).unwrap_or_else(|panic| Err(OpeningFailure::Damaged(format!("it panicked: {panic}"))));
        // The receiver may have timed out.
        let _ = answer.send(done);
    });
    begun.map_err(|error| OpeningFailure::Machine(failed(Path::new("hot"), &error)))?;
    answered.recv_timeout(limit).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(OpeningFailure::Unfinished),
        RecvTimeoutError::Disconnected => Err(OpeningFailure::Damaged("the thread that opened it ended".into())),
    })
}

fn read(directory: &Path, expected: &Expected) -> std::result::Result<CacheStore, OpeningFailure> {
    let store = Store::rebuildable(directory).map_err(|error| of(error.into()))?;
    let cache = CacheStore::new(store);
    match (cache.verify().map_err(of)?, expected) {
        (Verified::New, Expected::Some) => return Err(OpeningFailure::Damaged("its rows are gone".into())),
        (Verified::New, Expected::Exactly(_)) => return Err(OpeningFailure::Damaged("its rows are gone".into())),
        (Verified::Good(sum), Expected::Exactly(known)) if sum.to_string() != *known => {
            return Err(OpeningFailure::Damaged("its rows are older than when it was closed".into()));
        }
        (Verified::OtherFormat, _) => return Err(OpeningFailure::OtherFormat),
        (Verified::Good(_), _) => {}
        (Verified::New, Expected::Any) => {
            cache.write(|change| change.put(FORMAT, &PRESENT_FORMAT)).map_err(of)?;
            cache.flush_blocking().map_err(of)?;
        }
    }
    Ok(cache)
}

fn of(error: HotError) -> OpeningFailure {
    if cache_store::is_damage(&error) {
        OpeningFailure::Damaged(error.to_string())
    } else {
        OpeningFailure::Machine(error)
    }
}

/// sled may write to the directory until it has released it.
fn wait_until_released(directory: &Path) -> Result<()> {
    if durable::is_released(directory) { Ok(()) } else { Err(HotError::Unfinished(directory.into())) }
}

fn set_aside(directory: &Path, cause: String, now: OffsetDateTime) -> Result<SetAside> {
    let to = aside::put_aside(directory, now).map_err(|error| failed(directory, &error))?;
    let shown = to.as_deref().unwrap_or(directory).display();
    log::error!(
        event = "hot_state_set_aside", directory:% = shown, cause = cause.as_str();
        "hot state could not be used ({cause}) and was set aside: it is rebuilt from the records; no action is needed"
    );
    Ok(SetAside { cause, to })
}

fn failed(path: &Path, error: &std::io::Error) -> HotError {
    DurableError::Open { path: path.into(), cause: error.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_that_does_not_end_is_waited_for_only_so_long() {
        let (_open, never) = sync_channel::<()>(1);
        let hangs = within(Duration::from_millis(50), move || {
            let _ = never.recv();
            Ok(())
        });
        assert!(matches!(hangs, Err(OpeningFailure::Unfinished)), "{hangs:?}");
        let panics: std::result::Result<(), _> = within(TIME_LIMIT, || panic!("inside"));
        assert!(matches!(&panics, Err(OpeningFailure::Damaged(cause)) if cause.contains("inside")), "{panics:?}");
    }
}
