//! Connections to the database: so many and no more, each used by one at a time, and none believed in after it failed.
//!
//! Not the driver's own pool: that one cleans a connection up by talking to the server, so one whose server is frozen, or
//! cut off, would hold its place for as long as TCP has patience.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::{Options, Tls};
use crate::records::{RecordsError, Result};

/// Why something came to nothing.
#[derive(Debug)]
pub(super) enum Problem {
    /// Another transaction was first, and this one was rolled back: it may be tried again.
    Conflict(String),
    Records(RecordsError),
    /// Nobody knows what became of it, nor in which state the connection is.
    Lost(String),
}

/// Deadlock, lock wait time-out; TiDB: write conflict, and two of its kinds of "try again".
const CONFLICTS: [u16; 5] = [1213, 1205, 9007, 8002, 8022];

impl From<mysql_async::Error> for Problem {
    fn from(error: mysql_async::Error) -> Self {
        match error {
            mysql_async::Error::Server(error) if CONFLICTS.contains(&error.code) => Self::Conflict(error.to_string()),
            error => Self::Lost(error.to_string()),
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
            Problem::Conflict(cause) => Self::Unavailable(format!("others were first again and again: {cause}")),
            Problem::Lost(cause) => Self::Unavailable(cause),
        }
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Problem>;

pub(super) struct Connections {
    options: Opts,
    timeout: Duration,
    permits: Semaphore,
    idle: Mutex<Vec<Conn>>,
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

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A connection that answered a moment ago.
    pub async fn lease(&self) -> Result<Lease<'_>> {
        Ok(self.in_time(self.take()).await?)
    }

    async fn take(&self) -> Outcome<Lease<'_>> {
        let permit = self.permits.acquire().await.map_err(|error| Problem::Lost(error.to_string()))?;
        loop {
            let idle = self.idle().pop();
            let connection = match idle {
                None => self.connect().await?,
                Some(mut connection) => match connection.ping().await {
                    Ok(()) => connection,
                    // The server was restarted since, or closed it.
                    Err(_) => continue,
                },
            };
            return Ok(Lease { connections: self, connection, _permit: permit });
        }
    }

    async fn connect(&self) -> Outcome<Conn> {
        let mut connection = Conn::new(self.options.clone()).await?;
        let seconds = self.timeout.as_secs().max(1);
        // What does not fit is an error, not cut to fit.
        connection.query_drop("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'").await?;
        connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        // Networks and digests of a host are read as one text.
        connection.query_drop("SET SESSION group_concat_max_len = 65536").await?;
        connection.query_drop(format!("SET SESSION innodb_lock_wait_timeout = {seconds}")).await?;
        let galera: Option<(String, String)> = connection.query_first("SHOW VARIABLES LIKE 'wsrep_on'").await?;
        if galera.is_some_and(|(_, on)| on.eq_ignore_ascii_case("ON")) {
            // What another node has committed is seen here before anything is read.
            connection.query_drop("SET SESSION wsrep_sync_wait = 3").await?;
        }
        Ok(connection)
    }

    /// Ends what takes too long.
    pub async fn in_time<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Problem::Lost(format!("the database did not answer within {:?}", self.timeout))),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Conn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, for one.
pub(super) struct Lease<'a> {
    connections: &'a Connections,
    connection: Conn,
    _permit: SemaphorePermit<'a>,
}

impl Lease<'_> {
    pub fn connection(&mut self) -> &mut Conn {
        &mut self.connection
    }

    /// Gives it back, unless what was done with it left it in a state that nobody knows.
    pub fn end<T>(self, outcome: Outcome<T>) -> Outcome<T> {
        if !matches!(outcome, Err(Problem::Lost(_))) {
            self.connections.idle().push(self.connection);
        }
        outcome
    }
}
