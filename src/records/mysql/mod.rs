//! The records in MySQL, MariaDB or what speaks their protocol: for as many daemons as there are.
//!
//! **One order.** Every change is one transaction that begins by locking the one row of `heads`; so changes of all nodes
//! run one after another, as they do in the embedded store, and "exactly one" and "without a gap" need nothing else. That
//! row has the epoch and the head of the audit log, which every change moves anyway. Where a cluster lets two nodes write
//! at once (Galera), a lock holds on one node only, and the second one's commit is refused, because both wrote the row:
//! **whatever is decided by what was read must move `heads`**, or write the row that it read. What was refused is tried
//! again from the beginning, as after a deadlock, with a bound ([`change`]).
//!
//! Telemetry, of which there is the most and whose order does not matter, stands aside ([`telemetry`]).
//!
//! **Reads.** Transactions that change something run at READ COMMITTED: once they have the lock, each statement sees all
//! that was committed before it, on TiDB as well, where a REPEATABLE READ would look at the time before the lock. What reads
//! several tables without changing them does it in one snapshot.
//!
//! **Time.** Nothing takes longer than the configured time: waiting for its turn and for a connection, connecting, and the
//! transaction, with every repetition, have it together. What took too long is `Unavailable`, and its connection is thrown
//! away, for nobody knows what state it is in: the change may have been made. Every change is safe to repeat (see
//! `records`).
//!
//! **A crash** anywhere leaves the transaction to the database, which rolls it back. One in the middle of a migration: see
//! [`schema`].
//!
//! Times are kept to the microsecond: what is finer is cut off when it is written.

mod audit;
mod authorities;
mod canonical;
mod changes;
mod connections;
mod copying;
mod hosts;
mod identities;
mod install_tokens;
mod probes;
mod rows;
mod schema;
mod sealed;
mod sessions;
mod settings;
mod telemetry;
mod users;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::copy::Row;
use super::{
    AdminCertificate, Authority, AuthorityStep, Begun, CanonicalSummary, CanonicalVersion, ChangedUser, Changes,
    Claimed, Condition, Epoch, ExternalIdentity, Filling, Host, HostChange, InstallToken, Linked, NewCanonical, Owner,
    Probe, ProbeClaim, ProbeOutcome, ProbeSummary, Records, RecordsError, Redemption, Registered, Registration,
    Replacement, Restoration, Result, Retention, SealingKey, Seed, ServerHealth, Session, Settings, SettingsChange,
    Standstill, StoreFailure, StoreState, Telemetry, User, UserChange,
};
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId};
use crate::model::people::{Email, UserId};
use crate::seal::{KeyId, Place, Sealed};

use connections::{Connections, Deadline, Lease, Problem};

/// How to reach the database.
#[derive(Clone)]
pub struct Options {
    /// `mysql://user:password@host:port/name`; holds a secret.
    pub url: String,
    pub tls: Tls,
    /// PEM of the authorities that may have signed the server's certificate; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Connections at most.
    pub connections: usize,
    /// How long anything may take: connecting, waiting for a connection, a transaction.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Required,
    Off,
}

/// The records of all daemons that share a database.
pub struct MySql {
    connections: Connections,
    /// Once the tables are what this version needs.
    prepared: tokio::sync::OnceCell<()>,
    /// Changes of this node wait for each other here and not at the database, where each would hold a connection.
    turn: tokio::sync::Mutex<()>,
    conflicts: AtomicU64,
    /// When a change did not fit lately, and what was said.
    no_room: Mutex<Option<(Instant, String)>>,
}

/// For so long after a change did not fit, the database is taken for full: what is small may go on fitting.
const FULL: Duration = Duration::from_secs(10);

/// How often a change that lost against another one is tried.
const ATTEMPTS: u32 = 20;

/// Runs `$body`, in which `$tx` is a [`changes::Change`], as one transaction, again where the database says that another
/// one was first.
macro_rules! change {
    ($self:ident, |$tx:ident| $body:expr) => {
        change!($self, begin, |$tx| $body)
    };
    ($self:ident, $begin:ident, |$tx:ident| $body:expr) => {{
        let deadline = $self.connections.deadline();
        let _turn = $self.turn(deadline).await?;
        transaction!($self, deadline, |connection| async {
            let mut $tx = changes::Change::$begin(connection).await?;
            let outcome = $body.await;
            $tx.end(outcome).await
        })
    }};
}

