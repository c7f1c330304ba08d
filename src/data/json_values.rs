//! JSON values that are not a line each: the entries of an array, or objects over several lines. Cuts the text between
//! values, streamed; whether a value is JSON is found out when it is parsed.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use super::jsonl::{MAXIMUM_LINE, read_error};
use super::reader::{Content, Place, RawRow};
use crate::error::Result;

/// How deep in a JSON text a place lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    fn pass(&mut self, byte: u8) {
        if self.in_string {
            let closes = byte == b'"' && !self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            self.in_string = !closes;
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    fn is_outside(self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

/// Whether a text that begins with `start` has objects over several lines: the first line leaves one open, and not in the
/// middle of a string, which would be a line that broke off.
pub fn spans_lines(start: &[u8]) -> bool {
    first_line(start).is_some_and(|(line, nesting, rest)| {
        line.starts_with(b"{") && nesting.depth > 0 && !nesting.in_string && !rest.is_empty()
    })
}

/// Whether a text that begins with `start` has an array a line: the first line is one, and so is the next.
pub fn is_arrays(start: &[u8]) -> bool {
    first_line(start)
        .is_some_and(|(line, nesting, rest)| line.starts_with(b"[") && nesting.is_outside() && rest.starts_with(b"["))
}

/// The first line that is not empty, how deep it leaves the text, and what follows it; `None` where it does not end.
fn first_line(start: &[u8]) -> Option<(&[u8], Nesting, &[u8])> {
    let start = start.trim_ascii_start();
    let end = start.iter().position(|&byte| byte == b'\n')?;
    let (line, rest) = start.split_at(end);
    let mut nesting = Nesting::default();
    line.iter().for_each(|&byte| nesting.pass(byte));
    Some((line, nesting, rest.trim_ascii()))
}

/// The values of a JSON array, or JSON objects one after another.
#[derive(Debug)]
pub struct JsonValues<R> {
    file: Arc<Path>,
    source: R,
    number: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was read yet.
    Start,
    /// Before an entry of an array; after a comma there has to be one.
    Entry { after_comma: bool },
    /// Behind an entry of an array.
    AfterEntry,
    /// Between objects.
    Between,
    /// Behind an array.
    AfterArray,
    /// At the end, or behind an error.
    Finished,
}

impl<R: BufRead> JsonValues<R> {
    /// The values of `source`; errors name `file`.
    pub fn new(file: &Path, source: R) -> Self {
        Self { file: file.into(), source, number: 0, state: State::Start }
    }

    /// The row that is read, or that would come next.
    fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), unit: "row", number: self.number.max(1) }
    }

    /// The next byte, which stays to be read; `None` at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>> {
        let buffer = self.source.fill_buf().map_err(|error| read_error(&self.file, error))?;
        Ok(buffer.first().copied())
    }

    /// Passes over white space to a byte that is none, which stays to be read.
    fn next_visible(&mut self) -> Result<Option<u8>> {
        loop {
            let buffer = self.source.fill_buf().map_err(|error| read_error(&self.file, error))?;
            let spaces = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let found = buffer.get(spaces).copied();
            let ended = buffer.is_empty();
            self.source.consume(spaces);
            if found.is_some() || ended {
                return Ok(found);
            }
        }
    }

    /// The text of the next value.
    fn next_value(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let byte = self.next_visible()?;
            self.state = match (self.state, byte) {
                (State::Start, Some(0xef)) => self.skip_mark()?,
                (State::Start, Some(b'[')) => self.skip(State::Entry { after_comma: false }),
                (State::Start, Some(_)) => State::Between,
                (State::Entry { after_comma: false } | State::AfterEntry, Some(b']')) => self.skip(State::AfterArray),
                (State::AfterEntry, Some(b',')) => self.skip(State::Entry { after_comma: true }),
                (State::Entry { .. }, Some(byte)) if byte != b']' && byte != b',' => {
                    self.state = State::AfterEntry;
                    return self.value().map(Some);
                }
                (State::Between, Some(_)) => return self.value().map(Some),
                (State::Start | State::Between | State::AfterArray | State::Finished, None) => return Ok(None),
                (_, None) => return Err(self.broken_off()),
                (_, Some(byte)) => {
                    let problem = format!("not JSON: {:?} behind it", char::from(byte));
                    return Err(self.place().error(problem, "write an array of objects, or one object a line"));
                }
            };
        }
    }

    fn skip(&mut self, next: State) -> State {
        self.source.consume(1);
        next
    }

    /// Passes over the mark by which some programs tell UTF-8.
    fn skip_mark(&mut self) -> Result<State> {
        for expected in b"\xef\xbb\xbf" {
            if self.peek()? != Some(*expected) {
                break;
            }
            self.source.consume(1);
        }
        // A second mark is none: it becomes part of a value, which is refused.
        Ok(if self.next_visible()? == Some(0xef) { State::Between } else { State::Start })
    }

    fn broken_off(&self) -> crate::Error {
        self.place().error("the JSON breaks off", "complete the file; it may have been cut")
    }

    /// Reads a value up to its end: its closing bracket, or what separates it from the next one.
    fn value(&mut self) -> Result<Vec<u8>> {
        self.number += 1;
        let mut value = Vec::new();
        let mut nesting = Nesting::default();
        loop {
            let buffer = self.source.fill_buf().map_err(|error| read_error(&self.file, error))?;
            if buffer.is_empty() {
                let whole = nesting.is_outside() && self.state == State::Between;
                return if whole { Ok(value) } else { Err(self.broken_off()) };
            }
            let end = end_of_value(buffer, &mut nesting, value.is_empty());
            let taken = end.unwrap_or(buffer.len());
            value.extend_from_slice(&buffer[..taken]);
            self.source.consume(taken);
            if value.len() as u64 > MAXIMUM_LINE {
                let problem = format!("longer than {} MiB", MAXIMUM_LINE >> 20);
                return Err(self.place().error(problem, "write an array of objects, or one object a line"));
            }
            if end.is_some() {
                return Ok(value);
            }
        }
    }
}

