//! Opening the cache, whatever state it is in: nothing that is wrong with it stops the daemon.
//!
//! sled is opened on a thread of its own, and every row is read there. It may answer with an error, panic, take for ever, or
//! end the process; [`super::trust`] tells of the last to the next start. What cannot be used is set aside
//! ([`super::aside`]), and an empty cache takes its place, which the records fill.
//!
//! Not the cache's fault, and told as it is: another process that has it open, a disk without room or that is read only, a
//! missing right.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use time::OffsetDateTime;

use super::cache_store::{self, CacheStore, Verified};
use super::trust::{self, LeftState, Trust};
use super::{FORMAT, HotError, PRESENT_FORMAT, Result, aside};
use crate::durable::{self, DurableError, Store, panics};

/// A large fleet's cache takes some seconds on a slow disk.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// That hot state was found damaged.
#[derive(Clone, Debug)]
pub struct SetAside {
    pub cause: String,
    /// Where it is now; `None`: it could only be emptied.
    pub to: Option<PathBuf>,
}

#[derive(Debug)]
enum OpeningFailure {
    Damaged(String),
    OtherFormat,
    Unfinished,
    /// It is not the cache's.
    Machine(HotError),
}

/// What the row in the outbox says of the rows that are to be found.
#[derive(Clone, Debug)]
enum Expected {
    Any,
    Some,
    /// With this sum.
    Exactly(String),
}

/// Opens the cache in `directory`, and notes in `outbox` that it is open.
pub(super) fn open(
    directory: &Path,
    outbox: &Store,
    boot: Option<&str>,
    now: OffsetDateTime,
) -> Result<(CacheStore, Option<SetAside>)> {
    let left = trust::left(outbox)?;
    let (mut found, mut expected) = (None, Expected::Any);
    match trust::trust(left.clone(), boot) {
        // Removed by hand, or by an upgrade: it is made anew.
        _ if std::fs::symlink_metadata(directory).is_err() => {}
        Trust::Use(Some(sum)) => expected = Expected::Exactly(sum),
        Trust::Use(None) if left.is_some() => expected = Expected::Some,
        Trust::Use(None) => {}
        Trust::Discard => {
            log::warn!(event = "hot_state_discarded", directory:% = directory.display(); "the machine was started anew while hot state was open, and may have lost its power: hot state is built anew from the records");
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
                log::info!(event = "hot_state_of_another_version"; "hot state is of another version: it is built anew from the records");
                aside::discard(directory).map_err(|error| failed(directory, &error))?;
            }
            OpeningFailure::Unfinished => return Err(HotError::Unfinished(directory.into())),
            OpeningFailure::Machine(error) => {
                // The next start is to find what this one found.
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

/// The answer of `work`, on a thread of its own.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> std::result::Result<T, OpeningFailure> + Send + 'static,
) -> std::result::Result<T, OpeningFailure> {
    let (answer, answered) = sync_channel(1);
    let begun = std::thread::Builder::new().name("hot-open".into()).spawn(move || {
        let done =
            panics::caught(work).unwrap_or_else(|panic| Err(OpeningFailure::Damaged(format!("it panicked: {panic}"))));
        // Who waited may have gone.
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

/// Until sled has let go of the directory it may write there.
fn wait_until_released(directory: &Path) -> Result<()> {
    if durable::is_released(directory) { Ok(()) } else { Err(HotError::Unfinished(directory.into())) }
}

fn set_aside(directory: &Path, cause: String, now: OffsetDateTime) -> Result<SetAside> {
    let to = aside::put_aside(directory, now).map_err(|error| failed(directory, &error))?;
    let shown = to.as_deref().unwrap_or(directory).display();
    log::error!(
        event = "hot_state_set_aside", directory:% = shown, cause = cause.as_str();
        "hot state could not be used ({cause}) and was set aside: it is built anew from the records, and nothing has to be done"
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
