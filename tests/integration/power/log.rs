//! Reads the recorder's log. record_disk.c describes the format.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use crate::support::record_disk::HEADER;

/// Inode of a file or directory on the recorded file system.
pub type Inode = u64;

pub struct Log {
    pub bytes: Vec<u8>,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub enum Event {
    Create {
        file: Inode,
        place: Place,
        mode: u32,
        is_directory: bool,
    },
    Write {
        file: Inode,
        offset: usize,
        data: Range<usize>,
    },
    Length {
        file: Inode,
        length: usize,
    },
    /// Extends the file to this length unless it is longer.
    Extend {
        file: Inode,
        length: usize,
    },
    Mode {
        file: Inode,
        mode: u32,
    },
    /// `file` is `None` for syncfs.
    SyncBegin {
        file: Option<Inode>,
        number: u64,
    },
    SyncEnd {
        number: u64,
        done: bool,
    },
    Link {
        file: Inode,
        place: Place,
    },
    Unlink {
        place: Place,
    },
    Rename {
        file: Inode,
        from: Place,
        to: Place,
    },
    Mark(String),
}

#[derive(Clone, Debug)]
pub struct Place {
    pub directory: Inode,
    pub name: String,
}

impl Log {
    pub fn read(path: &Path) -> Self {
        Self::parse(std::fs::read(path).unwrap())
    }

    pub fn parse(bytes: Vec<u8>) -> Self {
        let mut events = Vec::new();
        let mut at = 0;
        // The kill of the process may cut off the last record.
        while let Some(length) = whole_record(&bytes[at..]) {
            events.push(Event::read(&bytes, at..at + length));
            at += length;
        }
        Self { bytes, events }
    }

    pub fn marks(&self) -> impl Iterator<Item = (usize, &str)> {
        self.events.iter().enumerate().filter_map(|(position, event)| match event {
            Event::Mark(text) => Some((position, text.as_str())),
            _ => None,
        })
    }

    /// Positions of the marks `WORD N` by N.
    pub fn numbered(&self, word: &str) -> HashMap<usize, usize> {
        let numbered = self.marks().filter_map(|(position, text)| {
            let number = text.strip_prefix(word)?.strip_prefix(' ')?;
            Some((number.parse().unwrap(), position))
        });
        numbered.collect()
    }

    /// Inodes by path at the beginning of the log; the root is "".
    pub fn inodes(&self) -> BTreeMap<String, Inode> {
        let known = self.marks().filter_map(|(_, text)| {
            let (inode, path) = text.strip_prefix("inode ")?.split_once(' ')?;
            Some((path.to_owned(), inode.parse().unwrap()))
        });
        known.collect()
    }

    /// Position of this mark.
    pub fn position_of(&self, wanted: &str) -> Option<usize> {
        self.marks().find(|(_, text)| *text == wanted).map(|(position, _)| position)
    }
}

fn whole_record(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    (length >= HEADER && length <= bytes.len()).then_some(length)
}

impl Event {
    fn read(bytes: &[u8], record: Range<usize>) -> Self {
        let number = |at: usize| {
            let at = record.start + at;
            u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        let kind = u32::from_ne_bytes(bytes[record.start + 4..record.start + 8].try_into().unwrap());
        let (file, first, second) = (number(8), number(16), number(24));
        let data = record.start + HEADER..record.end;
        let text = || String::from_utf8(bytes[data.clone()].to_vec()).unwrap();
        let place = || Place { directory: first, name: text() };
        match kind {
            1 | 2 => Self::Create { file, place: place(), mode: second as u32, is_directory: kind == 2 },
            3 => Self::Write { file, offset: first as usize, data },
            4 => Self::Length { file, length: first as usize },
            5 => Self::Extend { file, length: first as usize },
            6 => Self::Mode { file, mode: first as u32 },
            7 => Self::SyncBegin { file: (file != 0).then_some(file), number: first },
            8 => Self::SyncEnd { number: first, done: second == 0 },
            9 => Self::Link { file, place: place() },
            10 => Self::Unlink { place: place() },
            11 => {
                let names = text();
                let (from, to) = names.split_once('/').unwrap();
                Self::Rename {
                    file,
                    from: Place { directory: first, name: from.into() },
                    to: Place { directory: second, name: to.into() },
                }
            }
            12 => Self::Mark(text()),
            13 => panic!("the recorder cannot follow the daemon: {}", text()),
            other => panic!("a record of kind {other}"),
        }
    }
}
