//! A settings file as a whole: its text, its tree, the typed settings in it, and back to text.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::tree::{Node, Origin, lines_of};
use crate::error::{Error, Result};

/// No settings file is near this long; a larger file is not one.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a settings file; `remedy` says what to pass instead of one that cannot be it.
pub(crate) fn read_text(path: &Path, remedy: &str) -> Result<String> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let refuse = |problem: &str| Error::config(path.display().to_string(), problem, remedy);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text"))
}

/// The tree of a settings file's text; `path` is for messages.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Node> {
    Node::parse(text, lines_of(text)).map_err(|error| {
        let key = format!("{}, {}", path.display(), error.origin);
        Error::config(key, error.problem, "write the file as TOML")
    })
}

/// A tree as the settings that it must be; `path` is for messages.
pub(crate) fn typed<'de, T: Deserialize<'de>>(tree: &'de Node, path: &Path) -> Result<T> {
    T::deserialize(tree).map_err(|error| {
        let place = error.origin.map_or(String::new(), |origin| located(origin, path));
        Error::config(error.key(), format!("{}{place}", error.problem), error.remedy)
    })
}

/// Settings as TOML.
pub(crate) fn to_toml(settings: &impl serde::Serialize, what: &str) -> Result<String> {
    toml::to_string(settings).map_err(|error| {
        let problem = error.to_string().trim().replace('\n', ", ");
        Error::config(what, problem, "use UTF-8 paths and finite numbers")
    })
}

/// Where a value was written, as the end of a message.
pub(crate) fn located(origin: Origin, path: &Path) -> String {
    match origin {
        Origin::Line(line) => format!(" (line {line} of {})", path.display()),
        other => format!(" (from {other})"),
    }
}

/// Adds to a finding about a key where it was written, if it was written.
pub(crate) fn add_place(error: Error, tree: &Node, path: &Path) -> Error {
    match error {
        Error::Config { key, problem, remedy } => {
            let place = tree.find(&key).map_or(String::new(), |node| located(node.origin, path));
            Error::Config { problem: format!("{problem}{place}"), key, remedy }
        }
        other => other,
    }
}
