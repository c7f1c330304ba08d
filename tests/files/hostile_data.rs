//! Data, tokenizer and template files that are damaged or made to harm: every one is answered with a one-line error that
//! names the file and a remedy, or is read as what it is; none panics, hangs or eats the memory.

use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use temper::data::{ChatTemplate, DataStream, JsonLines, MAXIMUM_LINE, Message, Row, StreamOptions, inspect};
use temper::{Error, Result};

use crate::support::chat_model::{self, LLAMA3, VOCABULARY, data};
use crate::support::parquet_file;

const CONVERSATION: &str = r#"{"prompt": "hello", "response": "hello you"}"#;

fn options() -> StreamOptions {
    StreamOptions {
        batch: 2,
        max_length: 64,
        shuffle: true,
        pack: true,
        pad_token_id: 0,
        vocab_size: VOCABULARY,
        seed: 3,
    }
}

fn model(template: Option<&str>) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    chat_model::write(home.path(), template);
    home
}

fn open(path: &Path, home: &Path) -> Result<DataStream> {
    DataStream::open("a", path, home, options())
}

/// The message of an [`Error::Input`] that is one line, names `file` and, after a semicolon, a remedy.
fn refused<T>(result: Result<T>, file: &str) -> String {
    let Err(error) = result else { panic!("{file}: not refused") };
    assert!(matches!(error, Error::Input { .. }), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.contains(file) && message.contains("; "), "{message}");
    assert!(message.len() < 1000, "{message}");
    message
}

