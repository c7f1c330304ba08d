//! What a case works with: random operands on the device whose stored values are known here without keeping them, outputs
//! that are poisoned before the call, samples of large outputs, and the second run.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::Finding;
use super::compare::{Bound, compare};
use super::reference::Numbers;
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{Backend, DType, Tensor};

/// Elements that travel between host and device at once.
const PIECE: usize = 1 << 22;
/// A matrix of up to so many elements is kept on the host; of a larger one elements are made again when asked for.
const KEPT: usize = 1 << 27;
/// Elements of an output that are compared, about, and the rows they come from.
const COMPARED: usize = 1 << 14;
const COMPARED_ROWS: usize = 32;

/// Numbers as the device stores them, by place.
#[derive(Clone)]
pub(super) struct Table {
    rows: usize,
    cols: usize,
    kept: Option<Vec<f32>>,
    function: Function,
}

type Function = Arc<dyn Fn(usize) -> f32 + Send + Sync>;

impl Table {
    fn new(rows: usize, cols: usize, function: Function) -> Self {
        let len = rows * cols;
        let kept = (len <= KEPT).then(|| (0..len).into_par_iter().with_min_len(1 << 12).map(|i| function(i)).collect());
        Self { rows, cols, kept, function }
    }

    fn flat(&self, index: usize) -> f32 {
        match &self.kept {
            Some(kept) => kept[index],
            None => (self.function)(index),
        }
    }

    fn upload(&self, cuda: &Cuda, tensor: &mut Tensor<Cuda>) -> Result<()> {
        pieces(self.rows * self.cols).try_for_each(|(first, len)| {
            let values: Vec<f32> =
                (first..first + len).into_par_iter().with_min_len(1 << 12).map(|i| self.flat(i)).collect();
            cuda.upload_f32(tensor.buffer_mut(), first, &values)
        })
    }
}

impl Numbers for Table {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn at(&self, row: usize, col: usize) -> f64 {
        f64::from(self.flat(row * self.cols + col))
    }
    fn span(&self, row: usize, first: usize, len: usize) -> Vec<f64> {
        let first = row * self.cols + first;
        match &self.kept {
            Some(kept) => kept[first..first + len].iter().map(|&x| f64::from(x)).collect(),
            None => (first..first + len).map(|i| f64::from((self.function)(i))).collect(),
        }
    }
}

/// (first, length) of the pieces of a buffer.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(PIECE).map(move |first| (first, PIECE.min(len - first)))
}

/// An input: the same numbers on the device and here.
pub(super) struct Operand {
    pub tensor: Tensor<Cuda>,
    pub table: Table,
}

impl Operand {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.table.rows * self.table.cols
    }
}

impl Numbers for Operand {
    fn rows(&self) -> usize {
        self.table.rows
    }
    fn cols(&self) -> usize {
        self.table.cols
    }
    fn at(&self, row: usize, col: usize) -> f64 {
        self.table.at(row, col)
    }
    fn span(&self, row: usize, first: usize, len: usize) -> Vec<f64> {
        self.table.span(row, first, len)
    }
}

/// Integers on the device and here.
pub(super) struct Integers {
    pub tensor: Tensor<Cuda>,
    pub values: Vec<u32>,
}

/// What an output holds before the call: NaN, or the numbers that the operation adds to.
pub(super) struct Output {
    dtype: DType,
    rows: usize,
    cols: usize,
    start: Option<Table>,
}

impl Output {
    /// The numbers that it starts from.
    ///
    /// # Panics
    /// When it is poisoned: a case asks only those that it made with a start.
    pub fn start(&self) -> &Table {
        self.start.as_ref().expect("a poisoned output has no start")
    }

    fn tensor(&self, cuda: &Cuda) -> Result<Tensor<Cuda>> {
        let mut tensor = Tensor::zeros(cuda, "self-test output", self.rows, self.cols, self.dtype)?;
        match &self.start {
            Some(table) => table.upload(cuda, &mut tensor)?,
            None => {
                let poison = vec![f32::NAN; PIECE.min(self.rows * self.cols)];
                for (first, len) in pieces(self.rows * self.cols) {
                    cuda.upload_f32(tensor.buffer_mut(), first, &poison[..len])?;
                }
            }
        }
        Ok(tensor)
    }
}

/// What an output holds after the call.
pub(super) struct Found {
    /// The rows and columns that are compared.
    pub rows: Vec<usize>,
    pub cols: Vec<usize>,
    /// The elements there.
    pub values: Vec<f32>,
    /// Elements that are NaN or +∞, in the whole output.
    not_written: usize,
    /// Checksum of the whole output.
    checksum: u32,
}

/// One run of a case.
pub(super) struct Trial<'a> {
    cuda: &'a Cuda,
    seed: u64,
    /// Random matrices made so far: each has numbers of its own.
    made: u64,
    findings: Vec<Finding>,
    launches: usize,
    unstable: usize,
}

