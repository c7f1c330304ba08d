//! Numbers to compute with, and how far two sets of them are apart.

use temper::huggingface::TensorFile;
use temper::random::{Random, Stream};

/// `count` normal numbers of standard deviation `scale`: one seed, one sequence.
pub fn normals(seed: u64, count: usize, scale: f64) -> Vec<f32> {
    let mut random = Random::new(seed, Stream::Weights, 0, 0);
    (0..count).map(|_| (scale * random.normal()) as f32).collect()
}

/// A tensor of ids, masks or labels in a reference file, which PyTorch wrote as 64-bit integers.
pub fn integers(file: &TensorFile, name: &str) -> Vec<i64> {
    let bytes = std::fs::read(file.path()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::I64, "{name}");
    tensor.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// The bits of every number, since NaN and −0 are not told apart by `==`.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// ‖a − b‖ / ‖b‖, in f64.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = b.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.0, "a reference of zeros proves nothing");
    distance(a, b) / norm
}

/// ‖a − b‖ / ‖b − start‖, in f64: the error of weights after training, as a fraction of how far they moved.
pub fn relative_to_update(a: &[f32], b: &[f32], start: &[f32]) -> f64 {
    let update = distance(b, start);
    assert!(update > 0.0, "weights that did not move prove nothing");
    distance(a, b) / update
}

/// ‖a − b‖, in f64. A number that is not finite is an error, since no bound would see it in a quotient of two.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square: f64 = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    assert!(square.is_finite(), "a number is not finite");
    square.sqrt()
}
