//! Cuts the power at any moment of a store's life, on a disk in memory.
//!
//! The disk records every write, change of length and sync in order. A cut keeps everything before the last sync. Of
//! what came after, it keeps any part: each sector of 512 bytes of each write, and each change of length,
//! independently. On every such disk the store must open and hold all acknowledged commits. A commit in progress must
//! be there completely or not at all. The same must hold after a second cut during that opening.
//!
//! `AUTHD_POWER_CUTS` sets the number of cuts, `AUTHD_POWER_SEED` repeats a run.

use std::collections::BTreeMap;

use ::redb::StorageBackend;

use super::*;
use crate::durable::redb::Redb;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Event {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
    Synced,
}

#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    bytes: Vec<u8>,
    events: Vec<Event>,
}

impl Recorder {
    /// A disk with these bytes and no recorded events.
    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Recorded { bytes, events: Vec::new() })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recorded> {
        self.0.lock().unwrap()
    }

    fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> std::result::Result<u64, std::io::Error> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::result::Result<(), std::io::Error> {
        let disk = self.lock();
        let at = offset as usize;
        let there = disk.bytes.get(at..at + out.len());
        out.copy_from_slice(there.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::result::Result<(), std::io::Error> {
        let mut disk = self.lock();
        disk.bytes.resize(len as usize, 0);
        disk.events.push(Event::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> std::result::Result<(), std::io::Error> {
        self.lock().events.push(Event::Synced);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::result::Result<(), std::io::Error> {
        let mut disk = self.lock();
        let event = Event::Write { at: offset as usize, bytes: data.to_vec() };
        apply(&mut disk.bytes, &event, |_| true);
        disk.events.push(event);
        Ok(())
    }
}

/// `reaches` decides for each sector of a write whether it reaches the disk.
fn apply(disk: &mut Vec<u8>, event: &Event, mut reaches: impl FnMut(usize) -> bool) {
    match event {
        Event::Write { at, bytes } => {
            let end = at + bytes.len();
            let mut from = *at;
            while from < end {
                let to = end.min((from / SECTOR + 1) * SECTOR);
                if reaches(from / SECTOR) {
                    if disk.len() < to {
                        disk.resize(to, 0);
                    }
                    disk[from..to].copy_from_slice(&bytes[from - at..to - at]);
                }
                from = to;
            }
        }
        Event::Length(length) => disk.resize(*length, 0),
        Event::Synced => {}
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// What a cut after the first `cut` events leaves on a disk that held `before`.
fn left(before: &[u8], events: &[Event], cut: usize, random: &mut Random) -> Vec<u8> {
    let synced = events[..cut].iter().rposition(|event| matches!(event, Event::Synced)).map_or(0, |at| at + 1);
    let mut disk = before.to_vec();
    events[..synced].iter().for_each(|event| apply(&mut disk, event, |_| true));
    // Some cuts keep nearly everything, others nearly nothing.
    let eighths = random.below(9);
    for event in &events[synced..cut] {
        match event {
            Event::Length(_) if random.below(8) >= eighths => {}
            event => apply(&mut disk, event, |_| random.below(8) < eighths),
        }
    }
    disk
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// The rows after each commit, and the number of events when it was acknowledged.
struct Life {
    events: Vec<Event>,
    acknowledged: Vec<(usize, Model)>,
}

fn live(random: &mut Random) -> Life {
    let recorder = Recorder::default();
    let mut disk = Redb::on(recorder.clone(), NAME).unwrap();
    // The file gets its name only now: a cut before this point leaves no file.
    let begun = recorder.events().len();
    let mut model = Model::new();
    let mut acknowledged = vec![(begun, model.clone())];
    for round in 0..60u32 {
        let mut rows = Layer::new();
        for _ in 0..1 + random.below(12) {
            let key = format!("row/{}", random.below(150)).into_bytes();
            if random.below(4) == 0 {
                rows.insert(key, None);
            } else {
                let length = if random.below(20) == 0 { 20_000 } else { random.below(600) };
                rows.insert(key, Some(Bytes::from(vec![round as u8; length])));
            }
        }
        disk.commit(&rows).unwrap();
        for (key, value) in rows {
            match value {
                Some(value) => drop(model.insert(key, value.to_vec())),
                None => drop(model.remove(&key)),
            }
        }
        acknowledged.push((recorder.events().len(), model.clone()));
    }
    drop(disk);
    Life { events: recorder.events(), acknowledged }
}

/// Opens the disk that a cut left. Returns its rows, and the events of this opening.
fn opened(bytes: Vec<u8>) -> (std::result::Result<Model, DiskError>, Vec<Event>) {
    let recorder = Recorder::holding(bytes);
    let rows = Redb::on(recorder.clone(), NAME).and_then(|mut disk| {
        let view = disk.commit(&Layer::new())?;
        view.range(b"", None)?.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    });
    (rows, recorder.events())
}

#[test]
fn what_was_committed_survives_a_power_cut_at_any_moment() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let cuts: usize = number("AUTHD_POWER_CUTS").map_or(400, |cuts: u64| cuts as usize);
    let seed = number("AUTHD_POWER_SEED").unwrap_or_else(|| std::process::id().into());
    println!("AUTHD_POWER_SEED={seed} AUTHD_POWER_CUTS={cuts}");
    let mut random = Random(seed);
    let life = live(&mut random);
    let (mut under_way, mut second) = (0, 0);
    for number in 0..cuts {
        let cut = life.acknowledged[0].0 + random.below(life.events.len() - life.acknowledged[0].0 + 1);
        let last = life.acknowledged.iter().rposition(|(events, _)| *events <= cut).unwrap();
        let may_be = &life.acknowledged[last..(last + 2).min(life.acknowledged.len())];
        let is_one = |rows: &Model| may_be.iter().position(|(_, model)| model == rows);
        let disk = left(&[], &life.events, cut, &mut random);
        let (rows, repair) = opened(disk.clone());
        let rows = rows.unwrap_or_else(|error| panic!("cut {number} after {cut} events: {error:?}"));
        let which = is_one(&rows).unwrap_or_else(|| panic!("cut {number} after {cut} events: lost or torn"));
        under_way += which;
        if number % 4 == 0 {
            second += 1;
            let again = random.below(repair.len() + 1);
            let (rows, _) = opened(left(&disk, &repair, again, &mut random));
            let rows = rows.unwrap_or_else(|error| panic!("second cut of {number}: {error:?}"));
            assert!(is_one(&rows).is_some(), "second cut of {number} after {cut} events: lost or torn");
        }
    }
    println!("{cuts} cuts, {second} of them twice; {under_way} kept a commit that was not acknowledged");
    assert!(under_way > 0, "no cut came between a commit and its acknowledgement");
}
