//! Rows of a Parquet file as JSON values. Only the columns that a row shape can have are read; of others the row has the
//! name, for messages.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::columns::Columns;
use super::reader::{Content, Place, RawRow, Rows};
use super::{sandbox, shapes};
use crate::error::{Error, Result};

const REMEDY: &str = "write the file again with plain, Snappy or Zstandard compression and columns of text or lists";

/// The rows of an opened Parquet file.
pub fn rows(path: &Path, file: File, columns: &Columns) -> Result<Rows> {
    let opened = sandbox::catch(|| -> parquet::errors::Result<_> {
        let reader = SerializedFileReader::new(file)?;
        let schema = reader.metadata().file_metadata().schema().clone();
        let is_read = |column: &str| shapes::is_known(column) || columns.sources().any(|source| source == column);
        let (read, unread): (Vec<_>, Vec<_>) =
            schema.get_fields().iter().cloned().partition(|column| is_read(column.name()));
        let projection = Type::group_type_builder(schema.name()).with_fields(read).build()?;
        let unread: Vec<String> = unread.iter().map(|column| column.name().to_string()).collect();
        Ok((RowIter::from_file_into(Box::new(reader)).project(Some(projection))?, unread))
    });
    let (rows, unread) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return Err(unreadable(path, &error.to_string())),
        Err(panic) => return Err(unreadable(path, &panic)),
    };
    Ok(Box::new(ParquetRows { file: path.into(), rows: Some(rows), unread, number: 0 }))
}

fn unreadable(path: &Path, reason: &str) -> Error {
    Error::input(path, format!("cannot be read as Parquet: {reason}"), REMEDY)
}

struct ParquetRows {
    file: Arc<Path>,
    /// `None` after the end and after an error.
    rows: Option<RowIter<'static>>,
    /// The columns that are not read.
    unread: Vec<String>,
    number: u64,
}

impl Iterator for ParquetRows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        self.number += 1;
        let place = Place { file: Arc::clone(&self.file), unit: "row", number: self.number };
        let problem = match sandbox::catch(|| rows.next()) {
            Ok(None) => {
                self.rows = None;
                return None;
            }
            Ok(Some(Ok(row))) => return Some(Ok(RawRow::new(place, Content::Value(object(row, &self.unread))))),
            Ok(Some(Err(error))) => error.to_string(),
            Err(panic) => panic,
        };
        self.rows = None;
        Some(Err(place.error(format!("cannot be read as Parquet: {problem}"), REMEDY)))
    }
}

/// A row with the names of the columns that are not read, as if they were empty.
fn object(row: Row, unread: &[String]) -> Value {
    let mut object: Map<String, Value> =
        row.into_columns().into_iter().map(|(name, field)| (name, json(&field))).collect();
    object.extend(unread.iter().map(|name| (name.clone(), Value::Null)));
    Value::Object(object)
}

/// A field as JSON. Types that no row shape has become null, which counts as absent.
fn json(field: &Field) -> Value {
    match field {
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(value.to_f64()),
        Field::Float(value) => Value::from(f64::from(*value)),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => row.get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect(),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        _ => Value::Null,
    }
}
