//! `state_dir/listen.json`: where the daemon listens, for whoever configured port 0.

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

/// Replaces the file as a whole: whoever waits for it never reads half of it.
pub fn write(state_dir: &Path, bound: &Bound) -> Result<(), DaemonError> {
    let mut text = serde_json::to_string(bound).unwrap_or_default();
    text.push('\n');
    replace(&state_dir.join("listen.json"), text.as_bytes())
}

/// What the last daemon bound; `None` where none ran yet.
pub fn read(state_dir: &Path) -> Option<Bound> {
    serde_json::from_str(&std::fs::read_to_string(state_dir.join("listen.json")).ok()?).ok()
}

/// Writes a file of ours so that it is there as a whole or not at all. What it says can be made again: no fsync.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), DaemonError> {
    let fail = |cause| DaemonError::Write { path: path.to_path_buf(), cause };
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary).map_err(fail)?;
    file.write_all(content).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}
