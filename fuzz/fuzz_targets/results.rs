//! Any bytes as the results of a red-team run: an error, or results that everything can be written from.

#![no_main]

use libfuzzer_sys::fuzz_target;
use temper::report::{read_results, write_beside_results};

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("results.json"), bytes).unwrap();
    if let Ok(results) = read_results(directory.path()) {
        write_beside_results(directory.path(), &results).expect("what is accepted can be written");
    }
});