#[test]
fn damaged_lines_are_named_by_file_and_line() {
    let home = model(Some(LLAMA3));
    let deep = "[".repeat(100_000);
    let deep = format!("{{\"text\": {deep}");
    let cases: [(&[u8], &str); 37] = [
        (b"{\"text\": \"\xff\xfe\"}", "line 1: invalid UTF-8 at byte 11"),
        (b"{\"text\": \"a\"}\n\xc3\x28", "line 2: invalid UTF-8 at byte 1"),
        (b"{\"text\": \"a\0b\"}", "line 1: a NUL byte at byte 12"),
        (b"\0\0\0\0\0\0", "line 1: a NUL byte at byte 1"),
        (br#"{"text": "\ud800"}"#, "line 1: not JSON: "),
        (br#"{"text": "\udc00\ud800"}"#, "line 1: not JSON: "),
        (b"{\"text\": \"a\"}\r\n\r\n{\"text\": \"b", "line 3: the JSON breaks off"),
        (b"{\"text\": \"a\"} {\"text\": \"b\"}", "line 1: not JSON: trailing characters"),
        (b"{\"text\": NaN}", "line 1: not JSON"),
        (b"{'text': 'a'}", "line 1: not JSON"),
        (b"{\"text\": \"a\"}\n[{\"text\": \"a\"}]", "line 2: an array where a JSON object is expected"),
        (b"[[{\"text\": \"a\"}]]", "row 1: an array where a JSON object is expected"),
        (b"[{\"text\": \"a\"}, {\"text\": }]", "row 2: not JSON"),
        (b"[{\"text\": \"a\"}, 7]", "row 2: a number where a JSON object is expected"),
        (b"{\n\"text\": \"a\",\n}", "row 1: not JSON: trailing comma at line 3 of it"),
        (b"17", "line 1: a number where a JSON object is expected"),
        (b"\"text\"", "line 1: a string where a JSON object is expected"),
        (b"null", "line 1: null where a JSON object is expected"),
        (b"{}", "line 1: no known shape"),
        (b"{\"topic\": 1, \"a\\nb\": 2}", "line 1: no known shape, its keys are \"topic\", \"a\\nb\""),
        (b"{\"text\": 5}", "line 1: `text` is a number"),
        (b"{\"text\": null}", "line 1: no known shape"),
        (b"{\"input_ids\": [1, 2.5]}", "line 1: `input_ids` holds something that is not a 64-bit integer"),
        (b"{\"input_ids\": [1, 4294967295]}", "line 1: `input_ids` holds 4294967295"),
        (b"{\"input_ids\": [1, -1]}", "line 1: `input_ids` holds -1"),
        (b"{\"input_ids\": [1, 270]}", "line 1: token id 270 is outside"),
        (b"{\"input_ids\": [1, 2], \"labels\": [1, 4294967295]}", "line 1: `labels` holds 4294967295"),
        (b"{\"input_ids\": [1, 2], \"labels\": [1, 1e3]}", "line 1: `labels` holds something"),
        (b"{\"input_ids\": [1, 2], \"labels\": [1]}", "line 1: `labels` has 1 entries for 2 tokens"),
        (b"{\"input_ids\": [1, 2], \"attention_mask\": [1, 0, 1]}", "line 1: `attention_mask`"),
        (b"{\"messages\": []}", "line 1: `messages` is empty"),
        (b"{\"messages\": {\"role\": \"user\"}}", "line 1: `messages` is an object"),
        (b"{\"messages\": [7]}", "line 1: `messages[0]` is a number"),
        (b"{\"messages\": [{\"role\": \"wizard\", \"content\": \"x\"}]}", "has the unknown role \"wizard\""),
        (b"{\"messages\": [{\"role\": \"user\"}]}", "line 1: `messages[0]` has no role or no content"),
        (b"{\"chosen\": \"x\", \"rejected\": \"y\"}", "line 1: nothing says what `chosen` answers"),
        (deep.as_bytes(), "line 1: not JSON: recursion limit exceeded"),
    ];
    for (content, says) in cases {
        let path = data(home.path(), "data.jsonl", content);
        let message = refused(open(&path, home.path()), "data.jsonl: ");
        assert!(message.contains(says), "{says}: {message}");
    }
}

#[test]
fn files_of_another_kind_are_told_what_they_are() {
    let home = model(None);
    let cases: [(&str, &[u8], &str); 9] = [
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00rest", "cannot be unpacked"),
        ("a.jsonl", b"PK\x03\x04rest", "zip data"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdrest", "cannot be unpacked"),
        ("a.jsonl", b"BZh9", "bzip2 data"),
        ("a.jsonl", b"\xfd7zXZ\0", "xz data"),
        ("a.jsonl", b"\xff\xfe{\0\"\0", "line 1: this is UTF-16"),
        ("a.jsonl", b"", "no sample in it"),
        ("a.jsonl", b"\n\r\n   \n\n", "no sample in it"),
        ("a.parquet", b"{\"text\": \"a\"}", "not a Parquet file"),
    ];
    for (name, content, says) in cases {
        let message = refused(open(&data(home.path(), name, content), home.path()), name);
        assert!(message.contains(says), "{message}");
    }
    let empty = home.path().join("empty");
    std::fs::create_dir_all(empty.join("folder.jsonl")).unwrap();
    std::fs::remove_dir(empty.join("folder.jsonl")).unwrap();
    assert!(
        refused(open(&empty, home.path()), "empty").contains("no .jsonl, .json, .parquet, .csv, .tsv and no .txt file")
    );
    std::fs::create_dir(empty.join("folder.jsonl")).unwrap();
    assert!(refused(open(&empty, home.path()), "folder.jsonl").contains("a directory"));
    let missing = open(&home.path().join("missing.jsonl"), home.path()).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("missing.jsonl"));
}

/// Opening a pipe blocks until somebody writes, a device may never end: both are refused unopened.
#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused() {
    let home = model(None);
    let pipe = home.path().join("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(open(&pipe, home.path()), "pipe.jsonl").contains("a pipe, socket or device"));
    refused(open(Path::new("/dev/zero"), home.path()), "/dev/zero");
    let good = data(home.path(), "data.jsonl", "{\"text\": \"hello\"}");
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
        let home = model(None);
        let file = home.path().join(name);
        let _ = std::fs::remove_file(&file);
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        refused(open(&good, home.path()), name);
    }
}

/// A file without line ends is given up on after 64 MiB, however long it is.
#[test]
fn an_endless_line_is_given_up_on() {
    let mut lines = JsonLines::new(Path::new("endless.jsonl"), BufReader::new(std::io::repeat(b'a')));
    let message = refused(lines.next().unwrap(), "endless.jsonl");
    assert!(message.contains("line 1: longer than 64 MiB"), "{message}");
    assert!(lines.next().is_none());
    let longest = std::io::Read::take(std::io::repeat(b'a'), MAXIMUM_LINE);
    let mut lines = JsonLines::new(Path::new("longest.jsonl"), BufReader::new(longest));
    assert!(lines.next().unwrap().is_ok() && lines.next().is_none());
}

#[test]
fn samples_that_teach_nothing_leave_no_empty_stream() {
    let home = model(Some(LLAMA3));
    for content in [
        r#"{"text": ""}"#,
        r#"{"input_ids": []}"#,
        r#"{"input_ids": [1, 2, 3], "labels": [1, -100, -100]}"#,
        r#"{"input_ids": [0, 0, 0], "attention_mask": [0, 0, 0]}"#,
        r#"{"messages": [{"role": "user", "content": "only I speak"}]}"#,
        r#"{"prompt": "p", "chosen": "same", "rejected": "same"}"#,
        r#"{"chosen_input_ids": [1, 2], "rejected_input_ids": [1, 2], "prompt_length": 18446744073709551615}"#,
    ] {
        let message = refused(open(&data(home.path(), "data.jsonl", content), home.path()), "data.jsonl");
        assert!(message.contains("none of its 1 has a token to learn"), "{content}: {message}");
    }
    let mixed =
        "{\"input_ids\": [1, 2]}\n{\"prompt_input_ids\": [1], \"chosen_input_ids\": [2], \"rejected_input_ids\": [3]}";
    let message = refused(open(&data(home.path(), "data.jsonl", mixed), home.path()), "data.jsonl");
    assert!(message.contains("line 2: preference pairs and single sequences are mixed"), "{message}");
}

type Change = Box<dyn FnOnce(&mut Value)>;

/// A [`chat_model::tokenizer_json`] with a change.
fn with_tokenizer(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let home = model(Some(LLAMA3));
    let mut tokenizer = chat_model::tokenizer_json();
    change(&mut tokenizer);
    std::fs::write(home.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    home
}

/// Files that make the tokenizer library panic, loop or ask for all memory there is.
#[test]
fn harmful_tokenizers_are_refused() {
    let replace = || json!({"type": "Replace", "pattern": {"String": "h"}, "content": "hh"});
    let repeat = || json!({"Sequence": {"id": "A", "type_id": 0}});
    let word_level = |id: Value| json!({"type": "WordLevel", "vocab": {"a": id}, "unk_token": "a"});
    let cases: Vec<(&str, Change)> = vec![
        ("merge of an unknown token", Box::new(|t| t["model"]["merges"] = json!(["h e", "hexagonal e"]))),
        (
            "merge longer than any token",
            Box::new(|t| {
                t["model"]["vocab"] = json!({"a": 0, "b": 1, "ab": 2});
                t["model"]["merges"] = json!([["ab", "ababababab"]]);
            }),
        ),
        (
            "bad character map",
            Box::new(|t| t["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA////"})),
        ),
        ("pieces of no length", Box::new(|t| t["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}))),
        (
            "doubling bomb",
            Box::new(move |t| {
                t["normalizer"] =
                    json!({"type": "Sequence", "normalizers": (0..60).map(|_| replace()).collect::<Vec<_>>()})
            }),
        ),
        (
            "repetition bomb",
            Box::new(move |t| {
                t["post_processor"]["single"] = (0..1_000_000_000 / 4).step_by(1000).map(|_| repeat()).collect()
            }),
        ),
        ("random merges", Box::new(|t| t["model"]["dropout"] = json!(0.5))),
        ("largest id", Box::new(move |t| t["model"] = word_level(json!(u32::MAX)))),
        ("id beyond the integers", Box::new(move |t| t["model"] = word_level(json!(1u64 << 32)))),
        ("id beyond the model", Box::new(|t| t["model"]["vocab"]["zz"] = json!(VOCABULARY))),
        ("no model", Box::new(|t| t["model"] = Value::Null)),
        ("no object", Box::new(|t| *t = json!([1, 2]))),
        ("unknown model", Box::new(|t| t["model"]["type"] = json!("Oracle"))),
        (
            "deeply nested",
            Box::new(|t| {
                for _ in 0..500 {
                    t["normalizer"] = json!({"type": "Sequence", "normalizers": [t["normalizer"].take()]});
                }
            }),
        ),
    ];
    for (name, change) in cases {
        let home = with_tokenizer(change);
        let start = Instant::now();
        let path = data(home.path(), "data.jsonl", CONVERSATION);
        let message = refused(open(&path, home.path()), "tokenizer.json");
        assert!(start.elapsed() < Duration::from_secs(5), "{name} takes {:?}: {message}", start.elapsed());
        refused(inspect(&path, home.path(), 0, 64), "tokenizer.json");
    }
}

/// The library numbers added tokens itself where the file leaves a gap; whatever it makes of it lies in the vocabulary.
#[test]
fn a_gap_in_the_added_tokens_gives_no_id_outside_the_vocabulary() {
    for id in [300, 4_000_000_000u32] {
        let home = with_tokenizer(|tokenizer| tokenizer["added_tokens"][3]["id"] = json!(id));
        match open(&data(home.path(), "data.jsonl", CONVERSATION), home.path()) {
            Ok(mut stream) => assert!(stream.next_batch().unwrap().check(VOCABULARY, 64).is_ok()),
            Err(error) => drop(refused::<()>(Err(error), "token")),
        }
    }
}

/// What a file asks for in truncation and padding is not applied, so it can do no harm.
#[test]
fn truncation_and_padding_of_the_tokenizer_are_not_applied() {
    let expected = {
        let home = model(Some(LLAMA3));
        open(&data(home.path(), "data.jsonl", CONVERSATION), home.path()).unwrap().next_batch().unwrap()
    };
    let truncation = |max: u64, stride: u64| json!({"direction": "Right", "max_length": max, "strategy": "LongestFirst", "stride": stride});
    let padding = json!({"strategy": {"Fixed": 1u64 << 50}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    for (key, value) in [("truncation", truncation(1, 0)), ("truncation", truncation(4, 9)), ("padding", padding)] {
        let home = with_tokenizer(|tokenizer| tokenizer[key] = value);
        let mut stream = open(&data(home.path(), "data.jsonl", CONVERSATION), home.path()).unwrap();
        assert_eq!(stream.next_batch().unwrap(), expected);
    }
}

#[test]
fn unusable_tokenizer_files_are_refused() {
    for (name, content, says) in [
        ("tokenizer.json", &b""[..], "not a usable tokenizer"),
        ("tokenizer.json", b"{", "not a usable tokenizer"),
        ("tokenizer.json", b"\xff\xfe\x00", "not a usable tokenizer"),
        ("tokenizer_config.json", b"{\"bos_token\": ", "not JSON"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("special_tokens_map.json", b"7", "not a JSON object"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ] {
        let home = model(Some(LLAMA3));
        std::fs::write(home.path().join(name), content).unwrap();
        let path = data(home.path(), "data.jsonl", CONVERSATION);
        let message = refused(open(&path, home.path()), name);
        assert!(message.contains(says), "{message}");
    }
    let home = tempfile::tempdir().unwrap();
    let path = data(home.path(), "data.jsonl", CONVERSATION);
    assert!(refused(open(&path, home.path()), "").contains("there is no tokenizer.json"));
    let huge = std::fs::File::create(home.path().join("tokenizer.json")).unwrap();
    huge.set_len(100 << 20).unwrap();
    assert!(refused(open(&path, home.path()), "tokenizer.json").contains("larger than 64 MiB"));
}

/// Regular expressions that backtrack without end are stopped by the library's own limit.
#[test]
fn a_regular_expression_that_backtracks_is_stopped() {
    let split =
        json!({"type": "Split", "pattern": {"Regex": "(?:(a+)+)+(?=\\1b)c"}, "behavior": "Isolated", "invert": false});
    let home = with_tokenizer(|tokenizer| tokenizer["pre_tokenizer"] = split);
    let path = data(home.path(), "data.jsonl", format!("{{\"text\": \"{}\"}}", "a".repeat(2000)));
    let start = Instant::now();
    let opened = open(&path, home.path());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    if opened.is_err() {
        refused(opened, "tokenizer.json");
    }
}

#[test]
fn harmful_templates_are_stopped() {
    let nested = |open: &str, close: &str, count| open.repeat(count) + "x" + &close.repeat(count);
    let cases: Vec<(&str, String)> = vec![
        ("range", "{% for a in range(1000000000) %}{% endfor %}".into()),
        ("loops", "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}".into()),
        ("multiplication", "{{ 'a' * 10000000000 }}".into()),
        ("doubling", "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}".into()),
        ("replacing", "{% set ns = namespace(s='aa') %}{% for i in range(40) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}".into()),
        ("output", "{% for a in range(90000) %}{{ 'aaaaaaaaaa' * 20 }}{% endfor %}".into()),
        ("recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into()),
        ("nested blocks", nested("{% if true %}", "{% endif %}", 20_000)),
        ("nested parentheses", format!("{{{{ {} }}}}", nested("(", ")", 100_000))),
        ("nested lists", format!("{{{{ {} }}}}", nested("[", "]", 100_000))),
        ("nested calls", format!("{{{{ {} }}}}", nested("f(", ")", 100_000))),
        ("chain of filters and attributes", format!("{{{{ x{} }}}}", ".a".repeat(100_000))),
        ("chain of sums", format!("{{{{ 1{}", " + 1".repeat(50_000))),
        ("unary chain", format!("{{{{ {}x }}}}{{{{ nothing.at.all }}}}", "not ".repeat(10_000))),
        ("power", "{{ 9 ** 9 ** 9 ** 9 }}".into()),
        ("raise_exception", "{{ raise_exception('no system\nrole') }}".into()),
        ("missing key", "{{ nothing.at.all }}".into()),
        ("unknown filter", "{{ 'a' | explode }}".into()),
        ("unknown format", "{{ strftime_now('%Q') }}".into()),
        ("include", "{% include '/etc/passwd' %}".into()),
        ("broken", "{% if %}".into()),
        ("open", "{% for m in messages".into()),
        ("open generation", "{% generation %}".into()),
        ("too long", " ".repeat(2 << 20)),
        ("padding", "{{ '%1000000000d' | format(1) }}".into()),
        ("centre", "{{ 'a' | center(10000000000) }}".into()),
        ("filling up", "{{ 'a'.ljust(10000000000) }}".into()),
        ("zeros", "{{ '1'.zfill(10000000000) }}".into()),
        ("indentation", "{{ 'a\nb' | indent(10000000000) }}".into()),
        ("batches", "{{ [1] | batch(10000000000, 'x') | list }}".into()),
        ("slices", "{{ [1] | slice(10000000000) | list }}".into()),
        ("json indentation", "{{ [[1]] | tojson(indent=10000000000) }}{{ nothing.at.all }}".into()),
    ];
    for (name, template) in cases {
        let home = model(None);
        std::fs::write(home.path().join("chat_template.jinja"), template).unwrap();
        let path = data(home.path(), "data.jsonl", CONVERSATION);
        let start = Instant::now();
        let Err(error) = open(&path, home.path()) else { panic!("{name} is not stopped") };
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
        let message = refused::<()>(Err(error), "");
        assert!(message.contains("template"), "{name}: {message}");
    }
}

/// Doubling a list costs no instructions but takes for ever: the template is given up on, and not tried again.
#[test]
fn a_template_that_gets_around_its_fuel_is_given_up() {
    let template = "{% set ns = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    let template = ChatTemplate::new(Path::new("t"), template, &[]).unwrap();
    let start = Instant::now();
    assert!(template.render(&[], true).unwrap_err().contains("it is not done after 5 s"));
    assert!(template.render(&[], true).unwrap_err().contains("was given up"));
    assert!(start.elapsed() < Duration::from_secs(9));
}

/// Values that a template nests as deep as its fuel allows are taken down without using up the stack.
#[test]
fn deeply_nested_values_do_not_use_up_the_stack() {
    let message = Message::new("user", "x");
    for template in [
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}done",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}done",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x == [ns.x] }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ nothing.at }}",
    ] {
        let template = ChatTemplate::new(Path::new("t"), template, &[]).unwrap();
        let _ = template.render(std::slice::from_ref(&message), true);
    }
}

/// A Parquet file that breaks off anywhere, or of which any byte is changed, is refused or read, and nothing else.
#[test]
fn damaged_parquet_files_are_refused() {
    let home = model(Some(LLAMA3));
    let whole = parquet_file::messages(&[("hello", "hello hello"), ("you", "me")]);
    let path = data(home.path(), "data.parquet", &whole);
    assert_eq!(open(&path, home.path()).unwrap().len(), 2);
    for length in (0..whole.len()).step_by(7) {
        refused(open(&data(home.path(), "data.parquet", &whole[..length]), home.path()), "data.parquet");
    }
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << (position % 8);
        let opened = open(&data(home.path(), "data.parquet", damaged), home.path());
        if opened.is_err() {
            refused(opened, "data.parquet");
        }
    }
    let misnamed = data(home.path(), "misnamed.jsonl", parquet_file::text(&["hello hello"]));
    assert_eq!(open(&misnamed, home.path()).unwrap().len(), 1);
    let other = parquet_file::ids(&[&[-5, 1]]);
    let message = refused(open(&data(home.path(), "data.parquet", other), home.path()), "data.parquet");
    assert!(message.contains("row 1: `input_ids` holds -5"), "{message}");
}

/// What the reader does with any bytes: rows, or a one-line error.
fn read(bytes: &[u8]) {
    for raw in JsonLines::new(Path::new("data.jsonl"), bytes) {
        let value = raw.and_then(|raw| raw.value());
        match value {
            Ok((_, value)) => drop(Row::from_json(&value)),
            Err(error) => drop(refused::<()>(Err(error), "data.jsonl")),
        }
    }
}

/// JSON of the keys that mean something, with values that may fit or not.
fn rows() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (-101i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c \n]{0,6}".prop_map(Value::from),
        "(\n\n(Human|Assistant):[ab \n]{0,4}){0,3}".prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "gpt", "human", "system"]).prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "input_ids",
        "labels",
        "attention_mask",
        "text",
        "messages",
        "conversations",
        "role",
        "content",
        "from",
        "value",
        "prompt",
        "response",
        "completion",
        "instruction",
        "input",
        "output",
        "chosen",
        "rejected",
        "chosen_input_ids",
        "rejected_input_ids",
        "chosen_labels",
        "rejected_labels",
        "prompt_length",
        "prompt_input_ids",
        "tool_calls",
        "text",
    ]);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| pairs.into_iter().collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes);
    }

    #[test]
    fn mutated_lines_never_panic(
        line in rows(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = line.to_string().into_bytes();
        read(&bytes);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read(&bytes);
        read(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn arbitrary_rows_never_panic_on_their_way_to_batches(lines in prop::collection::vec(rows(), 1..4)) {
        let home = model(Some(LLAMA3));
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = data(home.path(), "data.jsonl", text);
        match open(&path, home.path()) {
            Ok(mut stream) => assert!(stream.next_batch().unwrap().check(VOCABULARY, 64).is_ok()),
            Err(error) => drop(refused::<()>(Err(error), "data.jsonl")),
        }
    }
}