impl<'a> Trial<'a> {
    pub fn new(cuda: &'a Cuda, seed: u64) -> Self {
        Self { cuda, seed, made: 0, findings: Vec::new(), launches: 0, unstable: 0 }
    }

    /// What was found, the launches that were made twice, and how many of them gave other bits.
    pub fn finish(self) -> (Vec<Finding>, usize, usize) {
        (self.findings, self.launches, self.unstable)
    }

    pub fn cuda(&self) -> &'a Cuda {
        self.cuda
    }

    /// How the device keeps weights and activations.
    pub fn compute(&self) -> DType {
        self.cuda.compute_dtype()
    }

    /// The function from place to a number near normal with this standard deviation, rounded to what `dtype` stores.
    fn random(&mut self, dtype: DType, scale: f64) -> Function {
        self.made += 1;
        let key = mixed(self.seed ^ mixed(self.made));
        Arc::new(move |index| stored(dtype, (scale * near_normal(mixed(key.wrapping_add(index as u64)))) as f32))
    }

    fn operand(&self, dtype: DType, table: Table) -> Result<Operand> {
        let mut tensor = Tensor::zeros(self.cuda, "self-test operand", table.rows, table.cols, dtype)?;
        table.upload(self.cuda, &mut tensor)?;
        Ok(Operand { tensor, table })
    }

    /// A random input in the compute dtype.
    pub fn normal(&mut self, rows: usize, cols: usize, scale: f64) -> Result<Operand> {
        let function = self.random(self.compute(), scale);
        self.operand(self.compute(), Table::new(rows, cols, function))
    }

    /// A random input in f32.
    pub fn normal_f32(&mut self, rows: usize, cols: usize, scale: f64) -> Result<Operand> {
        let function = self.random(DType::F32, scale);
        self.operand(DType::F32, Table::new(rows, cols, function))
    }

    /// An input of which `change` makes each number, from its flat place and a random one.
    pub fn changed(
        &mut self,
        dtype: DType,
        (rows, cols): (usize, usize),
        change: impl Fn(usize, f32) -> f32 + Send + Sync + 'static,
    ) -> Result<Operand> {
        let random = self.random(DType::F32, 1.0);
        let function = Arc::new(move |i| stored(dtype, change(i, random(i))));
        self.operand(dtype, Table::new(rows, cols, function))
    }

    /// Integers below `below`.
    pub fn indices(&mut self, count: usize, below: usize) -> Result<Integers> {
        self.made += 1;
        let key = mixed(self.seed ^ mixed(self.made));
        self.integers((0..count as u64).map(|i| (mixed(key.wrapping_add(i)) % below as u64) as u32).collect())
    }

    /// These integers.
    pub fn integers(&self, values: Vec<u32>) -> Result<Integers> {
        Ok(Integers { tensor: Tensor::from_u32(self.cuda, "self-test integers", &values)?, values })
    }

    /// An output that is overwritten.
    pub fn poisoned(&self, dtype: DType, rows: usize, cols: usize) -> Output {
        Output { dtype, rows, cols, start: None }
    }

    /// An output that is added to, or changed in place.
    pub fn starting(&mut self, dtype: DType, rows: usize, cols: usize, scale: f64) -> Output {
        let function = self.random(dtype, scale);
        Output { dtype, rows, cols, start: Some(Table::new(rows, cols, function)) }
    }

    /// An output that starts with what `change` makes of flat place and a random number. Not rounded here: a weight and its
    /// remainder start from one f32.
    pub fn starting_with(
        &mut self,
        (rows, cols): (usize, usize),
        change: impl Fn(usize, f32) -> f32 + Send + Sync + 'static,
    ) -> Table {
        let random = self.random(DType::F32, 1.0);
        Table::new(rows, cols, Arc::new(move |i| change(i, random(i))))
    }

    /// `table` as an output of `dtype`.
    pub fn output(&self, dtype: DType, table: Table) -> Output {
        Output { dtype, rows: table.rows, cols: table.cols, start: Some(table) }
    }

    /// Calls an operation twice on the same inputs, each time with fresh outputs, and gives the outputs of the first call.
    pub fn launch<const N: usize>(
        &mut self,
        outputs: [&Output; N],
        call: impl Fn(&mut [Tensor<Cuda>; N]) -> Result<()>,
    ) -> Result<[Found; N]> {
        let first = self.launch_once(outputs, &call)?;
        let second = self.launch_once(outputs, &call)?;
        self.launches += 1;
        if first.iter().zip(&second).any(|(a, b)| a.checksum != b.checksum) {
            self.unstable += 1;
            self.findings.push(Finding::failed("", "a second run gave other bits".into()));
        }
        Ok(first)
    }

    fn launch_once<const N: usize>(
        &self,
        outputs: [&Output; N],
        call: &impl Fn(&mut [Tensor<Cuda>; N]) -> Result<()>,
    ) -> Result<[Found; N]> {
        let mut tensors = self.tensors(outputs)?;
        call(&mut tensors)?;
        let mut found = Vec::new();
        for tensor in &tensors {
            found.push(self.download(tensor)?);
        }
        let Ok(found) = <[Found; N]>::try_from(found) else { unreachable!("one download an output") };
        Ok(found)
    }

    /// Calls an operation whose outputs the next one reads.
    pub fn kept<const N: usize>(
        &self,
        outputs: [&Output; N],
        call: impl Fn(&mut [Tensor<Cuda>; N]) -> Result<()>,
    ) -> Result<[Operand; N]> {
        let mut tensors = self.tensors(outputs)?;
        call(&mut tensors)?;
        let mut operands = Vec::new();
        for tensor in tensors {
            let values = tensor.to_vec(self.cuda)?;
            let table =
                Table { rows: tensor.rows(), cols: tensor.cols(), kept: Some(values), function: Arc::new(|_| 0.0) };
            operands.push(Operand { tensor, table });
        }
        let Ok(operands) = <[Operand; N]>::try_from(operands) else { unreachable!("one operand an output") };
        Ok(operands)
    }

    fn tensors<const N: usize>(&self, outputs: [&Output; N]) -> Result<[Tensor<Cuda>; N]> {
        let mut tensors = Vec::new();
        for output in outputs {
            tensors.push(output.tensor(self.cuda)?);
        }
        let Ok(tensors) = <[Tensor<Cuda>; N]>::try_from(tensors) else { unreachable!("one tensor an output") };
        Ok(tensors)
    }

    /// Reads all of an output; keeps its samples.
    fn download(&self, tensor: &Tensor<Cuda>) -> Result<Found> {
        let (rows, cols) = samples(self.seed, tensor.rows(), tensor.cols());
        let wanted: Vec<usize> = rows.iter().flat_map(|r| cols.iter().map(move |c| r * tensor.cols() + c)).collect();
        let mut found = Found { rows, cols, values: Vec::with_capacity(wanted.len()), not_written: 0, checksum: 0 };
        let mut wanted = wanted.into_iter().peekable();
        for (first, len) in pieces(tensor.rows() * tensor.cols()) {
            let piece = self.cuda.download_f32(tensor.buffer(), first, len)?;
            found.not_written += piece.par_iter().filter(|x| x.is_nan() || **x == f32::INFINITY).count();
            found.checksum = crc32c::crc32c_append(found.checksum, bytemuck::cast_slice(&piece));
            while let Some(at) = wanted.next_if(|at| *at < first + len) {
                found.values.push(piece[at - first]);
            }
        }
        Ok(found)
    }

    /// Compares the samples of an output with a formula, which is given a row and the columns wanted of it.
    pub fn check(
        &mut self,
        output: &str,
        found: &Found,
        bound: Bound,
        formula: impl Fn(usize, &[usize]) -> Vec<f64> + Sync,
    ) {
        let expected: Vec<f64> = found.rows.par_iter().flat_map_iter(|&row| formula(row, &found.cols)).collect();
        let values: Vec<f64> = found.values.iter().map(|&x| f64::from(x)).collect();
        self.check_values(output, &values, &expected, found.not_written, bound);
    }

    /// Compares numbers.
    pub fn check_values(&mut self, output: &str, found: &[f64], expected: &[f64], not_written: usize, bound: Bound) {
        let mut comparison = compare(found, expected);
        comparison.not_written = comparison.not_written.max(not_written);
        self.findings.push(Finding::compared(output, comparison, bound.of(found.len())));
    }
}

