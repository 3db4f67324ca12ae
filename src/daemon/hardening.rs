//! What a process does to itself before it opens the state: whatever it holds in memory stays out of core dumps and out
//! of other processes' reach, and whatever it writes is its owner's alone.

use nix::sys::prctl::set_dumpable;
use nix::sys::stat::{Mode, umask};

use super::DaemonError;

/// To be called before there is another thread: the umask belongs to all of them.
pub fn harden() -> Result<(), DaemonError> {
    // No core dump, no ptrace by the same user, /proc/<pid> is root's. A process that is executed from here starts anew.
    set_dumpable(false).map_err(|errno| DaemonError::Harden(errno.into()))?;
    super::memory::give_large_pieces_back();
    // sled asks for no mode of its own.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    Ok(())
}
