//! Tests of the code's structure. A room uses only the rooms below it in the table of docs/ARCHITECTURE.md, and not the
//! ones that the table forbids. An area of `service/` uses only the areas below it. A file has a limited length.
//!
//! The tests read the sources as text: every `crate::…` path outside of tests counts, wherever it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ARCHITECTURE: &str = include_str!("../docs/ARCHITECTURE.md");
/// Lines of one source file, without its tests.
const MAX_LINES: usize = 600;

struct Room {
    names: Vec<String>,
    must_not_import: Vec<String>,
}

/// The cells of the first table under a heading, from the top down.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let section = ARCHITECTURE.split(heading).nth(1).expect("ARCHITECTURE.md has the heading");
    let rows = section.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    rows.take_while(|line| line.starts_with('|')).map(|line| line.trim_matches('|').split('|').collect()).collect()
}

fn rooms() -> Vec<Room> {
    let rows: Vec<Room> = table("\n## The rooms\n")
        .into_iter()
        .map(|cells| {
            assert_eq!(cells.len(), 4, "room, what lives there, must not, must not import: {cells:?}");
            Room { names: in_backticks(cells[0]), must_not_import: in_backticks(cells[3]) }
        })
        .collect();
    assert!(rows.len() > 10, "the table of rooms was not found");
    rows
}

/// `cli/` and `platform.rs` are the modules `cli` and `platform`.
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

/// The text without the tests at its end.
fn code(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests {").map_or(text, |end| &text[..end])
}

/// The first segment of each `crate::…` path.
fn imports(code: &str) -> BTreeSet<String> {
    segments_after("crate::", code)
}

fn segments_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for after in code.split(prefix).skip(1) {
        let names: Vec<&str> = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let name = name.trim();
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
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

/// `ProbeQueue` is the type of the area `probe_queue`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[test]
fn an_area_uses_the_areas_below_it_only() {
    let rows = table("\n### The areas of `service/`\n");
    let areas: Vec<String> = rows.iter().flat_map(|cells| in_backticks(cells[0])).collect();
    assert!(areas.len() >= 10, "the table of areas was not found");
    let rank = |name: &str| areas.iter().position(|known| *known == snake_case(name));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service");
    let mut faults = Vec::new();
    for path in sources() {
        let Ok(relative) = path.strip_prefix(&root) else { continue };
        let name = relative.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        if is_test(relative) || matches!(name.as_str(), "mod" | "error") {
            continue;
        }
        let Some(own) = rank(&name) else {
            faults.push(format!("{}: the area '{name}' is not in the table", relative.display()));
            continue;
        };
        for import in segments_after("crate::service::", code(&std::fs::read_to_string(&path).unwrap())) {
            if rank(&import).is_some_and(|other| other < own) {
                faults.push(format!("{}: '{name}' stands below '{import}' and uses it", relative.display()));
            }
        }
    }
    assert!(faults.is_empty(), "docs/ARCHITECTURE.md, 'The areas of service':\n{}", faults.join("\n"));
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
    assert!(long.is_empty(), "more than {MAX_LINES} lines; split each of them:\n{}", long.join("\n"));
}

#[test]
fn imports_are_found_wherever_they_stand() {
    let code = "use crate::hot::Hot;\nuse crate::{model::host, seal};\nfn f() { crate::records::X.len() }";
    assert_eq!(imports(code), ["hot", "model", "records", "seal"].map(String::from).into());
}
