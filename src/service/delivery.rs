//! How a host receives the canonical login, and what it means when one comes back.
//!
//! Today every host is served `verbatim`: the document as stored. A host that is to receive something else (an opaque
//! refresh token of its own, say) differs here and nowhere else: [`deliver`] goes from the canonical version and the
//! host to bytes and digest, [`accept`] goes back.

use crate::hot::HotHost;
use crate::model::digest::Digest;

use super::canonical::Canonical;

/// What one host is served. `digest` is the SHA-256 of exactly `text`.
pub struct Delivery<'a> {
    pub text: &'a str,
    pub digest: Digest,
}

pub fn deliver<'a>(canonical: &'a Canonical, _host: Option<&HotHost>) -> Delivery<'a> {
    Delivery { text: &canonical.text, digest: canonical.summary.digest }
}

/// The document that a host's store stands for.
pub fn accept<'a>(document: &'a str, _host: Option<&HotHost>) -> &'a str {
    document
}
