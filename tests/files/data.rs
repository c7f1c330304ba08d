//! Data streams: order, cursors, packing and padding, truncation, row shapes, loss masks.

use std::path::Path;

use temper::data::{ChatTemplate, Cursor, DataStream, StreamOptions, Tokenizer, inspect};
use temper::model::Batch;
use temper::ops::IGNORE_INDEX;

use crate::support::chat_model::{self, LLAMA3};
use crate::support::parquet_file;

fn options(batch: usize) -> StreamOptions {
    StreamOptions { batch, max_length: 64, shuffle: true, pack: true, pad_token_id: 0, vocab_size: 1000, seed: 11 }
}

/// Sample i is [i+1; …] with a length of 2 + i % 5, its first token not learned.
fn numbered(count: u32) -> Vec<(Vec<u32>, Vec<u32>)> {
    let sample = |i: u32| {
        let tokens = vec![i + 1; 2 + i as usize % 5];
        let mut labels = tokens.clone();
        labels[0] = IGNORE_INDEX;
        (tokens, labels)
    };
    (0..count).map(sample).collect()
}

fn numbers(batch: &Batch) -> Vec<u32> {
    batch.segments.iter().map(|segment| batch.tokens[segment.start]).collect()
}

/// The samples of pass after pass, one at a time.
fn passes(stream: &mut DataStream, count: usize) -> Vec<Vec<u32>> {
    let length = stream.len();
    (0..count).map(|_| (0..length).flat_map(|_| numbers(&stream.next_batch().unwrap())).collect()).collect()
}

#[test]
fn every_pass_is_a_permutation_of_its_own() {
    let mut stream = DataStream::from_samples("a", numbered(40), options(1)).unwrap();
    let orders = passes(&mut stream, 3);
    for order in &orders {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=40).collect::<Vec<_>>());
        assert_ne!(*order, sorted);
    }
    assert_ne!(orders[0], orders[1]);
    assert_ne!(orders[1], orders[2]);
}

#[test]
fn order_depends_on_name_and_seed_and_nothing_else() {
    let order = |name: &str, seed| {
        let options = StreamOptions { seed, ..options(1) };
        passes(&mut DataStream::from_samples(name, numbered(40), options).unwrap(), 2)
    };
    assert_eq!(order("a", 11), order("a", 11));
    assert_ne!(order("a", 11), order("b", 11));
    assert_ne!(order("a", 11), order("a", 12));
}

#[test]
fn without_shuffling_every_pass_has_file_order() {
    let mut stream =
        DataStream::from_samples("a", numbered(5), StreamOptions { shuffle: false, ..options(3) }).unwrap();
    let read: Vec<_> = (0..4).map(|_| numbers(&stream.next_batch().unwrap())).collect();
    assert_eq!(read, [vec![1, 2, 3], vec![4, 5, 1], vec![2, 3, 4], vec![5, 1, 2]]);
}

/// Every batch of a stream that was sent to its start equals the one that reading on gave, in any order of asking, with
/// batches that straddle passes (7 does not divide 10) and batches longer than a pass.
#[test]
fn seek_is_the_same_as_having_read() {
    for (count, batch) in [(10, 7), (10, 5), (3, 8), (1, 2)] {
        let mut stream = DataStream::from_samples("a", numbered(count), options(batch)).unwrap();
        let read: Vec<(Cursor, Batch)> = (0..9).map(|_| (stream.cursor(), stream.next_batch().unwrap())).collect();
        for (cursor, expected) in read.iter().rev().chain(&read) {
            let mut other = DataStream::from_samples("a", numbered(count), options(batch)).unwrap();
            other.seek(*cursor);
            assert_eq!(other.next_batch().unwrap(), *expected);
            stream.seek(*cursor);
            assert_eq!(stream.next_batch().unwrap(), *expected);
            assert_eq!(stream.cursor().samples, cursor.samples + batch as u64);
        }
    }
}

#[test]
fn a_cursor_at_the_end_of_numbers_is_an_error() {
    let mut stream = DataStream::from_samples("a", numbered(4), options(2)).unwrap();
    stream.seek(Cursor { samples: u64::MAX - 1 });
    assert!(stream.next_batch().is_err());
}

