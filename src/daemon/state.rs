//! The state directory: locked, opened, unlocked.
//!
//! ```text
//! state_dir/            0700
//!   format              the number of the directory's format (see `format`)
//!   daemon.lock         held while a daemon (or an offline command) runs; holds its process id
//!   master.key          0600, unless systemd brings it as a credential
//!   records/            the embedded store
//!   hot/                hot state and the outbox
//!   records.restored/, restored, before-restore/   a restore under way, and what it replaced (see `promotion`)
//!   restore.spool       a backup that comes in over the control socket; overwritten by the next where a crash left it
//!   pki/server-ca.crt   what hosts trust          } written from the records on every start
//!   pki/client-ca.crt   what signs admins         }
//!   listen.json         the bound addresses
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::format::{self, FormatError};
use super::stores::Beside;
use super::{manager, promotion, recovery};
use crate::config::{Config, Database, credentials};
use crate::hot::throttle::{Limits, Throttle};
use crate::hot::{Hot, HotError};
use crate::metrics::{Metrics, MetricsError, Store};
use crate::model::audit::Actor;
use crate::outside::{Outside, System};
use crate::records::embedded::Embedded;
use crate::records::mysql::{MySql, Options, Tls};
use crate::records::{Records, RecordsError};
use crate::seal::MasterKey;
use crate::service::boot::{self, Secrets};
use crate::service::moving::{self, Backup, Restored, Teller};
use crate::service::{By, Parts, Policy, Service, ServiceError};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "cannot write in the state directory, {}: {cause}; it has to be the daemon's own, writable, and on a disk with room",
        path.display()
    )]
    Directory { path: PathBuf, cause: std::io::Error },
    #[error("the state directory {} is in use by process {holder}; stop that one first, or choose another state_dir", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("cannot open the records: {0}")]
    Records(#[from] RecordsError),
    #[error("cannot open hot state: {0}; it holds nothing but unsent telemetry: move {path} away to go on without it", path = .1.display())]
    Hot(HotError, PathBuf),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("cannot unlock the secrets: {}", super::cause_of(.0))]
    Unlock(ServiceError),
    #[error("{}", super::cause_of(.0))]
    Restore(ServiceError),
    #[error("opening the state ended early: {0}")]
    Ended(tokio::task::JoinError),
}

pub struct State {
    pub secrets: Arc<Secrets>,
    pub metrics: Arc<Metrics>,
    records: Arc<dyn Records>,
    hot: Arc<Hot>,
    throttle: Limits,
    outside: Arc<dyn Outside>,
    stores: Arc<Beside>,
    _lock: Arc<StateLock>,
}

impl State {
    /// Opens the state of `config`; the first time, makes it.
    pub async fn open(config: &Config, outside: Arc<dyn Outside>) -> Result<Self, StateError> {
        let directory = &config.state_dir;
        make_private(directory)?;
        let lock = Arc::new(StateLock::take(directory)?);
        let failed = |cause| StateError::Directory { path: directory.clone(), cause };
        recovery::check_disk(directory).map_err(failed)?;
        promotion::apply(directory).map_err(failed)?;
        let upgrade = format::prepare(directory)?;
        let metrics = Arc::new(Metrics::new(&crate::api::operations(), outside.now())?);
        manager::status(if config.database.url.is_empty() {
            "starting: the records are opened"
        } else {
            "starting: the database is asked"
        });
        // Both at once: with many hosts most of a start is spent here.
        let (records_path, hot_path, of_hot) = (directory.join("records"), directory.join("hot"), outside.clone());
        let database = database(config).map(|options| MySql::new(&options)).transpose()?;
        // An older state is upgraded whatever it is that is used now.
        let embedded = database.is_none() || upgrade.is_some();
        let records = tokio::task::spawn_blocking(move || embedded.then(|| Embedded::open(&records_path)).transpose());
        let hot = tokio::task::spawn_blocking(move || {
            Hot::open(&hot_path, &*of_hot).map_err(|error| StateError::Hot(error, hot_path))
        });
        let (records, hot) = (records.await, hot.await);
        let embedded = records.map_err(StateError::Ended)??;
        if let (Some(upgrade), Some(embedded)) = (upgrade, &embedded) {
            upgrade.run(embedded).await?;
        }
        let records: Arc<dyn Records> = match (database, embedded) {
            (Some(database), _) => {
                match database.prepare().await {
                    Err(RecordsError::Unavailable(cause)) => {
                        log::warn!(event = "database_away", cause = cause.as_str(); "the database is not available");
                    }
                    prepared => prepared?,
                }
                Arc::new(database)
            }
            (None, Some(embedded)) => {
                embedded.on_flush(metrics.flush_observer(Store::Records));
                Arc::new(embedded)
            }
            // It was opened because there is no other.
            (None, None) => return Err(RecordsError::Unavailable("no store was opened".into()).into()),
        };
        let hot = Arc::new(hot.map_err(StateError::Ended)??);
        hot.on_flush(metrics.flush_observer(Store::Hot));
        let credentials = credentials::directory();
        let secrets =
            boot::unlock_with_hot(&*records, &hot, &directory.join("master.key"), credentials.as_deref(), &*outside)
                .await
                .map_err(StateError::Unlock)?;
        let limits = &config.limits;
        let throttle = Limits {
            global_per_minute: limits.global_per_minute,
            host_per_minute: limits.host_per_minute,
            auth_fail_count: limits.auth_fail_count,
            auth_fail_window_seconds: limits.auth_fail_window_seconds,
            auth_fail_block_seconds: limits.auth_fail_block_seconds,
        };
        let stores = Arc::new(Beside::new(config));
        Ok(Self { secrets: Arc::new(secrets), records, hot, throttle, metrics, outside, stores, _lock: lock })
    }

