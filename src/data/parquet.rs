//! Rows of a Parquet file as JSON values. Only the columns that a row shape can have are read.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::reader::{Content, Place, RawRow, Rows};
use super::row::COLUMNS;
use super::sandbox;
use crate::error::{Error, Result};

const REMEDY: &str = "write the file again with plain, Snappy or Zstandard compression and columns of text or lists";

/// The rows of an opened Parquet file.
pub fn rows(path: &Path, file: File) -> Result<Rows> {
    let opened = sandbox::catch(|| {
        let reader = SerializedFileReader::new(file)?;
        let schema = projection(reader.metadata().file_metadata().schema())?;
        RowIter::from_file_into(Box::new(reader)).project(Some(schema))
    });
    let rows = match opened {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => return Err(unreadable(path, &error.to_string())),
        Err(panic) => return Err(unreadable(path, &panic)),
    };
    Ok(Box::new(ParquetRows { file: path.into(), rows: Some(rows), number: 0 }))
}

fn unreadable(path: &Path, reason: &str) -> Error {
    Error::input(path, format!("cannot be read as Parquet: {reason}"), REMEDY)
}

/// The part of a schema whose columns can matter. A file without any gives rows without keys, which say so.
fn projection(schema: &Type) -> parquet::errors::Result<Type> {
    let columns = schema.get_fields().iter().filter(|column| COLUMNS.contains(&column.name()));
    Type::group_type_builder(schema.name()).with_fields(columns.cloned().collect()).build()
}

struct ParquetRows {
    file: Arc<Path>,
    /// `None` after the end and after an error.
    rows: Option<RowIter<'static>>,
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
            Ok(Some(Ok(row))) => return Some(Ok(RawRow { place, content: Content::Value(object(row)) })),
            Ok(Some(Err(error))) => error.to_string(),
            Err(panic) => panic,
        };
        self.rows = None;
        Some(Err(place.error(format!("cannot be read as Parquet: {problem}"), REMEDY)))
    }
}

fn object(row: Row) -> Value {
    Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, json(&field))).collect::<Map<_, _>>())
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
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => row.get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect(),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        _ => Value::Null,
    }
}
