//! The protocol between the daemon and a sandbox.
//!
//! From the daemon: the plan once, after its length; then single bytes ([`GO`], [`END`]). From the sandbox: frames of a
//! kind, a length and a body. The sandbox's end does not allocate.

use super::{Ending, SandboxPart};

/// Lets the program run.
pub const GO: u8 = b'g';
/// Ends the sandbox, as if its time were up.
pub const END: u8 = b'e';

/// The largest plan, in bytes.
pub const LARGEST_PLAN: usize = 4 << 20;
/// The largest watched file that is reported, in bytes.
pub const LARGEST_WATCHED: usize = 1 << 20;
/// The largest body of a frame, in bytes.
pub const LARGEST_BODY: usize = LARGEST_WATCHED;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Carries the listening socket.
    Built = 1,
    Failed = 2,
    Watched = 3,
    Ended = 4,
}

pub const HEADER: usize = 5;

pub fn header(kind: FrameKind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// `None` if the header is invalid.
pub fn read_header([kind, a, b, c, d]: [u8; HEADER]) -> Option<(FrameKind, usize)> {
    let kind = [FrameKind::Built, FrameKind::Failed, FrameKind::Watched, FrameKind::Ended]
        .into_iter()
        .find(|known| *known as u8 == kind)?;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    (length <= LARGEST_BODY).then_some((kind, length))
}

/// The start of the body of `Failed`; the message follows.
pub fn failed(part: SandboxPart, errno: i32) -> [u8; 5] {
    let [a, b, c, d] = errno.to_le_bytes();
    [part as u8, a, b, c, d]
}

/// Returns the part, the error number, and the message.
pub fn read_failed(body: &[u8]) -> Option<(SandboxPart, i32, String)> {
    let (start, words) = body.split_first_chunk::<5>()?;
    let [part, a, b, c, d] = *start;
    let part = SandboxPart::ALL.into_iter().find(|known| *known as u8 == part)?;
    Some((part, i32::from_le_bytes([a, b, c, d]), String::from_utf8_lossy(words).into_owned()))
}

pub fn ended(ending: Ending) -> [u8; 5] {
    let (kind, number) = match ending {
        Ending::Exited(code) => (0, code),
        Ending::Killed(signal) => (1, signal),
        Ending::OutOfTime => (2, 0),
    };
    let [a, b, c, d] = number.to_le_bytes();
    [kind, a, b, c, d]
}

pub fn read_ended(body: &[u8]) -> Option<Ending> {
    let [kind, a, b, c, d] = *body.first_chunk::<5>()?;
    let number = i32::from_le_bytes([a, b, c, d]);
    match kind {
        0 => Some(Ending::Exited(number)),
        1 => Some(Ending::Killed(number)),
        2 => Some(Ending::OutOfTime),
        _ => None,
    }
}
