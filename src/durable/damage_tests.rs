//! A durable store whose file another program changed is refused and left unchanged, or serves exactly its rows.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::Path;

use super::*;

const HOSTS: u64 = 2000;
const PAGE: usize = 4096;

fn host(number: u64) -> Vec<u8> {
    // Spread over the whole key range, like random ids.
    [b"host/".as_slice(), &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()].concat()
}

fn fill(store: &Store) {
    for batch in 0..4 {
        let written: Result<()> = store.write(|staged| {
            for number in (0..HOSTS).filter(|number| number % 4 == batch) {
                staged.insert(host(number), format!("{{\"fqdn\":\"h{number}.test\",\"note\":\"{}\"}}", "x".repeat(60)));
            }
            staged.insert("epoch", batch.to_string());
            Ok(())
        });
        written.unwrap();
        store.commit_blocking().unwrap();
    }
}

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

fn rows(store: &Store) -> Result<Content> {
    store.scan("").map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
}

/// The file after a clean close, the file after a kill, and the rows.
fn prepared() -> ([Vec<u8>; 2], Content) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(redb::FILE);
    let store = Store::durable(dir.path(), "records").unwrap();
    fill(&store);
    let content = rows(&store).unwrap();
    let killed = std::fs::read(&file).unwrap();
    drop(store);
    ([std::fs::read(&file).unwrap(), killed], content)
}

/// Random numbers from one seed, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn flipped(bytes: &[u8], at: usize, bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

fn damages(bytes: &[u8], dice: &mut Dice) -> Vec<(String, Vec<u8>)> {
    let mut damages: Vec<(String, Vec<u8>)> = Vec::new();
    // Every bit of the flags byte, which selects the root; then bytes of the sizes and of both roots.
    for bit in 0..8 {
        damages.push((format!("flags, bit {bit}"), flipped(bytes, 9, bit)));
    }
    for at in (0..320).step_by(7) {
        damages.push((format!("header, byte {at}"), flipped(bytes, at, dice.below(8))));
    }
    for _ in 0..60 {
        let (at, bit) = (dice.below(bytes.len()), dice.below(8));
        damages.push((format!("bit {bit} of byte {at}"), flipped(bytes, at, bit)));
    }
    for _ in 0..10 {
        let page = 1 + dice.below(bytes.len() / PAGE - 1);
        let mut zeroed = bytes.to_vec();
        zeroed[page * PAGE..(page + 1) * PAGE].fill(0);
        damages.push((format!("page {page} is zeros"), zeroed));
        let other = 1 + dice.below(bytes.len() / PAGE - 1);
        let mut swapped = bytes.to_vec();
        swapped.copy_within(other * PAGE..(other + 1) * PAGE, page * PAGE);
        damages.push((format!("page {page} is page {other}"), swapped));
    }
    for length in [1, 9, 100, 320, PAGE, bytes.len() / 2, bytes.len() - PAGE, bytes.len() - 1] {
        damages.push((format!("cut to {length} bytes"), bytes[..length].to_vec()));
    }
    damages.push(("longer".into(), [bytes, &[0; 10]].concat()));
    damages.push(("empty".into(), Vec::new()));
    damages.push(("zeros".into(), vec![0; bytes.len()]));
    damages.push(("text".into(), b"host h1.test\n".repeat(500)));
    damages.push(("SQLite".into(), [b"SQLite format 3\0".as_slice(), &[0; 8192]].concat()));
    damages
}

/// Whether the file was refused.
fn is_refused_or_harmless(what: &str, bytes: &[u8], content: &Content) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(redb::FILE);
    std::fs::write(&file, bytes).unwrap();
    let opened = catch_unwind(|| Store::durable(dir.path(), "records").and_then(|store| rows(&store)));
    match opened.unwrap_or_else(|_| panic!("{what}: it panicked")) {
        Ok(found) => {
            assert!(found == *content, "{what}: other rows");
            false
        }
        Err(error) => {
            assert!(matches!(error, DurableError::Damaged { .. }), "{what}: {error}");
            assert!(std::fs::read(&file).unwrap() == bytes, "{what}: refused ({error}), and changed");
            true
        }
    }
}

#[test]
fn a_changed_file_is_refused_as_it_is_or_harmless() {
    let seed = std::env::var("AUTHD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_251_130);
    println!("AUTHD_SEED={seed}");
    let mut dice = Dice(seed);
    let (files, content) = prepared();
    let (mut refused, mut tried) = (0, 0);
    for (bytes, state) in files.iter().zip(["closed", "killed"]) {
        assert!(!is_refused_or_harmless("nothing", bytes, &content));
        for (what, damaged) in damages(bytes, &mut dice) {
            if damaged != *bytes {
                tried += 1;
                refused += usize::from(is_refused_or_harmless(&format!("{state}: {what}"), &damaged, &content));
            }
        }
    }
    println!("{refused} of {tried} refused");
    assert!(tried > 40 && refused * 4 > tried, "{refused} of {tried}");
}

fn is_damaged(dir: &Path, name: &'static str, reason: &str) {
    let before = std::fs::read(dir.join(redb::FILE)).ok();
    let error = Store::durable(dir, name).err().expect("refused");
    assert!(matches!(&error, DurableError::Damaged { cause, .. } if cause.contains(reason)), "{error}");
    assert!(std::fs::read(dir.join(redb::FILE)).ok() == before);
}

#[test]
fn the_file_of_another_store_and_an_older_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::durable(dir.path(), "outbox").unwrap());
    is_damaged(dir.path(), "records", "another store's");
    let older = tempfile::tempdir().unwrap();
    std::fs::write(older.path().join("db"), "of sled").unwrap();
    is_damaged(older.path(), "records", "older store");
}

#[test]
fn what_can_be_read_of_a_damaged_store_is_read_and_the_file_is_not_changed() {
    let (files, content) = prepared();
    for (bytes, state) in files.iter().zip(["closed", "killed"]) {
        let pages: Vec<usize> = (1..bytes.len() / PAGE)
            .filter(|page| bytes[page * PAGE..(page + 1) * PAGE].windows(5).filter(|it| *it == b"host/").count() > 5)
            .collect();
        for count in [0, 1, 4] {
            let mut damaged = bytes.clone();
            let step = pages.len() / (count + 1);
            for page in pages.iter().skip(step).step_by(step.max(1)).take(count) {
                damaged[page * PAGE..(page + 1) * PAGE].fill(0xa5);
            }
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(redb::FILE);
            std::fs::write(&file, &damaged).unwrap();
            let mut found = Content::new();
            let mut take = |key: &[u8], value: &[u8]| {
                assert!(found.insert(key.to_vec(), value.to_vec()).is_none(), "each row once");
                Ok(())
            };
            let salvaged = salvage(dir.path(), "records", &["host/", "epoch"], &mut take).unwrap();
            assert!(found.iter().all(|(key, value)| content.get(key) == Some(value)), "{state}: a row differs");
            assert_eq!(salvaged.rows, found.len() as u64);
            println!("{state}, {count} pages of {}: {} of {} rows", pages.len(), found.len(), content.len());
            assert!(found.len() * 10 >= content.len() * 8, "{state}, {count}: {salvaged:?}");
            assert!(count > 0 || (found == content && salvaged.is_whole()), "{state}: {salvaged:?}");
            assert!(std::fs::read(&file).unwrap() == damaged);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(redb::FILE), "text").unwrap();
    let error = salvage(dir.path(), "records", &["host/"], &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("nothing can be read"), "{error}");
}
