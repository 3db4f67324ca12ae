//! A login that Codex refreshed in a probe becomes the canonical one.
//!
//! The refresh token of the version that was probed is spent from the moment upstream answered, so the new login counts
//! whatever the probe finds, and whatever the clocks say: as long as that version is the canonical one, the new one takes
//! its place, dated later if need be. Where a host or an admin was quicker, the later of the two logins wins, as always.
//! A login of another account is never taken.

use time::format_description::well_known::Rfc3339;

use super::super::canonical::Canonical;
use super::super::{By, Result, Service, ServiceError};
use crate::model::auth_document::{AuthDocument, accounts, redated, refreshed};
use crate::records::{Condition, Source};

/// How often one that lost a race is tried again.
const ATTEMPTS: usize = 16;

pub enum Adopted {
    /// It is the canonical version of this number.
    Version(u64),
    /// A later one is canonical by now.
    Overtaken,
    /// It cannot be taken, and why.
    Refused(String),
}

impl Service {
    /// `from` is the version that was probed, or that the probe made before.
    pub(super) async fn adopt(&self, from: &Canonical, login: &str) -> Result<Adopted> {
        let (known, new) = (accounts(&from.text), accounts(login));
        if !known.is_empty() && !new.is_empty() && known != new {
            let why = "upstream gave Codex tokens of another account, which are not taken; the refresh token of the \
                       canonical login is spent: sign in anew and upload that login";
            let note = By::daemon().note(self.outside.now(), "auth.refresh").on(from.summary.version);
            self.note_alone(note.refused("another account").alarm()).await?;
            return Ok(Adopted::Refused(why.into()));
        }
        let text = refreshed(&from.text, login)?;
        for _ in 0..ATTEMPTS {
            let Some(present) = self.canonical() else { return Ok(Adopted::Overtaken) };
            let now = self.no_earlier_than_the_canonical();
            let rules = self.policy.load().document_rules;
            let mut document = AuthDocument::parse(&text, now, &rules)?;
            let condition = if present.summary.version == from.summary.version {
                if *document.last_refresh() <= present.last_refresh {
                    let dated = present.last_refresh.after().max(self.outside.now());
                    let dated = dated.format(&Rfc3339).map_err(ServiceError::internal)?;
                    document =
                        AuthDocument::parse(&redated(&text, &dated)?, present.last_refresh.after().max(now), &rules)?;
                }
                Condition::Version(Some(present.summary.version))
            } else if *document.last_refresh() > present.last_refresh {
                Condition::OlderThan(document.last_refresh().clone())
            } else {
                return Ok(Adopted::Overtaken);
            };
            let note = By::daemon().note(self.outside.now(), "auth.refresh").with("of", from.summary.version);
            let source = Source::Runner { of: from.summary.version };
            if let Some(version) = self.make_canonical(&document, source, condition, note).await? {
                self.metrics.adopted();
                return Ok(Adopted::Version(version));
            }
        }
        Err(ServiceError::Unavailable { cause: "the canonical auth changed under every attempt to replace it".into() })
    }
}
