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

/// alpha · a [m, k] · b [k, n].
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub alpha: f32,
    /// Whether the product is added to the output instead of overwriting it.
    pub accumulate: bool,
}

impl Product<'_> {
    /// Writes the product to `out`, whose rows are `stride` apart. Single-threaded.
    pub(super) fn write(self, out: &mut [f32], stride: usize) {
        let Self { m, n, k, a, b, alpha, accumulate } = self;
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

    /// As [`Product::write`] to rows without gaps, spread over the threads by blocks of output rows.
    pub(super) fn write_parallel(self, out: &mut [f32]) {
        let Self { m, n, k, b, .. } = self;
        // A transposed right-hand side is packed anew for every block: fewer, larger blocks pay for it.
        let packed = b.strides.0 < b.strides.1;
        let rows = block_rows(m, n * k).max(if packed { 128.min(m.div_ceil(2)) } else { 0 }).next_multiple_of(16);
        out.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(block, out)| {
            let first = block * rows;
            Product { m: rows.min(m - first), a: self.a.below(first), ..self }.write(out, n);
        });
    }
}

/// Output rows of a block: at least two million multiplications, at most a sixteenth of all rows beyond that.
fn block_rows(m: usize, work_per_row: usize) -> usize {
    let least = (2_000_000 / work_per_row.max(1)).max(1);
    least.max(m.div_ceil(16)).next_multiple_of(16)
}

impl Execute<LinearForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearForward<Cpu>>) -> Result<()> {
        let LinearForward { x, w, y } = checked.operands();
        let a = Operand::rows(floats(x), x.cols);
        let b = Operand::rows(floats(w), w.cols).transposed();
        Product { m: x.rows, n: w.rows, k: x.cols, a, b, alpha: 1.0, accumulate: false }.write_parallel(floats_mut(y));
        Ok(())
    }
}

impl Execute<LinearBackwardInput<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardInput<Cpu>>) -> Result<()> {
        let LinearBackwardInput { dy, w, dx, accumulate } = checked.operands();
        let a = Operand::rows(floats(dy), dy.cols);
        let b = Operand::rows(floats(w), w.cols);
        Product { m: dy.rows, n: w.cols, k: dy.cols, a, b, alpha: 1.0, accumulate }.write_parallel(floats_mut(dx));
        Ok(())
    }
}

impl Execute<LinearBackwardWeight<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardWeight<Cpu>>) -> Result<()> {
        let LinearBackwardWeight { dy, x, dw } = checked.operands();
        let a = Operand::rows(floats(dy), dy.cols).transposed();
        let b = Operand::rows(floats(x), x.cols);
        Product { m: dy.cols, n: x.cols, k: dy.rows, a, b, alpha: 1.0, accumulate: true }
            .write_parallel(floats_mut(dw));
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
        let tokens = x.rows;
        let input = x.cols;
        let ranks = s.cols;
        let out = y.cols;
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let s = floats_mut(s);
        let mut first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let a = Operand::rows(floats(slice.a), input).transposed();
            Product { m: tokens, n: rank, k: input, a: Operand::rows(x, input), b: a, alpha: 1.0, accumulate: false }
                .write(&mut s[first..], ranks);
            first += rank;
        }
        let s = &*s;
        let rows = block_rows(tokens, out * slices.first().map_or(1, |slice| slice.a.rows));
        floats_mut(y).par_chunks_mut((rows * out).max(1)).enumerate().for_each(|(block, y)| {
            let mut first = 0;
            for slice in slices {
                let rank = slice.a.rows;
                let cols = slice.b.rows;
                let low = Operand::rows(&s[block * rows * ranks + first..], ranks);
                let b = Operand::rows(floats(slice.b), rank).transposed();
                Product { m: y.len() / out, n: cols, k: rank, a: low, b, alpha: slice.scale, accumulate: true }
                    .write(&mut y[slice.start..], out);
                first += rank;
            }
        });
        Ok(())
    }
}

impl Execute<LoraBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LoraBackward<Cpu>>) -> Result<()> {
        let LoraBackward { dy, x, s, slices, dropout, gradients, ds, dx } = checked.operands();
        let tokens = x.rows;
        let input = x.cols;
        let ranks = s.cols;
        let out = dy.cols;
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let dy = floats(dy);
        let s = floats(s);
        let ds = floats_mut(ds);
        let dx = floats_mut(dx);
        let mut first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let cols = slice.b.rows;
            let dy = Operand::rows(&dy[slice.start..], out);
            let b = Operand::rows(floats(slice.b), rank);
            Product { m: tokens, n: rank, k: cols, a: dy, b, alpha: slice.scale, accumulate: false }
                .write(&mut ds[first..], ranks);
            first += rank;
        }
        let low = LowRank { s, ds, dy, x, tokens, ranks, input, out };
        if let Some(gradients) = gradients {
            add_factor_gradients(gradients, slices, &low);
        }
        add_input_gradient(&low, slices, dropout, dx);
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
    let gradient = buffer.floats_mut();
    let mut first = 0;
    for slice in slices {
        let rank = slice.a.rows;
        let cols = slice.b.rows;
        let dy = Operand::rows(&low.dy[slice.start..], low.out).transposed();
        let s = Operand::rows(&low.s[first..], low.ranks);
        let db = &mut gradient[slice.b.offset..slice.b.offset + slice.b.len()];
        Product { m: cols, n: rank, k: low.tokens, a: dy, b: s, alpha: slice.scale, accumulate: true }.write(db, rank);
        let ds = Operand::rows(&low.ds[first..], low.ranks).transposed();
        let da = &mut gradient[slice.a.offset..slice.a.offset + slice.a.len()];
        Product {
            m: rank,
            n: low.input,
            k: low.tokens,
            a: ds,
            b: Operand::rows(low.x, low.input),
            alpha: 1.0,
            accumulate: true,
        }
        .write(da, low.input);
        first += rank;
    }
}

/// dx += mask · (ds a).
fn add_input_gradient(low: &LowRank, slices: &[LoraSlice<Cpu>], dropout: Option<Dropout>, dx: &mut [f32]) {
    let mut masked = dropout.map(|_| vec![0.0; dx.len()]);
    let target = masked.as_deref_mut().unwrap_or(dx);
    let mut first = 0;
    for slice in slices {
        let ds = Operand::rows(&low.ds[first..], low.ranks);
        let a = Operand::rows(floats(slice.a), low.input);
        Product { m: low.tokens, n: low.input, k: slice.a.rows, a: ds, b: a, alpha: 1.0, accumulate: true }
            .write(target, low.input);
        first += slice.a.rows;
    }
    if let (Some(mut masked), Some(dropout)) = (masked, dropout) {
        apply_mask(dropout, &mut masked);
        dx.iter_mut().zip(&masked).for_each(|(x, m)| *x += m);
    }
}
