//! Rows of a CSV or TSV file as JSON objects of texts. A header gives the columns their names; MMLU's own files have none.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::columns::Columns;
use super::jsonl::{MAXIMUM_LINE, read_error};
use super::reader::{Content, Place, RawRow, Rows};
use super::shapes;
use crate::error::{Error, Result};
use crate::settings::repeated;

const REMEDY: &str = "write the file as CSV with quoted fields, or as JSONL";
/// What the names of MMLU's files end in behind the subject.
const SPLITS: [&str; 4] = ["_test", "_dev", "_val", "_train"];

/// The rows of `source`, whose fields `delimiter` separates.
pub fn rows(path: &Path, source: Box<dyn Read>, delimiter: u8, columns: &Columns) -> Result<Rows> {
    let budget = Rc::new(Cell::new(MAXIMUM_LINE));
    let source = Metered { inner: source, left: Rc::clone(&budget) };
    let reader = ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(source);
    let mut records = Records { file: path.into(), reader, budget, number: 0 };
    let Some(first) = records.next_record()? else { return Ok(Box::new(std::iter::empty())) };
    let first = records.texts(&first)?;
    let header = header(path, &first, columns)?;
    let pending = header.is_none().then(|| first.clone());
    let named = match header {
        Some(names) => Named { names, subject: None },
        None if columns.is_empty() => Named { names: mmlu_names(first.len()), subject: subject(path) },
        None => Named { names: (1..=first.len()).map(|number| number.to_string()).collect(), subject: None },
    };
    Ok(Box::new(CsvRows { records, named, pending, finished: false }))
}

/// The names of the columns, if the first line holds them: those of `columns`, or any that make a shape. A first line that
/// could be a header of unknown columns is one; its rows then say what they lack.
fn header(path: &Path, first: &[String], columns: &Columns) -> Result<Option<Vec<String>>> {
    let has = |name: &str| first.iter().any(|field| field == name);
    if let Some(missing) = columns.sources().find(|name| !has(name)) {
        if columns.sources().all(|name| name.parse::<usize>().is_ok_and(|number| (1..=first.len()).contains(&number))) {
            return Ok(None);
        }
        let problem = format!("the first line has no column `{missing}`");
        return Err(Error::input(
            path,
            problem,
            "mend `columns`, or map to the numbers of columns, from 1, in a file without header",
        ));
    }
    let last_is_answer = first.last().is_some_and(|last| is_letter(last, first.len().saturating_sub(2)));
    if columns.is_empty() && first.len() >= 4 && last_is_answer && !shapes::fits(has) {
        return Ok(None);
    }
    match repeated(first) {
        Some(name) => Err(Error::input(path, format!("two columns are called {name:?}"), "rename one of them")),
        None => Ok(Some(first.to_vec())),
    }
}

/// Whether `text` is the letter of one of `choices` choices.
fn is_letter(text: &str, choices: usize) -> bool {
    shapes::names::LETTERED.iter().take(choices).any(|names| names[0] == text.trim())
}

/// The columns of MMLU's own files: the question, its choices, the letter of the right one.
fn mmlu_names(count: usize) -> Vec<String> {
    let letters = shapes::names::LETTERED.iter().map(|names| names[0]);
    let choices = letters.take(count.saturating_sub(2));
    std::iter::once("question").chain(choices).chain(["answer"]).map(str::to_string).collect()
}

/// The subject of one of MMLU's files, which is in its name: `college_biology_test.csv`.
fn subject(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.split('.').next()?;
    SPLITS.iter().find_map(|split| stem.strip_suffix(split)).map(str::to_string)
}

struct Named {
    names: Vec<String>,
    subject: Option<String>,
}

impl Named {
    /// An empty field says nothing, as `null` does.
    fn object(&self, fields: Vec<String>) -> Value {
        let value = |text: String| if text.is_empty() { Value::Null } else { Value::String(text) };
        let mut object: Map<String, Value> = self.names.iter().cloned().zip(fields.into_iter().map(value)).collect();
        if let Some(subject) = &self.subject {
            object.insert("subject".into(), subject.as_str().into());
        }
        Value::Object(object)
    }
}

/// The records of a file, each of a bounded size.
struct Records {
    file: Arc<Path>,
    reader: csv::Reader<Metered>,
    /// Bytes that may still be read for the next record.
    budget: Rc<Cell<u64>>,
    /// The row that was read last, as spreadsheets count: the header is the first.
    number: u64,
}

impl Records {
    fn next_record(&mut self) -> Result<Option<ByteRecord>> {
        self.budget.set(MAXIMUM_LINE);
        self.number += 1;
        let mut record = ByteRecord::new();
        match self.reader.read_byte_record(&mut record) {
            Ok(true) => Ok(Some(record)),
            Ok(false) => Ok(None),
            Err(error) => match error.into_kind() {
                csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    let problem = format!("longer than {} MiB", MAXIMUM_LINE >> 20);
                    Err(self.place().error(problem, "look for a quotation mark that is not closed"))
                }
                csv::ErrorKind::Io(error) => Err(read_error(&self.file, error)),
                kind => Err(self.place().error(format!("not CSV: {kind:?}"), REMEDY)),
            },
        }
    }

    fn texts(&self, record: &ByteRecord) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(record.len());
        for (index, field) in record.iter().enumerate() {
            let field = if self.number == 1 && index == 0 {
                field.strip_prefix(b"\xef\xbb\xbf").unwrap_or(field)
            } else {
                field
            };
            if field.starts_with(b"\xff\xfe") || field.starts_with(b"\xfe\xff") {
                return Err(self.place().error("this is UTF-16", "convert the file to UTF-8, for example with iconv"));
            }
            let text = std::str::from_utf8(field).map_err(|_| {
                let problem = format!("invalid UTF-8 in field {}", index + 1);
                self.place().error(problem, "convert the file to UTF-8, for example with iconv")
            })?;
            if text.contains('\0') {
                return Err(self
                    .place()
                    .error(format!("a NUL byte in field {}", index + 1), "write the file again, it is damaged"));
            }
            texts.push(text.to_string());
        }
        Ok(texts)
    }

    fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), unit: "row", number: self.number }
    }
}

struct CsvRows {
    records: Records,
    named: Named,
    /// The first line, where it is no header.
    pending: Option<Vec<String>>,
    finished: bool,
}

impl CsvRows {
    fn read(&mut self) -> Result<Option<RawRow>> {
        let fields = match self.pending.take() {
            Some(fields) => fields,
            None => match self.records.next_record()? {
                Some(record) => self.records.texts(&record)?,
                None => return Ok(None),
            },
        };
        let place = self.records.place();
        if fields.len() != self.named.names.len() {
            let problem = format!("it has {} fields, the first line has {}", fields.len(), self.named.names.len());
            return Err(place.error(problem, REMEDY));
        }
        Ok(Some(RawRow::new(place, Content::Value(self.named.object(fields)))))
    }
}

impl Iterator for CsvRows {
    type Item = Result<RawRow>;

    /// The next row. Nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let row = self.read().transpose();
        self.finished = !matches!(row, Some(Ok(_)));
        row
    }
}

/// A source of which so many bytes may be read before somebody sets the number again.
struct Metered {
    inner: Box<dyn Read>,
    left: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(count as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.left.set(left);
        Ok(count)
    }
}
