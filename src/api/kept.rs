//! Answers to retrieves as they were last rendered, to be given again while nothing that they tell of has changed.
//!
//! An answer is kept in two parts: what it says of its host stands beside the host ([`HotHost::told`]), everything else
//! in a frame that all hosts share. The counts, the digest and the document, which follows from the canonical version at
//! hand, are filled in for each call: no secret is kept. Both parts are cut out of what the ordinary way renders. So a host
//! of a large fleet costs a few hundred bytes, and its answers are put together without a look at anything else of it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::auth::{AuthAnswer, answer};
use super::errors::Failure;
use super::json::{Envelope, OkStatus};
use crate::hot::{HostRevision, Pieces};
use crate::service::sync::{Outcome, Retrieved};
use crate::service::{Service, ServiceError};

const END: &str = "}}";

/// A frame for every outcome.
pub struct Answers {
    frames: [ArcSwapOption<Frame>; Outcome::COUNT],
    #[cfg(test)]
    pub rendered: std::sync::atomic::AtomicUsize,
}

struct Frame {
    canonical: Option<u64>,
    shared: u64,
    /// Before the digest, before the calls, before the host, after it, after its wrapper's digest, and after the version
    /// that it reported.
    pieces: Pieces<6>,
}

impl Answers {
    pub fn new() -> Self {
        Self {
            frames: std::array::from_fn(|_| ArcSwapOption::empty()),
            #[cfg(test)]
            rendered: Default::default(),
        }
    }

    /// The answer's body, byte for byte what the ordinary way gives for it.
    pub fn body(&self, service: &Service, retrieved: Retrieved) -> Result<Vec<u8>, Failure> {
        let shared = service.shared_revision();
        let of_host = (retrieved.seen.state, shared);
        let canonical = retrieved.canonical.as_ref().map(|canonical| canonical.summary.version);
        let Some(slot) = self.frames.get(retrieved.outcome as usize) else {
            return rendered(service, retrieved).map(|rendered| rendered.text.into());
        };
        if retrieved.seen.replaced_last_refresh.is_none()
            && let Some(frame) = slot.load().as_ref().filter(|it| it.canonical == canonical && it.shared == shared)
            && let Some(body) = retrieved.host.told.with(&of_host, |told| frame.filled(told, service, &retrieved))
        {
            return Ok(body?);
        }
        #[cfg(test)]
        self.rendered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let host = Arc::clone(&retrieved.host);
        let rendered = rendered(service, retrieved)?;
        if rendered.state == Some(of_host.0)
            && let Some((pieces, told)) = cut(&rendered)
        {
            slot.store(Some(Arc::new(Frame { canonical, shared, pieces })));
            host.told.put(of_host, told);
        }
        Ok(rendered.text.into())
    }
}

impl Frame {
    fn filled(
        &self,
        told: &Pieces<4>,
        service: &Service,
        retrieved: &Retrieved,
    ) -> std::result::Result<Vec<u8>, ServiceError> {
        let mut digits = itoa::Buffer::new();
        let calls = digits.format(retrieved.seen.calls);
        let (canonical, host) = (retrieved.canonical.as_deref(), Some(&*retrieved.host));
        let delivered = canonical.map(|it| service.delivered_digest(it, host)).transpose()?;
        let mut digest = [0; 64];
        let digest = delivered.as_ref().map_or("", |delivered| delivered.write_hex(&mut digest));
        let delivery =
            canonical.filter(|_| retrieved.outcome.carries_auth()).map(|it| service.deliver(it, host)).transpose()?;
        let document = delivery.as_ref().map_or("", |delivery| &*delivery.text);
        let [start, digest_to_calls, calls_to_host, host_to_wrapper, wrapper_to_version, rest] = self.pieces.get();
        let [name_to_calls, rules, wrapper, version] = told.get();
        let pieces = [
            start,
            digest,
            digest_to_calls,
            calls,
            calls_to_host,
            name_to_calls,
            calls,
            rules,
            host_to_wrapper,
            wrapper,
            wrapper_to_version,
            version,
            rest,
            document,
            END,
        ];
        let mut body = Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
        pieces.into_iter().for_each(|piece| body.extend_from_slice(piece.as_bytes()));
        Ok(body)
    }
}

/// An answer as it is rendered everywhere else.
struct Rendered {
    text: String,
    answer: AuthAnswer,
    /// The state of the host that it shows, if it shows one state.
    state: Option<HostRevision>,
}

fn rendered(service: &Service, retrieved: Retrieved) -> Result<Rendered, Failure> {
    let (sync, state) = retrieved.into_sync();
    let envelope = Envelope { status: OkStatus::Ok, data: answer(service, sync)? };
    let text = serde_json::to_string(&envelope).map_err(ServiceError::internal)?;
    Ok(Rendered { text, answer: envelope.data, state })
}

/// What everybody is told, and what this host is told of itself. The values are looked for in the order of the members,
/// and within a string a member's quotes would be escaped: what is found is the member.
fn cut(rendered: &Rendered) -> Option<(Pieces<6>, Pieces<4>)> {
    let Rendered { text, answer, .. } = rendered;
    let calls = answer.api_calls.to_string();
    let host = serde_json::to_string(answer.host.as_ref()?).ok()?;
    let wrapper = &answer.versions.wrapper_sha256;
    let version = serde_json::to_string(&answer.versions.reported_client_version).ok()?;
    let document = answer.auth.as_ref().map_or(0, |auth| auth.text().len());

    let rest = text.get(..text.len().checked_sub(END.len() + document)?)?;
    // Without a login there is no digest: `null` stays where it is.
    let (start, rest) = match &answer.canonical_digest {
        Some(digest) => around(rest, r#""canonical_digest":""#, digest)?,
        None => rest.split_at_checked(0)?,
    };
    let (digest_to_calls, rest) = around(rest, r#""api_calls":"#, &calls)?;
    let (calls_to_host, rest) = around(rest, r#""host":"#, &host)?;
    let (host_to_wrapper, rest) = around(rest, r#""wrapper_sha256":""#, wrapper)?;
    let (wrapper_to_version, rest) = around(rest, r#""reported_client_version":"#, &version)?;
    let (name_to_calls, rules) = around(&host, r#""api_calls":"#, &calls)?;
    let frame = [start, digest_to_calls, calls_to_host, host_to_wrapper, wrapper_to_version, rest];
    Some((Pieces::of(frame)?, Pieces::of([name_to_calls, rules, wrapper, &version])?))
}

/// What stands before the value of a member, its name included, and what after it.
fn around<'a>(text: &'a str, name: &str, value: &str) -> Option<(&'a str, &'a str)> {
    let (before, after) = text.split_at_checked(text.find(name)? + name.len())?;
    Some((before, after.strip_prefix(value)?))
}
