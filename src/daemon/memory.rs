//! What is asked of the allocator: that large pieces go back to the system when they are freed, and after a start all
//! that is free.
//!
//! A password is hashed in 19 MiB. Once glibc has seen one such piece freed, it takes the next ones from a heap that it
//! keeps, one for each of up to sixteen threads: hundreds of megabytes after an hour of sign-ins. A threshold that was set
//! stays where it is.
#![allow(unsafe_code)]

/// Pieces of this size and larger are the system's own. Documents, pages and what sled asks for are smaller.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 4 * 1024 * 1024;
/// As much may stay free at the end of the heap: setting the one threshold sets this one back to 128 KiB.
#[cfg(target_env = "gnu")]
const SPARE: i32 = 8 * 1024 * 1024;

/// To be called before there is another thread. Where it is refused all works as before, with more memory.
pub fn give_large_pieces_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers are handed over; the call touches nothing of ours.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE);
    }
}

/// What a start has used and freed goes back at once; a daemon may idle for days.
pub fn give_all_that_is_free_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator returns pages that hold nothing of anybody's; it takes its own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
