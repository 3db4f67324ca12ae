//! What Rust's library does not offer safely: the calls that need `unsafe`, and the clock.

#![allow(unsafe_code)]

use nix::libc;
use nix::sys::signal::Signal;

/// A static program must not load modules of the machine's C library. Names are looked up by what is linked in: the
/// files, and DNS. Must be called before the first lookup, while there is one thread.
pub fn use_built_in_name_services() {
    #[cfg(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
    {
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
        }
        for (database, services) in [(c"hosts", c"files dns"), (c"passwd", c"files")] {
            // SAFETY: both strings end with NUL and live for the whole program; no other thread runs yet.
            unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
        }
    }
}

/// Whether this program was started with the signal ignored, as `nohup` does.
pub fn is_ignored(signal: Signal) -> bool {
    let mut present = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one, to memory of its size; all zeros are valid too.
    let present = unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), present.as_mut_ptr());
        present.assume_init()
    };
    present.sa_sigaction == libc::SIG_IGN
}

/// Waits for a file to be readable.
#[cfg(target_os = "linux")]
pub fn readiness(file: std::os::fd::OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, as long as its owner, which is moved in.
    unsafe { tokio::io::unix::AsyncFd::register(file) }.map_err(Into::into)
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
