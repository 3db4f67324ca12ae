//! Why a sign-in failed: a stable name for the audit log, and a sentence for the operator's log.

/// The longest part of a foreign name in the log, in characters.
const MAX_NAMED_CHARS: usize = 255;

/// The message for two issuers that differ. It contains both, so that an operator sees what to change.
pub(super) fn issuers(place: &str, configured: &str, named: &str) -> String {
    let named: String = named.chars().filter(|letter| !letter.is_control()).take(MAX_NAMED_CHARS).collect();
    let hint = if configured.trim_end_matches('/') == named.trim_end_matches('/') {
        "they differ only in a slash at the end; "
    } else {
        ""
    };
    format!(
        "{place} names the issuer {named:?}, but oidc.issuer is {configured:?}: {hint}if this is the right provider, \
         set oidc.issuer to the name above"
    )
}

pub(super) fn tell_issuers(place: &str, configured: &str, named: &str) {
    let sentence = issuers(place, configured, named);
    log::warn!(event = "oidc_issuer_mismatch", configured, named:? = named.chars().take(MAX_NAMED_CHARS).collect::<String>(); "{sentence}");
}

/// Contains nothing that the provider or the browser sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SignInRefusal {
    #[error("the provider cannot be used now: it cannot be reached, or its answers cannot be read; try again later")]
    Unavailable,
    #[error(
        "the provider's discovery document names another issuer than oidc.issuer: copy it exactly into oidc.issuer"
    )]
    IssuerOfDiscovery,
    #[error("the browser came back with the answer of another provider, or without the provider's name")]
    IssuerOfResponse,
    #[error("the ID token is from another issuer")]
    IssuerOfToken,
    #[error("the user or the provider denied the sign-in")]
    Denied,
    #[error("the browser came back without a code")]
    CodeMissing,
    #[error("the browser came back without a state")]
    StateMissing,
    #[error("the browser came back with the state of another sign-in")]
    StateForeign,
    #[error(
        "the provider did not accept the code: it was used already, has expired, or is from another sign-in; begin again"
    )]
    CodeRefused,
    #[error("the provider rejects this service's client id or secret: check oidc.client_id and oidc.client_secret")]
    ClientRefused,
    #[error("the provider sent no ID token: allow the scope openid for this client there")]
    TokenMissing,
    #[error("the ID token cannot be read")]
    TokenUnreadable,
    #[error("the ID token is not signed with RS256, RS384 or RS512: configure RS256 for this client at the provider")]
    Algorithm,
    #[error("the ID token is signed with a key that is not one of the provider's usable keys")]
    UnknownKey,
    #[error("the signature of the ID token is wrong")]
    Signature,
    #[error(
        "the ID token has other audiences besides this client: add them to oidc.trusted_audiences if they are trusted"
    )]
    Audience,
    #[error("the ID token was made for another client")]
    AuthorizedParty,
    #[error("the ID token has expired: compare the clocks of provider and service")]
    Expired,
    #[error("the ID token is not valid yet: compare the clocks of provider and service")]
    NotYetValid,
    #[error("the ID token was issued in the future: compare the clocks of provider and service")]
    IssuedInFuture,
    #[error("the ID token was issued longer ago than a sign-in takes: compare the clocks of provider and service")]
    IssuedTooLongAgo,
    #[error("the ID token is from another sign-in")]
    Nonce,
    #[error("the ID token does not name the user")]
    SubjectMissing,
    #[error("the ID token's subject is longer than 255 bytes or has control characters, so it cannot be linked")]
    SubjectUnfit,
}

impl SignInRefusal {
    pub const ALL: [Self; 24] = [
        Self::Unavailable,
        Self::IssuerOfDiscovery,
        Self::IssuerOfResponse,
        Self::IssuerOfToken,
        Self::Denied,
        Self::CodeMissing,
        Self::StateMissing,
        Self::StateForeign,
        Self::CodeRefused,
        Self::ClientRefused,
        Self::TokenMissing,
        Self::TokenUnreadable,
        Self::Algorithm,
        Self::UnknownKey,
        Self::Signature,
        Self::Audience,
        Self::AuthorizedParty,
        Self::Expired,
        Self::NotYetValid,
        Self::IssuedInFuture,
        Self::IssuedTooLongAgo,
        Self::Nonce,
        Self::SubjectMissing,
        Self::SubjectUnfit,
    ];

    /// The name in the audit log. It must never change.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::IssuerOfDiscovery => "issuer_of_discovery",
            Self::IssuerOfResponse => "issuer_of_response",
            Self::IssuerOfToken => "issuer_of_token",
            Self::Denied => "denied",
            Self::CodeMissing => "code_missing",
            Self::StateMissing => "state_missing",
            Self::StateForeign => "state_foreign",
            Self::CodeRefused => "code_refused",
            Self::ClientRefused => "client_refused",
            Self::TokenMissing => "token_missing",
            Self::TokenUnreadable => "token_unreadable",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::AuthorizedParty => "authorized_party",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::IssuedTooLongAgo => "issued_too_long_ago",
            Self::Nonce => "nonce",
            Self::SubjectMissing => "subject_missing",
            Self::SubjectUnfit => "subject_unfit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_that_differ_are_both_written_out() {
        let slash = issuers("the ID token", "https://id.test", "https://id.test/");
        assert!(
            slash.contains("\"https://id.test/\", but oidc.issuer is \"https://id.test\"") && slash.contains("slash")
        );
        let other = issuers("the ID token", "https://id.test", &format!("https://evil.test/\n{}", "a".repeat(999)));
        assert!(other.contains("\"https://evil.test/aaa") && !other.contains("slash") && !other.contains('\n'));
        assert!(other.len() < 700, "{}", other.len());
    }

    #[test]
    fn each_reason_has_a_name_and_a_sentence_of_its_own() {
        let names: std::collections::HashSet<_> = SignInRefusal::ALL.iter().map(|refusal| refusal.as_str()).collect();
        let sentences: std::collections::HashSet<_> = SignInRefusal::ALL.iter().map(ToString::to_string).collect();
        assert_eq!((names.len(), sentences.len()), (SignInRefusal::ALL.len(), SignInRefusal::ALL.len()));
        assert!(names.iter().all(|name| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')));
    }
}
