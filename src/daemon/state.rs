//! Opens the state directory: takes its lock, opens the stores, and unlocks the secrets.
//!
//! ```text
//! state_dir/            0700
//!   format              the number of the directory's format (see `format`)
//!   daemon.lock         held while a daemon (or an offline command) runs; holds its process id
//!   master.key          0600, unless systemd provides it as a credential
//!   records/            the embedded records; the crash-safe store
//!   outbox/             telemetry of hosts that is not in the records yet; the crash-safe store
//!   hot/                hot state: rebuilt from the records if it is lost or damaged
//!   hot.broken-DATE/    damaged hot state that was set aside; it may be removed
//!   before-format-N/, upgrading, records.upgrade/, outbox.upgrade/   an upgrade, and the state before it (see `format`)
//!   records.damaged-DATE/   damaged records that a restore replaced
//!   records.salvage/    a copy while damaged records are exported
//!   records.restored/, restored, before-restore/   a restore under way, and what it replaced (see `promotion`)
//!   restore.spool       a backup from the control socket; after a crash, the next restore overwrites it
//!   pki/server-ca.crt   trusted by hosts           } written from the records on every start
//!   pki/client-ca.crt   signs admins' certificates }
//!   listen.json         the bound addresses
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::format::{self, FormatError};
use super::stores::Beside;
use super::{files, manager, promotion, recovery};
use crate::config::{Config, Database, credentials};
use crate::durable::DurableError;
use crate::hot::throttle::{Limits, Throttle};
use crate::hot::{self, Hot, HotError};
use crate::metrics::{Metrics, MetricsError, Store};
use crate::model::audit::Actor;
use crate::platform::{Clock as _, Platform, System};
use crate::records::embedded::Embedded;
use crate::records::embedded::rescue::Rescue;
use crate::records::mysql::{MySql, Options, Tls};
use crate::records::{Records, RecordsError};
use crate::runner::Prober;
use crate::seal::MasterKey;
use crate::service::core::boot::{self, Secrets};
use crate::service::hosts::programs::NativePrograms;
use crate::service::transfer::{self, Backup, ProgressReporter, Restored};
use crate::service::{Adapters, Areas, Initiator, Parts, Policy, ServiceError};
use crate::upstream::oidc::Provider;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "cannot write in the state directory, {}: {cause}; it must belong to the daemon's user, be writable, and have free disk space",
        path.display()
    )]
    Directory { path: PathBuf, cause: std::io::Error },
    #[error("the state directory {} is in use by process {holder}; stop that process first, or choose another state_dir", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Nothing was served from these records, and nothing was changed.
    #[error(
        "cannot open the records: {0}. Put a backup back: codex-authd restore DIR. Without one, codex-authd records export DIR \
         saves what can be read, as a backup"
    )]
    DamagedRecords(String),
    #[error("cannot open the records: {0}")]
    Records(RecordsError),
    #[error(
        "cannot open the outbox: {0}. To go on without it, move {path} away: this loses the calls of hosts that the records \
         do not have yet, and a login that a probe refreshed while the records were away",
        path = .1.display()
    )]
    DamagedOutbox(DurableError, PathBuf),
    #[error("there are no embedded records to export in {path}: {1}", path = .0.display())]
    NoRecords(PathBuf, &'static str),
    #[error("cannot open hot state: {0}")]
    Hot(HotError),
    /// The next process sets hot state aside.
    #[error("{0}")]
    HotUnfinished(HotError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("cannot unlock the secrets: {}", super::cause_of(.0))]
    Unlock(ServiceError),
    #[error("{}", super::cause_of(.0))]
    Restore(ServiceError),
    #[error("opening the state ended early: {0}")]
    Ended(tokio::task::JoinError),
}

impl From<RecordsError> for StateError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::Damaged(cause) => Self::DamagedRecords(cause),
            error => Self::Records(error),
        }
    }
}

/// Maps an error of the stores next to the records: which store failed, and what is lost without it.
fn of_hot(error: HotError) -> StateError {
    match error {
        HotError::Unfinished(_) => StateError::HotUnfinished(error),
        HotError::Store(error @ DurableError::Damaged { .. }) => match &error {
            DurableError::Damaged { path, .. } if path.ends_with(hot::OUTBOX) => {
                let outbox = path.clone();
                StateError::DamagedOutbox(error, outbox)
            }
            _ => StateError::Hot(HotError::Store(error)),
        },
        error => StateError::Hot(error),
    }
}

pub struct State {
    pub secrets: Arc<Secrets>,
    pub metrics: Arc<Metrics>,
    records: Arc<dyn Records>,
    hot: Arc<Hot>,
    throttle: Limits,
    platform: Arc<dyn Platform>,
    stores: Arc<Beside>,
    _lock: Arc<StateLock>,
}

