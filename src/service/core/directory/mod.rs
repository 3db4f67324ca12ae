//! The list of hosts, in memory, so that no page waits for the records or reads them.
//!
//! It is built from hot state when it is first asked for (the daemon asks once it is ready). From then on it follows
//! what [`Core::catch_up`] applies, and once a second what hosts were seen doing. Changes during the building are kept
//! and applied after it. Nothing is stored here: after a crash the list is built again.

mod table;

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::hot::Hot;
use crate::model::host::{HostActivity, HostId};
use crate::records::Host;

pub use table::{HostPage, HostState, HostTable, ListQuery, ListedHost, Mark, MarkKey, Sort};

use crate::service::{Result, ServiceError};

pub struct Directory {
    hot: Arc<Hot>,
    state: RwLock<State>,
    /// Only one caller builds at a time.
    building: tokio::sync::Mutex<()>,
}

#[derive(Default)]
enum State {
    #[default]
    Absent,
    /// Changes since the building began. Each holds a whole new value, not a difference, so one that the building has
    /// seen already may be applied again.
    Building(Vec<News>),
    Ready(HostTable),
}

enum News {
    Host(Box<Host>),
    Activity(HostId, HostActivity),
}

impl Directory {
    pub(in crate::service) fn new(hot: Arc<Hot>) -> Self {
        Self { hot, state: RwLock::default(), building: tokio::sync::Mutex::new(()) }
    }

    /// Reads from the table, after building it if necessary.
    pub(in crate::service) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&HostTable) -> T + Send + 'static,
    ) -> Result<T> {
        self.prepare().await?;
        let directory = Arc::clone(self);
        // This takes some milliseconds with very many hosts, so it does not run on a thread that answers hosts.
        let seen = tokio::task::spawn_blocking(move || {
            match &*directory.state.read().unwrap_or_else(PoisonError::into_inner) {
                State::Ready(table) => Some(look(table)),
                State::Absent | State::Building(_) => None,
            }
        });
        seen.await.map_err(ServiceError::internal)?.ok_or_else(|| ServiceError::internal("the list is not built"))
    }

    /// Builds the table if that was not done yet.
    pub async fn prepare(&self) -> Result<()> {
        let _alone = self.building.lock().await;
        if self.is_ready() {
            return Ok(());
        }
        *self.write() = State::Building(Vec::new());
        let hot = self.hot.clone();
        let build = tokio::task::spawn_blocking(move || {
            let mut table = HostTable::default();
            hot.each_host(|host, activity| table.insert(ListedHost::new(&host, activity)))?;
            Ok::<_, crate::hot::HotError>(table)
        });
        let built = build.await.map_err(ServiceError::internal).and_then(|built| Ok(built?));
        match built {
            Ok(table) => self.finish(table),
            Err(error) => {
                *self.write() = State::Absent;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes over changed hosts. Must be called for all of them, in order, after hot state has them.
    pub(in crate::service) fn put(&self, hosts: &[Host]) {
        self.tell(hosts.iter(), |table, host| table.put(host), |host| News::Host(Box::new(host.clone())));
    }

    /// Takes over the activity of hosts: whole values, not additions.
    pub(in crate::service) fn set_activity(&self, activities: impl IntoIterator<Item = (HostId, HostActivity)>) {
        self.tell(
            activities.into_iter(),
            |table, (id, activity)| table.set_activity(id, activity),
            |(id, activity)| News::Activity(id, activity),
        );
    }

    fn tell<T>(&self, mut told: impl Iterator<Item = T>, apply: impl Fn(&mut HostTable, T), keep: impl Fn(T) -> News) {
        // Only a few per lock: requests for a page wait meanwhile.
        loop {
            let mut state = self.write();
            let some = told.by_ref().take(CHANGES_PER_LOCK);
            let before = match &mut *state {
                State::Absent => return,
                State::Building(news) => {
                    let before = news.len();
                    news.extend(some.map(&keep));
                    news.len() - before
                }
                State::Ready(table) => some.map(|one| apply(table, one)).count(),
            };
            if before < CHANGES_PER_LOCK {
                return;
            }
        }
    }

    /// `table`: the hosts when the building began.
    fn finish(&self, mut table: HostTable) {
        let mut state = self.write();
        if let State::Building(news) = std::mem::take(&mut *state) {
            for one in news {
                match one {
                    News::Host(host) => table.put(&host),
                    News::Activity(id, activity) => table.set_activity(id, activity),
                }
            }
        }
        *state = State::Ready(table);
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ready(&self) -> bool {
        matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Ready(_))
    }
}

const CHANGES_PER_LOCK: usize = 1000;

#[cfg(test)]
mod tests;
