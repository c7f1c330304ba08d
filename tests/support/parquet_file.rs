//! Small Parquet files, written column by column.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// A column: values and, for lists, (definition, repetition) levels.
enum Column {
    Texts(Vec<String>, Option<(Vec<i16>, Vec<i16>)>),
    Integers(Vec<i64>, Option<(Vec<i16>, Vec<i16>)>),
}

fn write(schema: &str, columns: Vec<Column>) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = file.next_row_group().unwrap();
    for column in columns {
        let mut writer = group.next_column().unwrap().unwrap();
        let levels = |levels: &Option<(Vec<i16>, Vec<i16>)>| levels.clone().unzip();
        match &column {
            Column::Texts(texts, given) => {
                let values: Vec<ByteArray> = texts.iter().map(|text| text.as_str().into()).collect();
                let (definition, repetition) = levels(given);
                writer
                    .typed::<ByteArrayType>()
                    .write_batch(&values, definition.as_deref(), repetition.as_deref())
                    .unwrap();
            }
            Column::Integers(values, given) => {
                let (definition, repetition) = levels(given);
                writer.typed::<Int64Type>().write_batch(values, definition.as_deref(), repetition.as_deref()).unwrap();
            }
        }
        writer.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

/// A column `text`.
pub fn text(rows: &[&str]) -> Vec<u8> {
    let texts = rows.iter().map(|text| text.to_string()).collect();
    write("message schema { required binary text (UTF8); }", vec![Column::Texts(texts, None)])
}

/// A column `input_ids` of lists.
pub fn ids(rows: &[&[i64]]) -> Vec<u8> {
    let schema =
        "message schema { optional group input_ids (LIST) { repeated group list { optional int64 element; } } }";
    let repetition = rows.iter().flat_map(|row| (0..row.len()).map(|i| i16::from(i > 0))).collect();
    let values = rows.concat();
    write(schema, vec![Column::Integers(values.clone(), Some((vec![3; values.len()], repetition)))])
}

/// A column `messages`: lists of (role, content), a user's turn and an assistant's; and a column that is of no use.
pub fn messages(rows: &[(&str, &str)]) -> Vec<u8> {
    let schema = "message schema { required int64 number; optional group messages (LIST) { repeated group list {
        optional group element { optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let levels = Some((vec![4; 2 * rows.len()], [0, 1].repeat(rows.len())));
    let roles = ["user", "assistant"].repeat(rows.len()).into_iter().map(str::to_string).collect();
    let contents = rows.iter().flat_map(|(user, assistant)| [user.to_string(), assistant.to_string()]).collect();
    let numbers = (0..rows.len() as i64).collect();
    write(
        schema,
        vec![Column::Integers(numbers, None), Column::Texts(roles, levels.clone()), Column::Texts(contents, levels)],
    )
}
