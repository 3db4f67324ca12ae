//! Stops a listener without cutting off any client.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// The progress of a stop.
pub(super) struct Stop {
    pub asked: watch::Sender<bool>,
    /// No handshake is under way, and the server has taken every connection.
    pub drained: watch::Sender<bool>,
    /// Connections that the server has taken and whose client has sent nothing yet.
    pub fresh: watch::Sender<usize>,
    pub first_request: Duration,
}

/// A stop that cuts off no client. Begin it while the server still takes connections.
#[derive(Clone)]
pub struct Drain(pub(super) Arc<Stop>);

impl Drain {
    /// Stops accepting. Waits until the handshakes under way are done (they have a time-out) and the server has taken
    /// their connections. Then waits up to [`Limits::first_request`](super::Limits::first_request) for each of these
    /// clients to begin its request, because the server closes a connection that has received nothing. The acceptor
    /// must be polled for connections meanwhile.
    pub async fn finish(&self) {
        let Self(stop) = self;
        stop.asked.send_replace(true);
        let _ = stop.drained.subscribe().wait_for(|drained| *drained).await;
        let mut fresh = stop.fresh.subscribe();
        let _ = tokio::time::timeout(stop.first_request, fresh.wait_for(|fresh| *fresh == 0)).await;
    }
}

/// Held by a connection until its client has sent something.
pub(super) struct Fresh(pub Arc<Stop>);

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.fresh.send_modify(|fresh| *fresh -= 1);
    }
}
