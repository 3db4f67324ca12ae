//! The errors of use cases. Only `api/errors.rs` turns them into HTTP.

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::durable::DurableError;
use crate::hot::HotError;
use crate::model::auth_document::DocumentError;
use crate::model::host::{Fqdn, NotServed};
use crate::model::people::Role;
use crate::pki::PkiError;
use crate::records::{RecordsError, Standstill};
use crate::seal::SealError;
use crate::service::hosts::bake::BakeError;
use crate::service::hosts::programs::NativeTarget;

#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("API key missing")]
    KeyMissing,
    #[error("Invalid API key")]
    KeyInvalid,
    /// The key is valid. The answer names both addresses: see [`RefusedAddress`].
    #[error("API key not allowed from this IP")]
    AddressRefused(Box<RefusedAddress>),
    #[error("Insecure host API access disabled")]
    InsecureClosed,
    #[error("Host disabled by administrator")]
    HostDisabled,
    #[error("The host was temporary and has expired")]
    HostExpired,
    #[error("API disabled by administrator{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    ApiDisabled { reason: Option<String> },
    #[error("Client certificate revoked or unknown")]
    CertificateRefused,
    /// The operation needs a session, and the request has none.
    #[error("Sign in first: an access token is needed, as `Authorization: Bearer`")]
    SessionRequired,
    /// The session is unknown, ended or expired, or its user's sessions were ended. One answer for all cases.
    #[error("The session is over or unknown; sign in again")]
    SessionInvalid,
    /// Unknown user, wrong password or disabled user: one answer for all cases.
    #[error("E-mail address or password is wrong")]
    SignInRefused,
    /// The cause is written to the audit log only.
    #[error("The sign-in was refused; begin it again, and ask an admin to look into the audit log if it stays so")]
    OidcRefused,
    #[error("No user is linked to the identity {subject} of {issuer}; an admin can link it to a user")]
    NotLinked { issuer: String, subject: String },
    #[error("The identity provider cannot be reached; try again shortly")]
    ProviderUnavailable,
    /// The caller is authenticated and lacks the role.
    #[error("This requires the role {needs}")]
    RoleInsufficient { needs: Role },
    /// The client certificate is tied to one user, and another user is signed in.
    #[error("The client certificate and the session belong to different users")]
    CertificateOfAnother,
    /// Too many sign-ins are waiting.
    #[error("Too many sign-ins at once; try again shortly")]
    Busy,
    /// `public_base_url` is not set. The guessed address would be baked into hosts' scripts, and it is rarely right.
    #[error(
        "public_base_url is not set; hosts would be given {base_url}: {doubt}. Set public_base_url in {file} to the \
         address by which hosts reach this daemon, then restart it. If hosts do reach it there, say so: `hosts add \
         --allow-short-name`, the box on the dashboard, allow_short_name in the API"
    )]
    BaseUrlGuessed { base_url: String, doubt: &'static str, file: String },
    /// The requested state exists already, or something else is in its place.
    #[error("{0}")]
    Conflict(String),
    /// Both accounts are masked.
    #[error(
        "The login is of another account: {present} -> {new}. A host only renews the fleet's login; an admin changes its \
         account with `codex-authd auth upload --change-account FILE` or on the dashboard's upload page"
    )]
    OtherAccount { present: String, new: String },
    #[error("{0}")]
    DocumentTooLarge(DocumentError),
    #[error("Too many failed authentication attempts")]
    AuthBlocked(Throttled),
    #[error("Rate limit exceeded")]
    RateLimited(Throttled),
    /// Too many calls with one host's key.
    #[error("Rate limit exceeded")]
    HostRateLimited(Throttled),
    /// One host stored more logins than it may.
    #[error(
        "This host stored {} new logins within an hour; more are refused until that hour is over \
         (auth.stores_per_host_per_hour); find out what rewrites its auth.json", .0.limit
    )]
    StoresLimited(Throttled),
    /// The version was pruned.
    #[error(
        "Version {0} is no longer kept: older versions are removed (auth.keep_versions). `codex-authd auth history --all` \
         lists the versions that are kept"
    )]
    VersionNotKept(u64),
    /// The body is not JSON; `reason` says where.
    #[error("Invalid JSON payload")]
    InvalidJson { reason: String },
    /// A member of the request is invalid; `message` says why.
    #[error("Validation failed")]
    Invalid { field: String, message: String },
    /// The request is understood and refused; the text is the answer's message.
    #[error("{0}")]
    Refused(String),
    #[error("{0} not found")]
    NotFound(&'static str),
    #[error("This daemon has no native cdx for {0}; the bash cdx is at /wrapper/download")]
    NoProgram(NativeTarget),
    #[error("{0}")]
    Installer(#[from] InstallerRefusal),
    #[error("Runner not configured")]
    RunnerOff,
    /// The store cannot do it now; the cause goes to the log.
    #[error("The store is not available; try again shortly")]
    Unavailable { cause: String },
    /// The records cannot be reached or written. This is logged once, not for every call
    /// ([`crate::service::core::health`]).
    #[error("The store is not available; try again shortly")]
    RecordsAway { cause: String },
    /// The store takes no changes until this process is restarted. This is logged once, not for every call.
    #[error("The store is not available; try again shortly")]
    StoreFailed { cause: String },
    /// The store is at a standstill. The reason says why, and what to do.
    #[error("The store takes no changes: {reason}")]
    StandsStill { since: OffsetDateTime, reason: String },
    /// The answer to a readiness check while the daemon is degraded.
    #[error("{why}; calls that need only memory are served, the others once the store is back")]
    Degraded { since: OffsetDateTime, why: String },
    /// An internal fault; the cause goes to the log.
    #[error("Internal error; the daemon's log says more")]
    Internal { cause: String },
}

/// A host that called with its valid key from an address that is not allowed.
///
/// The answer may name both addresses. `called_from` is what this daemon sees; behind NAT or a proxy the host cannot
/// see it. `bound_to` is the host's own address; knowing it lets nobody call from there. The host's networks are left
/// out: they reveal more of the operator's network than the host itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedAddress {
    pub fqdn: Fqdn,
    pub called_from: IpAddr,
    /// `None`: the host is served from networks instead.
    pub bound_to: Option<IpAddr>,
}

