//! Parquet files, row by row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::source::at;
use crate::error::{Error, Result};

/// The rows of a file as JSON objects, with their numbers, from 1.
pub(super) fn read(path: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    // The reader below decodes untrusted pages; should it panic, that is a bad file and not a defect of the run.
    catch_unwind(AssertUnwindSafe(|| read_rows(path)))
        .unwrap_or_else(|_| Err(Error::input(path, "its pages cannot be decoded", "write the file again")))
}

fn read_rows(path: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let refuse = |error| Error::input(path, format!("not a Parquet file: {error}"), "write the file again");
    let reader = SerializedFileReader::new(file).map_err(refuse)?;
    let mut rows = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(refuse)?.enumerate() {
        let row = row.map_err(|error| at(path, index + 1, error.to_string()))?;
        if let Value::Object(mut object) = row.to_json_value() {
            object.retain(|_, value| !value.is_null());
            rows.push((index + 1, object));
        }
    }
    Ok(rows)
}