/// Where in `bytes` a value ends, if it does; `first` where it begins there.
fn end_of_value(bytes: &[u8], nesting: &mut Nesting, first: bool) -> Option<usize> {
    for (index, &byte) in bytes.iter().enumerate() {
        let separates = byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}');
        if nesting.is_outside() && separates && !(first && index == 0) {
            return Some(index);
        }
        nesting.pass(byte);
        if nesting.is_outside() && matches!(byte, b'}' | b']' | b'"') {
            return Some(index + 1);
        }
    }
    None
}

impl<R: BufRead> Iterator for JsonValues<R> {
    type Item = Result<RawRow>;

    /// The next value. Nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Finished {
            return None;
        }
        match self.next_value() {
            Ok(Some(text)) => Some(Ok(RawRow::new(self.place(), Content::Json(text)))),
            Ok(None) => {
                self.state = State::Finished;
                None
            }
            Err(error) => {
                self.state = State::Finished;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Result<Vec<String>, String> {
        let read = JsonValues::new(Path::new("f.json"), text.as_bytes());
        let text = |row: Result<RawRow>| match row.map_err(|error| error.to_string())?.content {
            Content::Json(text) => Ok(String::from_utf8(text).unwrap()),
            other => panic!("{other:?}"),
        };
        read.map(text).collect()
    }

    #[test]
    fn arrays_and_objects_over_lines_are_cut_into_their_values() {
        let entries = r#"[ {"a": "]}\"" , "b": [1, {"c": 2}]} ,
            17, "x,]", null,[] ]  "#;
        let expected = [r#"{"a": "]}\"" , "b": [1, {"c": 2}]}"#, "17", "\"x,]\"", "null", "[]"];
        assert_eq!(values(entries).unwrap(), expected);
        assert_eq!(values("\u{feff}[{}]").unwrap(), ["{}"]);
        assert_eq!(values("{\n\"a\": 1}\n{\n}{}").unwrap(), ["{\n\"a\": 1}", "{\n}", "{}"]);
        assert_eq!(values("[]").unwrap(), Vec::<String>::new());
        assert_eq!(values(" \n").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_array_is_refused() {
        for (text, says) in [
            ("[{}", "breaks off"),
            ("[{\"a\": \"", "breaks off"),
            ("[{},", "breaks off"),
            ("[{},]", "']' behind it"),
            ("[,{}]", "',' behind it"),
            ("[{} {}]", "'{' behind it"),
            ("[{}] {}", "'{' behind it"),
            ("{\n\"a\": 1", "breaks off"),
        ] {
            let error = values(text).unwrap_err();
            assert!(error.contains("f.json: row 1: ") && error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn objects_over_several_lines_are_told_from_lines() {
        assert!(is_arrays(b"[1, [2]]\n\n[") && !is_arrays(b"[1]\n") && !is_arrays(b"[\n[1]]"));
        assert!(spans_lines(b" {\n \"a\": 1}"));
        assert!(spans_lines(b"{\"a\": [\n1]}"));
        for lines in ["{}\n{}", "{\"a\": \"\n{}", "{", "{\n", "[\n1]", "x\ny", ""] {
            assert!(!spans_lines(lines.as_bytes()), "{lines:?}");
        }
    }
}
