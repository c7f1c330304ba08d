//! Finds the data files behind a path and reads them row by row. Knows nothing of what a row means.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::{jsonl, parquet};
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Where a row stands, for error messages.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// "line" of a JSONL file, "row" of a Parquet file.
    pub unit: &'static str,
    /// Counted from 1.
    pub number: u64,
}

impl Place {
    /// An error that names this place.
    pub fn error(&self, problem: impl AsRef<str>, remedy: impl Into<String>) -> Error {
        Error::input(&self.file, format!("{} {}: {}", self.unit, self.number, problem.as_ref()), remedy)
    }
}

/// A row as the file holds it.
#[derive(Debug)]
pub enum Content {
    /// A line of text; parsed later, because lines are parsed in parallel.
    Line(Vec<u8>),
    /// A value read from typed columns.
    Value(Value),
}

/// A row of a file.
#[derive(Debug)]
pub struct RawRow {
    /// Where it stands.
    pub place: Place,
    /// Its content.
    pub content: Content,
}

impl RawRow {
    /// Bytes that it takes, roughly.
    pub fn size(&self) -> usize {
        match &self.content {
            Content::Line(line) => line.len(),
            Content::Value(_) => 1024,
        }
    }

    /// Parses its content as JSON.
    pub fn value(self) -> Result<(Place, Value)> {
        let value = match self.content {
            Content::Line(line) => jsonl::parse(&self.place, &line)?,
            Content::Value(value) => value,
        };
        Ok((self.place, value))
    }
}

/// The rows of a file, in its order.
pub type Rows = Box<dyn Iterator<Item = Result<RawRow>>>;

/// The data files of `path`: itself, or, for a directory, its `.jsonl` and `.parquet` files in the order of their names.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        let known = file.extension().is_some_and(|extension| extension == "jsonl" || extension == "parquet");
        if known {
            files.push(file);
        }
    }
    if files.is_empty() {
        let remedy = "name a data file, or a directory that has some";
        return Err(Error::input(path, "the directory holds no .jsonl and no .parquet file", remedy));
    }
    files.sort();
    Ok(files)
}

/// Opens a file; its first bytes tell whether it is Parquet or JSONL.
pub fn rows(path: &Path) -> Result<Rows> {
    let file = open_regular(path)?;
    let mut start = [0; 6];
    let length = read_start(&file, &mut start).map_err(Error::io("read", path))?;
    let start = &start[..length];
    if let Some((name, program)) = compression(start) {
        let remedy = format!("unpack it with {program} first");
        return Err(Error::input(path, format!("this is {name} data, not JSONL or Parquet"), remedy));
    }
    let is_parquet = start.starts_with(b"PAR1");
    if !is_parquet && path.extension().is_some_and(|extension| extension == "parquet") {
        let remedy = "download or write the file again; JSONL files must not be called .parquet";
        return Err(Error::input(path, "not a Parquet file, it does not begin with PAR1", remedy));
    }
    if is_parquet {
        return parquet::rows(path, file);
    }
    Ok(Box::new(jsonl::JsonLines::new(path, std::io::BufReader::with_capacity(1 << 16, file))))
}

fn read_start(mut file: &fs::File, start: &mut [u8]) -> std::io::Result<usize> {
    use std::io::{Read, Seek};
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            count => length += count,
        }
    }
    file.rewind()?;
    Ok(length)
}

/// The name of the compression that a file beginning with `start` uses, and the program that undoes it.
fn compression(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let known: [(&[u8], _); 5] = [
        (b"\x1f\x8b", ("gzip", "gunzip")),
        (b"PK\x03\x04", ("zip", "unzip")),
        (b"\x28\xb5\x2f\xfd", ("zstd", "unzstd")),
        (b"BZh", ("bzip2", "bunzip2")),
        (b"\xfd7zXZ\0", ("xz", "unxz")),
    ];
    known.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, answer)| *answer)
}
