//! The list of hosts, page by page: kept in memory, so that no page waits for the records or reads them.
//!
//! It is built from hot state when it is first asked for (the daemon asks once it is ready), and follows from then on what
//! [`Service::catch_up`] applies and what hosts were seen doing, the latter once a second. What happens while it is being
//! built is kept, and put on top. Nothing is stored here: a crash costs the building.

mod table;

use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use crate::model::host::{HostActivity, HostId};
use crate::records::Host;

pub use table::{HostState, ListQuery, ListedHost, Page, Sort, Table};

use super::{Result, Service, ServiceError};

#[derive(Default)]
pub struct Directory {
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
    /// To be told of all hosts that change, in their order, after hot state has them.
    pub(super) fn put(&self, hosts: &[Host]) {
        self.tell(hosts.iter(), |table, host| table.put(host), |host| News::Host(Box::new(host.clone())));
    }

    /// To be told what hosts did, all of it and not what was added.
    pub(super) fn set_activity(&self, activities: impl IntoIterator<Item = (HostId, HostActivity)>) {
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
            let some = told.by_ref().take(AT_ONCE);
            let before = match &mut *state {
                State::Absent => return,
                State::Building(news) => {
                    let before = news.len();
                    news.extend(some.map(&keep));
                    news.len() - before
                }
                State::Ready(table) => some.map(|one| apply(table, one)).count(),
            };
            if before < AT_ONCE {
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

const AT_ONCE: usize = 1000;

impl Service {
    /// One page of the hosts that are asked for.
    pub async fn list_hosts(&self, query: ListQuery) -> Result<Page> {
        self.look_at_hosts(move |table| table.page(&query)).await
    }

    pub(super) async fn look_at_hosts<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Table) -> T + Send + 'static,
    ) -> Result<T> {
        self.prepare_directory().await?;
        let directory = self.directory.clone();
        // Some milliseconds with a great many hosts: not for a thread that answers hosts.
        let seen = tokio::task::spawn_blocking(move || {
            match &*directory.state.read().unwrap_or_else(PoisonError::into_inner) {
                State::Ready(table) => Some(look(table)),
                State::Absent | State::Building(_) => None,
            }
        });
        seen.await.map_err(ServiceError::internal)?.ok_or_else(|| ServiceError::internal("the directory is not there"))
    }

    /// Builds the directory, where that was not done yet.
    pub async fn prepare_directory(&self) -> Result<()> {
        let _alone = self.directory.building.lock().await;
        if self.directory.is_ready() {
            return Ok(());
        }
        *self.directory.write() = State::Building(Vec::new());
        let hot = self.hot.clone();
        let build = tokio::task::spawn_blocking(move || {
            let mut table = Table::default();
            hot.each_host(|host, activity| table.insert(ListedHost::new(&host, activity)))?;
            Ok::<_, crate::hot::HotError>(table)
        });
        let built = build.await.map_err(ServiceError::internal).and_then(|built| Ok(built?));
        match built {
            Ok(table) => self.directory.finish(table),
            Err(error) => {
                *self.directory.write() = State::Absent;
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
