//! `state_dir/listen.json`: the addresses on which the daemon listens, which are not known in advance for port 0.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DaemonError;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bound {
    pub hosts: SocketAddr,
    pub admin: SocketAddr,
    pub control: PathBuf,
}

/// Replaces the file atomically, so that a reader never sees a partial file.
pub fn write(state_dir: &Path, bound: &Bound) -> Result<(), DaemonError> {
    let mut text = serde_json::to_string(bound).unwrap_or_default();
    text.push('\n');
    replace(&state_dir.join("listen.json"), text.as_bytes())
}

/// Reads the addresses that the last daemon bound; `None` if no daemon has run yet.
pub fn read(state_dir: &Path) -> Option<Bound> {
    serde_json::from_str(&std::fs::read_to_string(state_dir.join("listen.json")).ok()?).ok()
}

/// Writes a file atomically. No fsync: its content can be written again.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), DaemonError> {
    let fail = |cause| DaemonError::Write { path: path.to_path_buf(), cause };
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary).map_err(fail)?;
    file.write_all(content).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}
