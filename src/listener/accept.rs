//! The accept loop that all listeners share: bounded, never spinning, never stopped by one bad connection.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Limits;

/// What poem wants of an acceptor.
pub(super) type Accepted<Io> = (Io, LocalAddr, RemoteAddr, Scheme);

/// Where raw connections come from.
pub(super) trait Source: Send + Sync + 'static {
    type Raw: Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Raw>> + Send;
}

/// Connections that are ready to be served. Dropping it closes the listening socket and ends the handshakes under way;
/// connections already handed out go on.
pub(super) struct Incoming<Io> {
    ready: mpsc::Receiver<Accepted<Io>>,
    counters: Arc<Counters>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
pub struct Counters {
    /// Connections handed to the server.
    pub admitted: AtomicU64,
    /// Connections refused: handshake failed or took too long, peer not allowed.
    pub refused: AtomicU64,
    /// Times the system would not accept.
    pub accept_errors: AtomicU64,
}

impl<Io: Send + 'static> Incoming<Io> {
    /// Begins accepting, on the current runtime. `prepare` makes a raw connection ready, in a task of its own and within
    /// the handshake's time; `None`, which it has logged, drops the connection.
    pub fn start<S, P, F>(source: S, limits: Limits, prepare: P) -> Self
    where
        S: Source,
        P: Fn(S::Raw) -> F + Send + 'static,
        F: Future<Output = Option<Accepted<Io>>> + Send + 'static,
    {
        // Room for one: what is done waits with its permit until the server takes it.
        let (out, ready) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let accepting = tokio::spawn(accept_all(source, limits, prepare, out, counters.clone())).abort_handle();
        Self { ready, counters, accepting }
    }

    /// Never an error: poem would ask again at once, and at full speed.
    pub async fn next(&mut self) -> io::Result<Accepted<Io>> {
        match self.ready.recv().await {
            Some(connection) => Ok(connection),
            None => {
                log::error!("a listener has stopped accepting connections; restart the daemon");
                std::future::pending().await
            }
        }
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

impl<Io> Drop for Incoming<Io> {
    fn drop(&mut self) {
        // The task owns the socket and the set of handshakes; both go with it.
        self.accepting.abort();
    }
}

async fn accept_all<S, P, F, Io>(
    source: S,
    limits: Limits,
    prepare: P,
    out: mpsc::Sender<Accepted<Io>>,
    counters: Arc<Counters>,
) where
    S: Source,
    P: Fn(S::Raw) -> F,
    F: Future<Output = Option<Accepted<Io>>> + Send + 'static,
    Io: Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits.max_handshakes.clamp(1, Semaphore::MAX_PERMITS)));
    let mut handshakes = JoinSet::new();
    let mut trouble = Trouble::new(limits);
    loop {
        // Before accepting: what is beyond the bound stays in the kernel's queue and costs us nothing.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let raw = loop {
            match source.accept().await {
                Ok(raw) => break raw,
                Err(error) => {
                    counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                    trouble.met(&error).await;
                }
            }
        };
        trouble.over();
        while handshakes.try_join_next().is_some() {}
        let (handshake, out, counters) = (prepare(raw), out.clone(), counters.clone());
        handshakes.spawn(async move {
            let ready = tokio::time::timeout(limits.handshake_timeout, handshake).await;
            match ready {
                Ok(Some(connection)) => {
                    counters.admitted.fetch_add(1, Ordering::Relaxed);
                    // An error means that the listener is going down, and this connection with it.
                    let _ = out.send(connection).await;
                }
                Ok(None) => {
                    counters.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    counters.refused.fetch_add(1, Ordering::Relaxed);
                    log::debug!("a connection was cut: no handshake within {:?}", limits.handshake_timeout);
                }
            }
            drop(permit);
        });
    }
}

/// What to do when the system will not accept.
struct Trouble {
    pause: Duration,
    report_every: Duration,
    in_a_row: u32,
    reported: Option<Instant>,
    unreported: u64,
}

impl Trouble {
    /// So many aborted connections in a row are believed to be just that.
    const BELIEVED: u32 = 16;

    fn new(limits: Limits) -> Self {
        Self {
            pause: limits.accept_pause,
            report_every: limits.report_every,
            in_a_row: 0,
            reported: None,
            unreported: 0,
        }
    }