/// Padding adds rows, and nothing else: the real rows, their labels and their positions are those of the packed batch.
#[test]
fn pack_and_pad_hold_the_same_tokens_and_labels() {
    let stream = |pack| {
        let options = StreamOptions { pack, pad_token_id: 999, ..options(6) };
        DataStream::from_samples("a", numbered(20), options).unwrap()
    };
    let mut packed = stream(true);
    let mut padded = stream(false);
    for _ in 0..8 {
        let packed = packed.next_batch().unwrap();
        let padded = padded.next_batch().unwrap();
        let longest = packed.segments.iter().map(|s| s.valid).max().unwrap();
        assert_eq!(packed.segments.len(), padded.segments.len());
        for (a, b) in packed.segments.iter().zip(&padded.segments) {
            assert_eq!((a.length, a.valid, b.length), (b.valid, b.valid, longest));
            let rows = |batch: &Batch, start: usize, length: usize| {
                let range = start..start + length;
                (
                    batch.tokens[range.clone()].to_vec(),
                    batch.labels[range.clone()].to_vec(),
                    batch.positions[range].to_vec(),
                )
            };
            assert_eq!(rows(&packed, a.start, a.valid), rows(&padded, b.start, b.valid));
            let padding = b.start + b.valid..b.start + b.length;
            assert!(padded.tokens[padding.clone()].iter().all(|&token| token == 999));
            assert!(padded.labels[padding].iter().all(|&label| label == IGNORE_INDEX));
        }
        assert_eq!(padded.len(), longest * 6);
        let targets = |batch: &Batch| {
            batch.next_token_targets().into_iter().filter(|&target| target != IGNORE_INDEX).collect::<Vec<_>>()
        };
        assert_eq!(targets(&packed), targets(&padded));
    }
}

#[test]
fn no_batch_is_larger_than_announced() {
    for (count, batch, pack, shuffle) in
        [(10, 7, true, true), (10, 7, false, true), (3, 8, true, true), (12, 5, true, false), (1, 3, true, true)]
    {
        let options = StreamOptions { pack, shuffle, ..options(batch) };
        let mut stream = DataStream::from_samples("a", numbered(count), options).unwrap();
        let largest = (0..200).map(|_| stream.next_batch().unwrap().len()).max().unwrap();
        assert!(largest <= stream.max_batch_tokens());
        assert!(stream.max_batch_tokens() <= batch * stream.longest());
        assert!(stream.all_batches().unwrap().iter().all(|batch| batch.len() <= stream.max_batch_tokens()));
    }
}

#[test]
fn all_batches_is_one_pass_in_file_order() {
    let stream = DataStream::from_samples("a", numbered(7), options(3)).unwrap();
    let read: Vec<_> = stream.all_batches().unwrap().iter().map(numbers).collect();
    assert_eq!(read, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
}

/// A sample longer than max_length loses its end, and one that then has nothing to learn is left out; both are counted.
#[test]
fn long_samples_are_cut_and_unlearnable_ones_left_out() {
    let ignore = IGNORE_INDEX;
    let samples = vec![
        (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]),
        (vec![6, 7, 8, 9], vec![ignore, ignore, ignore, 9]),
        (vec![6, 7], vec![6, ignore]),
        (vec![5], vec![5]),
        (vec![], vec![]),
        (vec![7, 8], vec![ignore, 8]),
    ];
    let options = StreamOptions { max_length: 3, shuffle: false, ..options(2) };
    let mut stream = DataStream::from_samples("a", samples, options).unwrap();
    assert_eq!((stream.len(), stream.cut(), stream.skipped(), stream.longest()), (2, 2, 4, 3));
    let batch = stream.next_batch().unwrap();
    assert_eq!(batch.tokens, [1, 2, 3, 7, 8]);
    assert_eq!(batch.labels, [1, 2, 3, ignore, 8]);
}

