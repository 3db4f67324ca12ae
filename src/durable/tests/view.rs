//! Reads while changes are pending, in flight and committed.

use proptest::prelude::*;

use super::*;

fn key(number: u32) -> Vec<u8> {
    [&b"row/"[..], &number.to_be_bytes()].concat()
}

fn rows(snapshot: &Snapshot) -> Vec<(Vec<u8>, Vec<u8>)> {
    snapshot.scan("row/").map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
}

fn write(store: &Store, change: impl FnOnce(&mut Staged<'_>)) {
    let change = |staged: &mut Staged<'_>| {
        change(staged);
        Ok::<_, DurableError>(())
    };
    store.write(change).unwrap();
}

/// Rows before and behind the reader are changed, removed and added, with flushes in between.
#[test]
fn a_reader_sees_the_moment_it_began_at() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::durable(dir.path(), NAME).unwrap();
    let even: Vec<u32> = (0..300).map(|number| number * 2).collect();
    write(&store, |staged| {
        even.iter().for_each(|number| staged.insert(key(*number), "old"));
        staged.insert("rox", "of others");
    });
    let expected: Vec<_> = even.iter().map(|number| (key(*number), b"old".to_vec())).collect();
    let snapshot = store.snapshot();
    let mut seen = Vec::new();
    for (number, row) in snapshot.scan("row/").enumerate() {
        let (found, value) = row.unwrap();
        seen.push((found.to_vec(), value.to_vec()));
        let number = number as u32;
        write(&store, |staged| {
            staged.insert(key(number * 2 + 1), "new");
            staged.insert(key(599 - number), "new");
            staged.remove(key((number * 7 + 270) % 600));
        });
        if number.is_multiple_of(10) {
            store.commit_blocking().unwrap();
        }
    }
    assert_eq!(seen, expected);
    assert_eq!(rows(&snapshot), expected, "and again");
    assert_eq!(snapshot.get(key(1)).unwrap(), None);
    assert_ne!(rows(&store.snapshot()), expected);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u8),
    Remove(u8),
    /// Starts to write the pending rows.
    Begin,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..40, any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (0u8..40).prop_map(Step::Remove),
        1 => Just(Step::Begin),
        1 => Just(Step::Flush),
    ]
}

/// A disk in memory.
#[derive(Clone, Default)]
struct Memory(Layer);

impl View for Memory {
    fn get(&self, key: &[u8]) -> std::result::Result<Option<Bytes>, DiskError> {
        Ok(self.0.get(key).cloned().flatten())
    }

    fn range(&self, from: &[u8], to: Option<&[u8]>) -> std::result::Result<DiskRows, DiskError> {
        let to = to.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let rows: Vec<DiskRow> = self
            .0
            .range::<[u8], _>((std::ops::Bound::Included(from), to))
            .filter_map(|(key, value)| Some(Ok((Bytes::from(key.clone()), value.clone()?))))
            .collect();
        Ok(Box::new(rows.into_iter()))
    }
}

proptest! {
    /// For any mix of pending, in-flight and committed rows, get, scan and range agree with a plain map. They are read
    /// from either end and from both.
    #[test]
    fn reads_agree_with_a_map(steps in prop::collection::vec(step(), 0..120), ends in prop::collection::vec(any::<bool>(), 50),
                              from in 0u8..42, to in 0u8..42) {
        let mut disk = Memory::default();
        let mut present = Snapshot::new(Path::new("memory"), Arc::new(disk.clone()));
        let mut model = std::collections::BTreeMap::new();
        let key = |number: u8| vec![number / 8, number % 8];
        let mut apply = |present: &mut Snapshot, number: u8, value: Option<u8>| {
            present.apply(Layer::from([(key(number), value.map(|value| Bytes::from(vec![value])))]));
            match value {
                Some(value) => drop(model.insert(key(number), vec![value])),
                None => drop(model.remove(&key(number))),
            }
        };
        for step in &steps {
            match step {
                Step::Insert(number, value) => apply(&mut present, *number, Some(*value)),
                Step::Remove(number) => apply(&mut present, *number, None),
                Step::Begin => drop(present.begin_flush()),
                Step::Flush => {
                    let rows = present.begin_flush();
                    for (key, value) in &*rows {
                        match value {
                            Some(value) => disk.0.insert(key.clone(), Some(value.clone())),
                            None => disk.0.remove(key),
                        };
                    }
                    present.end_flush(Arc::new(disk.clone()));
                }
            }
        }
        for number in 0..40 {
            let found = present.get(key(number)).unwrap().map(|value| value.to_vec());
            prop_assert_eq!(found.as_ref(), model.get(&key(number)));
        }
        let plain = |rows: Rows| rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap());
        let all: Vec<_> = model.clone().into_iter().collect();
        prop_assert_eq!(plain(present.scan("")).collect::<Vec<_>>(), all.clone());
        let prefix = vec![from / 8];
        let below: Vec<_> = all.iter().filter(|(key, _)| key.starts_with(&prefix)).cloned().collect();
        prop_assert_eq!(plain(present.scan(&prefix)).rev().collect::<Vec<_>>(), below.into_iter().rev().collect::<Vec<_>>());
        let within: Vec<_> =
            all.into_iter().filter(|(found, _)| *found >= key(from) && *found < key(to)).collect();
        let (mut front, mut back) = (Vec::new(), Vec::new());
        let mut rows = plain(present.range(key(from), key(to)));
        for end in ends {
            let row = if end { rows.next() } else { rows.next_back() };
            let Some(row) = row else { break };
            if end { front.push(row) } else { back.push(row) }
        }
        front.extend(back.into_iter().rev());
        prop_assert_eq!(front, within);
    }
}
