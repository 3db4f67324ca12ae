//! What is said over the socket between the daemon and a sandbox.
//!
//! Down: the plan, once, behind its length; then single bytes ([`GO`], [`END`]). Up: frames of a length, a kind and
//! what goes with it. The sandbox's end is written without allocating.

use super::{Ending, Part};

/// Lets the program run.
pub const GO: u8 = b'g';
/// As if its time were up.
pub const END: u8 = b'e';

/// The most that a plan may take.
pub const LARGEST_PLAN: usize = 4 << 20;
/// The most of what is watched that is told.
pub const LARGEST_WATCHED: usize = 1 << 20;
/// The most that a frame's body takes.
pub const LARGEST_BODY: usize = LARGEST_WATCHED;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// With the listening socket.
    Built = 1,
    Failed = 2,
    Watched = 3,
    Ended = 4,
}

pub const HEADER: usize = 5;

pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// `None` if it is none.
pub fn read_header([kind, a, b, c, d]: [u8; HEADER]) -> Option<(Kind, usize)> {
    let kind =
        [Kind::Built, Kind::Failed, Kind::Watched, Kind::Ended].into_iter().find(|known| *known as u8 == kind)?;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    (length <= LARGEST_BODY).then_some((kind, length))
}

/// What stands before the words in a `Failed`.
pub fn failed(part: Part, errno: i32) -> [u8; 5] {
    let [a, b, c, d] = errno.to_le_bytes();
    [part as u8, a, b, c, d]
}

/// The part, the number of the error, and the words.
pub fn read_failed(body: &[u8]) -> Option<(Part, i32, String)> {
    let (start, words) = body.split_first_chunk::<5>()?;
    let [part, a, b, c, d] = *start;
    let part = Part::ALL.into_iter().find(|known| *known as u8 == part)?;
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
