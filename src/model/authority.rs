//! The two certificate authorities.

use serde::{Deserialize, Serialize};

/// `Server` signs the daemon's own certificate, `Client` signs the admins' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityRole {
    Server,
    Client,
}
