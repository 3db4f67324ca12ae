//! `/admin/backup`, `/admin/restore`, `/admin/migrate`: operations on all records. On the control socket only, because
//! they give full control of the machine's data, which an admin's certificate does not.
//!
//! They take long, so they answer with lines of JSON, one object each, while they work. The status is sent before the
//! work is done. The last line says whether the work succeeded.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use poem::{Body, IntoResponse, Response};
use poem_openapi::payload::{Binary, Payload};
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ErrorBody, Failure, ok};
use super::guards::OnThisMachine;
use super::json::JsonBody;
use crate::records::VerifiedBackup;
use crate::seal::MasterKey;
use crate::service::transfer::{Backup, Manifest, Moved, Piece, Progress, ProgressReporter, Restored, Rows, Target};
use crate::service::{ServiceError, Transfer};

pub struct AdminCopiesApi;

#[OpenApi(tag = "Tag::AdminCopies", prefix_path = "/admin")]
impl AdminCopiesApi {
    /// A copy of all records, for a backup
    ///
    /// On the control socket only. Lines of JSON: `{"about": N}`, then every row, `{"table": …, "row": …}`, then
    /// `{"manifest": …}`, without which the copy is not complete; or `{"error": …}`. Secrets are sealed in it.
    #[oai(path = "/backup", method = "get", operation_id = "getBackup")]
    async fn backup(
        &self,
        transfer: Area<'_, Transfer>,
        OnThisMachine(by): OnThisMachine,
    ) -> Result<LinesAnswer, Failure> {
        let transfer = transfer.share();
        let (writer, answer) = begin();
        let (sender, pieces) = mpsc::channel(256);
        let copying = tokio::spawn(async move { transfer.backup(&by, sender).await });
        tokio::spawn(async move {
            if let Err(error) = write_backup(writer, pieces, copying).await {
                log::debug!(event = "answer_cut", cause:% = error; "the caller of a backup has disconnected");
            }
        });
        Ok(answer)
    }

    /// Seal the keys of a backup under its passphrase
    ///
    /// On the control socket only. For the backup whose manifest, as its file has it, has this SHA-256: the master key and
    /// the daemon's configuration file, which neither leave it in the clear nor go with another backup.
    #[oai(path = "/backup/keys", method = "post", operation_id = "sealBackupKeys")]
    async fn keys(
        &self,
        transfer: Area<'_, Transfer>,
        OnThisMachine(by): OnThisMachine,
        body: JsonBody<KeysRequest>,
    ) -> Answer<SealedKeys> {
        let mut request = body.0;
        let passphrase = Zeroizing::new(std::mem::take(&mut request.passphrase));
        let manifest = request
            .manifest_sha256
            .parse()
            .map_err(|_| ServiceError::invalid("manifest_sha256", "must be 64 hex digits"))?;
        ok(SealedKeys { sealed: transfer.seal_backup_keys(&by, passphrase, manifest).await? })
    }

    /// Note that a backup was read back
    ///
    /// On the control socket only. `codex-authd backup` says so once everything that it wrote was checked. The answer is the
    /// newest one that is noted. `codex_authd_last_verified_backup_timestamp_seconds` and the doctor tell of it.
    #[oai(path = "/backup/verified", method = "post", operation_id = "noteVerifiedBackup")]
    async fn verified(
        &self,
        transfer: Area<'_, Transfer>,
        OnThisMachine(by): OnThisMachine,
        body: JsonBody<BackupRead>,
    ) -> Answer<BackupRead> {
        let BackupRead { made_at, has_keys } = body.0;
        let VerifiedBackup { made_at, has_keys } =
            transfer.backup_verified(VerifiedBackup { made_at, has_keys }, &by).await?;
        ok(BackupRead { made_at, has_keys })
    }

    /// Put a backup back
    ///
    /// On the control socket only. The body: a line `{"manifest": …, "master_key": … or null}`, then the rows. Everything
    /// is checked before anything is changed. Lines of JSON: `{"progress": …}`, and at the end `{"done": …}` or
    /// `{"error": …}`. The daemon, and every other one on the same records, replaces itself then.
    #[oai(path = "/restore", method = "post", operation_id = "restoreBackup")]
    async fn restore(
        &self,
        transfer: Area<'_, Transfer>,
        OnThisMachine(by): OnThisMachine,
        body: Binary<Body>,
    ) -> Result<LinesAnswer, Failure> {
        let transfer = transfer.share();
        Ok(working(|reporter| async move {
            let spool = Spool(transfer.restore_spool()?);
            let backup = receive(body.0, &spool.0).await?;
            transfer.restore_backup(&by, backup, &reporter).await
        }))
    }

