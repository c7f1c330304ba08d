//! Finds the data files behind a path and reads them row by row. Knows nothing of what a row means.

use std::fs;
use std::io::{BufReader, Chain, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::columns::{Columns, DataFile};
use super::compressed::{compression, unpack};
use super::json_values::{self, JsonValues};
use super::jsonl::{self, JsonLines, read_error};
use super::{csv, parquet};
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Rows that are parsed together, on all cores.
const CHUNK_ROWS: usize = 1024;
/// Bytes of rows that are held at a time.
const CHUNK_BYTES: usize = 32 << 20;
/// Bytes at the beginning of a file by which its format is told.
const START: u64 = 64 << 10;
/// Files of a folder that hold rows, with or without `.gz` or `.zst` behind.
const SHARDS: [&str; 5] = ["jsonl", "json", "parquet", "csv", "tsv"];
/// Files that describe a data set beside its rows.
const DESCRIPTIONS: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// Where a row stands, for error messages.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// "line" of a file of lines, "row" of another one.
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
    /// The text of a JSON value; parsed later, because rows are parsed in parallel.
    Json(Vec<u8>),
    /// A line that is a prompt as it stands.
    Prompt(Vec<u8>),
    /// A value read from columns.
    Value(Value),
}

/// A row of a file.
#[derive(Debug)]
pub struct RawRow {
    /// Where it stands.
    pub place: Place,
    /// Its content.
    pub content: Content,
    /// What its columns are.
    columns: Arc<Columns>,
}

impl RawRow {
    /// A row whose columns have names that are known.
    pub fn new(place: Place, content: Content) -> Self {
        Self { place, content, columns: Arc::default() }
    }

    /// Bytes that it takes, roughly.
    pub fn size(&self) -> usize {
        match &self.content {
            Content::Json(text) | Content::Prompt(text) => text.len(),
            Content::Value(value) => size(value),
        }
    }

    /// Parses its content as JSON, with its columns under the names that are known.
    pub fn value(self) -> Result<(Place, Value)> {
        let mut value = match self.content {
            Content::Json(text) => jsonl::parse(&self.place, &text)?,
            Content::Prompt(line) => json!({"prompt": jsonl::text(&self.place, &line)?.trim_end()}),
            Content::Value(value) => value,
        };
        if let Value::Object(row) = &mut value {
            let renamed = self.columns.apply(row);
            renamed.map_err(|problem| self.place.error(problem, "mend `columns`, or add the column"))?;
        }
        Ok((self.place, value))
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(object) => object.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

/// The rows of a file, in its order.
pub type Rows = Box<dyn Iterator<Item = Result<RawRow>>>;

/// The rows of a data file, or of all files of a directory, in the order of their names.
pub fn all_rows(data: &DataFile) -> Result<impl Iterator<Item = Result<RawRow>> + use<>> {
    let columns = Arc::new(data.columns.clone());
    let rows = files(&data.path)?.into_iter().map(move |file| rows(&file, &columns));
    Ok(rows.flat_map(|rows| -> Rows {
        match rows {
            Ok(rows) => rows,
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }))
}

/// The next rows that are parsed together; none at the end.
pub fn next_chunk(rows: &mut impl Iterator<Item = Result<RawRow>>) -> Vec<Result<RawRow>> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        let Some(row) = rows.next() else { break };
        bytes += row.as_ref().map_or(0, RawRow::size);
        chunk.push(row);
    }
    chunk
}

/// The data files of `path`: itself, or, for a directory, its files of rows in the order of their names; where it has none
/// of the other formats, its `.txt` files.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        all.push(entry.map_err(Error::io("read", path))?.path());
    }
    all.sort();
    let of = |endings: &[&str]| -> Vec<PathBuf> {
        let describes =
            |path: &Path| path.file_name().is_some_and(|name| DESCRIPTIONS.iter().any(|known| name == *known));
        let wanted = |path: &&PathBuf| endings.contains(&ending(path).as_str()) && !describes(path);
        all.iter().filter(wanted).cloned().collect()
    };
    let shards = of(&SHARDS);
    let found = if shards.is_empty() { of(&["txt"]) } else { shards };
    if found.is_empty() {
        let problem = format!("the directory holds no .{} and no .txt file", SHARDS.join(", ."));
        return Err(Error::input(path, problem, "name a data file, or a directory that has some"));
    }
    Ok(found)
}

