//! Requests that a caller may repeat without doing the work again: those with an `Idempotency-Key`.
//!
//! The first request does the work, keeps its answer, sealed, and then answers. A repeated one is given that answer. A
//! crash before the work is done: a repeated request does it. A crash between the work and the kept answer: a repeated
//! request does the work again, and the caller has seen no answer of the first one. Each node keeps its own answers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Core;
use crate::model::audit::Actor;
use crate::model::digest::Digest;
use crate::seal::{Place, Sealed};
use crate::service::{Initiator, Result, ServiceError};

/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 255;
const KEY: &str = "Idempotency-Key";

/// Requests under way, by caller and key.
#[derive(Default)]
pub struct Replays(Mutex<HashSet<(Digest, Digest)>>);

/// A request that may be repeated.
pub struct Repeatable<'a> {
    /// `Idempotency-Key`. `None`: each request does the work.
    pub key: Option<&'a str>,
    pub by: &'a Initiator,
    pub operation: &'static str,
    /// What the request asks for.
    pub body: &'a [u8],
}

impl Core {
    /// Does `work`, or returns the answer of the request that did it. `work` goes on when the caller disconnects.
    pub async fn once<T>(
        self: &Arc<Self>,
        request: Repeatable<'_>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let Some(key) = request.key else { return work.await };
        if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServiceError::invalid(KEY, format!("must be 1 to {MAX_KEY_BYTES} printable characters")));
        }
        let (caller, key) = (caller(&request.by.actor), Digest::of(key.as_bytes()));
        let content = Digest::of(&[request.operation.as_bytes(), b"\n", request.body].concat());
        let underway = UnderWay::begin(self, caller, key)?;
        if let Some(kept) = self.hot.kept_answer(&caller, &key, self.platform.now())? {
            return self.given_again(&kept, key, content);
        }
        let core = Arc::clone(self);
        let working = tokio::spawn(async move {
            let _underway = underway;
            let answer = work.await?;
            if let Err(error) = core.keep(&caller, key, content, &answer).await {
                // The work is done: nothing turns that into a failure.
                log::warn!(event = "answer_not_kept", cause:% = error; "a repeated request would be done again");
            }
            Ok(answer)
        });
        working.await.map_err(ServiceError::internal)?
    }

    fn given_again<T: DeserializeOwned>(&self, kept: &Sealed, key: Digest, content: Digest) -> Result<T> {
        let gone = |_| {
            ServiceError::Conflict(
                "the request was done, but its answer cannot be shown again: the keys were rotated since".into(),
            )
        };
        let plain = self.ring.load().open(&place(key), kept).map_err(gone)?;
        match plain.strip_prefix(content.as_bytes().as_slice()) {
            Some(answer) => serde_json::from_slice(answer).map_err(ServiceError::internal),
            None => Err(ServiceError::invalid(KEY, "was used for another request within a day; use a new key")),
        }
    }

    async fn keep(
        &self,
        caller: &Digest,
        key: Digest,
        content: Digest,
        answer: &(impl Serialize + Sync),
    ) -> Result<()> {
        // The digest of the request is sealed too: it may be that of a password.
        let mut plain = zeroize::Zeroizing::new(content.as_bytes().to_vec());
        serde_json::to_writer(&mut *plain, answer).map_err(ServiceError::internal)?;
        let sealed = self.ring.load().seal(&place(key), &plain, &*self.platform)?;
        Ok(self.hot.keep_answer(caller, &key, &sealed, self.platform.now()).await?)
    }
}

fn place(key: Digest) -> Place {
    Place::new("hot", "replay", key)
}

fn caller(actor: &Actor) -> Digest {
    let name = match actor {
        Actor::Certificate { fingerprint, .. } => format!("certificate {fingerprint}"),
        Actor::User { id, .. } => format!("user {id}"),
        Actor::Host { id, .. } => format!("host {id}"),
        Actor::Control { uid } | Actor::Offline { uid } => format!("uid {uid}"),
        Actor::Anybody | Actor::Daemon => actor.to_string(),
    };
    Digest::of(name.as_bytes())
}

/// Ends when it is dropped.
struct UnderWay {
    core: Arc<Core>,
    request: (Digest, Digest),
}

impl UnderWay {
    fn begin(core: &Arc<Core>, caller: Digest, key: Digest) -> Result<Self> {
        let request = (caller, key);
        let mut all = core.replays.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(request) {
            let reason = "a request with this Idempotency-Key is under way; repeat it when that one has ended";
            return Err(ServiceError::Conflict(reason.into()));
        }
        Ok(Self { core: Arc::clone(core), request })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.core.replays.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.request);
    }
}
