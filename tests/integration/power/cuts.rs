//! Chooses cut positions: anywhere in the log, but more often where a store is most likely to fail.

use std::collections::HashMap;

use super::log::{Event, Log};
use crate::support::random::Random;

pub struct Cuts {
    answered: Vec<usize>,
    in_syncs: Vec<(usize, usize)>,
    names: Vec<usize>,
    /// Reused space: a write overwrites synced data while earlier writes are not synced yet. From that write to the sync
    /// that covers it.
    reused: Vec<(usize, usize)>,
    /// End of the boot.
    listening: usize,
    end: usize,
}

/// The writes of one file.
#[derive(Default)]
struct Writes {
    /// Offset behind the last write.
    last_end: usize,
    longest: usize,
    /// Length at the last sync.
    certain: usize,
    /// Positions of the writes that no sync covers.
    pending: Vec<usize>,
    reused: Vec<usize>,
}

impl Cuts {
    pub fn of(log: &Log) -> Self {
        let mut cuts = Self {
            answered: Vec::new(),
            in_syncs: Vec::new(),
            names: Vec::new(),
            reused: Vec::new(),
            listening: log.position_of("listening").unwrap_or(log.events.len()),
            end: log.events.len(),
        };
        let mut begun = HashMap::new();
        let mut writes: HashMap<_, Writes> = HashMap::new();
        for (position, event) in log.events.iter().enumerate() {
            match event {
                Event::Mark(text) if text.starts_with("answered ") => cuts.answered.push(position),
                Event::Mark(_) | Event::Length { .. } | Event::Extend { .. } | Event::Mode { .. } => {}
                Event::SyncBegin { number, file } => drop(begun.insert(*number, (position, *file))),
                Event::SyncEnd { number, .. } => {
                    let (begin, file) = begun[number];
                    cuts.in_syncs.push((begin, position));
                    if let Some(file) = file.and_then(|file| writes.get_mut(&file)) {
                        file.certain = file.longest;
                        file.pending.retain(|write| *write > begin);
                        let reused = file.reused.extract_if(.., |write| *write < begin);
                        cuts.reused.extend(reused.map(|write| (write, position)));
                    }
                }
                Event::Create { .. } | Event::Link { .. } | Event::Unlink { .. } | Event::Rename { .. } => {
                    cuts.names.push(position);
                }
                Event::Write { file, offset, data } => {
                    let file = writes.entry(*file).or_default();
                    if *offset < file.certain && *offset != file.last_end && !file.pending.is_empty() {
                        file.reused.push(position);
                    }
                    file.pending.push(position);
                    file.last_end = offset + data.len();
                    file.longest = file.longest.max(file.last_end);
                }
            }
        }
        cuts
    }

    /// Returns how many events happened before the cut.
    pub fn choose(&self, random: &mut Random) -> usize {
        let anywhere = random.index(self.end + 1);
        let kind = random.below(10);
        let chosen = match kind {
            0..=2 => near(&self.answered, 3, random),
            3 => near(&self.names, 8, random),
            4 => Some(random.index(self.listening + 1)),
            5 | 6 => within(&self.in_syncs, random),
            7 | 8 => within(&self.reused, random),
            _ => None,
        };
        chosen.unwrap_or(anywhere).min(self.end)
    }
}

fn near(places: &[usize], distance: usize, random: &mut Random) -> Option<usize> {
    let place = places.get(random.index(places.len().max(1)))?;
    Some(place + 1 + random.index(distance))
}

fn within(ranges: &[(usize, usize)], random: &mut Random) -> Option<usize> {
    let (first, last) = ranges.get(random.index(ranges.len().max(1)))?;
    Some(first + 1 + random.index(last - first))
}
