//! Connections to the database: so many and no more, each used by one at a time, and none believed in after it failed.
//!
//! Not the driver's own pool: that one cleans a connection up by talking to the server, so one whose server is frozen, or
//! cut off, would hold its place for as long as TCP has patience.
//!
//! **A daemon that vanishes** in the middle of a change (its machine lost power, or the network) has the lock that every
//! change needs, and the server does not hear of it. So the server is told to wait for our next statement no longer than we
//! would wait for its answer (`wait_timeout`); then it rolls back, and the others go on.

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

/// Why something came to nothing.
#[derive(Debug)]
pub(super) enum Problem {
    /// Another transaction was first, and this one was rolled back: it may be tried again.
    Conflict(String),
    Records(RecordsError),
    /// What is larger than what is free there; it was rolled back.
    NoRoom(String),
    /// Nobody knows what became of it, nor in which state the connection is.
    Lost(String),
}

/// Deadlock (and a certification that Galera refused, at any statement and at the commit), lock wait time-out; rolled back
/// by MySQL's Group Replication; TiDB: two kinds of write conflict, and two of "try again". Each says that nothing was done.
///
/// Not 1180, an error during the commit: what a Galera node says that was cut off from the others while it asked them.
const CONFLICTS: [u16; 7] = [1213, 1205, 3101, 8005, 9007, 8002, 8022];

/// The disk is full; a table cannot grow.
const NO_ROOM: [u16; 2] = [1021, 1114];

impl From<mysql_async::Error> for Problem {
    fn from(error: mysql_async::Error) -> Self {
        match error {
            mysql_async::Error::Server(error) if CONFLICTS.contains(&error.code) => Self::Conflict(error.to_string()),
            mysql_async::Error::Server(error) if NO_ROOM.contains(&error.code) => {
                Self::NoRoom(format!("its disk is full: {}; make room there", error.message))
            }
            error => Self::Lost(told(&error)),
        }
    }
}

/// What happened, and what an operator can do where it is not obvious.
fn told(error: &mysql_async::Error) -> String {
    match error {
        mysql_async::Error::Io(IoError::Tls(cause)) => not_believed(cause),
        mysql_async::Error::Io(IoError::Io(cause)) if cause.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) => {
            not_believed(cause)
        }
        mysql_async::Error::Io(IoError::Io(cause)) => format!("the connection to the database failed: {cause}"),
        mysql_async::Error::Driver(mysql_async::DriverError::NoClientSslFlagFromServer) => {
            "the database's server does not encrypt: give it a certificate, or set database.tls = false where nobody can \
             listen"
                .into()
        }
        mysql_async::Error::Server(ServerError { code: 1044 | 1045, message, .. }) => format!(
            "the database lets this user not in ({message}): check user, password and name in database.url; a user that \
             must encrypt (REQUIRE SSL) needs database.tls = true"
        ),
        mysql_async::Error::Server(ServerError { code: 1047, message, .. }) => format!(
            "the database's node is not in the majority of its cluster ({message}): bring the other nodes back, or point \
             database.url at one that is"
        ),
        error => error.to_string(),
    }
}

/// This process, or the machine, has as many files open as it may have. It passes.
fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

fn not_believed(cause: impl std::fmt::Display) -> String {
    format!(
        "the certificate of the database's server was not accepted ({cause}): set database.ca to the authority that signed \
         it, and use a name in database.url that it was issued for"
    )
}

/// When something has taken too long.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    pub fn is_over(self) -> bool {
        Instant::now() >= self.at
    }

    /// Ends what is not done by then.
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
                Self::Unavailable(format!("others hold what this needs, or were first again and again: {cause}"))
            }
            Problem::NoRoom(cause) | Problem::Lost(cause) => Self::Unavailable(cause),
        }
    }
}