/// As `dtype` stores it; a bf16 number to the nearest, so that no later rounding changes it.
fn stored(dtype: DType, value: f32) -> f32 {
    if dtype == DType::Bf16 { bf16::from_f32(value).to_f32() } else { value }
}

/// The finalizer of SplitMix64 (Steele et al., OOPSLA 2014): 64 bits that look random, of any number.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The sum of four uniform numbers, with mean 0 and variance 1: near enough to normal, and made fast enough for a billion.
fn near_normal(bits: u64) -> f64 {
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    (sum as f64 - 2.0 * 65535.0) / 65536.0 * 3.0f64.sqrt()
}

/// Rows and columns of an output that are compared: all of a small one, else the first, the last, and random ones.
fn samples(seed: u64, rows: usize, cols: usize) -> (Vec<usize>, Vec<usize>) {
    if rows * cols <= COMPARED {
        return ((0..rows).collect(), (0..cols).collect());
    }
    let row_count = rows.min(COMPARED_ROWS).max(COMPARED / cols.max(1)).min(rows);
    (some(seed, rows, row_count), some(seed.wrapping_add(1), cols, (COMPARED / row_count).min(cols)))
}

/// About `count` of 0..`of`, in order.
fn some(seed: u64, of: usize, count: usize) -> Vec<usize> {
    if count >= of {
        return (0..of).collect();
    }
    let random = (0..count as u64).map(|i| (mixed(seed ^ mixed(i)) % of as u64) as usize);
    let mut chosen: Vec<usize> = random.chain([0, 1, of - 2, of - 1]).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}
