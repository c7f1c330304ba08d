//! Data streams: order, cursors, packing and padding, truncation, row shapes, loss masks.

use std::path::Path;

use temper::data::{Cursor, DataStream, StreamOptions};
use temper::model::Batch;
use temper::ops::IGNORE_INDEX;

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
    let (mut packed, mut padded) = (stream(true), stream(false));
    for _ in 0..8 {
        let (packed, padded) = (packed.next_batch().unwrap(), padded.next_batch().unwrap());
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

fn file(directory: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Rows of token ids need no tokenizer: -100 marks what is not learned, a mask drops padding, missing labels mean all.
#[test]
fn rows_of_token_ids_are_read_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let text = "\u{feff}{\"input_ids\":[1,2,3]}\r\n\r\n\
                {\"input_ids\":[4,5,6],\"labels\":[-100,-100,6],\"id\":\"x\"}\n   \n\
                {\"input_ids\":[0,0,7,8,0],\"labels\":null,\"attention_mask\":[0,0,1,1,0]}";
    let path = file(home.path(), "ids.jsonl", text);
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
        let path = file(home.path(), &format!("{number}.jsonl"), row);
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
        file(home.path(), name, &format!("{{\"input_ids\":[{id},{id}]}}\n"));
    }
    let options = StreamOptions { shuffle: false, ..options(3) };
    let mut stream = DataStream::open("a", home.path(), home.path(), options).unwrap();
    assert_eq!(numbers(&stream.next_batch().unwrap()), [1, 2, 3]);
    assert_eq!(stream.len(), 3);
}
