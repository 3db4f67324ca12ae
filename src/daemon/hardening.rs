//! Protects the process before it opens the state: no core dumps of its memory, no access by other processes, and new
//! files only for their owner.

use nix::sys::prctl::set_dumpable;
use nix::sys::stat::{Mode, umask};

use super::DaemonError;

/// Must be called before another thread starts: the umask applies to all threads.
pub fn harden() -> Result<(), DaemonError> {
    // No core dump, no ptrace by the same user; /proc/<pid> belongs to root. A program that this process executes does
    // not inherit this.
    set_dumpable(false).map_err(|errno| DaemonError::Harden(errno.into()))?;
    super::memory::give_large_pieces_back();
    // sled does not set a mode for its files.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    Ok(())
}