#[test]
fn unusable_samples_and_settings_are_refused() {
    let open = |samples: Vec<(Vec<u32>, Vec<u32>)>, options| DataStream::from_samples("mine", samples, options);
    let good = || vec![(vec![1, 2], vec![1, 2])];
    let said = |result: temper::Result<DataStream>| result.unwrap_err().to_string();
    assert!(said(open(vec![], options(1))).contains("no sample"));
    assert!(said(open(vec![(vec![1, 2], vec![1, IGNORE_INDEX])], options(1))).contains("none of its 1"));
    assert!(said(open(vec![(vec![1, 1000], vec![1, 2])], options(1))).contains("sample 0: token id 1000"));
    assert!(said(open(vec![(vec![1, 2], vec![1, 1000])], options(1))).contains("label id 1000"));
    assert!(said(open(vec![(vec![1, 2], vec![1])], options(1))).contains("1 labels for 2 tokens"));
    assert!(said(open(good(), options(0))).contains("mine.batch"));
    assert!(said(open(good(), StreamOptions { max_length: 1, ..options(1) })).contains("mine.max_length"));
    let outside = StreamOptions { pack: false, pad_token_id: 1000, ..options(1) };
    assert!(said(open(good(), outside)).contains("mine.pad_token_id"));
}

/// Rows of token ids need no tokenizer: -100 marks what is not learned, a mask drops padding, missing labels mean all.
#[test]
fn rows_of_token_ids_are_read_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let text = "\u{feff}{\"input_ids\":[1,2,3]}\r\n\r\n\
                {\"input_ids\":[4,5,6],\"labels\":[-100,-100,6],\"id\":\"x\"}\n   \n\
                {\"input_ids\":[0,0,7,8,0],\"labels\":null,\"attention_mask\":[0,0,1,1,0]}";
    let path = chat_model::data(home.path(), "ids.jsonl", text);
    let options = StreamOptions { shuffle: false, ..options(3) };
    let mut stream = DataStream::open("a", &path, home.path(), options).unwrap();
    let batch = stream.next_batch().unwrap();
    assert_eq!(batch.tokens, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(batch.labels, [1, 2, 3, IGNORE_INDEX, IGNORE_INDEX, 6, 7, 8]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 1, 2, 0, 1]);
    assert!(!stream.is_preference());
}

/// The three ways of saying where the answer of a tokenized pair begins give the same batch.
#[test]
fn tokenized_preference_pairs_become_chosen_then_rejected() {
    let home = tempfile::tempdir().unwrap();
    let rows = [
        r#"{"chosen_input_ids":[1,2,3,4],"rejected_input_ids":[1,2,5],"prompt_length":2}"#,
        r#"{"chosen_input_ids":[1,2,3,4],"rejected_input_ids":[1,2,5],"chosen_labels":[-100,-100,3,4],"rejected_labels":[-100,-100,5]}"#,
        r#"{"prompt_input_ids":[1,2],"chosen_input_ids":[3,4],"rejected_input_ids":[5]}"#,
    ];
    for (number, row) in rows.iter().enumerate() {
        let path = chat_model::data(home.path(), &format!("{number}.jsonl"), row);
        let padded = StreamOptions { pack: false, ..options(1) };
        let mut stream = DataStream::open("a", &path, home.path(), padded).unwrap();
        assert!(stream.is_preference());
        assert_eq!((stream.len(), stream.longest(), stream.max_batch_tokens()), (1, 4, 8));
        let batch = stream.next_batch().unwrap();
        assert_eq!(batch.tokens, [1, 2, 3, 4, 1, 2, 5, 0]);
        let none = IGNORE_INDEX;
        assert_eq!(batch.labels, [none, none, 3, 4, none, none, 5, none]);
        assert_eq!(batch.segments.iter().map(|s| s.valid).collect::<Vec<_>>(), [4, 3]);
    }
}

#[test]
fn a_directory_is_its_files_in_name_order() {
    let home = tempfile::tempdir().unwrap();
    for (name, id) in [("b.jsonl", 2), ("a.jsonl", 1), ("c.jsonl", 3), ("readme.txt", 4)] {
        chat_model::data(home.path(), name, format!("{{\"input_ids\":[{id},{id}]}}\n"));
    }
    let options = StreamOptions { shuffle: false, ..options(3) };
    let mut stream = DataStream::open("a", home.path(), home.path(), options).unwrap();
    assert_eq!(numbers(&stream.next_batch().unwrap()), [1, 2, 3]);
    assert_eq!(stream.len(), 3);
}

/// A model directory with a tokenizer and, if given, a chat template.
fn model(template: Option<&str>) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    chat_model::write(home.path(), template);
    home
}

fn text_options() -> StreamOptions {
    StreamOptions { max_length: 512, shuffle: false, vocab_size: chat_model::VOCABULARY, ..options(1) }
}

