//! A bounded pool of connections to the database. A connection that failed is never reused.
//!
//! The driver's pool is not used: it cleans up a connection by talking to the server. So a frozen or unreachable server
//! would hold the slot until TCP times out.
//!
//! **A daemon that vanishes** in a change (power or network lost) holds the lock that every change needs, and the
//! server does not notice. So `wait_timeout` is as long as we would wait for an answer. After it the server rolls back,
//! and the others continue.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, IoError, Opts, OptsBuilder, ServerError, SslOpts};
use nix::errno::Errno;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Options, Tls};
use crate::records::{RecordsError, Result};

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Problem {
    /// It conflicted with another transaction and was rolled back. It may be retried.
    Conflict(String),
    Records(RecordsError),
    /// The disk of the database is full; the transaction was rolled back.
    NoRoom(String),
    /// The outcome and the state of the connection are unknown.
    Lost(String),
}

/// Deadlock (also a failed Galera certification, at a statement or the commit); lock wait timeout; rollback by Group
/// Replication. TiDB: two kinds of write conflict, two of "try again". After each of them the transaction had no
/// effect.
///
/// Not 1180, an error during the commit: a Galera node sends it if it loses the other nodes at that moment.
const CONFLICTS: [u16; 7] = [1213, 1205, 3101, 8005, 9007, 8002, 8022];

/// Two inserts of the same key.
pub(super) const DUPLICATE_KEY: u16 = 1062;

/// The disk is full; a table cannot grow.
const NO_ROOM: [u16; 2] = [1021, 1114];

impl From<mysql_async::Error> for Problem {
    fn from(error: mysql_async::Error) -> Self {
        match error {
            mysql_async::Error::Server(error) if CONFLICTS.contains(&error.code) => Self::Conflict(error.to_string()),
            mysql_async::Error::Server(error) if NO_ROOM.contains(&error.code) => {
                Self::NoRoom(format!("the disk of the database is full: {}; make room there", error.message))
            }
            error => Self::Lost(explanation(&error)),
        }
    }
}

/// What happened, and what the operator can do.
fn explanation(error: &mysql_async::Error) -> String {
    match error {
        mysql_async::Error::Io(IoError::Tls(cause)) => certificate_refused(cause),
        mysql_async::Error::Io(IoError::Io(cause))
            if cause.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) =>
        {
            certificate_refused(cause)
        }
        mysql_async::Error::Io(IoError::Io(cause)) => format!("the connection to the database failed: {cause}"),
        mysql_async::Error::Driver(mysql_async::DriverError::NoClientSslFlagFromServer) => {
            "the database server does not offer TLS: give it a certificate, or set database.tls = false if nobody can \
             listen on the connection"
                .into()
        }
        mysql_async::Error::Server(ServerError { code: 1044 | 1045, message, .. }) => format!(
            "the database refused this user ({message}): check user, password and name in database.url; a user that \
             must encrypt (REQUIRE SSL) needs database.tls = true"
        ),
        mysql_async::Error::Server(ServerError { code: 1047, message, .. }) => format!(
            "the database's node is not in the majority of its cluster ({message}): bring the other nodes back, or point \
             database.url at one that is"
        ),
        error => error.to_string(),
    }
}

/// This process, or the machine, has too many open files. Temporary.
fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

fn certificate_refused(cause: impl std::fmt::Display) -> String {
    format!(
        "the database server's certificate was not accepted ({cause}): set database.ca to the authority that signed \
         it, and use a name in database.url that it was issued for"
    )
}

/// The time at which a call must end.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    pub fn is_over(self) -> bool {
        Instant::now() >= self.at
    }

    /// Cancels `work` at the deadline.
    pub async fn bound<T>(self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        match tokio::time::timeout_at(self.at, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Problem::Lost(format!("the database did not answer within {:?}", self.allowed))),
        }
    }
}

impl From<RecordsError> for Problem {
    fn from(error: RecordsError) -> Self {
        Self::Records(error)
    }
}

