//! What may be left of small logs that are made by hand: everything that was synced, any part of the rest, and nothing
//! else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::disk::Disk;
use super::log::{Event, Inode, Log, Place};
use super::tree::{Content, Tree};
use crate::support::random::Random;

const ROOT: Inode = 1;
const CUTS: u64 = 400;

/// A log, and what its writes write.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    events: Vec<Event>,
    syncs: u64,
}

impl Script {
    fn create(&mut self, directory: Inode, name: &str, file: Inode) {
        self.events.push(Event::Create { file, place: place(directory, name), mode: 0o600, is_directory: false });
    }

    fn mkdir(&mut self, directory: Inode, name: &str, file: Inode) {
        self.events.push(Event::Create { file, place: place(directory, name), mode: 0o700, is_directory: true });
    }

    fn write(&mut self, file: Inode, offset: usize, data: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(data);
        self.events.push(Event::Write { file, offset, data: begin..self.bytes.len() });
    }

    fn length(&mut self, file: Inode, length: usize) {
        self.events.push(Event::Length { file, length });
    }

    fn rename(&mut self, file: Inode, from: Place, to: Place) {
        self.events.push(Event::Rename { file, from, to });
    }

    fn unlink(&mut self, directory: Inode, name: &str) {
        self.events.push(Event::Unlink { place: place(directory, name) });
    }

    fn sync_begins(&mut self, file: Inode) -> u64 {
        self.syncs += 1;
        self.events.push(Event::SyncBegin { file: Some(file), number: self.syncs });
        self.syncs
    }

    fn sync_ends(&mut self, number: u64, done: bool) {
        self.events.push(Event::SyncEnd { number, done });
    }

    fn sync(&mut self, file: Inode) {
        let number = self.sync_begins(file);
        self.sync_ends(number, true);
    }

    /// Every tree that many cuts at the end of it leave.
    fn left(self) -> Vec<Tree> {
        let log = Arc::new(Log { bytes: self.bytes, events: self.events });
        let mut root = Tree::default();
        root.nodes.insert(String::new(), (0o700, Content::Directory));
        let mut disk = Disk::new(Arc::clone(&log), &root, &[(String::new(), ROOT)].into());
        disk.follow(log.events.len());
        (0..CUTS).map(|seed| disk.cut(&mut Random(seed))).collect()
    }

    /// The different contents that this file has after them.
    fn contents(self, path: &str) -> BTreeSet<Option<Vec<u8>>> {
        self.left().iter().map(|tree| bytes(tree, path).map(<[u8]>::to_vec)).collect()
    }

    /// The different names that are there after them.
    fn names(self) -> BTreeSet<Vec<String>> {
        let names = |tree: &Tree| tree.nodes.keys().filter(|name| !name.is_empty()).cloned().collect();
        self.left().iter().map(names).collect()
    }
}

fn place(directory: Inode, name: &str) -> Place {
    Place { directory, name: name.into() }
}

fn bytes<'a>(tree: &'a Tree, path: &str) -> Option<&'a [u8]> {
    tree.nodes.get(path).and_then(|(_, content)| content.bytes())
}

/// A file `f` of these bytes, all of it synced.
fn synced(data: &[u8]) -> Script {
    let mut script = Script::default();
    script.create(ROOT, "f", 2);
    script.write(2, 0, data);
    script.sync(2);
    script.sync(ROOT);
    script
}

fn all<const N: usize>(contents: [&[u8]; N]) -> BTreeSet<Option<Vec<u8>>> {
    contents.into_iter().map(|content| Some(content.to_vec())).collect()
}

#[test]
fn what_was_synced_is_there_and_the_rest_may_be() {
    assert_eq!(synced(b"old").contents("f"), all([b"old"]));
    let mut script = synced(b"old");
    script.write(2, 0, b"new");
    assert_eq!(script.contents("f"), all([b"old", b"new"]));
}

#[test]
fn a_sync_covers_what_was_written_before_it_began() {
    let mut script = synced(b"old");
    let number = script.sync_begins(2);
    script.write(2, 0, b"new");
    script.sync_ends(number, true);
    assert_eq!(script.contents("f"), all([b"old", b"new"]));
}

#[test]
fn a_sync_that_has_not_returned_or_failed_makes_nothing_certain() {
    let mut script = synced(b"old");
    script.write(2, 0, b"new");
    script.sync_begins(2);
    assert_eq!(script.contents("f"), all([b"old", b"new"]));
    let mut script = synced(b"old");
    script.write(2, 0, b"new");
    let number = script.sync_begins(2);
    script.sync_ends(number, false);
    assert_eq!(script.contents("f"), all([b"old", b"new"]));
}

#[test]
fn the_sync_of_one_file_says_nothing_of_another() {
    let mut script = synced(b"old");
    script.create(ROOT, "g", 3);
    script.sync(ROOT);
    script.write(2, 0, b"new");
    script.write(3, 0, b"other");
    script.sync(3);
    let left = script.left();
    assert!(left.iter().all(|tree| bytes(tree, "g") == Some(b"other")));
    assert!(left.iter().any(|tree| bytes(tree, "f") == Some(b"old")));
}

#[test]
fn a_later_write_may_be_there_without_an_earlier_one() {
    let mut script = synced(&[0; 8192]);
    script.write(2, 0, &[1; 10]);
    script.write(2, 4096, &[2; 10]);
    let seen: BTreeSet<(u8, u8)> = script
        .left()
        .iter()
        .map(|tree| {
            let data = bytes(tree, "f").unwrap();
            (data[0], data[4096])
        })
        .collect();
    assert_eq!(seen, [(0, 0), (0, 2), (1, 0), (1, 2)].into());
}