/// Runs `$body`, which is one transaction on `$connection`, again where the database says that another one was first.
macro_rules! transaction {
    ($self:ident, $deadline:expr, |$connection:ident| $body:expr) => {{
        let (deadline, mut attempt) = ($deadline, 0);
        loop {
            attempt += 1;
            let mut lease = $self.lease(deadline).await?;
            let transaction = async {
                let $connection = lease.connection()?;
                $body.await
            };
            let outcome = deadline.bound(transaction).await;
            match lease.end(outcome) {
                Err(Problem::Conflict(_)) if attempt < ATTEMPTS && !deadline.is_over() => {
                    $self.lost_a_race(attempt).await
                }
                outcome => break $self.fitted(outcome),
            }
        }
    }};
}

/// Runs `$body` with a connection.
macro_rules! read {
    ($self:ident, |$connection:ident| $body:expr) => {{
        let deadline = $self.connections.deadline();
        let mut lease = $self.lease(deadline).await?;
        let reading = async {
            let $connection = lease.connection()?;
            $body.await
        };
        let outcome = deadline.bound(reading).await;
        lease.end(outcome).map_err(RecordsError::from)
    }};
}

impl MySql {
    /// Asks nothing of the database yet.
    pub fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            connections: Connections::new(options)?,
            prepared: tokio::sync::OnceCell::new(),
            turn: tokio::sync::Mutex::default(),
            conflicts: AtomicU64::new(0),
            no_room: Mutex::default(),
        })
    }

    /// Brings the tables to what this version needs, however long that takes. A database that cannot be reached now is
    /// prepared by the first call that reaches it.
    pub async fn prepare(&self) -> Result<()> {
        self.prepared.get_or_try_init(|| schema::migrate(&self.connections)).await.copied()
    }

    async fn lease(&self, deadline: Deadline) -> Result<Lease<'_>> {
        if !self.prepared.initialized() {
            deadline.bound(async { Ok(self.prepare().await?) }).await?;
        }
        self.connections.lease(deadline).await
    }

    async fn turn(&self, deadline: Deadline) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let turn = deadline.bound(async { Ok(self.turn.lock().await) }).await;
        turn.map_err(|_| RecordsError::Unavailable("the changes before this one take too long".into()))
    }

    /// Takes note of what did not fit.
    fn fitted<T>(&self, outcome: connections::Outcome<T>) -> Result<T> {
        if let Err(Problem::NoRoom(cause)) = &outcome {
            *self.no_room.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), cause.clone()));
        }
        outcome.map_err(RecordsError::from)
    }

    /// What was said, if something did not fit lately.
    fn no_room(&self) -> Option<String> {
        let known = self.no_room.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(at, _)| at.elapsed() < FULL).map(|(_, cause)| cause.clone())
    }

    /// Once the store says that it takes no changes: waits for the telemetry, which goes without the lock of `heads`, of
    /// those who looked before.
    async fn telemetry_is_through(&self) -> Result<()> {
        let deadline = self.connections.deadline();
        if transaction!(self, deadline, |connection| copying::wait_for_telemetry(connection))? {
            // Locks hold on one node of a cluster; on the others it is through when its time is over, and the server's
            // patience with it.
            tokio::time::sleep(self.connections.timeout() + Duration::from_secs(2)).await;
        }
        Ok(())
    }

    async fn lost_a_race(&self, attempt: u32) {
        self.conflicts.fetch_add(1, Ordering::Relaxed);
        // Two nodes that met once should not meet again at once.
        let longest = u64::from(attempt.min(8)) * 4;
        let spread = Uuid::new_v4().as_u64_pair().0 % longest;
        tokio::time::sleep(Duration::from_millis(1 + spread)).await;
    }
}

#[async_trait]
impl Records for MySql {
    async fn initialise(&self, seed: &Seed, audit: &AuditNote) -> Result<bool> {
        change!(self, |tx| settings::initialise(&mut tx, seed, audit))
    }

    async fn is_initialised(&self) -> Result<bool> {
        read!(self, |connection| settings::is_initialised(connection))
    }

    async fn check(&self) -> Result<()> {
        if let Some(cause) = self.no_room() {
            return Err(RecordsError::Unavailable(cause));
        }
        transaction!(self, self.connections.deadline(), |connection| changes::check(connection))
    }

    fn failure(&self) -> Option<StoreFailure> {
        // A database that is away comes back; nothing here has to be opened anew.
        None
    }

    fn may_be_away(&self) -> bool {
        true
    }

    fn refused_lately(&self) -> bool {
        self.no_room().is_some()
    }

    async fn server_health(&self) -> Result<Option<ServerHealth>> {
        read!(self, |connection| schema::examine(connection)).map(Some)
    }

    fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Relaxed)
    }

    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>> {
        read!(self, |connection| sealed::keys(connection))
    }

    async fn sealing_key_add(&self, key: &SealingKey, audit: &AuditNote) -> Result<bool> {
        change!(self, |tx| sealed::add_key(&mut tx, key, audit))
    }

    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool> {
        change!(self, |tx| sealed::remove_key(&mut tx, id))
    }

    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
        read!(self, |connection| sealed::values_before(connection, active, limit))
    }

    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
        change!(self, |tx| sealed::reseal(&mut tx, place, old, new))
    }

    async fn authority_list(&self) -> Result<Vec<Authority>> {
        read!(self, |connection| authorities::all(connection))
    }

    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        audit: &AuditNote,
    ) -> Result<Option<Vec<Authority>>> {
        change!(self, |tx| authorities::roll(&mut tx, role, step, audit))
    }

    async fn server_key_fetch(&self) -> Result<Option<Sealed>> {
        read!(self, |connection| settings::server_key(connection))
    }

    async fn certificate_record(&self, certificate: &AdminCertificate, audit: &AuditNote) -> Result<()> {
        change!(self, |tx| authorities::record(&mut tx, certificate, audit))
    }

    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |tx| authorities::renew(&mut tx, old, certificate, revoke_at, audit))
    }

    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>> {
        read!(self, |connection| authorities::certificates(connection))
    }

    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |tx| authorities::revoke(&mut tx, fingerprint, at, audit))
    }

    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host> {
        change!(self, |tx| hosts::register(&mut tx, registration, audit))
    }

    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<Registered> {
        change!(self, |tx| hosts::register_owned(&mut tx, registration, owner, audit))
    }

    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>> {
        change!(self, |tx| hosts::remove(&mut tx, id, None, at, audit))
    }

    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        change!(self, |tx| hosts::remove(&mut tx, id, Some(owner), at, audit))
    }

    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Restoration> {
        change!(self, |tx| hosts::restore(&mut tx, id, removed_after, at, audit))
    }

    async fn host_list_removed(&self) -> Result<Vec<Host>> {
        read!(self, |connection| hosts::removed(connection))
    }

    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize> {
        change!(self, |tx| hosts::purge_removed(&mut tx, when))
    }

    async fn host_list(&self) -> Result<Vec<Host>> {
        read!(self, |connection| hosts::all(connection))
    }

    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>> {
        read!(self, |connection| hosts::by_id(connection, id))
    }

    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>> {
        read!(self, |connection| hosts::by_name(connection, fqdn))
    }

    async fn host_change(
        &self,
        id: HostId,
        change: &HostChange,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        change!(self, |tx| hosts::change(&mut tx, id, change, at, audit))
    }

    async fn host_bind_ip(
        &self,
        id: HostId,
        key: &Digest,
        ip: IpAddr,
        ipv6_prefix: u8,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        change!(self, |tx| hosts::bind_ip(&mut tx, id, key, ip, ipv6_prefix, at, audit))
    }

    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        audit: &AuditNote,
    ) -> Result<bool> {
        change!(self, |tx| hosts::keep_agent_identity(&mut tx, id, key, identity, audit))
    }

    async fn installer_redeem(
        &self,
        token: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        audit: &AuditNote,
    ) -> Result<Redemption> {
        change!(self, |tx| install_tokens::redeem(&mut tx, token, key, at, from, audit))
    }

    async fn installer_list(&self) -> Result<Vec<InstallToken>> {
        read!(self, |connection| install_tokens::all(connection))
    }

    async fn installer_revoke(
        &self,
        token: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<InstallToken>> {
        change!(self, |tx| install_tokens::revoke(&mut tx, token, at, audit))
    }

    async fn canonical_replace(
        &self,
        condition: &Condition,
        new: &NewCanonical,
        audit: &AuditNote,
    ) -> Result<Replacement> {
        change!(self, |tx| canonical::replace(&mut tx, condition, new, audit))
    }

    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>> {
        read!(self, |connection| canonical::present(connection))
    }

    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>> {
        read!(self, |connection| canonical::version(connection, version))
    }

    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>> {
        read!(self, |connection| canonical::history(connection, before, limit))
    }

    async fn canonical_prune(&self, retention: &Retention, limit: usize, audit: &AuditNote) -> Result<Vec<u64>> {
        change!(self, |tx| canonical::prune(&mut tx, retention, limit, audit))
    }

    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
        if telemetry::is_noted(batch) {
            return change!(self, |tx| telemetry::append(&mut tx, node, seq, batch));
        }
        transaction!(self, self.connections.deadline(), |connection| telemetry::append_apart(
            connection, node, seq, batch
        ))
    }

    async fn host_activity(&self, id: HostId) -> Result<HostActivity> {
        read!(self, |connection| telemetry::activity(connection, id))
    }

    async fn probe_claim(&self, claim: &ProbeClaim, audit: Option<&AuditNote>) -> Result<Claimed> {
        change!(self, |tx| probes::claim(&mut tx, claim, audit))
    }

    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, audit: Option<&AuditNote>) -> Result<bool> {
        change!(self, |tx| probes::finish(&mut tx, id, outcome, audit))
    }

    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>> {
        read!(self, |connection| probes::newest_first(connection, limit))
    }

    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary> {
        read!(self, |connection| probes::summary(connection, since))
    }

    async fn user_add(&self, user: &User, audit: &AuditNote) -> Result<bool> {
        change!(self, |tx| users::add(&mut tx, user, audit))
    }

    async fn user_list(&self) -> Result<Vec<User>> {
        read!(self, |connection| users::all(connection))
    }

    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>> {
        read!(self, |connection| users::by_email(connection, email))
    }

    async fn user_change(
        &self,
        id: UserId,
        change: &UserChange,
        at: OffsetDateTime,
        audit: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>> {
        change!(self, |tx| users::change(&mut tx, id, change, at, audit))
    }

    async fn session_begin(&self, session: &Session, audit: &AuditNote) -> Result<Begun> {
        change!(self, |tx| sessions::begin(&mut tx, session, audit))
    }

    async fn session_end(&self, id: Uuid, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Session>> {
        change!(self, |tx| sessions::end(&mut tx, id, at, audit))
    }

    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()> {
        change!(self, |tx| sessions::touch(&mut tx, used))
    }

    async fn session_list(&self) -> Result<Vec<Session>> {
        read!(self, |connection| sessions::all(connection))
    }

    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize> {
        change!(self, |tx| sessions::purge(&mut tx, when))
    }

    async fn identity_link(&self, identity: &ExternalIdentity, audit: &AuditNote) -> Result<Linked> {
        change!(self, |tx| identities::link(&mut tx, identity, audit))
    }

    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>> {
        change!(self, |tx| identities::unlink(&mut tx, issuer, subject, at, audit))
    }

    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
        read!(self, |connection| identities::find(connection, issuer, subject))
    }

    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>> {
        read!(self, |connection| identities::all(connection))
    }

    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        change!(self, |tx| authorities::tie(&mut tx, fingerprint, user, audit))
    }

    async fn settings_fetch(&self) -> Result<Settings> {
        read!(self, |connection| settings::present(connection))
    }

    async fn settings_change(&self, change: &SettingsChange, audit: &AuditNote) -> Result<Option<Settings>> {
        change!(self, |tx| settings::change(&mut tx, change, audit))
    }

    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()> {
        change!(self, |tx| audit::append(&mut tx, notes))
    }

    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
        read!(self, |connection| audit::find(connection, filter, limit))
    }

    async fn audit_list_from(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>> {
        read!(self, |connection| audit::from(connection, from, limit))
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        read!(self, |connection| audit::head(connection))
    }

    async fn epoch(&self) -> Result<Epoch> {
        read!(self, |connection| changes::epoch(connection))
    }

    async fn state(&self) -> Result<StoreState> {
        read!(self, |connection| changes::state(connection))
    }

    async fn standstill_set(&self, standstill: Option<&Standstill>, audit: &AuditNote) -> Result<()> {
        read!(self, |connection| changes::check_whole(connection))?;
        change!(self, begin_anyway, |tx| copying::set_standstill(&mut tx, standstill, audit))?;
        match standstill {
            Some(_) => self.telemetry_is_through().await,
            None => Ok(()),
        }
    }

    async fn copy_export(&self, chunks: mpsc::Sender<Vec<Row>>) -> Result<()> {
        let mut lease = self.lease(self.connections.deadline()).await?;
        // Each of its statements has its time; all of them take as long as whoever takes the chunks.
        let exporting = async { copying::export(&self.connections, lease.connection()?, chunks).await };
        let outcome = exporting.await;
        lease.end(outcome).map_err(RecordsError::from)
    }

    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool> {
        if !change!(self, begin_anyway, |tx| copying::begin(&mut tx, filling, replaces))? {
            return Ok(false);
        }
        self.telemetry_is_through().await?;
        while change!(self, begin_anyway, |tx| copying::wipe_some(&mut tx, filling))? {}
        Ok(true)
    }

    async fn fill_append(&self, filling: &Filling, rows: &[Row]) -> Result<()> {
        change!(self, begin_anyway, |tx| copying::fill(&mut tx, filling, rows))
    }

    async fn fill_finish(&self, filling: &Filling, audit: &AuditNote) -> Result<()> {
        change!(self, begin_anyway, |tx| copying::finish(&mut tx, filling, audit))
    }

    async fn changes_since(&self, epoch: Epoch) -> Result<Changes> {
        read!(self, |connection| changes::since(connection, epoch))
    }
}

// Below the macros, which it uses.
#[cfg(test)]
pub(crate) mod tests;
