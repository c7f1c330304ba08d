//! Files of other formats than JSONL that are damaged or made to harm: each is a one-line error that names the file and a
//! remedy, and none takes memory or time without end.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use temper::data::{RawText, read_prompts, read_questions};
use temper::{Error, Result};

use crate::support::chat_model::data;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// What is said of a file of questions.
fn refused(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = data(folder, name, content);
    let Err(error) = read_questions(&path) else { panic!("{name}: not refused") };
    assert!(matches!(error, Error::Input { .. }), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains(char::is_control) && message.len() < 1000, "{message:?}");
    assert!(message.contains(name) && message.contains("; "), "{message}");
    message
}

#[test]
fn damaged_tables_are_named_by_file_and_row() {
    let folder = tempfile::tempdir().unwrap();
    let header = "question,A,B,answer\n";
    let cases: [(&str, Vec<u8>, &str); 14] = [
        ("a.csv", format!("{header}q,a,b\n").into(), "row 2: it has 3 fields, the first line has 4"),
        ("a.csv", format!("{header}\"q\nq\",a,b,A\nq,a,b,A,x\n").into(), "row 3: it has 5 fields"),
        ("a.csv", [header.as_bytes(), b"q,\xff,b,A\n"].concat(), "row 2: invalid UTF-8 in field 2"),
        ("a.csv", format!("{header}q,\0,b,A\n").into(), "row 2: a NUL byte in field 2"),
        ("a.csv", b"\xff\xfeq\0,\0".to_vec(), "row 1: this is UTF-16"),
        ("a.csv", "question,A,A,answer\nq,a,b,A\n".into(), "two columns are called \"A\""),
        ("a.csv", "x,y,z\n1,2,3\n".into(), "row 2: no known shape, its keys are \"x\", \"y\", \"z\""),
        ("a.csv", format!("{header}q,a,b,C\n").into(), "row 2: `answer` is neither a number from 0 to 1"),
        ("a.csv", format!("{header}\"q,a,b,A\nq,a,b,A\n").into(), "row 2: it has 1 fields"),
        ("a.csv", Vec::new(), "there is no question"),
        ("a.csv", header.into(), "there is no question"),
        ("a.csv.gz", gzip(format!("{header}q,a,b\n").as_bytes()), "row 2: it has 3 fields"),
        ("a.jsonl.gz", gzip(&gzip(b"{}")), "there is another packed file in it"),
        ("a.parquet.gz", gzip(b"PAR1"), "there is another packed file in it"),
    ];
    for (name, content, says) in cases {
        let message = refused(folder.path(), name, content);
        assert!(message.contains(says), "{says}: {message}");
    }
    let whole = gzip("{\"question\": \"a long question\"}\n".repeat(100).as_bytes());
    for length in (4..whole.len()).step_by(5) {
        refused(folder.path(), "cut.jsonl.gz", &whole[..length]);
    }
}

/// A quotation mark that is never closed, or an entry of an array without an end, is given up on after 64 MiB.
#[test]
fn endless_values_are_given_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let endless = |start: &str| gzip(&[start.as_bytes(), &vec![b'a'; 65 << 20]].concat());
    for (name, start) in [("a.csv.gz", "question,A,B,answer\n\""), ("a.json.gz", "[{\"text\": \"")] {
        let message = refused(folder.path(), name, endless(start));
        assert!(message.contains("longer than 64 MiB"), "{message}");
    }
}

fn read_all(folder: &Path, name: &str, content: &[u8]) -> Result<usize> {
    let path = data(folder, name, content);
    let _ = read_questions(&path);
    read_prompts(&path, None, "", RawText::Asked).map(|prompts| prompts.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any text in any format is read or refused in one line.
    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:a\\\\ \n\u{e4}0-9]{0,60}") {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt"] {
            if let Err(error) = read_all(folder.path(), name, text.as_bytes()) {
                prop_assert!(!error.to_string().contains(char::is_control), "{error}");
            }
        }
    }
}
