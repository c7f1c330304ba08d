//! What the documents name is there: files that moved away would leave readers with nothing.

use std::path::{Path, PathBuf};

/// Every document of the repository, but those of folders that were built or fetched, and of integrations, which name the
/// files of other projects.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() && !name.starts_with('.') && !["target", "integrations"].contains(&&*name) {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// What stands between backquotes, one line at a time: blocks of code are no names.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// A source file, or a folder of the repository; names with placeholders are neither.
fn is_a_place(name: &str) -> bool {
    let plain = name.contains('/') && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let source = [".rs", ".cu", ".cuh", ".h", ".cpp", ".py", ".md"].iter().any(|ending| name.ends_with(ending));
    let folders = ["tests/", "src/", "docs/", "kernels/", "examples/", "scripts/", "benches/", "build/", "fuzz/"];
    plain && (source || folders.iter().any(|folder| name.starts_with(folder)))
}

#[test]
fn every_file_and_folder_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    documents(root, &mut paths);
    let mut places = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for name in quoted(&text).filter(|name| is_a_place(name)) {
            places += 1;
            // From the root, from the document's own folder, or from src where a document is about the code.
            let bases = [root, path.parent().unwrap(), &root.join("src")];
            let there = bases.iter().any(|base| base.join(name).exists());
            assert!(there, "{} names {name}, which is not there", path.display());
        }
        for command in quoted(&text).chain(text.lines()).filter(|line| line.contains("cargo test")) {
            for test in command.split("--test ").skip(1).filter_map(|rest| rest.split_whitespace().next()) {
                let main = root.join("tests").join(test.trim_end_matches('`')).join("main.rs");
                assert!(main.exists(), "{} names the test program {test}, which is not there", path.display());
            }
        }
    }
    assert!(places > 60, "only {places} names were found: this test does not read what it should");
}
