//! The crate's structure is the one that its map shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The map in the documentation of the crate: a floor on each line, from the top down.
fn map() -> String {
    let text = std::fs::read_to_string(source().join("lib.rs")).unwrap();
    let map = text.split("//! ```text\n").find(|block| block.starts_with("//! cli ")).unwrap();
    let map = map.split("//! ```").next().unwrap();
    map.lines().map(|line| format!("{}\n", line.trim_start_matches("//! "))).collect()
}

/// For each module its floor on the map, counted from the top.
fn floors() -> BTreeMap<String, usize> {
    let map = map();
    let mut floors = BTreeMap::new();
    for (floor, line) in map.lines().enumerate() {
        // Names stand before the first two spaces, what they do behind.
        for name in line.split("  ").next().unwrap_or("").split(',') {
            assert!(floors.insert(name.trim().to_string(), floor).is_none(), "{name} stands twice");
        }
    }
    floors
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module of a file: its folder under `src`, or its own name.
fn room(path: &Path) -> String {
    let relative = path.strip_prefix(source()).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

/// The modules that a line of code names, from the root of the crate.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or("");
    let paths = code.split("crate::").skip(1).chain(code.split("temper::").skip(1));
    paths.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn imports_go_down_the_map() {
    let floors = floors();
    let mut files = Vec::new();
    rust_files(&source(), &mut files);
    let mut checked = 0;
    for path in &files {
        let room = room(path);
        if ["lib", "main"].contains(&room.as_str()) {
            continue;
        }
        let floor = floors.get(&room).unwrap_or_else(|| panic!("{room} is not on the map in src/lib.rs"));
        let text = std::fs::read_to_string(path).unwrap();
        // Tests at the end of a file may use what is above.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        for (number, line) in code.lines().enumerate() {
            for other in named(line).into_iter().filter(|other| *other != room) {
                let Some(below) = floors.get(&other) else { continue };
                checked += 1;
                assert!(below > floor, "{}:{}: {room} uses {other}", path.display(), number + 1);
            }
        }
    }
    assert!(checked > 500, "only {checked} imports were found");
}

/// Every module of the crate is on the map, and nothing else.
#[test]
fn the_map_names_every_room() {
    let mut rooms: Vec<String> = std::fs::read_dir(source())
        .unwrap()
        .map(|entry| room(&entry.unwrap().path()))
        .filter(|room| !["lib", "main"].contains(&room.as_str()))
        .collect();
    rooms.sort();
    rooms.dedup();
    assert_eq!(rooms, floors().into_keys().collect::<Vec<_>>());
}

/// The library is used without the command line too: what it says names settings, which the command line turns into flags.
#[test]
fn no_text_of_the_library_names_a_flag() {
    // Another program's flag, and the command that a page tells its reader to repeat.
    let excused = ["--gpus all", "temper demo --seed"];
    let mut files = Vec::new();
    rust_files(&source(), &mut files);
    let mut found = Vec::new();
    for path in files.iter().filter(|path| !["cli", "main"].contains(&room(path).as_str())) {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let flag = line.match_indices("--").any(|(at, _)| {
                let before = line[..at].chars().next_back().is_some_and(|c| matches!(c, '"' | ' ' | '`' | '('));
                before && line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase())
            });
            if flag && !excused.iter().any(|excuse| line.contains(excuse)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The tour of the code shows the same map.
#[test]
fn the_tour_of_the_code_quotes_the_map() {
    let tour = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/code.md")).unwrap();
    assert!(tour.contains(&map()), "copy the map of src/lib.rs into docs/code.md");
}
