//! The records on sled: the default, with nothing to install.
//!
//! Everything stands in **one** tree under prefixed keys ([`rows`]), so that a change is one batch of one log: rows, their
//! indexes and the epoch are there together or not at all, whatever line a crash hits. Changes run one at a time
//! ([`Durable::write`]), which is what makes "exactly one" and "without a gap" true without a retry.
//!
//! No answer leaves before what it rests on is power-safe: changes and reads alike await [`Durable::settled`]. So a reader
//! never passes on a canonical version, or a "no, it is used already", that a power cut could still take back; the price
//! is that a read may wait for a flush that is under way. Once a flush has failed, everything is refused until a restart.

mod canonical;
mod changes;
mod hosts;
mod install;
mod rows;
mod sealed;
mod telemetry;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AdminCertificate, Authority, CanonicalSummary, CanonicalVersion, Changes, Epoch, Host, HostChange, NewCanonical,
    Records, RecordsError, Redemption, Registration, Replacement, Result, SealingKey, Seed, Settings, Telemetry,
};
use crate::durable::{Durable, DurableError, Staged};
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId};
use crate::seal::{KeyId, Place, Sealed};

/// The records of one daemon, in a directory of their own.
pub struct Embedded {
    data: Arc<Durable>,
}

impl Embedded {
    /// Opens the records in `dir`, making it where it is missing. Reading them again takes time: not for an async task.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self { data: Arc::new(Durable::open(dir)?) })
    }

    /// `false` once a change could not be made safe; every call is refused from then on, until a restart.
    pub fn healthy(&self) -> bool {
        self.data.healthy()
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        let outcome = self.data.write(change);
        // An outcome that wrote nothing still tells what others wrote a moment ago.
        self.data.settled().await?;
        outcome
    }

    async fn read<T>(&self, read: impl FnOnce(&Durable) -> Result<T>) -> Result<T> {
        let answer = self.data.together(|| read(&self.data));
        self.data.settled().await?;
        answer
    }

    /// For what reads many rows: off the async threads.
    async fn read_much<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Durable) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let data = Arc::clone(&self.data);
        let answer = tokio::task::spawn_blocking(move || read(&data))
            .await
            .map_err(|e| RecordsError::Unavailable(format!("the reading task ended early: {e}")))?;
        self.data.settled().await?;
        answer
    }
}

impl From<DurableError> for RecordsError {
    fn from(error: DurableError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

#[async_trait]
impl Records for Embedded {
    async fn initialise(&self, seed: &Seed) -> Result<bool> {
        self.change(|staged| install::initialise(staged, seed)).await
    }

    async fn is_initialised(&self) -> Result<bool> {
        self.read(|data| Ok(data.get(rows::INITIALISED)?.is_some())).await
    }

    async fn check(&self) -> Result<()> {
        self.read(|data| data.get(rows::INITIALISED).map(|_| ()).map_err(RecordsError::from)).await
    }

    async fn sealing_keys(&self) -> Result<Vec<SealingKey>> {
        self.read(|data| rows::all(data, rows::SEALING_KEY)).await
    }

    async fn add_sealing_key(&self, key: &SealingKey) -> Result<bool> {
        self.change(|staged| sealed::add_key(staged, key)).await
    }

    async fn remove_sealing_key(&self, id: KeyId) -> Result<bool> {
        self.change(|staged| sealed::remove_key(staged, id)).await
    }

    async fn values_sealed_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
        self.read(|data| sealed::values_before(data, active, limit)).await
    }

    async fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
        self.change(|staged| sealed::reseal(staged, place, old, new)).await
    }

    async fn authorities(&self) -> Result<Vec<Authority>> {
        self.read(|data| rows::all(data, rows::AUTHORITY)).await
    }

    async fn server_key(&self) -> Result<Option<Sealed>> {
        self.read(|data| rows::get(data, rows::SERVER_KEY)).await
    }

    async fn record_certificate(&self, certificate: &AdminCertificate) -> Result<()> {
        self.change(|staged| install::record_certificate(staged, certificate)).await
    }

    async fn certificates(&self) -> Result<Vec<AdminCertificate>> {
        self.read(install::certificates).await
    }

    async fn register_host(&self, registration: &Registration) -> Result<Host> {
        self.change(|staged| hosts::register(staged, registration)).await
    }

    async fn remove_host(&self, id: HostId, at: OffsetDateTime) -> Result<Option<Host>> {
        self.change(|staged| hosts::remove(staged, id, at)).await
    }

    async fn hosts(&self) -> Result<Vec<Host>> {
        self.read_much(hosts::all).await
    }

    async fn host(&self, id: HostId) -> Result<Option<Host>> {
        self.read(|data| hosts::by_id(data, id)).await
    }

    async fn host_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>> {
        self.read(|data| hosts::by_name(data, fqdn)).await
    }

    async fn change_host(&self, id: HostId, change: &HostChange, at: OffsetDateTime) -> Result<Option<Host>> {
        self.change(|staged| hosts::change(staged, id, change, at)).await
    }

    async fn bind_ip_if_unbound(&self, id: HostId, ip: IpAddr, at: OffsetDateTime) -> Result<Option<IpAddr>> {
        self.change(|staged| hosts::bind_ip(staged, id, ip, at)).await
    }

    async fn redeem_install_token(&self, token: &Digest, at: OffsetDateTime, from: IpAddr) -> Result<Redemption> {
        self.change(|staged| hosts::redeem(staged, token, at, from)).await
    }

    async fn replace_canonical(&self, expected: Option<u64>, new: &NewCanonical) -> Result<Replacement> {
        self.change(|staged| canonical::replace(staged, expected, new)).await
    }

    async fn canonical(&self) -> Result<Option<CanonicalVersion>> {
        self.read(canonical::present).await
    }

    async fn canonical_version(&self, version: u64) -> Result<Option<CanonicalVersion>> {
        self.read(|data| canonical::version(data, version)).await
    }

    async fn canonical_history(&self, limit: usize) -> Result<Vec<CanonicalSummary>> {
        self.read(|data| canonical::history(data, limit)).await
    }

    async fn append_telemetry(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
        self.change(|staged| telemetry::append(staged, node, seq, batch)).await
    }

    async fn activity(&self, id: HostId) -> Result<HostActivity> {
        self.read(|data| Ok(rows::get(data, rows::activity(id))?.unwrap_or_default())).await
    }

    async fn settings(&self) -> Result<Settings> {
        self.read(|data| Ok(changes::settings(data)?.map(|marked| marked.row).unwrap_or_default())).await
    }

    async fn change_settings(&self, settings: &Settings) -> Result<()> {
        self.change(|staged| changes::change_settings(staged, settings)).await
    }

    async fn epoch(&self) -> Result<Epoch> {
        self.read(changes::epoch).await
    }

    async fn changes_since(&self, epoch: Epoch) -> Result<Changes> {
        // Nearly every poll finds nothing; only the others go to another thread.
        let now = self.epoch().await?;
        if now <= epoch {
            return Ok(Changes { epoch: now, ..Changes::default() });
        }
        self.read_much(move |data| data.together(|| changes::since(data, epoch))).await
    }
}

#[cfg(test)]
mod tests;