#[test]
fn a_write_is_torn_between_sectors_and_never_within_one() {
    let mut script = synced(&[0; 8192]);
    script.write(2, 100, &[7; 8000]);
    let (mut halves, mut pages) = (false, false);
    for tree in script.left() {
        let data = bytes(&tree, "f").unwrap();
        let sectors: Vec<bool> = data.chunks(512).map(|sector| sector.contains(&7)).collect();
        for (sector, landed) in data.chunks(512).zip(&sectors) {
            let written = sector.iter().filter(|byte| **byte == 7).count();
            assert!(if *landed { written >= 412 } else { written == 0 }, "{written} of a sector");
        }
        halves |= sectors.chunks(8).any(|page| page.contains(&true) && page.contains(&false));
        pages |= sectors[0] != sectors[8];
    }
    assert!(halves && pages);
}

/// The page cache writes whole sectors: the second write to a sector brings the first along.
#[test]
fn a_sector_lands_with_all_that_was_written_to_it_before() {
    let mut script = synced(&[0; 512]);
    script.write(2, 0, &[1; 10]);
    script.write(2, 100, &[2; 10]);
    for tree in script.left() {
        let data = bytes(&tree, "f").unwrap();
        assert!(data[100] == 0 || data[0] == 1, "the second without the first, in one sector");
    }
}

#[test]
fn a_longer_file_may_have_a_hole_and_what_was_cut_off_does_not_come_back() {
    let mut script = synced(&[1; 4096]);
    script.write(2, 4096, &[2; 8192]);
    let lengths: BTreeSet<usize> = script.left().iter().map(|tree| bytes(tree, "f").unwrap().len()).collect();
    assert!(lengths.contains(&4096) && lengths.contains(&12288) && lengths.len() > 3, "{lengths:?}");

    let mut script = synced(&[1; 8192]);
    script.length(2, 4096);
    script.length(2, 8192);
    script.write(2, 4096, &[3; 4096]);
    for tree in script.left() {
        let data = bytes(&tree, "f").unwrap();
        let is_cut = data.len() == 4096 || data[4096..].iter().all(|byte| *byte == 0 || *byte == 3);
        assert!(is_cut || data[4096..].iter().all(|byte| *byte == 1), "old and new bytes in one place");
    }
}

#[test]
fn names_change_in_their_order() {
    let mut script = synced(b"old");
    script.create(ROOT, "f.tmp", 3);
    script.write(3, 0, b"new");
    script.sync(3);
    script.rename(3, place(ROOT, "f.tmp"), place(ROOT, "f"));
    script.create(ROOT, "g", 4);
    let left = script.left();
    let seen: BTreeSet<(Vec<u8>, bool, bool)> = left
        .iter()
        .map(|tree| (bytes(tree, "f").unwrap().to_vec(), bytes(tree, "f.tmp").is_some(), bytes(tree, "g").is_some()))
        .collect();
    let (old, new) = (b"old".to_vec(), b"new".to_vec());
    let wanted =
        [(old.clone(), false, false), (old, true, false), (new.clone(), false, false), (new, false, true)].into();
    assert_eq!(seen, wanted);
}

#[test]
fn a_new_name_may_show_a_file_whose_data_did_not_arrive() {
    let mut script = synced(b"old");
    script.create(ROOT, "f.tmp", 3);
    script.write(3, 0, b"new");
    script.rename(3, place(ROOT, "f.tmp"), place(ROOT, "f"));
    assert_eq!(script.contents("f"), all([b"old", b"", b"new"]));
}

#[test]
fn a_directory_that_was_synced_has_its_names() {
    let mut script = synced(b"old");
    script.unlink(ROOT, "f");
    script.create(ROOT, "g", 3);
    assert_eq!(script.names().len(), 3);
    let mut script = synced(b"old");
    script.unlink(ROOT, "f");
    script.create(ROOT, "g", 3);
    script.sync(ROOT);
    assert_eq!(script.names(), [vec!["g".to_owned()]].into());
}

#[test]
fn a_rename_between_directories_is_in_both_or_in_neither() {
    let prepare = || {
        let mut script = synced(b"old");
        script.mkdir(ROOT, "a", 10);
        script.mkdir(ROOT, "b", 11);
        script.sync(ROOT);
        script.create(10, "first", 12);
        script.sync(10);
        script.rename(12, place(10, "first"), place(11, "second"));
        script
    };
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (before, after) = (names(&["a", "a/first", "b", "f"]), names(&["a", "b", "b/second", "f"]));
    assert_eq!(prepare().names(), [before, after.clone()].into());
    // One of the two is enough.
    let mut script = prepare();
    script.sync(11);
    assert_eq!(script.names(), [after].into());
}

/// Its number is given to another file.
#[test]
fn an_inode_that_is_used_again_is_another_file() {
    let mut script = synced(b"old");
    script.unlink(ROOT, "f");
    script.create(ROOT, "g", 2);
    script.write(2, 0, b"new");
    for tree in script.left() {
        assert!(bytes(&tree, "f").is_none_or(|data| data == b"old"));
        assert!(bytes(&tree, "g").is_none_or(|data| data.is_empty() || data == b"new"));
    }
}
