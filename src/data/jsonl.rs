//! Lines of a JSONL file, streamed. Gives up on what is not a line of JSON; knows nothing of what the JSON means.

use std::io::{BufRead, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::reader::{Content, Place, RawRow};
use crate::error::{Error, Result};

/// Longest line in bytes. A longer one is not a sample but a file without line ends.
pub const MAXIMUM_LINE: u64 = 64 << 20;

/// The lines of a JSONL source that are not blank.
#[derive(Debug)]
pub struct JsonLines<R> {
    file: Arc<Path>,
    source: R,
    number: u64,
    finished: bool,
}

impl<R: BufRead> JsonLines<R> {
    /// The lines of `source`; errors name `file`.
    pub fn new(file: &Path, source: R) -> Self {
        Self { file: file.into(), source, number: 0, finished: false }
    }

    /// The next line without its end, or `None` at the end of the file.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.source).take(MAXIMUM_LINE + 1);
        limited.read_until(b'\n', &mut line).map_err(|error| read_error(&self.file, error))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let ended = line.pop_if(|byte| *byte == b'\n').is_some();
        if line.len() as u64 > MAXIMUM_LINE || (!ended && line.len() as u64 == MAXIMUM_LINE + 1) {
            let problem = format!("longer than {} MiB", MAXIMUM_LINE >> 20);
            return Err(self.place().error(problem, "write one JSON object a line"));
        }
        line.pop_if(|byte| *byte == b'\r');
        if self.number == 1 {
            self.check_encoding(&line)?;
            if line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
        }
        Ok(Some(line))
    }

    fn check_encoding(&self, line: &[u8]) -> Result<()> {
        if line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff") {
            return Err(self.place().error("this is UTF-16", "convert the file to UTF-8, for example with iconv"));
        }
        Ok(())
    }

    fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), unit: "line", number: self.number }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<RawRow>;

    /// The next line that is not blank. Nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            match self.line() {
                Ok(Some(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
                Ok(Some(line)) => return Some(Ok(RawRow::new(self.place(), Content::Json(line)))),
                Ok(None) => self.finished = true,
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// The error of a read: a file that its decoder refuses is at fault, anything else is the operating system's.
pub fn read_error(file: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidData => Error::input(file, error.to_string(), "get the file again, or unpack it first"),
        _ => Error::io("read", file)(error),
    }
}

/// The text of a line or a value.
pub fn text<'a>(place: &Place, line: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let problem = format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1);
        place.error(problem, "convert the file to UTF-8, for example with iconv")
    })?;
    match line.iter().position(|&byte| byte == 0) {
        None => Ok(text),
        Some(position) => {
            Err(place.error(format!("a NUL byte at byte {}", position + 1), "write the file again, it is damaged"))
        }
    }
}

/// Parses a line, or a value that spans some.
pub fn parse(place: &Place, line: &[u8]) -> Result<Value> {
    let text = text(place, line)?;
    serde_json::from_str(text).map_err(|error| {
        if error.is_eof() {
            return place.error("the JSON breaks off", "complete or delete the line; the file may have been cut");
        }
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        let line = if error.line() > 1 { format!("line {} of it, ", error.line()) } else { String::new() };
        place.error(format!("not JSON: {reason} at {line}byte {}", error.column()), "mend or delete it")
    })
}