    /// Move all records into another, empty store
    ///
    /// On the control socket only. From its beginning on this store takes no changes; after success it stays so. Lines of
    /// JSON: `{"progress": …}`, and at the end `{"done": …}` or `{"error": …}`; what failed was taken back.
    #[oai(path = "/migrate", method = "post", operation_id = "migrate")]
    async fn migrate(
        &self,
        transfer: Area<'_, Transfer>,
        OnThisMachine(by): OnThisMachine,
        body: JsonBody<Migration>,
    ) -> Result<LinesAnswer, Failure> {
        let transfer = transfer.share();
        let target = body.0.target();
        Ok(working(|reporter| async move { transfer.migrate(&by, &target, &reporter).await }))
    }

    /// Let records go on that stand still
    ///
    /// On the control socket only: after a migration that was cut short, or that is not to be after all.
    #[oai(path = "/migrate/abort", method = "post", operation_id = "abortMigration")]
    async fn abort(&self, transfer: Area<'_, Transfer>, OnThisMachine(by): OnThisMachine) -> Answer<Aborted> {
        let stood_still = transfer.abort_migration(&by).await?;
        ok(Aborted { stood_still })
    }
}

/// It has no `Debug`: the passphrase is a secret.
#[derive(Object, Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
pub struct KeysRequest {
    /// One that is not easily guessed.
    pub passphrase: String,
    /// Of the manifest.
    pub manifest_sha256: String,
}

/// A backup that was made and read back.
#[derive(Object, Serialize, Deserialize)]
pub struct BackupRead {
    /// `created_at` of its manifest.
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    /// Whether the keys are in it.
    pub has_keys: bool,
}

#[derive(Object, Serialize, Deserialize)]
pub struct SealedKeys {
    /// The text of the file `keys.sealed`.
    pub sealed: String,
}

/// Where to. Its `Debug` does not show it: the URL holds a password.
#[derive(Object, Serialize, Deserialize)]
pub struct Migration {
    /// `mysql://user:password@host:port/name`, or `embedded`.
    pub to: String,
    /// Whether the connection to the database is to be encrypted; null: as it is configured.
    #[serde(default)]
    pub tls: Option<bool>,
    /// PEM file, on the daemon's machine, of the authorities that may have signed the database's certificate.
    #[serde(default)]
    pub ca: Option<String>,
}