/// How long to wait before a descriptor is asked for again.
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
        // What the driver says of a wrong address might have the password in it.
        let parsed = parse(&options.url).ok_or_else(|| {
            RecordsError::Unavailable("database.url is no mysql://user:password@host:port/name".into())
        })?;
        let tls = (options.tls == Tls::Required && parsed.socket().is_none()).then(|| match &options.ca {
            Some(ca) => SslOpts::default().with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true),
            None => SslOpts::default(),
        });
        let options_of_ours = OptsBuilder::from_opts(parsed)
            // A socket is used where one is named, not where the driver finds one.
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

    /// Names this process among all that use the database.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Of what begins now.
    pub fn deadline(&self) -> Deadline {
        Deadline { at: Instant::now() + self.timeout, allowed: self.timeout }
    }

    /// A connection that answered a moment ago.
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
                // The server was restarted since, or closed it.
                Err(_) => lease.connection = None,
            }
        }
        lease.connection = Some(self.connect().await?);
        Ok(lease)
    }

    async fn connect(&self) -> Outcome<Conn> {
        let mut connection = self.open().await?;
        let seconds = self.seconds();
        // What does not fit is an error, not cut to fit.
        connection.query_drop("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'").await?;
        connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        // Networks and digests of a host are read as one text.
        connection.query_drop("SET SESSION group_concat_max_len = 65536").await?;
        connection.query_drop(format!("SET SESSION innodb_lock_wait_timeout = {seconds}")).await?;
        self.set_patience(&mut connection, self.timeout).await?;
        if is_of_a_cluster(&mut connection).await? {
            // What another node has committed is seen here before anything is read.
            connection.query_drop("SET SESSION wsrep_sync_wait = 3").await?;
        }
        Ok(connection)
    }

    /// Waits for a descriptor where this process has none left: the database is not away. The caller's deadline bounds it.
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

    /// How long the server waits for what is to come, a second more than we do, before it lets go of what it holds for us.
    pub async fn set_patience(&self, connection: &mut Conn, patience: Duration) -> Outcome<()> {
        let seconds = patience.as_secs().max(1) + 1;
        let statement = format!("SET SESSION wait_timeout = {seconds}, SESSION net_read_timeout = {seconds}");
        Ok(connection.query_drop(statement).await?)
    }

    fn seconds(&self) -> u64 {
        self.timeout.as_secs().max(1)
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// For a step of something that may take longer as a whole.
    pub async fn in_time<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        self.deadline().bound(work).await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last. Those that nobody needed for a while are closed before the server does it, which
    /// would tell its operator of each.
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

    /// Says good-bye, if the server listens, and hangs up in any case. (Dropped, the driver would wait for what was asked
    /// last, and longer than anybody wants.)
    fn close(&self, connection: Conn) {
        let deadline = self.deadline();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { tokio::time::timeout_at(deadline.at, connection.disconnect()).await });
        }
    }
}

/// The oldest first.
struct Idle {
    connection: Conn,
    since: Instant,
}

/// Whether the server is a node of a Galera cluster.
pub(super) async fn is_of_a_cluster(connection: &mut Conn) -> Outcome<bool> {
    let galera: Option<(String, String)> = connection.query_first("SHOW VARIABLES LIKE 'wsrep_on'").await?;
    Ok(galera.is_some_and(|(_, on)| on.eq_ignore_ascii_case("ON")))
}

/// A connection, for one.
pub(super) struct Lease<'a> {
    connections: &'a Connections,
    /// Until it is given back, or closed.
    connection: Option<Conn>,
    _permit: SemaphorePermit<'a>,
}

impl Lease<'_> {
    pub fn connection(&mut self) -> Outcome<&mut Conn> {
        self.connection.as_mut().ok_or_else(|| Problem::Lost("the connection was given back".into()))
    }

    /// Gives it back, unless what was done with it left it in a state that nobody knows.
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
    /// Also where whoever asked went away in the middle.
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

    /// Runs in a process of its own, which has to live with very few file descriptors.
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
            assert!(early.is_err(), "it did not wait: {:?}", early.map(|lease| lease.err()));
            drop(files);
            tokio::select! {
                lease = &mut lease => panic!("nobody has answered yet: {:?}", lease.err()),
                accepted = server.accept() => accepted.unwrap(),
            };
        });
    }
}
