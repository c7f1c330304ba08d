//! Any bytes as a JSONL file: rows or a one-line error, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use temper::data::{JsonLines, Row};

fuzz_target!(|bytes: &[u8]| {
    for raw in JsonLines::new(Path::new("fuzz.jsonl"), bytes) {
        match raw.and_then(|raw| raw.value()) {
            Ok((_, value)) => drop(Row::from_json(&value)),
            Err(error) => assert!(!error.to_string().contains(char::is_control)),
        }
    }
});
