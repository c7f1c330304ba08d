//! JSONL: one JSON object a line.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::source::at;
use crate::error::{Error, Result};

/// Longest line that is read.
const MAX_LINE: u64 = 64 << 20;

/// The objects of a file with their line numbers, from 1. Blank lines are passed over; a byte-order mark and CRLF are
/// accepted.
pub(super) fn read(path: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    parse(BufReader::with_capacity(1 << 20, file), path)
}

fn parse(mut reader: impl BufRead, path: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    refuse_archives(&mut reader, path)?;
    let (mut rows, mut bytes) = (Vec::new(), Vec::new());
    for line in 1.. {
        bytes.clear();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE {
            return Err(at(path, line, "the line is longer than 64 MiB".into()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            at(path, line, format!("not UTF-8 text (byte {} of the line)", error.valid_up_to() + 1))
        })?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(row)) => rows.push((line, row)),
            Ok(_) => return Err(at(path, line, "not a JSON object".into())),
            Err(error) => return Err(at(path, line, format!("not valid JSON: {error}"))),
        }
    }
    Ok(rows)
}

/// Compressed files would otherwise be reported as broken text.
fn refuse_archives(reader: &mut impl BufRead, path: &Path) -> Result<()> {
    let start = reader.fill_buf().map_err(Error::io("read", path))?;
    let kind = match start {
        [0x1f, 0x8b, ..] => "gzip",
        [b'P', b'K', 3, 4, ..] => "zip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [b'P', b'A', b'R', b'1', ..] => {
            return Err(Error::input(path, "it is a Parquet file", "give it a name that ends in .parquet"));
        }
        _ => return Ok(()),
    };
    Err(Error::input(path, format!("it is a {kind} archive"), "unpack it first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<(usize, Map<String, Value>)>> {
        parse(bytes, Path::new("data.jsonl"))
    }

    #[test]
    fn marks_blank_lines_and_carriage_returns_are_accepted() {
        let rows = rows("\u{feff}{\"a\": 1}\r\n\r\n  \n{\"a\": 2}".as_bytes()).unwrap();
        assert_eq!(rows.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn broken_lines_are_named_by_number() {
        for (bytes, says) in [
            (&b"{}\n{\"a\": \"\xff\"}"[..], "row 2: not UTF-8"),
            (b"{\"a\": 1", "row 1: not valid JSON"),
            (b"{}\n[1]", "row 2: not a JSON object"),
            (b"{\"a\": \"\\ud800\"}", "row 1: not valid JSON"),
            (b"{\"a\": \"\0\"}", "row 1: not valid JSON"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"PK\x03\x04", "zip"),
        ] {
            let message = rows(bytes).unwrap_err().to_string();
            assert!(message.contains(says) && message.starts_with("data.jsonl"), "{message}");
        }
    }
}