impl State {
    /// Opens the state of `config`. The first time, it is created.
    pub async fn open(config: &Config, platform: Arc<dyn Platform>) -> Result<Self, StateError> {
        let directory = &config.state_dir;
        make_private(directory)?;
        let lock = Arc::new(StateLock::take(directory)?);
        let failed = |cause| StateError::Directory { path: directory.clone(), cause };
        recovery::check_disk(directory).map_err(failed)?;
        promotion::apply(directory).map_err(failed)?;
        prepare_format(directory).await?;
        let metrics = Arc::new(Metrics::new(&crate::api::operations(), platform.now())?);
        manager::status(if config.database.url.is_empty() {
            "starting: opening the records"
        } else {
            "starting: connecting to the database"
        });
        // Both at once: with many hosts, most of a start is spent here.
        let (records_path, hot_path, for_hot) = (directory.join("records"), directory.clone(), platform.clone());
        let database = database(config).map(|options| MySql::new(&options)).transpose()?;
        let is_embedded = database.is_none();
        let records =
            tokio::task::spawn_blocking(move || is_embedded.then(|| Embedded::open(&records_path)).transpose());
        let hot = tokio::task::spawn_blocking(move || Hot::open(&hot_path, &*for_hot).map_err(of_hot));
        let (records, hot) = (records.await, hot.await);
        let embedded = records.map_err(StateError::Ended)??;
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
            // Unreachable: without a database, the embedded store was opened.
            (None, None) => return Err(RecordsError::Unavailable("no store was opened".into()).into()),
        };
        let hot = Arc::new(hot.map_err(StateError::Ended)??);
        hot.on_flush(metrics.flush_observer(Store::Hot), metrics.flush_observer(Store::Outbox));
        let credentials = credentials::directory();
        let secrets =
            boot::unlock_with_hot(&*records, &hot, &directory.join("master.key"), credentials.as_deref(), &*platform)
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
        Ok(Self { secrets: Arc::new(secrets), records, hot, throttle, metrics, platform, stores, _lock: lock })
    }

    /// Whether hosts were last shown a certificate other than ours, if that is recorded. Without the records, hot state
    /// answers.
    pub async fn is_switched(&self) -> Option<bool> {
        let settings = match self.records.settings_fetch().await {
            Ok(settings) => settings,
            Err(_) => (*self.hot.settings()).clone(),
        };
        settings.host_trust.map(|trust| trust.switched_at.is_some())
    }

    pub async fn start_areas(
        &self,
        policy: Policy,
        prober: Option<Arc<dyn Prober>>,
        provider: Option<Arc<Provider>>,
        programs: Arc<NativePrograms>,
    ) -> Result<Areas, ServiceError> {
        let parts = Parts {
            records: self.records.clone(),
            hot: self.hot.clone(),
            throttle: Throttle::new(self.throttle),
            metrics: self.metrics.clone(),
            platform: self.platform.clone(),
            policy,
            secrets: self.secrets.clone(),
        };
        Areas::start(parts, Adapters { stores: Some(self.stores.clone()), prober, provider, programs }).await
    }
}

/// Restores a backup while no daemon runs. Only the backup must be readable.
pub async fn restore(
    config: &Config,
    backup: Backup,
    uid: u32,
    reporter: ProgressReporter,
) -> Result<Restored, StateError> {
    let directory = &config.state_dir;
    make_private(directory)?;
    let _lock = StateLock::take(directory)?;
    let failed = |cause| StateError::Directory { path: directory.clone(), cause };
    recovery::check_disk(directory).map_err(failed)?;
    promotion::apply(directory).map_err(failed)?;
    let path = directory.join("records");
    let prepared = match prepare_format(directory).await {
        Err(StateError::Format(error @ FormatError::OldRecords(_))) => Err(error.to_string()),
        prepared => Ok(prepared?),
    };
    // Records that cannot be opened stay where they are until the backup has been verified.
    let mut damaged = prepared.err();
    let records: Arc<dyn Records> = match database(config) {
        Some(options) => {
            let database = MySql::new(&options)?;
            database.prepare().await?;
            Arc::new(database)
        }
        None => match open_embedded(&path, damaged.take()).await? {
            Ok(opened) => Arc::new(opened),
            Err(cause) => {
                log::warn!(event = "records_damaged", cause = cause.as_str(); "the present records cannot be opened: {cause}");
                damaged = Some(cause);
                let nothing = directory.join(NOTHING);
                files::remove(&nothing).map_err(failed)?;
                Arc::new(Embedded::open(&nothing)?)
            }
        },
    };
    let credentials = credentials::directory();
    let present = MasterKey::load(&directory.join("master.key"), credentials.as_deref());
    let present = present.map_err(|error| StateError::Restore(error.into()))?;
    let by = Initiator { actor: Actor::Offline { uid }, from: None };
    let stores = Beside::new(config);
    let restored =
        transfer::restore::restore(&records, &stores, present.as_ref(), backup, &by, &System, &reporter).await;
    let restored = restored.map_err(StateError::Restore)?;
    // Closes the records, because their files are moved next.
    drop(records);
    files::remove(&directory.join(NOTHING)).map_err(failed)?;
    if damaged.is_some() {
        let aside = set_aside(directory, &path).map_err(failed)?;
        log::warn!(event = "records_set_aside", path:% = aside.display(); "the damaged records are in {} now", aside.display());
    }
    promotion::apply(directory).map_err(failed)?;
    if damaged.is_some() {
        prepare_format(directory).await?;
    }
    Ok(restored)
}

