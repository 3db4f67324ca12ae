//! The accept loop of all listeners: bounded, it never spins, and one bad connection does not stop it.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Limits;
use super::connection::{Connection, ConnectionEntry};
use super::counters::{Counted, Counters, RefusalReason};
use super::places::{Place, Places};
use super::stop::{Drain, Fresh, Stop};

/// What poem requires an acceptor to return.
pub(super) type Accepted<Io> = (Io, LocalAddr, RemoteAddr, Scheme);

/// Where raw connections come from.
pub(super) trait Source: Send + Sync + 'static {
    type Raw: Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Raw>> + Send;
}

/// Connections that are ready to be served. Dropping it closes the listening socket and ends the handshakes under way;
/// connections already handed out go on. [`Drain`] stops without cutting off any client.
pub(super) struct Incoming<Io> {
    ready: mpsc::Receiver<(Accepted<Io>, Arc<Place>)>,
    counters: Arc<Counters>,
    limits: Limits,
    stop: Arc<Stop>,
    accepting: AbortHandle,
}

impl<Io: Send + 'static> Incoming<Io> {
    /// Begins accepting, on the current runtime. `share` returns the address that a connection counts against.
    /// `prepare` makes a raw connection ready, in its own task and within the handshake's time-out. If it returns
    /// `None`, it has logged the reason, and the connection is dropped.
    pub fn start<S, P, F>(
        source: S,
        limits: Limits,
        share: impl Fn(&S::Raw) -> Option<IpAddr> + Send + 'static,
        prepare: P,
    ) -> Self
    where
        S: Source,
        P: Fn(S::Raw, Arc<Place>) -> F + Send + 'static,
        F: Future<Output = Option<Accepted<Io>>> + Send + 'static,
    {
        // Room for one: a finished handshake keeps its place until the server takes the connection.
        let (out, ready) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(Stop {
            asked: watch::Sender::new(false),
            drained: watch::Sender::new(false),
            fresh: watch::Sender::new(0),
            first_request: limits.first_request,
        });
        let asked = stop.asked.subscribe();
        let handshakes = Handshakes { prepare, share, limits, out, counters: counters.clone() };
        let accepting = tokio::spawn(accept_all(source, handshakes, asked)).abort_handle();
        Self { ready, counters, limits, stop, accepting }
    }

    /// Never returns an error, because poem would call it again at once and spin.
    pub async fn next(&mut self) -> io::Result<(Accepted<Io>, Arc<Place>)> {
        match self.ready.recv().await {
            Some(connection) => Ok(connection),
            None if *self.stop.asked.borrow() => {
                self.stop.drained.send_replace(true);
                std::future::pending().await
            }
            None => {
                log::error!("a listener has stopped accepting connections; restart the daemon");
                std::future::pending().await
            }
        }
    }

    /// Wraps the connection for the server.
    pub fn hand_out(&self, io: Io, place: Arc<Place>) -> Connection<Io> {
        self.hand_out_as(io, None, place)
    }

    pub fn hand_out_as<Other>(
        &self,
        io: Other,
        entry: Option<ConnectionEntry>,
        place: Arc<Place>,
    ) -> Connection<Other> {
        self.stop.fresh.send_modify(|fresh| *fresh += 1);
        let counted = Counted::new(self.counters.clone());
        Connection::new(io, entry, Fresh(self.stop.clone()), counted, place, self.limits)
    }

    pub fn drain(&self) -> Drain {
        Drain(self.stop.clone())
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

impl<Io> Drop for Incoming<Io> {
    fn drop(&mut self) {
        // The task owns the socket and the set of handshakes, so both are dropped with it.
        self.accepting.abort();
    }
}

/// How handshakes begin, and where their connections are sent.
struct Handshakes<P, K, Io> {
    prepare: P,
    share: K,
    limits: Limits,
    out: mpsc::Sender<(Accepted<Io>, Arc<Place>)>,
    counters: Arc<Counters>,
}

async fn accept_all<S, P, K, F, Io>(
    source: S,
    handshakes: Handshakes<P, K, Io>,
    mut asked_to_stop: watch::Receiver<bool>,
) where
    S: Source,
    P: Fn(S::Raw, Arc<Place>) -> F,
    K: Fn(&S::Raw) -> Option<IpAddr>,
    F: Future<Output = Option<Accepted<Io>>> + Send + 'static,
    Io: Send + 'static,
{
    let Handshakes { prepare, share, limits, out, counters } = handshakes;
    let places = Places::new(limits, counters.clone());
    let mut under_way = JoinSet::new();
    let counted = counters.clone();
    // At the limit, the oldest silent connection is dropped. If connections waited in the kernel's queue instead, one
    // busy client could fill it and block all others.
    let begin = move |under_way: &mut JoinSet<()>, raw| {
        while under_way.try_join_next().is_some() {}
        match places.enter(share(&raw)) {
            Ok(place) => {
                let handshake = prepare(raw, place.clone());
                under_way.spawn(shake_hands(handshake, place, limits, out.clone(), counted.clone()));
            }
            Err(reason) => {
                counted.count(reason);
                log::debug!("a connection was refused: {}", reason.name());
            }
        }
    };
    let mut trouble = Trouble::new(limits);
    loop {
        let accepted = async {
            loop {
                match source.accept().await {
                    Ok(raw) => return raw,
                    Err(error) => {
                        counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                        trouble.met(&error).await;
                    }
                }
            }
        };
        let raw = tokio::select! {
            raw = accepted => raw,
            _ = asked_to_stop.wait_for(|stop| *stop) => break,
        };
        trouble.over();
        begin(&mut under_way, raw);
    }
    // To a client in the kernel's queue, the connection already looks accepted. The time is bounded: new clients could
    // keep the queue from ever becoming empty, and must not keep the daemon from stopping.
    let closing = Instant::now() + LAST_CALL_TIMEOUT;
    while Instant::now() < closing
        && let Ok(Ok(raw)) = tokio::time::timeout(FIRST_BACKOFF, source.accept()).await
    {
        begin(&mut under_way, raw);
    }
    drop(source);
    while under_way.join_next().await.is_some() {}
}

/// If no connection arrives within this time, the queue counts as empty.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);

/// The longest time that a stop takes connections from the queue.
const LAST_CALL_TIMEOUT: Duration = Duration::from_millis(100);

async fn shake_hands<Io>(
    handshake: impl Future<Output = Option<Accepted<Io>>>,
    place: Arc<Place>,
    limits: Limits,
    out: mpsc::Sender<(Accepted<Io>, Arc<Place>)>,
    counters: Arc<Counters>,
) {
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(limits.handshake_timeout, handshake) => outcome,
        () = place.evicted() => {
            counters.count(RefusalReason::HandshakeEvicted);
            return;
        }
    };
    match outcome {
        Ok(Some(connection)) => {
            place.established();
            counters.admitted.fetch_add(1, Ordering::Relaxed);
            // An error means that the listener is gone, and the connection with it.
            let _ = out.send((connection, place)).await;
        }
        Ok(None) => counters.count(RefusalReason::Handshake),
        Err(_) => {
            counters.count(RefusalReason::HandshakeTimeout);
            log::debug!("a connection was cut: no handshake within {:?}", limits.handshake_timeout);
        }
    }
}

