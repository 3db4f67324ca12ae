//! Storage backends that open the file of a durable store.
//!
//! [`Held`]: keeps redb's writes in memory (a header and a few pages) until [`Release::release`]. Reads include them.
//! So a file that is refused at open stays unchanged, byte by byte. An accepted file gets the same writes and syncs in
//! the same order, which is all that redb's safety in a power cut depends on.
//!
//! [`Look`]: a read-only file, opened with flags that replace those in its header.
//!
//! Both need the header first ([`Header`]). One byte of it selects the current of redb's two roots, and no checksum
//! covers that byte. A flipped bit in it would bring back the commit before the last one. So if the other root is
//! newer, the flags ask redb, as after one-phase commits, for the newest root whose pages all verify.
//!
//! The other root is also newer after a crash, even one during the open of a cleanly closed file. redb commits before
//! it marks the file as open. That commit was never acknowledged. It is taken as a whole or not at all.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{BackendError, StorageBackend};

/// Offsets in redb's file format 3.
mod place {
    pub const HEADER: usize = 320;
    pub const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
    pub const FLAGS: usize = 9;
    pub const TRANSACTION_IDS: [usize; 2] = [64 + 104, 64 + 128 + 104];
}

const PRIMARY: u8 = 1;
const RECOVERY_REQUIRED: u8 = 2;
const TWO_PHASE: u8 = 4;

/// The fields of redb's file header that select a root.
pub(super) struct Header {
    flags: u8,
    transactions: [u64; 2],
}

impl Header {
    /// Parses the header that `read` reads from the start of a file. `None`: not a redb header; redb then reports the
    /// error.
    pub(super) fn read(read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Option<Self>> {
        let mut bytes = [0; place::HEADER];
        match read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        if !bytes.starts_with(place::MAGIC) {
            return Ok(None);
        }
        let transactions = place::TRANSACTION_IDS.map(|at| {
            let mut id = [0; size_of::<u64>()];
            id.copy_from_slice(&bytes[at..at + size_of::<u64>()]);
            u64::from_le_bytes(id)
        });
        Ok(Some(Self { flags: bytes[place::FLAGS], transactions }))
    }

    fn other_is_newer(&self) -> bool {
        let primary = usize::from(self.flags & PRIMARY != 0);
        self.transactions[primary] < self.transactions[1 - primary]
    }

    /// The flags to open the file with.
    pub(super) fn flags(&self) -> u8 {
        if self.other_is_newer() { self.flags & !TWO_PHASE } else { self.flags }
    }

    /// The flags that select each root, the newer one first, without requesting a repair.
    pub(super) fn flags_of_roots(&self) -> [u8; 2] {
        let newer = u8::from(self.transactions[1] > self.transactions[0]);
        [newer, 1 - newer].map(|root| (self.flags & !(PRIMARY | RECOVERY_REQUIRED)) | TWO_PHASE | root)
    }
}

/// Replaces the flags byte in what was read.
fn patch(offset: u64, out: &mut [u8], flags: u8) {
    let at = (place::FLAGS as u64).checked_sub(offset).and_then(|at| usize::try_from(at).ok());
    if let Some(byte) = at.and_then(|at| out.get_mut(at)) {
        *byte = flags;
    }
}

#[derive(Debug)]
enum Call {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

#[derive(Debug)]
struct Inner {
    file: Box<dyn StorageBackend>,
    /// Replacement flags, until the header is rewritten.
    flags: Option<u8>,
    is_held: AtomicBool,
    calls: Mutex<Vec<Call>>,
}

#[derive(Debug)]
pub(super) struct Held(Arc<Inner>);

/// Writes the held calls to the file.
pub(super) struct Release(Arc<Inner>);

impl Held {
    pub(super) fn new(file: impl StorageBackend, flags: Option<u8>) -> (Self, Release) {
        let inner = Inner { file: Box::new(file), flags, is_held: AtomicBool::new(true), calls: Mutex::default() };
        let inner = Arc::new(inner);
        (Self(Arc::clone(&inner)), Release(inner))
    }
}

impl Release {
    pub(super) fn release(self) -> io::Result<()> {
        let mut calls = self.0.calls();
        for call in calls.drain(..) {
            match call {
                Call::Write(offset, data) => self.0.file.write(offset, &data)?,
                Call::SetLen(len) => self.0.file.set_len(len)?,
                Call::Sync => self.0.file.sync_data()?,
            }
        }
        self.0.is_held.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Inner {
    fn calls(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `true`: the call was recorded and must not be executed now.
    fn hold(&self, call: impl FnOnce() -> Call) -> bool {
        if !self.is_held.load(Ordering::SeqCst) {
            return false;
        }
        let mut calls = self.calls();
        let is_held = self.is_held.load(Ordering::SeqCst);
        if is_held {
            calls.push(call());
        }
        is_held
    }

    fn len(&self, calls: &[Call]) -> io::Result<u64> {
        let set = calls.iter().rev().find_map(|call| if let Call::SetLen(len) = call { Some(*len) } else { None });
        set.map_or_else(|| self.file.len(), Ok)
    }

    fn read_held(&self, calls: &[Call], offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.len(calls)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Bytes that were cut off read as zeros after the file grows again.
        let shortest =
            calls.iter().filter_map(|call| if let Call::SetLen(len) = call { Some(*len) } else { None }).min();
        let there = self.file.len()?.min(shortest.unwrap_or(u64::MAX)).saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        let (old, new) = out.split_at_mut(there);
        if !old.is_empty() {
            self.file.read(offset, old)?;
        }
        new.fill(0);
        if let Some(flags) = self.flags {
            patch(offset, out, flags);
        }
        for call in calls {
            let Call::Write(at, data) = call else { continue };
            let (from, to) = (offset.max(*at), end.min(at + data.len() as u64));
            if from < to {
                let place = |at: u64, of: u64| usize::try_from(at - of).unwrap_or(usize::MAX);
                out[place(from, offset)..place(to, offset)].copy_from_slice(&data[place(from, *at)..place(to, *at)]);
            }
        }
        Ok(())
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        if self.0.is_held.load(Ordering::SeqCst) { self.0.len(&self.0.calls()) } else { self.0.file.len() }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.0.is_held.load(Ordering::SeqCst) {
            return self.0.read_held(&self.0.calls(), offset, out);
        }
        self.0.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.0.hold(|| Call::SetLen(len)) { Ok(()) } else { self.0.file.set_len(len) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.hold(|| Call::Sync) { Ok(()) } else { self.0.file.sync_data() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.0.hold(|| Call::Write(offset, data.to_vec())) { Ok(()) } else { self.0.file.write(offset, data) }
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

/// Reads the file only. redb's locks are not needed: the directory is locked.
#[derive(Debug)]
pub(super) struct Look {
    pub file: File,
    pub flags: u8,
}

impl StorageBackend for Look {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)?;
        patch(offset, out, self.flags);
        Ok(())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    /// No other process writes to the file, whichever lock scheme its redb uses.
    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
