//! Matrix products: linear layers and low-rank adapters. The work is cut into blocks of output rows whose size depends
//! on the shape alone, and each block is one single-threaded product, so that results do not depend on the threads.

use rayon::prelude::*;

use super::view::{floats, floats_mut};
use super::{Cpu, CpuBuffer};
use crate::error::Result;
use crate::ops::{
    Checked, Dropout, Execute, LinearBackwardInput, LinearBackwardWeight, LinearForward, LoraBackward, LoraForward,
    LoraSlice,
};
use crate::random::philox;

/// A strided matrix that is read.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub values: &'a [f32],
    /// Elements from one row to the next, and from one column to the next.
    pub strides: (usize, usize),
}

impl<'a> Operand<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub(super) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, strides: (stride, 1) }
    }

    /// Its transpose.
    pub(super) fn transposed(self) -> Self {
        Self { strides: (self.strides.1, self.strides.0), ..self }
    }

    /// The matrix from row `row` on.
    fn below(self, row: usize) -> Self {
        Self { values: &self.values[row * self.strides.0..], ..self }
    }

    /// Fails loudly where `rows` × `cols` elements do not lie inside the values.
    fn check(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.strides.0 + (cols - 1) * self.strides.1;
        assert!(last < self.values.len(), "a matrix product reads past its operand");
    }
}

/// out [m, n] = alpha · a [m, k] · b [k, n] (+ out), with rows of `out` `stride` apart. Single-threaded.
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    out: &mut [f32],
    stride: usize,
    alpha: f32,
    accumulate: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        if !accumulate {
            out.chunks_mut(stride.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    a.check(m, k);
    b.check(k, n);
    assert!((m - 1) * stride + n <= out.len(), "a matrix product writes past its output");
    let beta = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: the three matrices lie inside their slices (checked above), and `out` is borrowed mutably, so it overlaps
    // neither operand. With `read_dst` false the output need not be initialised.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.values.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.values.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// As [`product`] with alpha 1 and a gap-free `out`, spread over the threads by blocks of output rows.
pub(super) fn parallel_product(
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    out: &mut [f32],
    accumulate: bool,
) {
    // A transposed right-hand side is packed anew for every block: fewer, larger blocks pay for it.
    let packed = b.strides.0 < b.strides.1;
    let rows = block_rows(m, n * k).max(if packed { 128.min(m.div_ceil(2)) } else { 0 }).next_multiple_of(16);
    out.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(block, out)| {
        let first = block * rows;
        product((rows.min(m - first), n, k), a.below(first), b, out, n, 1.0, accumulate);
    });
}

/// Output rows of a block: at least two million multiplications, at most a sixteenth of all rows beyond that.
fn block_rows(m: usize, work_per_row: usize) -> usize {
    let least = (2_000_000 / work_per_row.max(1)).max(1);
    least.max(m.div_ceil(16)).next_multiple_of(16)
}

impl Execute<LinearForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearForward<Cpu>>) -> Result<()> {
        let LinearForward { x, w, y } = checked.operands();
        let shape = (x.rows, w.rows, x.cols);
        let (a, b) = (Operand::rows(floats(x), x.cols), Operand::rows(floats(w), w.cols).transposed());
        parallel_product(shape, a, b, floats_mut(y), false);
        Ok(())
    }
}

impl Execute<LinearBackwardInput<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardInput<Cpu>>) -> Result<()> {
        let LinearBackwardInput { dy, w, dx, accumulate } = checked.operands();
        let shape = (dy.rows, w.cols, dy.cols);
        let (a, b) = (Operand::rows(floats(dy), dy.cols), Operand::rows(floats(w), w.cols));
        parallel_product(shape, a, b, floats_mut(dx), accumulate);
        Ok(())
    }
}

impl Execute<LinearBackwardWeight<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardWeight<Cpu>>) -> Result<()> {
        let LinearBackwardWeight { dy, x, dw } = checked.operands();
        let shape = (dy.cols, x.cols, dy.rows);
        let (a, b) = (Operand::rows(floats(dy), dy.cols).transposed(), Operand::rows(floats(x), x.cols));
        parallel_product(shape, a, b, floats_mut(dw), true);
        Ok(())
    }
}

/// x with its dropout mask applied, or x itself.
fn dropped<'a>(x: &'a [f32], dropout: Option<Dropout>, storage: &'a mut Vec<f32>) -> &'a [f32] {
    let Some(dropout) = dropout else { return x };
    storage.extend_from_slice(x);
    apply_mask(dropout, storage);
    storage
}

