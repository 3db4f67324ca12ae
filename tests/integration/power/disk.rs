//! Model of a disk: follows a log and builds the states that a power cut may leave.
//!
//! A change is *certain* when a sync that began after it has returned success. The sync of a file covers its data and
//! length; the sync of a directory covers its entries. Everything else is *pending*. After a power cut
//!
//! - each sector of a file has one of the contents that it had since the last sync, independent of other sectors;
//! - a prefix of the file's changes of length has happened, and data beyond a lost change of length is lost too;
//! - a prefix of each directory's changes has happened. A rename between two directories happened in both or in neither.
//!
//! This is stricter than POSIX and matches journaled file systems (ext4, XFS). A rename does not wait for the data of
//! the file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::landing;
use super::log::{Event, Inode, Log, Place};
use super::tree::{Content, Tree};
use crate::support::random::Random;

type Number = usize;

pub struct Disk {
    log: Arc<Log>,
    root: Number,
    nodes: Vec<Node>,
    by_inode: HashMap<Inode, Number>,
    /// Pending changes of directories.
    changes: Vec<Change>,
    /// Syncs that have begun: their node and position.
    syncs: HashMap<u64, (Option<Number>, usize)>,
    /// Number of events followed so far.
    pub position: usize,
}

#[derive(Default)]
pub(super) struct Node {
    pub is_directory: bool,
    /// A change of mode is applied at once.
    mode: u32,
    /// Directories: the certain entries.
    entries: BTreeMap<String, Number>,
    /// Files: the certain data.
    pub certain: Vec<u8>,
    /// Files: pending steps with their positions.
    pub pending: Vec<(usize, Step)>,
}

#[derive(Clone)]
pub(super) enum Step {
    /// `data` is a range of the log.
    Write {
        offset: usize,
        data: std::ops::Range<usize>,
    },
    Length(usize),
    Extend(usize),
}

/// An atomic change of one or two directories.
struct Change {
    position: usize,
    removed: Option<(Number, String)>,
    added: Option<(Number, String, Number)>,
}

impl Change {
    fn directories(&self) -> impl Iterator<Item = Number> {
        let removed = self.removed.as_ref().map(|(directory, _)| *directory);
        removed.into_iter().chain(self.added.as_ref().map(|(directory, _, _)| *directory))
    }

    fn apply(self, entries: &mut impl FnMut(Number, String, Option<Number>)) {
        if let Some((directory, name)) = self.removed {
            entries(directory, name, None);
        }
        if let Some((directory, name, node)) = self.added {
            entries(directory, name, Some(node));
        }
    }

    fn copy(&self) -> Self {
        Self { position: self.position, removed: self.removed.clone(), added: self.added.clone() }
    }
}

impl Disk {
    /// A disk that holds `tree`, all of it certain. `inodes` maps the paths of `tree` to the inodes in the log.
    pub fn new(log: Arc<Log>, tree: &Tree, inodes: &BTreeMap<String, Inode>) -> Self {
        let mut disk = Self {
            log,
            root: 0,
            nodes: Vec::new(),
            by_inode: HashMap::new(),
            changes: Vec::new(),
            syncs: HashMap::new(),
            position: 0,
        };
        let mut numbers: BTreeMap<&str, Number> = BTreeMap::new();
        for (path, (mode, content)) in &tree.nodes {
            let inode = inodes[path];
            // A file may have two names.
            let number = disk.by_inode.get(&inode).copied().unwrap_or_else(|| {
                let certain = content.bytes().map(<[u8]>::to_vec).unwrap_or_default();
                let is_directory = content.bytes().is_none();
                disk.nodes.push(Node { is_directory, mode: *mode, certain, ..Node::default() });
                disk.nodes.len() - 1
            });
            disk.by_inode.insert(inode, number);
            numbers.insert(path, number);
            if !path.is_empty() {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                disk.nodes[numbers[parent]].entries.insert(name.into(), number);
            }
        }
        disk.root = numbers[""];
        disk
    }

    /// Follows the log up to `position`.
    pub fn follow(&mut self, position: usize) {
        let log = Arc::clone(&self.log);
        for event in &log.events[self.position..position] {
            self.step(event);
            self.position += 1;
        }
    }

    fn node(&self, file: Inode) -> Number {
        *self.by_inode.get(&file).unwrap_or_else(|| panic!("event {}: inode {file} is unknown", self.position))
    }

    fn step(&mut self, event: &Event) {
        let position = self.position;
        match event {
            Event::Create { file, place, mode, is_directory } => {
                self.nodes.push(Node { is_directory: *is_directory, mode: *mode, ..Node::default() });
                self.by_inode.insert(*file, self.nodes.len() - 1);
                self.change(None, Some((place, *file)));
            }
            Event::Link { file, place } => self.change(None, Some((place, *file))),
            Event::Unlink { place } => self.change(Some(place), None),
            Event::Rename { file, from, to } => self.change(Some(from), Some((to, *file))),
            Event::Write { file, offset, data } => {
                self.pend(*file, Step::Write { offset: *offset, data: data.clone() });
            }
            Event::Length { file, length } => self.pend(*file, Step::Length(*length)),
            Event::Extend { file, length } => self.pend(*file, Step::Extend(*length)),
            Event::Mode { file, mode } => {
                let node = self.node(*file);
                self.nodes[node].mode = *mode;
            }
            Event::SyncBegin { file, number } => {
                let node = file.map(|file| self.node(file));
                self.syncs.insert(*number, (node, position));
            }
            Event::SyncEnd { number, done } => {
                let (node, begun) = self.syncs.remove(number).unwrap();
                match node {
                    _ if !done => {}
                    Some(node) => self.make_certain(node, begun),
                    None => (0..self.nodes.len()).for_each(|node| self.make_certain(node, begun)),
                }
            }
            Event::Mark(_) => {}
        }
    }

