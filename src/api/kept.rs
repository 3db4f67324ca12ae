//! Answers to retrieves as they were last rendered, to be given again while nothing that they tell of has changed.
//!
//! Kept is the text that the ordinary way renders, without the two counts (filled in for each call) and without the
//! document (which follows from the canonical version at hand): no secret is kept. The slots are so many and no more; a
//! host whose slot another one took is rendered anew. In memory only.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::auth::{AuthAnswer, answer};
use super::errors::Failure;
use super::json::{Envelope, OkStatus};
use crate::hot::HostRevision;
use crate::service::delivery::deliver;
use crate::service::sync::{Outcome, Retrieved};
use crate::service::{Service, ServiceError};

/// A power of two; a kept answer takes about a kilobyte.
const SLOTS: usize = 8192;
const COUNT: &str = "\"api_calls\":";
const END: &str = "}}";

pub struct Answers(Box<[ArcSwapOption<Kept>]>);

/// What an answer depends on, its counts and its document aside.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Basis {
    host: HostRevision,
    outcome: Outcome,
    canonical: Option<u64>,
    shared: u64,
}

struct Kept {
    basis: Basis,
    text: Box<str>,
    /// Where the counts go.
    counts: [usize; 2],
}

impl Answers {
    pub fn new() -> Self {
        Self((0..SLOTS).map(|_| ArcSwapOption::empty()).collect())
    }

    /// Which ones are kept: equal where it is the same one.
    #[cfg(test)]
    pub fn kept(&self) -> Vec<*const ()> {
        self.0.iter().filter_map(|slot| slot.load_full()).map(|kept| Arc::as_ptr(&kept).cast()).collect()
    }

    /// The answer's body, byte for byte what the ordinary way gives for it.
    pub fn body(&self, service: &Service, retrieved: Retrieved) -> Result<Vec<u8>, Failure> {
        let basis = Basis {
            host: retrieved.seen.state,
            outcome: retrieved.outcome,
            canonical: retrieved.canonical.as_ref().map(|canonical| canonical.summary.version),
            shared: service.shared_revision(),
        };
        let slot = usize::try_from(retrieved.host.id.0).unwrap_or_default() % SLOTS;
        let Some(slot) = self.0.get(slot) else { return rendered(service, retrieved).map(|(text, ..)| text.into()) };
        if retrieved.seen.replaced_last_refresh.is_none()
            && let Some(kept) = slot.load().as_ref().filter(|kept| kept.basis == basis)
        {
            return Ok(kept.filled(&retrieved));
        }
        let (text, state, document) = rendered(service, retrieved)?;
        if state == Some(basis.host) {
            slot.store(Kept::of(basis, &text, document).map(Arc::new));
        }
        Ok(text.into())
    }
}

impl Kept {
    /// `document`: how long the document in it is.
    fn of(basis: Basis, text: &str, document: Option<usize>) -> Option<Self> {
        let without = text.len().checked_sub(END.len() + document.unwrap_or_default())?;
        let mut rest = text.get(..without)?;
        let mut kept = String::with_capacity(without);
        let mut counts = [0; 2];
        // The counts are the first two members of this name: within a string its quotes would be escaped, and the
        // document is cut off.
        for count in &mut counts {
            let (before, after) = rest.split_at_checked(rest.find(COUNT)? + COUNT.len())?;
            kept.push_str(before);
            *count = kept.len();
            rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        kept.push_str(rest);
        Some(Self { basis, text: kept.into(), counts })
    }

    fn filled(&self, retrieved: &Retrieved) -> Vec<u8> {
        let mut digits = itoa::Buffer::new();
        let calls = digits.format(retrieved.seen.calls);
        let document = retrieved.canonical.as_deref().filter(|_| retrieved.outcome.carries_auth());
        let document = document.map_or("", |canonical| deliver(canonical, Some(&retrieved.host)).text);
        let [first, second] = self.counts;
        let pieces = [
            self.text.get(..first),
            Some(calls),
            self.text.get(first..second),
            Some(calls),
            self.text.get(second..),
            Some(document),
            Some(END),
        ];
        let length = self.text.len() + 2 * calls.len() + document.len() + END.len();
        let mut body = Vec::with_capacity(length);
        pieces.into_iter().flatten().for_each(|piece| body.extend_from_slice(piece.as_bytes()));
        body
    }
}

/// Rendered as everywhere else; with the state of the host that it shows, if it shows one state, and the length of the
/// document in it.
fn rendered(service: &Service, retrieved: Retrieved) -> Result<(String, Option<HostRevision>, Option<usize>), Failure> {
    let (sync, state) = retrieved.into_sync();
    let answer: AuthAnswer = answer(service, sync)?;
    let document = answer.auth.as_ref().map(|auth| auth.text().len());
    let envelope = Envelope { status: OkStatus::Ok, data: answer };
    let text = serde_json::to_string(&envelope).map_err(ServiceError::internal)?;
    Ok((text, state, document))
}