/// A limit that was reached, and when calls are served again.
#[derive(Clone, Copy, Debug)]
pub struct Throttled {
    pub limit: u32,
    pub reset_at: OffsetDateTime,
    /// At least 1, so that no client retries at once.
    pub retry_after_seconds: u64,
}

impl Throttled {
    pub fn new(limit: u32, reset_at: OffsetDateTime, now: OffsetDateTime) -> Self {
        let seconds = u64::try_from((reset_at - now).whole_seconds()).unwrap_or(0);
        Self { limit, reset_at, retry_after_seconds: seconds.max(1) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallerRefusal {
    #[error("Installer not found")]
    Unknown,
    #[error("Installer already used")]
    Used,
    #[error("Installer expired")]
    Expired,
}

impl ServiceError {
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::Internal { cause: cause.to_string() }
    }
}

impl From<NotServed> for ServiceError {
    fn from(why: NotServed) -> Self {
        match why {
            NotServed::Disabled => Self::HostDisabled,
            NotServed::Expired => Self::HostExpired,
            NotServed::WindowClosed => Self::InsecureClosed,
        }
    }
}

impl From<RecordsError> for ServiceError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::Unavailable(cause) => Self::RecordsAway { cause },
            RecordsError::Failed(cause) => Self::StoreFailed { cause },
            RecordsError::StandsStill(Standstill { reason, since }) => Self::StandsStill { since, reason },
            RecordsError::Damaged(cause) => Self::Unavailable { cause },
            error @ RecordsError::Corrupt(_) => Self::internal(error),
        }
    }
}

impl From<HotError> for ServiceError {
    fn from(error: HotError) -> Self {
        let cause = format!("hot state: {error}");
        match error {
            HotError::Store(DurableError::Failed { .. }) => Self::StoreFailed { cause },
            _ => Self::Unavailable { cause },
        }
    }
}

impl From<SealError> for ServiceError {
    fn from(error: SealError) -> Self {
        Self::internal(error)
    }
}

impl From<PkiError> for ServiceError {
    fn from(error: PkiError) -> Self {
        Self::internal(error)
    }
}

impl From<BakeError> for ServiceError {
    fn from(error: BakeError) -> Self {
        Self::internal(error)
    }
}

impl From<DocumentError> for ServiceError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Json(reason) => Self::InvalidJson { reason },
            error @ DocumentError::TooLarge { .. } => Self::DocumentTooLarge(error),
            DocumentError::Field { path, message } => Self::Invalid { field: path, message },
        }
    }
}
