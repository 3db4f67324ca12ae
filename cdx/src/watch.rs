//! Notices changes of `auth.json` while Codex runs. It may miss none, and may report a change that is none.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked at before, or where, the system reports its changes. A change is handed over within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(target_os = "linux")]
type Events = tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>;

pub struct Watch {
    file: PathBuf,
    seen: Option<Seen>,
    /// Made after the first interval: its end takes some 15 ms, which a short run of Codex must not wait for.
    #[cfg(target_os = "linux")]
    events: Option<Events>,
    #[cfg(target_os = "linux")]
    is_new: bool,
}

/// What is another one when Codex has replaced or written the file.
#[derive(PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Watch {
    /// Watches this file, whose directory exists. Must be made before the file is read for the last time.
    pub fn new(file: &Path) -> Self {
        let file = crate::files::resolve_links(file).unwrap_or_else(|_| file.to_owned());
        Self {
            seen: look(&file),
            #[cfg(target_os = "linux")]
            events: None,
            #[cfg(target_os = "linux")]
            is_new: true,
            file,
        }
    }

    /// Waits until the file has changed since it was looked at.
    pub async fn changed(&mut self) {
        loop {
            let now = look(&self.file);
            if now != self.seen {
                self.seen = now;
                return;
            }
            self.wait().await;
        }
    }

    #[cfg(target_os = "linux")]
    async fn wait(&mut self) {
        let Some(events) = &self.events else {
            tokio::time::sleep(POLL_INTERVAL).await;
            if std::mem::take(&mut self.is_new) {
                self.events = inotify(&self.file);
            }
            return;
        };
        match events.readable().await {
            // The events say only that something in the directory has changed.
            Ok(mut ready) => {
                let mut discarded = [0; 4096];
                if nix::unistd::read(ready.get_inner(), &mut discarded).is_err() {
                    ready.clear_ready();
                }
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }

    #[cfg(not(target_os = "linux"))]
    async fn wait(&mut self) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn look(file: &Path) -> Option<Seen> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(file).ok()?;
    Some(Seen { inode: found.ino(), size: found.size(), seconds: found.mtime(), nanoseconds: found.mtime_nsec() })
}

/// `None`: the user's limit of watches is reached, or the directory cannot be watched.
#[cfg(target_os = "linux")]
fn inotify(file: &Path) -> Option<Events> {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let events = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let changes = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE;
    events.add_watch(file.parent()?, changes).ok()?;
    crate::platform::readiness(events.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_and_a_written_file_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("auth.json"), directory.path().join("other"));
        std::fs::write(&file, "1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limit = Duration::from_secs(5);
            let mut watch = Watch::new(&file);
            std::fs::write(&other, "x").unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_err(), "another file");
            std::fs::rename(&other, &file).unwrap();
            tokio::time::timeout(limit, watch.changed()).await.expect("a renamed file");
            // Long enough for the events of the system.
            assert!(tokio::time::timeout(2 * POLL_INTERVAL, watch.changed()).await.is_err(), "nothing has changed");
            #[cfg(target_os = "linux")]
            assert!(watch.events.is_some());
            std::fs::write(&file, "in place").unwrap();
            tokio::time::timeout(limit, watch.changed()).await.expect("a written file");
        });
    }
}
