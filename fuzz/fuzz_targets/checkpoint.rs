//! Any bytes as the manifest of a checkpoint: problems are named, nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use temper::checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let root = tempfile::tempdir().expect("a scratch directory");
    let step = root.path().join("step-00000001");
    std::fs::create_dir(&step).expect("a scratch directory");
    std::fs::write(step.join("manifest.json"), bytes).expect("a scratch file");
    let _ = (checkpoint::verify(&step), checkpoint::load(&step), checkpoint::latest(root.path()));
});
