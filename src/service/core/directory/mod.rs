//! The list of hosts, page by page: kept in memory, so that no page waits for the records or reads them.
//!
//! It is built from hot state when it is first asked for (the daemon asks once it is ready), and follows from then on what
//! [`Core::catch_up`] applies and what hosts were seen doing, the latter once a second. What happens while it is being
//! built is kept, and put on top. Nothing is stored here: a crash costs the building.

mod table;

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::hot::Hot;
use crate::model::host::{HostActivity, HostId};
use crate::records::Host;

pub use table::{HostState, ListQuery, ListedHost, Page, Sort, Table};

use crate::service::{Result, ServiceError};

pub struct Directory {
    hot: Arc<Hot>,
    state: RwLock<State>,
    /// One building at a time.
    building: tokio::sync::Mutex<()>,
}

#[derive(Default)]
enum State {
    #[default]
    Absent,
    /// What happened since the building began. Each says how something is, not how it changed: what the building has
    /// seen already may be said again.
    Building(Vec<News>),
    Ready(Table),
}

enum News {
    Host(Box<Host>),
    Activity(HostId, HostActivity),
}

impl Directory {
    pub(in crate::service) fn new(hot: Arc<Hot>) -> Self {
        Self { hot, state: RwLock::default(), building: tokio::sync::Mutex::new(()) }
    }

    /// Looks at the table, which is built where that was not done yet.
    pub(in crate::service) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Table) -> T + Send + 'static,
    ) -> Result<T> {
        self.prepare().await?;
        let directory = Arc::clone(self);
        // Some milliseconds with a great many hosts: not for a thread that answers hosts.
        let seen = tokio::task::spawn_blocking(move || {
            match &*directory.state.read().unwrap_or_else(PoisonError::into_inner) {
                State::Ready(table) => Some(look(table)),
                State::Absent | State::Building(_) => None,
            }
        });
        seen.await.map_err(ServiceError::internal)?.ok_or_else(|| ServiceError::internal("the directory is not there"))
    }

    /// Builds the table, where that was not done yet.
    pub async fn prepare(&self) -> Result<()> {
        let _alone = self.building.lock().await;
        if self.is_ready() {
            return Ok(());
        }
        *self.write() = State::Building(Vec::new());
        let hot = self.hot.clone();
        let build = tokio::task::spawn_blocking(move || {
            let mut table = Table::default();
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

    /// To be told of all hosts that change, in their order, after hot state has them.
    pub(in crate::service) fn put(&self, hosts: &[Host]) {
        self.tell(hosts.iter(), |table, host| table.put(host), |host| News::Host(Box::new(host.clone())));
    }

    /// To be told what hosts did, all of it and not what was added.
    pub(in crate::service) fn set_activity(&self, activities: impl IntoIterator<Item = (HostId, HostActivity)>) {
        self.tell(
            activities.into_iter(),
            |table, (id, activity)| table.set_activity(id, activity),
            |(id, activity)| News::Activity(id, activity),
        );
    }

    fn tell<T>(&self, mut told: impl Iterator<Item = T>, apply: impl Fn(&mut Table, T), keep: impl Fn(T) -> News) {
        // Not longer than for a few at once: whoever asks for a page waits.
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

    /// `table` has what there was when the building began.
    fn finish(&self, mut table: Table) {
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
