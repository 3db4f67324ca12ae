//! The cache of the provider's document and keys, each with a time to live.
//!
//! Sign-ins read the cache without blocking each other. A missing part is fetched once for all waiting sign-ins, in a
//! task of its own. So a browser that disconnects does not stop the fetch for the others. Ages use the monotonic clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use openidconnect::core::CoreJsonWebKey;
use tokio::sync::Mutex;

use super::ProviderSettings;
use super::document::{self, Document};
use super::http::{Http, HttpFailure, HttpLimits};
use super::keys::ProviderKeys;
use super::refusal::SignInRefusal;
use super::token::TokenHeader;

pub(super) struct Kept {
    pub settings: ProviderSettings,
    pub http: Http,
    between_rereads: Duration,
    document: CacheSlot<Document>,
    keys: CacheSlot<ProviderKeys>,
    /// The time and the result of the last fetch of the keys that an unknown key caused.
    reread: Mutex<Option<(Instant, Result<(), SignInRefusal>)>>,
    pub parts: CacheParts,
}

struct CacheSlot<T> {
    value: ArcSwapOption<(Instant, Arc<T>)>,
    /// Locked during a fetch. Holds the time and the reason of the last failure.
    reading: Mutex<Option<(Instant, SignInRefusal)>>,
}

impl<T> CacheSlot<T> {
    fn new() -> Self {
        Self { value: ArcSwapOption::empty(), reading: Mutex::new(None) }
    }

    fn younger_than(&self, age: Duration) -> Option<Arc<T>> {
        let value = self.value.load();
        let (read_at, value) = value.as_deref()?;
        (read_at.elapsed() < age).then(|| Arc::clone(value))
    }
}

impl Kept {
    pub fn new(settings: ProviderSettings, http: Http, limits: &HttpLimits) -> Self {
        Self {
            settings,
            http,
            between_rereads: limits.between_rereads,
            document: CacheSlot::new(),
            keys: CacheSlot::new(),
            reread: Mutex::new(None),
            parts: CacheParts::default(),
        }
    }

    pub async fn document(self: &Arc<Self>) -> Result<Arc<Document>, SignInRefusal> {
        if let Some(document) = self.document.younger_than(self.settings.keys_ttl) {
            return Ok(document);
        }
        let (kept, asked) = (Arc::clone(self), Instant::now());
        by_itself(async move { kept.read_document(asked).await }).await
    }

    /// Returns the key that signed a token with this header.
    pub async fn key(self: &Arc<Self>, header: &TokenHeader) -> Result<CoreJsonWebKey, SignInRefusal> {
        let keys = match self.keys.younger_than(self.settings.keys_ttl) {
            Some(keys) => keys,
            None => {
                let (kept, asked) = (Arc::clone(self), Instant::now());
                by_itself(async move { kept.read_keys(asked).await }).await?
            }
        };
        if let Some(key) = keys.of(header) {
            return Ok(key.clone());
        }
        if header.kid.is_none() {
            return Err(SignInRefusal::UnknownKey);
        }
        let (kept, header) = (Arc::clone(self), header.clone());
        by_itself(async move { kept.reread(&header).await }).await
    }

    /// Refreshes both parts before they expire. If a fetch fails, the old value stays until it expires.
    pub async fn look_after(&self) {
        let (ttl, refresh) = (self.settings.keys_ttl, self.settings.keys_refresh);
        let soon_over = ttl.saturating_sub(refresh.saturating_mul(2));
        if self.document.younger_than(soon_over).is_none() {
            let mut failed = self.document.reading.lock().await;
            if let Err(refusal) = self.fetch_document().await {
                *failed = Some((Instant::now(), refusal));
            }
        }
        if self.document.younger_than(ttl).is_some() {
            let mut failed = self.keys.reading.lock().await;
            if let Err(refusal) = self.fetch_keys().await {
                *failed = Some((Instant::now(), refusal));
            }
        }
    }

    async fn read_document(&self, asked: Instant) -> Result<Arc<Document>, SignInRefusal> {
        let mut failed = self.document.reading.lock().await;
        if let Some(document) = self.document.younger_than(self.settings.keys_ttl) {
            return Ok(document);
        }
        shared(*failed, asked)?;
        let read = self.fetch_document().await;
        *failed = read.as_ref().err().map(|refusal| (Instant::now(), *refusal));
        read
    }