/// The first batch that `rows` become.
fn first_batch(home: &Path, rows: &str) -> Batch {
    let path = chat_model::data(home, "data.jsonl", rows);
    DataStream::open("a", &path, home, text_options()).unwrap().next_batch().unwrap()
}

/// The text of the tokens that `keep` picks by position, by the tokenizer's own account.
fn text_of(home: &Path, batch: &Batch, keep: impl Fn(usize) -> bool) -> String {
    let tokenizer = Tokenizer::open(home, chat_model::VOCABULARY).unwrap();
    let ids = batch.tokens.iter().enumerate().filter(|(position, _)| keep(*position));
    ids.map(|(_, &id)| tokenizer.piece(id).unwrap()).collect()
}

fn learned(home: &Path, batch: &Batch) -> String {
    for (token, label) in batch.tokens.iter().zip(&batch.labels) {
        assert!(*label == IGNORE_INDEX || label == token);
    }
    text_of(home, batch, |position| batch.labels[position] != IGNORE_INDEX)
}

/// Raw text gets the start token that the tokenizer adds, no end token, and is learned as a whole.
#[test]
fn raw_text_is_learned_whole() {
    let home = model(None);
    for key in ["text", "text_chunk", "txt_chunk"] {
        let batch = first_batch(home.path(), &format!("{{\"{key}\": \"hello hello\"}}"));
        assert_eq!(batch.tokens, [265, 259, 260]);
        assert_eq!(batch.labels, batch.tokens);
    }
}

/// Of a conversation in Llama 3's layout the assistant's words and the tokens that end its turns are learned, and no
/// header and no user's turn; ids and mask are those of Transformers.
#[test]
fn only_the_assistants_turns_are_learned() {
    let home = model(Some(LLAMA3));
    let row = r#"{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " hello to you 😀 "}, {"role": "user", "content": "again"},
        {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]}"#;
    let batch = first_batch(home.path(), &row.replace('\n', " "));
    assert_eq!(learned(home.path(), &batch).replace('\u{fffd}', ""), "hello to you <|eot_id|>hello<|eot_id|>");
    // `apply_chat_template(…, return_assistant_tokens_mask=True)` of Transformers 5.24 with the same files, the answers
    // marked by {% generation %}.
    let expected = [
        265, 266, 115, 121, 115, 116, 101, 109, 267, 10, 10, 66, 101, 32, 107, 105, 110, 100, 46, 268, 266, 262, 263,
        267, 10, 10, 259, 268, 266, 97, 115, 115, 105, 115, 116, 97, 110, 116, 267, 10, 10, 259, 264, 111, 32, 121,
        111, 117, 32, 240, 159, 152, 128, 268, 266, 262, 263, 267, 10, 10, 97, 103, 97, 105, 110, 268, 266, 97, 115,
        115, 105, 115, 116, 97, 110, 116, 267, 10, 10, 259, 268,
    ];
    assert_eq!(batch.tokens, expected);
    let positions = (0..batch.len()).filter(|&position| batch.labels[position] != IGNORE_INDEX);
    assert_eq!(positions.collect::<Vec<_>>(), (41..54).chain(79..81).collect::<Vec<_>>());
}

/// Every way to write the same conversation gives the same tokens and labels.
#[test]
fn conversations_of_every_shape_are_the_same() {
    let home = model(Some(LLAMA3));
    let rows = [
        r#"{"messages": [{"role": "user", "content": "one\n\ntwo"}, {"role": "assistant", "content": "hello"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "one\n\ntwo"}, {"from": "gpt", "value": "hello"}]}"#,
        r#"{"prompt": "one\n\ntwo", "response": "hello", "id": 4}"#,
        r#"{"prompt": "one\n\ntwo", "completion": "hello", "messages": null}"#,
        r#"{"prompt": [{"role": "user", "content": "one\n\ntwo"}], "completion": [{"role": "assistant", "content": "hello"}]}"#,
        r#"{"instruction": "one", "input": "two", "output": "hello"}"#,
        r#"{"instruction": "one\n\ntwo", "input": "", "output": "hello"}"#,
    ];
    let expected = first_batch(home.path(), rows[0]);
    assert_eq!(learned(home.path(), &expected), "hello<|eot_id|>");
    for row in rows {
        assert_eq!(first_batch(home.path(), row), expected, "{row}");
    }
}

