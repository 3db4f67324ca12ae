//! How a listener stops without cutting anybody off.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far a stop has come.
pub(super) struct Stop {
    pub asked: watch::Sender<bool>,
    /// Nobody is in a handshake any more, and the server has taken every connection.
    pub drained: watch::Sender<bool>,
    /// Connections that the server has and whose client has said nothing yet.
    pub fresh: watch::Sender<usize>,
    pub first_request: Duration,
}

/// A stop that cuts nobody off, to be begun while the server still takes connections.
#[derive(Clone)]
pub struct Drain(pub(super) Arc<Stop>);

impl Drain {
    /// Stops accepting, and waits until the handshakes under way are done (they have a time-out), the server has taken
    /// what came of them, and, for a short while, until each of these clients has begun its request: the server closes
    /// a connection that it has heard nothing on. The acceptor must be asked for connections all the while.
    pub async fn finish(&self) {
        let Self(stop) = self;
        stop.asked.send_replace(true);
        let _ = stop.drained.subscribe().wait_for(|drained| *drained).await;
        let mut fresh = stop.fresh.subscribe();
        let _ = tokio::time::timeout(stop.first_request, fresh.wait_for(|fresh| *fresh == 0)).await;
    }
}

/// Held by a connection until its client has said something.
pub(super) struct Fresh(pub Arc<Stop>);

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.fresh.send_modify(|fresh| *fresh -= 1);
    }
}