impl Migration {
    fn target(self) -> Target {
        match self.to.as_str() {
            "embedded" => Target::Embedded,
            _ => Target::Database { url: self.to, tls: self.tls, ca: self.ca.map(PathBuf::from) },
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Aborted {
    /// They did, and go on now.
    pub stood_still: bool,
}

/// The first line of a restore request, before the rows.
#[derive(Serialize, Deserialize)]
pub struct RestoreHead {
    pub manifest: Manifest,
    /// The text of the key file. null: the master key in use.
    pub master_key: Option<Zeroizing<String>>,
}

/// A line of the answer. Rows of a backup are written without this envelope.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    About(u64),
    Manifest(Manifest),
    Progress(Progress),
    Done(T),
    Error(ErrorBody),
}

impl<T> Line<T> {
    fn failed(error: ServiceError) -> Self {
        let cause = match &error {
            // The caller controls the machine, so the cause need not be hidden.
            ServiceError::RecordsAway { cause }
            | ServiceError::StoreFailed { cause }
            | ServiceError::Unavailable { cause } => Some(cause.clone()),
            _ => None,
        };
        let failure = Failure::from(error);
        let (_, ErrorBody { status, code, message, .. }) = failure.body();
        let message = cause.map_or_else(|| message.clone(), |cause| format!("{message} ({cause})"));
        Self::Error(ErrorBody {
            status: *status,
            code: code.clone(),
            message,
            errors: None,
            retry_after: None,
            data: None,
            address: None,
        })
    }
}

pub type MigrateLine = Line<Moved>;
pub type RestoreLine = Line<Restored>;

#[derive(ApiResponse)]
enum LinesAnswer {
    /// Lines of JSON, as the work goes on.
    #[oai(status = 200)]
    Working(Lines),
}

struct Lines(Body);

impl Payload for Lines {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        Response::builder().content_type(Self::CONTENT_TYPE).body(self.0)
    }
}

/// The size of the buffer between the work and the caller.
const BUFFER_BYTES: usize = 256 * 1024;

/// Begins an answer that ends when the writer is dropped.
fn begin() -> (DuplexStream, LinesAnswer) {
    let (writer, reader) = tokio::io::duplex(BUFFER_BYTES);
    (writer, LinesAnswer::Working(Lines(Body::from_async_read(reader))))
}

/// Runs `work`, and answers with its progress and its result.
fn working<T, F>(work: impl FnOnce(ProgressReporter) -> F) -> LinesAnswer
where
    T: Serialize + Send + Sync + 'static,
    F: Future<Output = crate::service::Result<T>> + Send + 'static,
{
    let (mut writer, answer) = begin();
    let (reporter, mut progress) = ProgressReporter::new();
    let work = tokio::spawn(work(reporter));
    tokio::spawn(async move {
        let mut told = None;
        while let Some(now) = progress.recv().await {
            // One line per percent is enough.
            let percent = (now.step, now.rows * 100 / now.of.max(1));
            if told.replace(percent) == Some(percent) {
                continue;
            }
            // The closed channel tells `work` that the caller has disconnected.
            if write(&mut writer, &Line::<T>::Progress(now)).await.is_err() {
                return;
            }
        }
        let last = match work.await {
            Ok(Ok(done)) => Line::Done(done),
            Ok(Err(error)) => Line::failed(error),
            Err(error) => Line::failed(ServiceError::internal(error)),
        };
        let _gone = write(&mut writer, &last).await;
    });
    answer
}

async fn write<T: Serialize + Sync>(writer: &mut DuplexStream, line: &Line<T>) -> std::io::Result<()> {
    write_text(writer, serde_json::to_string(line)?).await
}

async fn write_text(writer: &mut DuplexStream, mut line: String) -> std::io::Result<()> {
    line.push('\n');
    writer.write_all(line.as_bytes()).await
}

async fn write_backup(
    mut writer: DuplexStream,
    mut pieces: mpsc::Receiver<Piece>,
    copying: tokio::task::JoinHandle<crate::service::Result<()>>,
) -> std::io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::About(rows) => write(&mut writer, &Line::<()>::About(rows)).await?,
            Piece::Line(line) => write_text(&mut writer, line).await?,
            Piece::Manifest(manifest) => write(&mut writer, &Line::<()>::Manifest(manifest)).await?,
        }
    }
    match copying.await.map_err(std::io::Error::other)? {
        Ok(()) => Ok(()),
        Err(error) => write(&mut writer, &Line::<()>::failed(error)).await,
    }
}

/// The temporary file that receives a backup. It is removed on drop.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The longest first line, which has the manifest and the key.
const MAX_HEAD_BYTES: u64 = 64 * 1024;

async fn receive(body: Body, spool: &Path) -> crate::service::Result<Backup> {
    let failed = |error: std::io::Error| {
        ServiceError::Refused(format!("cannot keep the backup in {}: {error}", spool.display()))
    };
    let cut = |error: std::io::Error| ServiceError::Refused(format!("the backup was not received: {error}"));
    let mut body = BufReader::with_capacity(BUFFER_BYTES, body.into_async_read());
    let mut head = Zeroizing::new(String::new());
    (&mut body).take(MAX_HEAD_BYTES).read_line(&mut head).await.map_err(cut)?;
    let head: RestoreHead = serde_json::from_str(&head)
        .map_err(|error| ServiceError::invalid("manifest", format!("cannot be read: {error}")))?;
    let master_key = head.master_key.map(|key| {
        MasterKey::from_text(&key).ok_or_else(|| ServiceError::invalid("master_key", "must be 64 hex digits"))
    });
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = tokio::fs::OpenOptions::from(options).open(spool).await.map_err(failed)?;
    loop {
        let received = body.fill_buf().await.map_err(cut)?;
        if received.is_empty() {
            break;
        }
        file.write_all(received).await.map_err(failed)?;
        let length = received.len();
        body.consume(length);
    }
    file.flush().await.map_err(failed)?;
    let rows = Rows::open(spool).map_err(failed)?;
    Ok(Backup { manifest: head.manifest, rows, master_key: master_key.transpose()? })
}