    async fn read_keys(&self, asked: Instant) -> Result<Arc<ProviderKeys>, SignInRefusal> {
        // The token came from an endpoint of the document, so a document exists, unless it has just expired.
        self.read_document(asked).await?;
        let mut failed = self.keys.reading.lock().await;
        if let Some(keys) = self.keys.younger_than(self.settings.keys_ttl) {
            return Ok(keys);
        }
        shared(*failed, asked)?;
        let read = self.fetch_keys().await;
        *failed = read.as_ref().err().map(|refusal| (Instant::now(), *refusal));
        read
    }

    /// Handles an unknown key: the provider may have changed its keys. Invented key names cause at most one fetch per
    /// interval, for all together.
    async fn reread(&self, header: &TokenHeader) -> Result<CoreJsonWebKey, SignInRefusal> {
        let mut last = self.reread.lock().await;
        let found = || {
            let keys = self.keys.younger_than(self.settings.keys_ttl)?;
            keys.of(header).cloned()
        };
        if let Some(key) = found() {
            return Ok(key);
        }
        match *last {
            Some((at, outcome)) if at.elapsed() < self.between_rereads => outcome?,
            _ => {
                let begun = Instant::now();
                let reading = self.keys.reading.lock().await;
                let outcome = self.fetch_keys().await.map(|_| ());
                drop(reading);
                *last = Some((begun, outcome));
                outcome?;
            }
        }
        found().ok_or(SignInRefusal::UnknownKey)
    }

    async fn fetch_document(&self) -> Result<Arc<Document>, SignInRefusal> {
        let read = match self.http.get(&document::address(&self.settings.issuer)).await {
            Ok(body) => Document::read(&body, &self.settings),
            Err(failure) => Err((SignInRefusal::Unavailable, failure)),
        };
        let document = Arc::new(self.parts.note(ProviderPart::Document, read)?);
        self.document.value.store(Some(Arc::new((Instant::now(), Arc::clone(&document)))));
        Ok(document)
    }

    async fn fetch_keys(&self) -> Result<Arc<ProviderKeys>, SignInRefusal> {
        let address = match self.document.value.load().as_deref() {
            Some((_, document)) => document.keys.clone(),
            None => return Err(SignInRefusal::Unavailable),
        };
        let read = self.http.get(&address).await.and_then(|body| ProviderKeys::read(&body));
        let read = read.map_err(|failure| (SignInRefusal::Unavailable, failure));
        let keys = Arc::new(self.parts.note(ProviderPart::Keys, read)?);
        self.keys.value.store(Some(Arc::new((Instant::now(), Arc::clone(&keys)))));
        Ok(keys)
    }
}

/// A fetch that failed after this sign-in asked counts as this sign-in's failure too.
fn shared(failed: Option<(Instant, SignInRefusal)>, asked: Instant) -> Result<(), SignInRefusal> {
    match failed {
        Some((at, refusal)) if at >= asked => Err(refusal),
        _ => Ok(()),
    }
}

/// Runs the work to its end, even if the caller goes away.
async fn by_itself<T: Send + 'static>(
    work: impl Future<Output = Result<T, SignInRefusal>> + Send + 'static,
) -> Result<T, SignInRefusal> {
    // The task ends early only with the process.
    tokio::spawn(work).await.unwrap_or(Err(SignInRefusal::Unavailable))
}

#[derive(Clone, Copy)]
pub(super) enum ProviderPart {
    Document = 1,
    Keys = 2,
    Exchange = 4,
}

/// The parts of the provider that failed at their last use. Only the first failure, and the recovery of the last part,
/// are logged.
#[derive(Default)]
pub(super) struct CacheParts(AtomicU8);

impl CacheParts {
    pub fn works(&self, part: ProviderPart) {
        let bit = part as u8;
        if self.0.fetch_and(!bit, Ordering::AcqRel) == bit {
            log::info!(event = "oidc_available"; "the identity provider can be used again");
        }
    }

    pub fn fails(&self, part: ProviderPart, cause: &HttpFailure) {
        if self.0.fetch_or(part as u8, Ordering::AcqRel) == 0 {
            let part = match part {
                ProviderPart::Document => "its discovery document",
                ProviderPart::Keys => "its keys",
                ProviderPart::Exchange => "its token endpoint",
            };
            log::warn!(event = "oidc_unavailable", part, cause:% = cause; "the identity provider cannot be used ({part}): {cause}");
        }
    }

    fn note<T>(
        &self,
        part: ProviderPart,
        outcome: Result<T, (SignInRefusal, HttpFailure)>,
    ) -> Result<T, SignInRefusal> {
        match outcome {
            Ok(value) => {
                self.works(part);
                Ok(value)
            }
            Err((refusal, failure)) => {
                self.fails(part, &failure);
                Err(refusal)
            }
        }
    }
}
