//! The two certificate authorities.

use serde::{Deserialize, Serialize};

/// Which of the two authorities: `Server` signs the daemon's own certificate, `Client` the admins'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityRole {
    Server,
    Client,
}