/// Handles failures of `accept`: pauses, and logs at most once per `report_every`.
struct Trouble {
    pause: Duration,
    report_every: Duration,
    in_a_row: u32,
    reported: Option<Instant>,
    unreported: u64,
}

impl Trouble {
    /// Up to this many aborted connections in a row cause no pause.
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
        // A client that closed its connection in the queue must not delay the next ones.
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
impl Incoming<()> {
    /// A listener that no client connects to.
    pub fn silent() -> Self {
        struct Nobody;
        impl Source for Nobody {
            type Raw = ();

            async fn accept(&self) -> io::Result<()> {
                std::future::pending().await
            }
        }
        Self::start(Nobody, Limits::default(), |()| None, |(), _| std::future::ready(None))
    }

    /// A place for a connection that was just handed to the server.
    pub fn place(&self) -> Arc<Place> {
        Places::new(self.limits, self.counters.clone()).enter(None).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    use poem::Addr;

    use super::*;

    /// Returns the results of `script`, then the error `then` for ever, or nothing.
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
        tokio::time::timeout(BOUND, incoming.next()).await.expect("a connection comes").unwrap().0.0
    }

    #[tokio::test]
    async fn a_listener_out_of_file_descriptors_waits_and_goes_on() {
        let (source, asked) = scripted(vec![Err(out_of_files()), Err(out_of_files()), Ok(7)], None);
        let limits = Limits { accept_pause: Duration::from_millis(30), ..Limits::default() };
        let begun = Instant::now();
        let mut incoming = Incoming::start(source, limits, |_| None, |raw, _| admit(raw));
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
            let mut incoming = Incoming::start(source, limits, |_| None, |raw, _| admit(raw));
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
        assert_eq!(next(&mut Incoming::start(source, limits, |_| None, |raw, _| admit(raw))).await, 7);
    }