impl From<Problem> for RecordsError {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Records(error) => error,
            Problem::Conflict(cause) => {
                Self::Unavailable(format!("the change conflicted again and again, or a lock timed out: {cause}"))
            }
            Problem::NoRoom(cause) | Problem::Lost(cause) => Self::Unavailable(cause),
        }
    }
}

/// How long to wait before the next try for a file descriptor.
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(50);

pub(super) type Outcome<T> = std::result::Result<T, Problem>;

pub(super) struct Connections {
    options: Opts,
    timeout: Duration,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
    id: Uuid,
}

fn parse(url: &str) -> Option<Opts> {
    Opts::from_url(url).ok().filter(|options| options.db_name().is_some_and(|name| !name.is_empty()))
}

impl Connections {
    pub fn new(options: &Options) -> Result<Self> {
        // The driver's message for an invalid URL may contain the password.
        let parsed = parse(&options.url).ok_or_else(|| {
            RecordsError::Unavailable("database.url is not of the form mysql://user:password@host:port/name".into())
        })?;
        let tls = (options.tls == Tls::Required && parsed.socket().is_none()).then(|| match &options.ca {
            Some(ca) => SslOpts::default().with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true),
            None => SslOpts::default(),
        });
        let options_of_ours = OptsBuilder::from_opts(parsed)
            // Use only a configured socket, not one that the driver finds.
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .stmt_cache_size(128)
            .ssl_opts(tls);
        Ok(Self {
            options: options_of_ours.into(),
            timeout: options.timeout,
            permits: Semaphore::new(options.connections.clamp(1, Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
            id: Uuid::new_v4(),
        })
    }

    /// The id of this process among all that use the database.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The deadline of a call that begins now.
    pub fn deadline(&self) -> Deadline {
        Deadline { at: Instant::now() + self.timeout, allowed: self.timeout }
    }

    /// Returns a connection that has just answered.
    pub async fn lease(&self, deadline: Deadline) -> Result<Lease<'_>> {
        Ok(deadline.bound(self.take()).await?)
    }

