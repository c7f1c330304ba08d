//! Lines of a JSONL file, streamed. Gives up on what is not a line of JSON; knows nothing of what the JSON means.

use std::io::{BufRead, Read};
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
        limited.read_until(b'\n', &mut line).map_err(Error::io("read", &self.file))?;
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
                Ok(Some(line)) => return Some(Ok(RawRow { place: self.place(), content: Content::Line(line) })),
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

/// Parses a line.
pub fn parse(place: &Place, line: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let problem = format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1);
        place.error(problem, "convert the file to UTF-8, for example with iconv")
    })?;
    if let Some(position) = line.iter().position(|&byte| byte == 0) {
        return Err(place.error(format!("a NUL byte at byte {}", position + 1), "write the file again, it is damaged"));
    }
    if text.trim_start().starts_with('[') {
        let remedy = "write one JSON object a line, for example with jq -c '.[]'";
        return Err(place.error("a JSON array where an object is expected", remedy));
    }
    serde_json::from_str(text).map_err(|error| {
        if error.is_eof() {
            return place.error("the JSON breaks off", "complete or delete the line; the file may have been cut");
        }
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        place.error(format!("not JSON: {reason} at byte {}", error.column()), "mend or delete the line")
    })
}
