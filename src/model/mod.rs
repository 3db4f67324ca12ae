//! Pure types and rules: the auth document, hosts, digests, versions. No I/O, no clock: time is a parameter.

pub mod audit;
pub mod auth_document;
pub mod authority;
pub mod check;
pub mod checkup;
pub mod digest;
pub mod egress;
pub mod forwarded;
pub mod host;
pub mod instant;
pub mod people;
pub mod percent;
pub mod secret;
pub mod version;
