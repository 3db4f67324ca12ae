//! The two certificate authorities, the certificates that they issue, and the TLS configurations made of them.
//!
//! One authority signs the daemon's own short-lived server certificate, the other signs admins' client certificates.
//! Neither is trusted in the place of the other. All keys are ECDSA P-256 and all cryptography is aws-lc-rs; the
//! process's default provider is never used.
//!
//! This room works on values in memory and stores nothing. It must not know where keys are kept, how they are sealed,
//! or which user is an admin. The caller seals and records the results before it uses them, so a crash here loses only
//! what nobody has seen yet. Time and serial numbers come from the caller. Only keys are drawn by aws-lc-rs itself,
//! which takes no random source from outside.

pub mod authority;
pub mod client;
pub mod identity;
mod key;
mod leaf;
pub mod names;
pub mod pkcs12;
pub mod server;
mod shown;
pub mod tls;

pub use authority::{AuthorityKey, NewAuthority};
pub use client::{ClientCertificate, issue_client_certificate};
pub use identity::ServerIdentity;
pub use names::{ServerName, names_for};
pub use pkcs12::to_pkcs12;
pub use server::{ServerCertificate, ServerKey, issue_server_certificate, spki_pin, spki_pin_of_certificate};
pub use shown::Shown;
pub use tls::{LiveConfig, ServerIdentities, admin_config, hosts_config, server_config};

/// `server_key::create()`, the name that other rooms use.
pub mod server_key {
    pub use super::server::create;
}

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("the certificate could not be made: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("the {what} is not a PEM certificate that can be read: {reason}")]
    BadCertificate { what: &'static str, reason: String },
    #[error("the {what} is not a PKCS#8 ECDSA P-256 key: {reason}")]
    BadKey { what: &'static str, reason: String },
    #[error("the private key does not belong to the authority's certificate")]
    AuthorityMismatch,
    #[error("the authority expires on {0}, too soon to issue anything: roll it to a new one first")]
    AuthorityExpired(time::OffsetDateTime),
    #[error("the certificate's name must be 1 to 64 printable characters, not beginning or ending with a space")]
    BadName,
    #[error("a client certificate lasts 1 to {max} days, not {days}")]
    BadLifetime { days: u32, max: u32 },
    #[error("a server certificate needs at least one name")]
    NoNames,
    #[error("the PKCS#12 file could not be made: {0}")]
    Pkcs12(String),
    #[error("TLS refuses this certificate and key: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no client certificate could be verified with these authorities: {0}")]
    ClientAuthorities(String),
    #[error("[tls] {setting} {}: {reason}", path.display())]
    File { setting: &'static str, path: PathBuf, reason: String },
    #[error("the machine's names could not be read: {0}")]
    LocalNames(#[from] nix::Error),
}

pub type Result<T> = std::result::Result<T, PkiError>;
