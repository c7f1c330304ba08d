//! Any bytes as a weight file: an error, or tensors that can be read to the end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use temper::huggingface::TensorFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a scratch file");
    std::io::Write::write_all(&mut file, bytes).expect("a scratch file");
    if let Ok(tensors) = TensorFile::open(file.path()) {
        for name in tensors.names() {
            let _ = (tensors.info(name), tensors.read_f32(name));
        }
    }
});