    async fn take(&self) -> Outcome<Lease<'_>> {
        let permit = self.permits.acquire().await.map_err(|error| Problem::Lost(error.to_string()))?;
        let mut lease = Lease { connections: self, connection: None, _permit: permit };
        while let Some(idle) = self.reuse() {
            let connection = lease.connection.insert(idle);
            match connection.ping().await {
                Ok(()) => return Ok(lease),
                // The server was restarted, or it closed the connection.
                Err(_) => lease.connection = None,
            }
        }
        lease.connection = Some(self.connect().await?);
        Ok(lease)
    }

    async fn connect(&self) -> Outcome<Conn> {
        let mut connection = self.open().await?;
        let seconds = self.seconds();
        // A value that does not fit must be an error; it must not be truncated.
        connection.query_drop("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'").await?;
        connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        // A host's networks, or its digests, are read as one text.
        connection.query_drop("SET SESSION group_concat_max_len = 65536").await?;
        connection.query_drop(format!("SET SESSION innodb_lock_wait_timeout = {seconds}")).await?;
        self.set_wait_timeout(&mut connection, self.timeout).await?;
        if is_of_a_cluster(&mut connection).await? {
            // Reads wait until this node has applied what other nodes have committed.
            connection.query_drop("SET SESSION wsrep_sync_wait = 3").await?;
        }
        Ok(connection)
    }

    /// Waits for a file descriptor if this process has none left; the caller's deadline bounds it.
    async fn open(&self) -> Outcome<Conn> {
        loop {
            match Conn::new(self.options.clone()).await {
                Err(mysql_async::Error::Io(IoError::Io(error))) if is_out_of_descriptors(&error) => {
                    tokio::time::sleep(DESCRIPTOR_RETRY).await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// How long the server waits for the next statement before it rolls back: one second longer than we wait.
    pub async fn set_wait_timeout(&self, connection: &mut Conn, timeout: Duration) -> Outcome<()> {
        let seconds = timeout.as_secs().max(1) + 1;
        let statement = format!("SET SESSION wait_timeout = {seconds}, SESSION net_read_timeout = {seconds}");
        Ok(connection.query_drop(statement).await?)
    }

    fn seconds(&self) -> u64 {
        self.timeout.as_secs().max(1)
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Bounds one step of a longer call by the timeout.
    pub async fn in_time<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        self.deadline().bound(work).await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection that was used last. Closes stale connections before the server does, which would log each
    /// one.
    fn reuse(&self) -> Option<Conn> {
        let stale = Instant::now() - Duration::from_secs(self.seconds());
        let (found, old) = {
            let mut idle = self.idle();
            let kept = idle.partition_point(|idle| idle.since < stale);
            let old: Vec<_> = idle.drain(..kept).collect();
            (idle.pop(), old)
        };
        old.into_iter().for_each(|idle| self.close(idle.connection));
        found.map(|idle| idle.connection)
    }

    /// Disconnects within the timeout. A dropped connection would first wait for its last answer, without a limit.
    fn close(&self, connection: Conn) {
        let deadline = self.deadline();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { tokio::time::timeout_at(deadline.at, connection.disconnect()).await });
        }
    }
}

/// An unused connection. The list has the oldest first.
struct Idle {
    connection: Conn,
    since: Instant,
}

/// Whether the server is a node of a Galera cluster.
pub(super) async fn is_of_a_cluster(connection: &mut Conn) -> Outcome<bool> {
    let galera: Option<(String, String)> = connection.query_first("SHOW VARIABLES LIKE 'wsrep_on'").await?;
    Ok(galera.is_some_and(|(_, on)| on.eq_ignore_ascii_case("ON")))
}

/// A connection for one call.
pub(super) struct Lease<'a> {
    connections: &'a Connections,
    /// `None` after it was given back.
    connection: Option<Conn>,
    _permit: SemaphorePermit<'a>,
}

impl Lease<'_> {
    pub fn connection(&mut self) -> Outcome<&mut Conn> {
        self.connection.as_mut().ok_or_else(|| Problem::Lost("the connection was given back".into()))
    }

    /// Returns the connection to the pool, unless its state is unknown.
    pub fn end<T>(mut self, outcome: Outcome<T>) -> Outcome<T> {
        if !matches!(outcome, Err(Problem::Lost(_)))
            && let Some(connection) = self.connection.take()
        {
            self.connections.idle().push(Idle { connection, since: Instant::now() });
        }
        outcome
    }
}

impl Drop for Lease<'_> {
    /// Closes a connection that was not given back, for example because the caller was cancelled.
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.connections.close(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    /// This test runs in its own process, with very few file descriptors.
    const ALONE: &str = "AUTHD_TEST_FEW_FILES";

    #[test]
    fn a_connection_waits_for_a_descriptor_and_the_database_is_not_away() {
        if std::env::var_os(ALONE).is_none() {
            let name = "records::mysql::connections::tests::\
                        a_connection_waits_for_a_descriptor_and_the_database_is_not_away";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
            return;
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("mysql://u:p@{}/authd", server.local_addr().unwrap());
            let options = Options { url, tls: Tls::Off, ca: None, connections: 1, timeout: Duration::from_secs(60) };
            let connections = Connections::new(&options).unwrap();
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
            let mut files = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                files.push(file);
            }
            let lease = connections.lease(connections.deadline());
            tokio::pin!(lease);
            let early = tokio::time::timeout(10 * DESCRIPTOR_RETRY, &mut lease).await;
            assert!(early.is_err(), "the call did not wait: {:?}", early.map(|lease| lease.err()));
            drop(files);
            tokio::select! {
                lease = &mut lease => panic!("the server has not answered yet: {:?}", lease.err()),
                accepted = server.accept() => accepted.unwrap(),
            };
        });
    }
}