/// Preference pairs of every shape: chosen and rejected share the prompt, and only the answers are learned.
#[test]
fn preference_pairs_of_every_shape_are_the_same() {
    let home = model(Some(LLAMA3));
    let rows = [
        r#"{"prompt": "hello", "chosen": "no", "rejected": "sure"}"#,
        r#"{"chosen": "\n\nHuman: hello\n\nAssistant: no", "rejected": "\n\nHuman: hello\n\nAssistant: sure"}"#,
        r#"{"prompt": "\n\nHuman: hello\n\nAssistant:", "chosen": " no", "rejected": " sure"}"#,
        r#"{"prompt": "hello", "chosen": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "no"}],
            "rejected": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "hello"}], "chosen": [{"role": "assistant", "content": "no"}],
            "rejected": [{"role": "assistant", "content": "sure"}]}"#,
    ];
    let expected = first_batch(home.path(), rows[0]);
    assert_eq!(expected.segments.len(), 2);
    assert_eq!(learned(home.path(), &expected), "no<|eot_id|>sure<|eot_id|>");
    for row in rows {
        assert_eq!(first_batch(home.path(), &row.replace('\n', " ")), expected, "{row}");
    }
}

/// Turns that both sides of a pair share belong to the prompt, answers of the assistant among them included.
#[test]
fn shared_turns_of_a_pair_are_not_learned() {
    let home = model(Some(LLAMA3));
    let shared = "\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c";
    let row = format!(r#"{{"chosen": "{shared}\n\nAssistant: no", "rejected": "{shared}\n\nAssistant: d\n\nsure"}}"#);
    let batch = first_batch(home.path(), &row);
    assert_eq!(learned(home.path(), &batch), "no<|eot_id|>d\n\nsure<|eot_id|>");
}

/// Without a template turns are written plainly; the answer's first token, which holds the space before it, is learned.
#[test]
fn a_model_without_a_template_gets_the_plain_one() {
    let home = model(None);
    let batch = first_batch(home.path(), r#"{"prompt": "hello", "response": "hello"}"#);
    let all = text_of(home.path(), &batch, |_| true);
    assert_eq!(all, "<|begin_of_text|>User: hello\n\nAssistant: hello<|eot_id|>\n\n");
    assert_eq!(learned(home.path(), &batch), " hello<|eot_id|>");
}

/// The line end that layouts like ChatML write after the end of a turn is not learned.
#[test]
fn layout_after_the_end_of_a_turn_is_not_learned() {
    let template = "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{% generation %}{{ m.content }}\
        {% endgeneration %}<|eot_id|>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}";
    let home = model(Some(template));
    let batch = first_batch(home.path(), r#"{"prompt": "q", "response": "hello\n"}"#);
    assert_eq!(learned(home.path(), &batch), "hello\n<|eot_id|>");
}

/// Where a template drops every answer of a conversation, or begins an answer in another way than it prompts for it, there is
/// no way to tell what is learned: an error that says so.
#[test]
fn templates_that_rewrite_every_answer_are_refused() {
    let dropping = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}[assistant]{% endif %}";
    let other = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[model]{% endif %}";
    for (template, says) in [(dropping, "writes earlier turns differently"), (other, "begins the answer differently")] {
        let home = model(Some(template));
        let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}]}"#;
        let path = chat_model::data(home.path(), "data.jsonl", row.replace('\n', " "));
        let message = DataStream::open("a", &path, home.path(), text_options()).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("data.jsonl: line 1"), "{message}");
    }
}

/// A conversation whose answer lies beyond max_length teaches nothing and is left out.
#[test]
fn answers_beyond_the_longest_length_do_not_count() {
    let home = model(Some(LLAMA3));
    let rows = "{\"prompt\": \"a long question, much longer than thirty tokens\", \"response\": \"hello\"}\n\
                {\"prompt\": \"a\", \"response\": \"hello hello\"}\n";
    let path = chat_model::data(home.path(), "data.jsonl", rows);
    let options = StreamOptions { max_length: 23, ..text_options() };
    let mut stream = DataStream::open("a", &path, home.path(), options.clone()).unwrap();
    assert_eq!((stream.len(), stream.cut(), stream.skipped()), (1, 2, 1));
    assert_eq!(learned(home.path(), &stream.next_batch().unwrap()), "hello");
    let none = StreamOptions { max_length: 8, ..options };
    let message = DataStream::open("a", &path, home.path(), none).unwrap_err().to_string();
    assert!(message.contains("none of its 2 has a token to learn"), "{message}");
}

