//! Any bytes as a data file of ready tokens: an error, or batches.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use temper::data::{DataStream, StreamOptions};

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().expect("a scratch file");
    std::io::Write::write_all(&mut file, bytes).expect("a scratch file");
    let options =
        StreamOptions { batch: 3, max_length: 16, shuffle: true, pack: false, pad_token_id: 0, vocab_size: 64, seed: 1 };
    if let Ok(mut stream) = DataStream::open("fuzz", file.path(), Path::new("/nonexistent"), options) {
        let batch = stream.next_batch().expect("a batch of an accepted file");
        batch.check(64, 16).expect("tokens of an accepted file are in the vocabulary");
    }
});