    fn pend(&mut self, file: Inode, step: Step) {
        let node = self.node(file);
        self.nodes[node].pending.push((self.position, step));
    }

    fn change(&mut self, removed: Option<&Place>, added: Option<(&Place, Inode)>) {
        let removed = removed.map(|place| (self.node(place.directory), place.name.clone()));
        let added = added.map(|(place, file)| (self.node(place.directory), place.name.clone(), self.node(file)));
        self.changes.push(Change { position: self.position, removed, added });
    }

    fn make_certain(&mut self, number: Number, begun: usize) {
        let node = &mut self.nodes[number];
        if !node.is_directory {
            let certain = node.pending.partition_point(|(position, _)| *position < begun);
            for (_, step) in node.pending.drain(..certain) {
                step.apply(&mut node.certain, &self.log.bytes);
            }
            return;
        }
        // A change of two directories makes the earlier changes of the second directory certain as well.
        let mut before = HashMap::from([(number, begun)]);
        let mut certain = vec![false; self.changes.len()];
        for (change, certain) in self.changes.iter().zip(&mut certain).rev() {
            let position = change.position;
            *certain = change.directories().any(|directory| before.get(&directory).is_some_and(|end| position < *end));
            if *certain {
                for directory in change.directories() {
                    let end = before.entry(directory).or_default();
                    *end = (*end).max(position + 1);
                }
            }
        }
        let mut certain = certain.into_iter();
        let nodes = &mut self.nodes;
        for change in self.changes.extract_if(.., |_| certain.next().unwrap()) {
            change.apply(&mut |directory, name, node| match node {
                Some(node) => drop(nodes[directory].entries.insert(name, node)),
                None => drop(nodes[directory].entries.remove(&name)),
            });
        }
    }

    /// One of the states that a power cut at this position may leave.
    pub fn cut(&self, random: &mut Random) -> Tree {
        let sector = if random.flips(0.5) { 512 } else { 4096 };
        let arrived = self.changes_that_arrive(random);
        self.tree(&arrived, &mut |node| landing::land(node, &self.log.bytes, sector, random))
    }

    /// The state that a running process sees.
    pub fn current(&self) -> Tree {
        let all: Vec<&Change> = self.changes.iter().collect();
        self.tree(&all, &mut |node| {
            let mut data = node.certain.clone();
            node.pending.iter().for_each(|(_, step)| step.apply(&mut data, &self.log.bytes));
            data
        })
    }

    fn changes_that_arrive(&self, random: &mut Random) -> Vec<&Change> {
        // The position at which each directory's prefix ends.
        let mut ends: HashMap<Number, usize> = HashMap::new();
        for change in &self.changes {
            for directory in change.directories() {
                let of_it = || self.changes.iter().filter(move |other| other.directories().any(|it| it == directory));
                ends.entry(directory).or_insert_with(|| match random.below(3) {
                    0 => 0,
                    1 => usize::MAX,
                    _ => of_it().nth(random.index(of_it().count())).unwrap().position,
                });
            }
        }
        let mut arrived = Vec::new();
        for change in &self.changes {
            if change.directories().all(|directory| change.position < ends[&directory]) {
                arrived.push(change);
            } else {
                ends.extend(change.directories().map(|directory| (directory, 0)));
            }
        }
        arrived
    }

    fn tree(&self, arrived: &[&Change], data_of: &mut dyn FnMut(&Node) -> Vec<u8>) -> Tree {
        let mut changed: HashMap<Number, BTreeMap<String, Number>> = HashMap::new();
        for change in arrived {
            change.copy().apply(&mut |directory, name, node| {
                let entries = changed.entry(directory).or_insert_with(|| self.nodes[directory].entries.clone());
                match node {
                    Some(node) => drop(entries.insert(name, node)),
                    None => drop(entries.remove(&name)),
                }
            });
        }
        let mut tree = Tree::default();
        let mut files: HashMap<Number, Arc<Vec<u8>>> = HashMap::new();
        let mut left = vec![(String::new(), self.root)];
        while let Some((path, number)) = left.pop() {
            let node = &self.nodes[number];
            let mode = node.mode;
            if !node.is_directory {
                let data = files.entry(number).or_insert_with(|| Arc::new(data_of(node)));
                tree.nodes.insert(path, (mode, Content::File(Arc::clone(data))));
                continue;
            }
            for (name, entry) in changed.get(&number).unwrap_or(&node.entries) {
                let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                left.push((below, *entry));
            }
            tree.nodes.insert(path, (mode, Content::Directory));
        }
        tree
    }
}

impl Step {
    pub fn apply(&self, data: &mut Vec<u8>, log: &[u8]) {
        match self {
            Self::Write { offset, data: written } => {
                let end = offset + written.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(&log[written.clone()]);
            }
            Self::Length(length) => data.resize(*length, 0),
            Self::Extend(length) => data.resize(data.len().max(*length), 0),
        }
    }
}
