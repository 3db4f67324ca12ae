//! Chooses which pending writes of a file reached the disk.

use super::disk::{Node, Step};
use crate::support::random::Random;

/// Which writes of one file land.
enum Landing {
    /// No pending write.
    Nothing,
    Everything,
    /// Each sector of each write with this probability.
    Sectors(f64),
    /// Each write as a whole with this probability.
    Writes(f64),
    /// The writes from this one on, without the earlier ones.
    Later(usize),
    /// The writes before this one, and some sectors of this one.
    Earlier(usize),
    /// Only this write.
    Only(usize),
    /// All writes except this one.
    AllBut(usize),
}

impl Landing {
    /// `reuses`: writes that overwrite certain data out of sequence. A store that reuses space too early fails when such
    /// a write lands without the writes before it, so this is chosen more often.
    fn choose(writes: usize, reuses: &[usize], random: &mut Random) -> Self {
        if !reuses.is_empty() && random.flips(0.4) {
            let reuse = reuses[random.index(reuses.len())];
            return match random.below(3) {
                0 => Self::Only(reuse),
                1 => Self::AllBut(reuse.saturating_sub(1)),
                _ => Self::Later(reuse),
            };
        }
        match random.below(15) {
            0 | 1 => Self::Nothing,
            2 => Self::Everything,
            3 | 4 => Self::Sectors(0.5),
            5 => Self::Sectors(0.9),
            6 => Self::Writes(0.5),
            7 => Self::Writes(0.9),
            8 | 9 => Self::Later(random.index(writes)),
            10 => Self::Only(random.index(writes)),
            11 | 12 => Self::AllBut(random.index(writes)),
            _ => Self::Earlier(random.index(writes)),
        }
    }
}

/// The data of the file after a power cut. A sector lands with its whole content at that moment, because a page cache
/// writes whole sectors.
pub(super) fn land(node: &Node, log: &[u8], sector: usize, random: &mut Random) -> Vec<u8> {
    let mut disk = node.certain.clone();
    if node.pending.is_empty() {
        return disk;
    }
    let mut cache = node.certain.clone();
    let writes = node.pending.len();
    let landing = Landing::choose(writes, &reuses(node), random);
    let lengths = match landing {
        Landing::Everything => usize::MAX,
        Landing::Nothing => 0,
        _ => [0, random.index(writes + 1), usize::MAX][random.index(3)],
    };
    // Data at this offset and beyond needs a change of length that did not land.
    let mut unreached = usize::MAX;
    for (index, (_, step)) in node.pending.iter().enumerate() {
        step.apply(&mut cache, log);
        let Step::Write { offset, data } = step else {
            if index < lengths && unreached == usize::MAX {
                step.apply(&mut disk, log);
            } else {
                unreached = unreached.min(cache.len()).min(disk.len());
            }
            continue;
        };
        let whole = match landing {
            Landing::Writes(share) => random.flips(share),
            Landing::Later(first) => index >= first,
            Landing::Earlier(last) => index < last,
            Landing::Only(one) => index == one,
            Landing::AllBut(one) => index != one,
            Landing::Everything => true,
            Landing::Nothing | Landing::Sectors(_) => false,
        };
        let torn = match landing {
            Landing::Sectors(share) => share,
            Landing::Earlier(last) if index == last => 0.5,
            _ => 0.0,
        };
        for start in (offset / sector * sector..offset + data.len()).step_by(sector) {
            if !whole && !random.flips(torn) {
                continue;
            }
            let end = (start + sector).min(cache.len()).min(unreached);
            if start >= end {
                continue;
            }
            if disk.len() < end {
                disk.resize(end, 0);
            }
            disk[start..end].copy_from_slice(&cache[start..end]);
        }
    }
    disk
}

fn reuses(node: &Node) -> Vec<usize> {
    let mut last_end = 0;
    let mut reuses = Vec::new();
    for (index, (_, step)) in node.pending.iter().enumerate() {
        let Step::Write { offset, data } = step else { continue };
        if index > 0 && *offset != last_end && *offset < node.certain.len() {
            reuses.push(index);
        }
        last_end = offset + data.len();
    }
    reuses
}