#[test]
fn chat_templates_are_found_in_all_their_places() {
    let home = model(None);
    let named =
        r#"[{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}"}]"#;
    let settings = home.path().join("tokenizer_config.json");
    std::fs::write(&settings, format!(r#"{{"chat_template": {named}}}"#)).unwrap();
    let message = temper::data::Message::new("user", "hello");
    let render = || ChatTemplate::open(home.path(), &[]).unwrap().render(std::slice::from_ref(&message), false);
    assert_eq!(render().unwrap(), "hello");
    std::fs::write(home.path().join("chat_template.jinja"), "of its own file").unwrap();
    assert_eq!(render().unwrap(), "of its own file");
}

/// What the inspection says is what the stream does, in text and in JSON.
#[test]
fn inspect_shows_what_is_learned() {
    let home = model(Some(LLAMA3));
    let rows = "\n{\"text\": \"x\"}\n{\"prompt\": \"hello\", \"chosen\": \"no\", \"rejected\": \"sure\"}\n";
    let path = chat_model::data(home.path(), "data.jsonl", rows);
    let seen = inspect(&path, home.path(), 1, 512).unwrap();
    assert_eq!((seen.row, seen.shape, seen.used), (3, "preference pair", true));
    let names: Vec<_> = seen.sequences.iter().map(|sequence| sequence.name).collect();
    assert_eq!(names, ["chosen", "rejected"]);
    let learned = |index: usize| -> Vec<String> {
        let tokens = seen.sequences[index].tokens.iter().filter(|token| token.learned);
        tokens.map(|token| token.piece.clone().unwrap()).collect()
    };
    assert_eq!(learned(0), ["n", "o", "<|eot_id|>"]);
    assert_eq!(learned(1).concat(), "sure<|eot_id|>");
    let rendered = seen.sequences[0].rendered.as_deref().unwrap();
    assert!(rendered.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\nno<|eot_id|>"));
    let shown = seen.to_string();
    assert!(shown.contains("  + \"n\" \"o\" \"<|eot_id|>\"\n"), "{shown}");
    assert!(shown.contains("chosen: 25 tokens, 3 learned"), "{shown}");
    let json = serde_json::to_value(&seen).unwrap();
    assert_eq!(json["sequences"][0]["tokens"][24]["id"], 268);
    assert_eq!(json["sequences"][0]["tokens"][24]["learned"], true);
    let cut = inspect(&path, home.path(), 1, 20).unwrap();
    assert_eq!((cut.used, cut.sequences[0].tokens.len(), cut.sequences[0].cut), (false, 20, 5));
    assert!(cut.to_string().contains("not used") && cut.to_string().contains("5 more cut off"));
    assert!(inspect(&path, home.path(), 2, 512).unwrap_err().to_string().contains("only 2 samples"));
}

/// The rows of a Parquet file are those of the same JSONL file: text, lists of ids and lists of messages.
#[test]
fn parquet_and_jsonl_give_the_same_batches() {
    let home = model(Some(LLAMA3));
    let messages = parquet_file::messages(&[("hello", "hello hello"), ("wörds", "😀")]);
    let ids = parquet_file::ids(&[&[1, 2, 3], &[4, 5]]);
    let text = parquet_file::text(&["hello", "two\nlines"]);
    for (parquet, jsonl) in [
        (
            messages,
            [
                r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello hello"}]}"#,
                r#"{"messages": [{"role": "user", "content": "wörds"}, {"role": "assistant", "content": "😀"}]}"#,
            ],
        ),
        (ids, [r#"{"input_ids": [1, 2, 3]}"#, r#"{"input_ids": [4, 5]}"#]),
        (text, [r#"{"text": "hello"}"#, r#"{"text": "two\nlines"}"#]),
    ] {
        let parquet = chat_model::data(home.path(), "data.parquet", parquet);
        let jsonl = chat_model::data(home.path(), "data.jsonl", jsonl.join("\n"));
        let batches = |path: &Path| {
            let stream = DataStream::open("a", path, home.path(), text_options()).unwrap();
            stream.all_batches().unwrap()
        };
        assert_eq!(batches(&parquet), batches(&jsonl));
        assert_eq!(batches(&parquet).len(), 2);
    }
}