    async fn met(&mut self, error: &io::Error) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let of_one_connection = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
        );
        // A client that hung up while it was queued must not slow down those behind it.
        if of_one_connection && self.in_a_row < Self::BELIEVED {
            return;
        }
        self.unreported += 1;
        if self.reported.is_none_or(|at| at.elapsed() >= self.report_every) {
            log::warn!(
                "cannot accept connections: {error} ({} time(s) since the last such line); trying again every {:?}",
                self.unreported,
                self.pause
            );
            self.reported = Some(Instant::now());
            self.unreported = 0;
        }
        tokio::time::sleep(self.pause).await;
    }

    fn over(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use poem::Addr;

    use super::*;

    /// Gives what it was told to, then the last thing again and again, or nothing.
    struct Scripted {
        script: Mutex<VecDeque<io::Result<u32>>>,
        then: Option<io::ErrorKind>,
        asked: Arc<AtomicU64>,
    }

    impl Source for Scripted {
        type Raw = u32;

        async fn accept(&self) -> io::Result<u32> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let next = self.script.lock().unwrap().pop_front();
            match (next, self.then) {
                (Some(result), _) => result,
                (None, Some(kind)) => Err(kind.into()),
                (None, None) => std::future::pending().await,
            }
        }
    }

    fn scripted(script: Vec<io::Result<u32>>, then: Option<io::ErrorKind>) -> (Scripted, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        (Scripted { script: Mutex::new(script.into()), then, asked: asked.clone() }, asked)
    }

    async fn admit(raw: u32) -> Option<Accepted<u32>> {
        Some((raw, LocalAddr(Addr::default()), RemoteAddr(Addr::default()), Scheme::HTTP))
    }

    fn out_of_files() -> io::Error {
        io::Error::from_raw_os_error(nix::libc::EMFILE)
    }

    const BOUND: Duration = Duration::from_secs(20);

    async fn next(incoming: &mut Incoming<u32>) -> u32 {
        tokio::time::timeout(BOUND, incoming.next()).await.expect("a connection comes").unwrap().0
    }

    #[tokio::test]
    async fn a_listener_out_of_file_descriptors_waits_and_goes_on() {
        let (source, asked) = scripted(vec![Err(out_of_files()), Err(out_of_files()), Ok(7)], None);
        let limits = Limits { accept_pause: Duration::from_millis(30), ..Limits::default() };
        let begun = Instant::now();
        let mut incoming = Incoming::start(source, limits, admit);
        assert_eq!(next(&mut incoming).await, 7);
        assert!(begun.elapsed() >= 2 * limits.accept_pause, "it did not wait");
        assert!(asked.load(Ordering::Relaxed) <= 4);
        assert_eq!(incoming.counters().accept_errors.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn endless_errors_of_any_kind_do_not_spin() {
        for kind in [io::ErrorKind::Other, io::ErrorKind::ConnectionAborted] {
            let (source, asked) = scripted(vec![], Some(kind));
            let limits = Limits { accept_pause: Duration::from_millis(50), ..Limits::default() };
            let mut incoming = Incoming::start(source, limits, admit);
            let none = tokio::time::timeout(Duration::from_millis(300), incoming.next()).await;
            assert!(none.is_err());
            let asked = asked.load(Ordering::Relaxed);
            assert!((1..=32).contains(&asked), "{kind}: asked {asked} times in 0.3 s");
        }
    }

    #[tokio::test]
    async fn a_client_that_hung_up_in_the_queue_delays_nobody() {
        let hung_up = || Err(io::ErrorKind::ConnectionAborted.into());
        let (source, _) = scripted(vec![hung_up(), hung_up(), Ok(7)], None);
        let limits = Limits { accept_pause: 10 * BOUND, ..Limits::default() };
        assert_eq!(next(&mut Incoming::start(source, limits, admit)).await, 7);
    }

    #[tokio::test]
    async fn beyond_the_bound_nothing_is_accepted_and_nothing_is_lost() {
        let (source, asked) = scripted((0..6).map(Ok).collect(), None);
        let limits = Limits { max_handshakes: 2, handshake_timeout: Duration::from_millis(200), ..Limits::default() };
        let at_once = Arc::new(AtomicU64::new(0));
        let most = Arc::new(AtomicU64::new(0));
        let (counted, peak) = (at_once.clone(), most.clone());
        // The first four say nothing until they are cut.
        let mut incoming = Incoming::start(source, limits, move |raw| {
            struct Leaving(Arc<AtomicU64>);
            impl Drop for Leaving {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            peak.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let leaving = Leaving(counted.clone());
            async move {
                let _leaving = leaving;
                if raw < 4 { std::future::pending().await } else { admit(raw).await }
            }
        });
        let mut came = [next(&mut incoming).await, next(&mut incoming).await];
        came.sort();
        assert_eq!(came, [4, 5]);
        let counters = incoming.counters();
        let all_cut = async {
            while counters.refused.load(Ordering::Relaxed) < 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(BOUND, all_cut).await.expect("the silent ones are cut");
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert!(asked.load(Ordering::Relaxed) <= 7);
    }

    #[tokio::test]
    async fn dropping_it_ends_the_handshakes_under_way() {
        let (source, _) = scripted(vec![Ok(1)], None);
        let (held, mut gone) = mpsc::channel::<()>(1);
        let begun = Arc::new(tokio::sync::Notify::new());
        let begin = begun.clone();
        let incoming = Incoming::<u32>::start(source, Limits::default(), move |_| {
            let (held, begin) = (held.clone(), begin.clone());
            async move {
                let _held = held;
                begin.notify_one();
                std::future::pending().await
            }
        });
        begun.notified().await;
        drop(incoming);
        let ended = tokio::time::timeout(Duration::from_secs(5), gone.recv()).await;
        assert_eq!(ended, Ok(None), "a handshake outlived its listener");
    }
}
