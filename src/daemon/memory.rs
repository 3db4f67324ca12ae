//! Settings of the allocator: large blocks go back to the system when they are freed, and after a start all free memory
//! does.
//!
//! Hashing a password needs 19 MiB. After the first such block is freed, glibc takes the next ones from a heap that it
//! keeps, for each of up to sixteen threads. That is hundreds of megabytes after an hour of sign-ins. A threshold that
//! is set explicitly does not adapt.
#![allow(unsafe_code)]

/// Blocks of this size and larger are mapped separately. Documents, pages and sled's blocks are smaller.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 4 * 1024 * 1024;
/// How much may stay free at the end of the heap. It must be set: setting the other threshold resets this one to 128
/// KiB.
#[cfg(target_env = "gnu")]
const SPARE: i32 = 8 * 1024 * 1024;

/// Must be called before another thread starts. If it fails, the process only uses more memory.
pub fn give_large_pieces_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the calls take two numbers and touch no memory of ours.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE);
    }
}

/// Returns the memory that the start used and freed: a daemon may then be idle for days.
pub fn give_all_that_is_free_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator returns unused pages only, and takes its own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