/// Zeroes the dropped elements and scales the others by 1/(1−p).
fn apply_mask(dropout: Dropout, values: &mut [f32]) {
    let key = [dropout.seed as u32, (dropout.seed >> 32) as u32];
    let limit = (f64::from(dropout.probability) * 4_294_967_296.0) as u32;
    let keep = 1.0 / (1.0 - dropout.probability);
    values.par_chunks_mut(4096).enumerate().for_each(|(chunk, values)| {
        for (i, group) in values.chunks_mut(4).enumerate() {
            let block = (chunk * 1024 + i) as u64;
            let words = philox([block as u32, (block >> 32) as u32, dropout.site, dropout.step], key);
            for (value, word) in group.iter_mut().zip(words) {
                *value *= if word < limit { 0.0 } else { keep };
            }
        }
    });
}

impl Execute<LoraForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LoraForward<Cpu>>) -> Result<()> {
        let LoraForward { x, slices, dropout, s, y } = checked.operands();
        let (tokens, input, ranks, out) = (x.rows, x.cols, s.cols, y.cols);
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let s = floats_mut(s);
        let mut first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let a = Operand::rows(floats(slice.a), input).transposed();
            product((tokens, rank, input), Operand::rows(x, input), a, &mut s[first..], ranks, 1.0, false);
            first += rank;
        }
        let (s, rows) = (&*s, block_rows(tokens, out * slices.first().map_or(1, |slice| slice.a.rows)));
        floats_mut(y).par_chunks_mut((rows * out).max(1)).enumerate().for_each(|(block, y)| {
            let mut first = 0;
            for slice in slices {
                let (rank, cols) = (slice.a.rows, slice.b.rows);
                let low = Operand::rows(&s[block * rows * ranks + first..], ranks);
                let b = Operand::rows(floats(slice.b), rank).transposed();
                product((y.len() / out, cols, rank), low, b, &mut y[slice.start..], out, slice.scale, true);
                first += rank;
            }
        });
        Ok(())
    }
}

impl Execute<LoraBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LoraBackward<Cpu>>) -> Result<()> {
        let LoraBackward { dy, x, s, slices, dropout, gradients, ds, dx } = checked.operands();
        let (tokens, input, ranks, out) = (x.rows, x.cols, s.cols, dy.cols);
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let (dy, s, ds, dx) = (floats(dy), floats(s), floats_mut(ds), floats_mut(dx));
        let mut first = 0;
        for slice in slices {
            let (rank, cols) = (slice.a.rows, slice.b.rows);
            let dy = Operand::rows(&dy[slice.start..], out);
            let b = Operand::rows(floats(slice.b), rank);
            product((tokens, rank, cols), dy, b, &mut ds[first..], ranks, slice.scale, false);
            first += rank;
        }
        if let Some(gradients) = gradients {
            let low = LowRank { s, ds, dy, x, tokens, ranks, input, out };
            add_factor_gradients(gradients, slices, &low);
        }
        add_input_gradient(ds, slices, dropout, dx, (tokens, ranks, input));
        Ok(())
    }
}

struct LowRank<'a> {
    s: &'a [f32],
    ds: &'a [f32],
    dy: &'a [f32],
    x: &'a [f32],
    tokens: usize,
    ranks: usize,
    input: usize,
    out: usize,
}

/// db += scale · dyᵀ s and da += dsᵀ x.
fn add_factor_gradients(buffer: &mut CpuBuffer, slices: &[LoraSlice<Cpu>], low: &LowRank) {
    let (gradient, mut first) = (buffer.floats_mut(), 0);
    for slice in slices {
        let (rank, cols) = (slice.a.rows, slice.b.rows);
        let dy = Operand::rows(&low.dy[slice.start..], low.out).transposed();
        let s = Operand::rows(&low.s[first..], low.ranks);
        let db = &mut gradient[slice.b.offset..slice.b.offset + slice.b.len()];
        product((cols, rank, low.tokens), dy, s, db, rank, slice.scale, true);
        let ds = Operand::rows(&low.ds[first..], low.ranks).transposed();
        let da = &mut gradient[slice.a.offset..slice.a.offset + slice.a.len()];
        product((rank, low.input, low.tokens), ds, Operand::rows(low.x, low.input), da, low.input, 1.0, true);
        first += rank;
    }
}

/// dx += mask · (ds a).
fn add_input_gradient(
    ds: &[f32],
    slices: &[LoraSlice<Cpu>],
    dropout: Option<Dropout>,
    dx: &mut [f32],
    (tokens, ranks, input): (usize, usize, usize),
) {
    let mut masked = dropout.map(|_| vec![0.0; dx.len()]);
    let target = masked.as_deref_mut().unwrap_or(dx);
    let mut first = 0;
    for slice in slices {
        let low = Operand::rows(&ds[first..], ranks);
        let a = Operand::rows(floats(slice.a), input);
        product((tokens, input, slice.a.rows), low, a, target, input, 1.0, true);
        first += slice.a.rows;
    }
    if let (Some(mut masked), Some(dropout)) = (masked, dropout) {
        apply_mask(dropout, &mut masked);
        dx.iter_mut().zip(&masked).for_each(|(x, m)| *x += m);
    }
}