/// An empty store in place of unreadable records, while a backup is restored.
const NOTHING: &str = "records.none";

/// Opens the records, or returns why they cannot be read. `damaged`: the reason, if it is known already.
async fn open_embedded(path: &Path, damaged: Option<String>) -> Result<Result<Embedded, String>, StateError> {
    if let Some(cause) = damaged {
        return Ok(Err(cause));
    }
    let path = path.to_path_buf();
    match tokio::task::spawn_blocking(move || Embedded::open(&path)).await.map_err(StateError::Ended)? {
        Ok(opened) => Ok(Ok(opened)),
        Err(RecordsError::Damaged(cause)) => Ok(Err(cause)),
        Err(error) => Err(error.into()),
    }
}

/// Renames the damaged records, to make room for the restored ones.
fn set_aside(directory: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let date = System.now().format(format).map_err(std::io::Error::other)?;
    let aside = directory.join(format!("records.damaged-{date}"));
    std::fs::rename(path, &aside)?;
    File::open(directory)?.sync_all()?;
    Ok(aside)
}

/// The readable part of damaged records, with the state locked.
pub struct Rescued {
    // Dropped first: its files are in `scratch`.
    records: Option<Rescue>,
    scratch: PathBuf,
    _lock: StateLock,
}

/// Reads the embedded records as far as possible while no daemon runs. They are not changed.
pub fn rescue(config: &Config) -> Result<Rescued, StateError> {
    let directory = &config.state_dir;
    let path = directory.join("records");
    if !path.exists() {
        return Err(StateError::NoRecords(directory.clone(), "no daemon has run here on the embedded store"));
    }
    let lock = StateLock::take(directory)?;
    let failed = |cause| StateError::Directory { path: directory.clone(), cause };
    if format::look(directory)? != Some(format::CURRENT) {
        return Err(StateError::NoRecords(
            directory.clone(),
            "they have an older format; the daemon upgrades it at its start",
        ));
    }
    let scratch = directory.join("records.salvage");
    files::remove(&scratch).map_err(failed)?;
    let records = Rescue::read(&path, &scratch).inspect_err(|_| drop(files::remove(&scratch)))?;
    Ok(Rescued { records: Some(records), scratch, _lock: lock })
}

impl Rescued {
    pub fn records(&self) -> &Rescue {
        // Only drop takes it.
        self.records.as_ref().unwrap_or_else(|| unreachable!("the value is present until the drop"))
    }
}

impl Drop for Rescued {
    fn drop(&mut self) {
        drop(self.records.take());
        let _ = files::remove(&self.scratch);
    }
}

/// Runs in a blocking thread: copying a large state takes a while.
async fn prepare_format(directory: &Path) -> Result<(), StateError> {
    let directory = directory.to_path_buf();
    let prepared = tokio::task::spawn_blocking(move || format::prepare(&directory)).await;
    Ok(prepared.map_err(StateError::Ended)??)
}

/// Connection options of the database; `None` for the embedded store.
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

/// Creates a directory, or restricts an existing one, with mode 0700.
fn make_private(path: &Path) -> Result<(), StateError> {
    let fail = |cause| StateError::Directory { path: path.to_path_buf(), cause };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode() & 0o777;
    if mode != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    Ok(())
}

/// Whether another process uses the state directory.
pub fn is_in_use(directory: &Path) -> bool {
    let file = OpenOptions::new().read(true).open(directory.join(LOCK));
    file.is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

/// Waits, at most `patience`, until no other command uses the state directory.
pub async fn wait_until_free(directory: &Path, patience: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < patience && is_in_use(directory) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

const LOCK: &str = "daemon.lock";
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Held while this process uses the state directory. The kernel releases it when the process ends in any way.
struct StateLock(#[allow(dead_code)] Flock<File>); // Held, not read.

impl StateLock {
    fn take(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join(LOCK);
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