    #[tokio::test]
    async fn beyond_the_bound_the_oldest_silent_one_makes_room() {
        let (source, _) = scripted((0..6).map(Ok).collect(), None);
        let limits = Limits { max_handshakes: 2, handshake_timeout: 10 * BOUND, ..Limits::default() };
        let at_once = Arc::new(AtomicU64::new(0));
        let counted = at_once.clone();
        // The first four send nothing.
        let mut incoming = Incoming::start(
            source,
            limits,
            |_| None,
            move |raw, _| {
                struct Leaving(Arc<AtomicU64>);
                impl Drop for Leaving {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let leaving = Leaving(counted.clone());
                async move {
                    let _leaving = leaving;
                    if raw < 4 { std::future::pending().await } else { admit(raw).await }
                }
            },
        );
        let mut came = [next(&mut incoming).await, next(&mut incoming).await];
        came.sort();
        assert_eq!(came, [4, 5]);
        let counters = incoming.counters();
        let evicted = &counters.by_reason[RefusalReason::HandshakeEvicted as usize];
        let bounded = async {
            while at_once.load(Ordering::SeqCst) > 2 || evicted.load(Ordering::Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(BOUND, bounded).await.expect("the oldest are dropped");
    }

    #[tokio::test]
    async fn dropping_it_ends_the_handshakes_under_way() {
        let (source, _) = scripted(vec![Ok(1)], None);
        let (held, mut gone) = mpsc::channel::<()>(1);
        let begun = Arc::new(tokio::sync::Notify::new());
        let begin = begun.clone();
        let incoming = Incoming::<u32>::start(
            source,
            Limits::default(),
            |_| None,
            move |_, _| {
                let (held, begin) = (held.clone(), begin.clone());
                async move {
                    let _held = held;
                    begin.notify_one();
                    std::future::pending().await
                }
            },
        );
        begun.notified().await;
        drop(incoming);
        let ended = tokio::time::timeout(Duration::from_secs(5), gone.recv()).await;
        assert_eq!(ended, Ok(None), "a handshake outlived its listener");
    }

    #[tokio::test]
    async fn a_stop_ends_though_clients_go_on_coming() {
        struct Endless;
        impl Source for Endless {
            type Raw = u32;

            async fn accept(&self) -> io::Result<u32> {
                tokio::task::yield_now().await;
                Ok(7)
            }
        }
        let mut incoming =
            Incoming::<u32>::start(Endless, Limits::default(), |_| None, |_, _| std::future::ready(None));
        let drain = incoming.drain();
        let ended = tokio::select! {
            ended = tokio::time::timeout(BOUND, drain.finish()) => ended,
            _ = incoming.next() => panic!("nobody is admitted"),
        };
        ended.expect("the stop ends");
    }

    #[tokio::test]
    async fn a_stop_waits_for_handshakes_and_for_what_the_server_has_not_taken() {
        let (source, _) = scripted((0..3).map(Ok).collect(), None);
        let release = Arc::new(tokio::sync::Semaphore::new(0));
        let gate = release.clone();
        let mut incoming = Incoming::start(
            source,
            Limits::default(),
            |_| None,
            move |raw, _| {
                let gate = gate.clone();
                async move {
                    // When the stop begins, the last one is still in its handshake. The others are done and not yet
                    // taken.
                    if raw == 2 {
                        let _ = gate.acquire().await;
                    }
                    admit(raw).await
                }
            },
        );
        let counters = incoming.counters();
        while counters.admitted.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        let drain = incoming.drain();
        let mut stopping = tokio::spawn(async move { drain.finish().await });
        let mut came = vec![next(&mut incoming).await, next(&mut incoming).await];
        assert!(tokio::time::timeout(Duration::from_millis(100), incoming.next()).await.is_err());
        assert!(!stopping.is_finished(), "a handshake was cut");
        release.add_permits(1);
        came.push(next(&mut incoming).await);
        came.sort();
        assert_eq!(came, [0, 1, 2]);
        let ended = tokio::select! {
            ended = tokio::time::timeout(BOUND, &mut stopping) => ended,
            _ = incoming.next() => panic!("nothing more comes"),
        };
        ended.expect("the stop ends").unwrap();
    }
}
