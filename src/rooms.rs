//! The house's own rule, kept by a test: a room may use the rooms below it in the table of docs/ARCHITECTURE.md, never one
//! above, and what the table says that a room may not import it does not import. A file has an end, too.
//!
//! It reads the sources as text: every `crate::…` path outside of tests counts, wherever it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ARCHITECTURE: &str = include_str!("../docs/ARCHITECTURE.md");
/// Lines of one source file, its tests aside.
const MAX_LINES: usize = 600;

struct Room {
    names: Vec<String>,
    must_not_import: Vec<String>,
}

/// The rows of the first table under "The rooms", from the top down.
fn rooms() -> Vec<Room> {
    let section = ARCHITECTURE.split("\n## The rooms\n").nth(1).expect("ARCHITECTURE.md has a section 'The rooms'");
    let rows = section.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows: Vec<Room> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            assert_eq!(cells.len(), 4, "room, what lives there, must not, must not import: {line}");
            Room { names: in_backticks(cells[0]), must_not_import: in_backticks(cells[3]) }
        })
        .collect();
    assert!(rows.len() > 10, "the table of rooms was not found");
    rows
}

/// `cli/` and `outside.rs` are the modules `cli` and `outside`.
fn in_backticks(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').trim_end_matches(".rs").into()).collect()
}

fn sources() -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
                false => {}
            }
        }
    }
    assert!(files.len() > 100, "the sources were not found");
    files
}

fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let within = |name| path.components().any(|part| part.as_os_str() == name);
    stem == "tests"
        || stem.ends_with("_tests")
        || stem == "rooms"
        || stem == "skip"
        || within("tests")
        || within("conformance")
        || within("fuzzing")
}

/// Without the tests at its end.
fn code(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests {").map_or(text, |end| &text[..end])
}

/// The first segment of each `crate::…` path.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let names = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let name = name.trim();
            let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(name.len());
            found.insert(name[..end].to_owned());
        }
    }
    found
}

#[test]
fn a_room_uses_the_rooms_below_it_only() {
    let rooms = rooms();
    let rank = |name: &str| rooms.iter().position(|room| room.names.iter().any(|known| known == name));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for path in sources() {
        let relative = path.strip_prefix(&root).unwrap();
        let name = relative.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        if is_test(relative) || name == "lib" {
            continue;
        }
        let Some(own) = rank(&name) else {
            faults.push(format!("{}: the room '{name}' is not in the table", relative.display()));
            continue;
        };
        for import in imports(code(&std::fs::read_to_string(&path).unwrap())) {
            let Some(other) = rank(&import) else { continue };
            if other < own {
                faults.push(format!("{}: '{name}' stands below '{import}' and uses it", relative.display()));
            }
            if rooms[own].must_not_import.contains(&import) {
                faults.push(format!("{}: '{name}' must not import '{import}'", relative.display()));
            }
        }
    }
    assert!(faults.is_empty(), "docs/ARCHITECTURE.md, 'The rooms':\n{}", faults.join("\n"));
}

#[test]
fn a_file_has_an_end() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let lines = code(&std::fs::read_to_string(&path).unwrap()).lines().count();
            (lines > MAX_LINES).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(
        long.is_empty(),
        "more than {MAX_LINES} lines; give a part of each a file of its own:\n{}",
        long.join("\n")
    );
}

#[test]
fn imports_are_found_wherever_they_stand() {
    let code = "use crate::hot::Hot;\nuse crate::{model::host, seal};\nfn f() { crate::records::X.len() }";
    assert_eq!(imports(code), ["hot", "model", "records", "seal"].map(String::from).into());
}
