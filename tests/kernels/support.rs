//! Shared by the kernel tests: the same random operands on the CPU (the oracle) and on a simulated device, outputs that
//! are poisoned before a kernel writes them, and relative errors.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{Backend, DType, Tensor};
use temper::random::{Random, Stream};

/// Largest relative norm of the difference to the oracle, by how operands are stored.
pub fn bound(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 1e-2 } else { 1e-5 }
}

/// Both modes of the backend, on a fresh simulated device each.
pub fn modes() -> [Cuda; 2] {
    [DType::Bf16, DType::F32].map(|dtype| Cuda::simulated(dtype).expect("a simulated device"))
}

/// A generator for one test case.
pub fn random(case: u64) -> Random {
    Random::new(7, Stream::Demo, case, 0)
}

/// `len` normal numbers of standard deviation `scale`.
pub fn normals(random: &mut Random, len: usize, scale: f64) -> Vec<f32> {
    (0..len).map(|_| (scale * random.normal()) as f32).collect()
}

/// A matrix of the same numbers on the CPU and on the device, rounded to what the device stores.
pub struct Pair {
    pub cpu: Tensor<Cpu>,
    pub cuda: Tensor<Cuda>,
}

impl Pair {
    /// `values` stored as `dtype` on the device, and the numbers that it then holds as f32 on the CPU.
    pub fn new(cuda: &Cuda, dtype: DType, rows: usize, cols: usize, values: &[f32]) -> Self {
        let mut device = Tensor::zeros(cuda, "operand", rows, cols, dtype).expect("memory");
        cuda.upload_f32(device.buffer_mut(), 0, values).expect("an upload");
        let held = device.to_vec(cuda).expect("a download");
        Self { cpu: Tensor::from_f32(&Cpu, "operand", rows, cols, &held).expect("memory"), cuda: device }
    }

    /// Random normals in the compute dtype of `cuda`.
    pub fn random(cuda: &Cuda, random: &mut Random, rows: usize, cols: usize, scale: f64) -> Self {
        Self::new(cuda, cuda.compute_dtype(), rows, cols, &normals(random, rows * cols, scale))
    }

    /// Random normals in f32 on both.
    pub fn random_f32(cuda: &Cuda, random: &mut Random, rows: usize, cols: usize, scale: f64) -> Self {
        Self::new(cuda, DType::F32, rows, cols, &normals(random, rows * cols, scale))
    }

    /// An output: NaN everywhere, so that an element that a kernel does not write shows.
    pub fn poisoned(cuda: &Cuda, dtype: DType, rows: usize, cols: usize) -> Self {
        Self::new(cuda, dtype, rows, cols, &vec![f32::NAN; rows * cols])
    }

    /// Integers on both.
    pub fn integers(cuda: &Cuda, values: &[u32]) -> Self {
        Self {
            cpu: Tensor::from_u32(&Cpu, "integers", values).expect("memory"),
            cuda: Tensor::from_u32(cuda, "integers", values).expect("memory"),
        }
    }

    /// ‖device − CPU‖ / ‖CPU‖ in f64; infinite where the device holds a number that is not finite.
    pub fn error(&self, cuda: &Cuda) -> f64 {
        relative_error(&self.cuda.to_vec(cuda).expect("a download"), &self.cpu.to_vec(&Cpu).expect("values"))
    }

    /// Fails unless [`Pair::error`] is within `bound`.
    pub fn assert_close(&self, cuda: &Cuda, bound: f64, what: &str) {
        let error = self.error(cuda);
        assert!(error <= bound, "{what}: relative error {error:.2e}, bound {bound:.0e}");
    }
}

/// ‖found − expected‖ / ‖expected‖ in f64; infinite where `found` has a number that is not finite.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    if found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}