    pub async fn service(&self, policy: Policy) -> Result<Service, ServiceError> {
        let service = Service::new(Parts {
            records: self.records.clone(),
            hot: self.hot.clone(),
            throttle: Throttle::new(self.throttle),
            metrics: self.metrics.clone(),
            outside: self.outside.clone(),
            policy,
            secrets: self.secrets.clone(),
        });
        Ok(service.await?.with_stores(self.stores.clone()))
    }
}

/// Puts a backup back while no daemon runs: nothing has to be readable but the backup.
pub async fn restore(config: &Config, backup: Backup, uid: u32, teller: Teller) -> Result<Restored, StateError> {
    let directory = &config.state_dir;
    make_private(directory)?;
    let _lock = StateLock::take(directory)?;
    let failed = |cause| StateError::Directory { path: directory.clone(), cause };
    recovery::check_disk(directory).map_err(failed)?;
    promotion::apply(directory).map_err(failed)?;
    let upgrade = format::prepare(directory)?;
    let path = directory.join("records");
    let records: Arc<dyn Records> = match database(config) {
        Some(options) => {
            let database = MySql::new(&options)?;
            database.prepare().await?;
            Arc::new(database)
        }
        None => {
            let opened =
                tokio::task::spawn_blocking(move || Embedded::open(&path)).await.map_err(StateError::Ended)??;
            if let Some(upgrade) = upgrade {
                upgrade.run(&opened).await?;
            }
            Arc::new(opened)
        }
    };
    let credentials = credentials::directory();
    let present = MasterKey::load(&directory.join("master.key"), credentials.as_deref());
    let present = present.map_err(|error| StateError::Restore(error.into()))?;
    let by = By { actor: Actor::Offline { uid }, from: None };
    let stores = Beside::new(config);
    let restored = moving::restore::restore(&records, &stores, present.as_ref(), backup, &by, &System, &teller).await;
    let restored = restored.map_err(StateError::Restore)?;
    // Its files are to be moved.
    drop(records);
    promotion::apply(directory).map_err(failed)?;
    Ok(restored)
}

/// How to reach the database, where there is one.
fn database(config: &Config) -> Option<Options> {
    let Database { url, tls, ca, connections, timeout_seconds } = &config.database;
    (!url.is_empty()).then(|| Options {
        url: url.clone(),
        tls: if *tls { Tls::Required } else { Tls::Off },
        ca: (!ca.as_os_str().is_empty()).then(|| ca.clone()),
        connections: *connections as usize,
        timeout: Duration::from_secs((*timeout_seconds).into()),
    })
}

/// A directory of our own that nobody else may look into.
fn make_private(path: &Path) -> Result<(), StateError> {
    let fail = |cause| StateError::Directory { path: path.to_path_buf(), cause };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode() & 0o777;
    if mode != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    Ok(())
}

/// Held while this process uses the state directory. The kernel lets it go when the process ends, however it ends.
struct StateLock(#[allow(dead_code)] Flock<File>); // Held, not read.

impl StateLock {
    fn take(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("daemon.lock");
        let fail = |cause| StateError::Directory { path: path.clone(), cause };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(fail)?;
                Ok(Self(lock))
            }
            Err((mut file, _)) => {
                let mut holder = String::new();
                let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut holder));
                let holder = match holder.trim() {
                    "" => "(unknown)".into(),
                    id => id.to_owned(),
                };
                Err(StateError::InUse { path: directory.to_path_buf(), holder })
            }
        }
    }
}