/// The ending of a file's name in small letters, below that of its compression.
fn ending(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
    name.rsplit_once('.').map(|(_, ending)| ending.to_string()).unwrap_or_default()
}

/// A source whose beginning was read before.
type Resumed = Chain<Cursor<Vec<u8>>, Box<dyn Read>>;

/// Opens a file. Its first bytes tell its compression, and whether it is Parquet, JSONL or other JSON; CSV, TSV and lists
/// of prompts go by the name.
pub fn rows(path: &Path, columns: &Arc<Columns>) -> Result<Rows> {
    let columns = Arc::clone(columns);
    let rows = open(path, &columns)?;
    Ok(Box::new(rows.map(move |row| row.map(|row| RawRow { columns: Arc::clone(&columns), ..row }))))
}

fn open(path: &Path, columns: &Columns) -> Result<Rows> {
    let mut file = open_regular(path)?;
    let packed = beginning(&mut file, 6).map_err(Error::io("read", path))?;
    std::io::Seek::rewind(&mut file).map_err(Error::io("read", path))?;
    let is_parquet = packed.starts_with(b"PAR1");
    if !is_parquet && path.extension().is_some_and(|extension| extension == "parquet") {
        let remedy = "download or write the file again; other files must not be called .parquet";
        return Err(Error::input(path, "not a Parquet file, it does not begin with PAR1", remedy));
    }
    if is_parquet {
        return parquet::rows(path, file, columns);
    }
    let mut source: Box<dyn Read> = match compression(&packed) {
        None => Box::new(file),
        Some((name, program)) => unpack(file, &packed).map_err(Error::io("read", path))?.ok_or_else(|| {
            let remedy = format!("unpack it with {program} first");
            Error::input(path, format!("this is {name} data, which is not read"), remedy)
        })?,
    };
    let start = beginning(&mut source, START).map_err(|error| read_error(path, error))?;
    if start.starts_with(b"PAR1") || compression(&start).is_some() {
        return Err(Error::input(path, "there is another packed file in it", "unpack it first"));
    }
    let format = format(path, &start);
    let source = Cursor::new(start).chain(source);
    Ok(match format {
        Format::Lines => Box::new(JsonLines::new(path, buffered(source))),
        Format::Values => Box::new(JsonValues::new(path, buffered(source))),
        Format::Separated(delimiter) => csv::rows(path, Box::new(source), delimiter, columns)?,
        Format::Prompts => Box::new(JsonLines::new(path, buffered(source)).map(|row| row.map(as_prompt))),
    })
}

fn buffered(source: Resumed) -> BufReader<Resumed> {
    BufReader::with_capacity(1 << 16, source)
}

fn as_prompt(row: RawRow) -> RawRow {
    let content = match row.content {
        Content::Json(line) => Content::Prompt(line),
        other => other,
    };
    RawRow { content, ..row }
}

/// How the text of a file holds rows.
enum Format {
    /// A JSON object a line.
    Lines,
    /// A JSON array, or objects over several lines.
    Values,
    /// Fields between delimiters.
    Separated(u8),
    /// A prompt a line.
    Prompts,
}

fn format(path: &Path, start: &[u8]) -> Format {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    // A list of prompts may begin with a bracket, but hardly with an object in it.
    let is_array =
        start.strip_prefix(b"[").is_some_and(|rest| matches!(rest.trim_ascii_start().first(), Some(b'{') | None));
    match ending(path).as_str() {
        "csv" => Format::Separated(b','),
        "tsv" => Format::Separated(b'\t'),
        "txt" if !start.starts_with(b"{") && !is_array => Format::Prompts,
        _ if json_values::is_arrays(start) => Format::Lines,
        _ if start.starts_with(b"[") || json_values::spans_lines(start) => Format::Values,
        _ => Format::Lines,
    }
}

/// The first bytes of a source, up to `most`.
fn beginning(source: &mut impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    source.take(most).read_to_end(&mut start)?;
    Ok(start)
}
