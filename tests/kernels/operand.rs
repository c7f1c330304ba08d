//! Matrices at any offset inside their buffers, so that kernels meet every alignment, with NaN before and behind them
//! that a kernel must neither read into its result nor overwrite.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{Backend, Buffer, DType, Matrix, MatrixMut, Tensor};
use temper::random::Random;

use crate::support::{normals, relative_error};

/// The same matrix on the CPU and on the device, from element `offset` of its buffer.
pub struct Operand {
    cpu: Tensor<Cpu>,
    cuda: Tensor<Cuda>,
    offset: usize,
    rows: usize,
    cols: usize,
}

impl Operand {
    /// `values` as `dtype` on the device, and the numbers that it then holds on the CPU.
    pub fn new(
        cuda: &Cuda,
        dtype: DType,
        (rows, cols): (usize, usize),
        offset: usize,
        values: impl AsRef<[f32]>,
    ) -> Self {
        let values = values.as_ref();
        assert_eq!(values.len(), rows * cols);
        // Without an offset the matrix ends with its buffer, so that the simulator sees accesses behind it.
        let behind = if offset == 0 { 0 } else { 3 };
        let framed = [&vec![f32::NAN; offset], values, &vec![f32::NAN; behind]].concat();
        let mut device = Tensor::zeros(cuda, "operand", 1, framed.len(), dtype).expect("memory");
        cuda.upload_f32(device.buffer_mut(), 0, &framed).expect("an upload");
        let held = device.to_vec(cuda).expect("a download");
        let cpu = Tensor::from_f32(&Cpu, "operand", 1, framed.len(), &held).expect("memory");
        Self { cpu, cuda: device, offset, rows, cols }
    }

    /// Random normals of standard deviation `scale`.
    pub fn random(
        cuda: &Cuda,
        random: &mut Random,
        dtype: DType,
        shape: (usize, usize),
        offset: usize,
        scale: f64,
    ) -> Self {
        Self::new(cuda, dtype, shape, offset, normals(random, shape.0 * shape.1, scale))
    }

    /// An output: NaN everywhere.
    pub fn poisoned(cuda: &Cuda, dtype: DType, shape: (usize, usize), offset: usize) -> Self {
        Self::new(cuda, dtype, shape, offset, vec![f32::NAN; shape.0 * shape.1])
    }

    /// The matrix on the CPU.
    pub fn cpu(&self) -> Matrix<'_, Cpu> {
        Matrix { buffer: self.cpu.buffer(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// The matrix on the device.
    pub fn cuda(&self) -> Matrix<'_, Cuda> {
        Matrix { buffer: self.cuda.buffer(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// The matrix on the CPU, to write.
    pub fn cpu_mut(&mut self) -> MatrixMut<'_, Cpu> {
        MatrixMut { buffer: self.cpu.buffer_mut(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// The matrix on the device, to write.
    pub fn cuda_mut(&mut self) -> MatrixMut<'_, Cuda> {
        MatrixMut { buffer: self.cuda.buffer_mut(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// What the device holds. Fails if something was written around the matrix.
    pub fn found(&self, cuda: &Cuda) -> Vec<f32> {
        let all = self.cuda.to_vec(cuda).expect("a download");
        let (before, rest) = all.split_at(self.offset);
        let (inside, behind) = rest.split_at(self.rows * self.cols);
        let untouched = before.iter().chain(behind).all(|x| x.is_nan());
        // A remainder of NaN is 0, so only numbers tell.
        assert!(untouched || self.cuda.buffer().dtype() == DType::Remainder16, "a write outside the matrix");
        inside.to_vec()
    }

    /// What the CPU holds.
    pub fn expected(&self) -> Vec<f32> {
        let all = self.cpu.to_vec(&Cpu).expect("values");
        all[self.offset..][..self.rows * self.cols].to_vec()
    }

    /// Fails unless the relative error to the CPU is within `bound`.
    pub fn assert_close(&self, cuda: &Cuda, bound: f64, what: &str) {
        let error = relative_error(&self.found(cuda), &self.expected());
        println!("{what} {:?} {}x{}+{}: {error:.2e}", cuda.compute_dtype(), self.rows, self.cols, self.offset);
        assert!(error <= bound, "{what} {}x{}: relative error {error:.2e}, bound {bound:.0e}", self.rows, self.cols);
    }

    /// Fails unless the device has the CPU's bits.
    pub fn assert_same(&self, cuda: &Cuda, what: &str) {
        assert_eq!(bits(&self.found(cuda)), bits(&self.expected()), "{what} {}x{}", self.rows, self.cols);
    }
}

/// The bits of numbers, to compare what two runs gave.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Integers on both backends.
pub fn integers(cuda: &Cuda, values: &[u32]) -> (Tensor<Cpu>, Tensor<Cuda>) {
    let cpu = Tensor::from_u32(&Cpu, "integers", values).expect("memory");
    (cpu, Tensor::from_u32(cuda, "integers", values).expect("memory"))
}

/// Results of `run` under the round-robin schedule and three random ones, which must have the same bits.
pub fn assert_schedule_does_not_show(dtype: DType, run: impl Fn(&Cuda) -> Vec<f32>) {
    let under = |seed| bits(&run(&Cuda::simulated_as(dtype, (8, 0), seed).expect("a simulated device")));
    let first = under(0);
    assert!(!first.is_empty());
    for seed in 1..4 {
        assert_eq!(under(seed), first, "schedule {seed}");
    }
}

/// Rows and columns that meet one element, odd tails, more and fewer vectors than threads.
pub const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 7), (3, 129), (2, 4096), (5, 264), (33, 24)];
/// Offsets that allow vectors in every dtype, in f32 only, and in none.
pub const OFFSETS: [usize; 4] = [0, 8, 4, 1];
