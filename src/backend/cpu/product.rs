//! Matrix products of f32, by the fastest unit of this processor that gains by the shape.
//!
//! Which unit multiplies, and the order of every sum, depend on the shape alone, so that results do not depend on the threads.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{dots, panels};

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

    /// Fails loudly where `rows` × `cols` elements do not lie inside the values.
    fn check(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.strides.0 + (cols - 1) * self.strides.1;
        assert!(last < self.values.len(), "a matrix product reads past its operand");
    }
}

/// A row-major matrix that is written, whose rows are `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub first: *mut f32,
    pub stride: usize,
}

// SAFETY: an output is an address; whoever writes to it answers for the place that it writes to.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub(super) fn new(values: &mut [f32], stride: usize) -> Self {
        Self { first: values.as_mut_ptr(), stride }
    }
}

/// Who works on a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Threads {
    /// The thread that asks for it, one of many that have products of their own.
    This,
    /// All of rayon's current pool.
    All,
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
    /// Writes the product to `out`, whose rows are `stride` apart.
    pub(super) fn write(self, out: &mut [f32], stride: usize, threads: Threads) {
        let Self { m, n, k, a, b, accumulate, .. } = self;
        if m == 0 || n == 0 || k == 0 {
            if !accumulate {
                out.chunks_mut(stride.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
            }
            return;
        }
        a.check(m, k);
        b.check(k, n);
        assert!(n <= stride && (m - 1) * stride + n <= out.len(), "a matrix product writes past its output");
        #[cfg(target_arch = "x86_64")]
        {
            let output = Output::new(out, stride);
            if dots::write(&self, output, threads) || panels::write(&self, output, threads) {
                return;
            }
        }
        self.write_by_vectors(Output::new(out, stride), threads);
    }

    /// As [`Product::write`] by the `gemm` crate, in blocks of rows, or of columns where there are few rows, whose size depends
    /// on the shape.
    pub(super) fn write_by_vectors(self, output: Output, threads: Threads) {
        let Self { m, n, k, b, .. } = self;
        if threads == Threads::This {
            // SAFETY: `write` has checked the output.
            return unsafe { self.write_block(0..m, 0..n, output) };
        }
        if m <= FEW_ROWS {
            let columns = block_rows(n, m * k);
            (0..n.div_ceil(columns)).into_par_iter().for_each(|block| {
                let columns = block * columns..n.min((block + 1) * columns);
                // SAFETY: as above, and every column has one block.
                unsafe { self.write_block(0..m, columns, output) };
            });
            return;
        }
        // A transposed right-hand side is packed anew for every block: fewer, larger blocks pay for it.
        let packed = b.strides.0 < b.strides.1;
        let rows = block_rows(m, n * k).max(if packed { 128.min(m.div_ceil(2)) } else { 0 }).next_multiple_of(16);
        (0..m.div_ceil(rows)).into_par_iter().for_each(|block| {
            let rows = block * rows..m.min((block + 1) * rows);
            // SAFETY: as above, and every row has one block.
            unsafe { self.write_block(rows, 0..n, output) };
        });
    }

    /// Writes the product of some rows of a and some columns of b to their place in the output.
    ///
    /// # Safety
    /// The output has that place, and no other thread uses it.
    unsafe fn write_block(self, rows: Range<usize>, columns: Range<usize>, output: Output) {
        let Self { k, a, b, alpha, accumulate, .. } = self;
        let beta = if accumulate { 1.0 } else { 0.0 };
        let a_first = &a.values[rows.start * a.strides.0..];
        let b_first = &b.values[columns.start * b.strides.1..];
        // SAFETY: the operands lie inside their slices, as `write` has checked; the caller vouches for the output, which
        // overlaps neither, since it was borrowed mutably. With `read_dst` false it need not be initialised.
        unsafe {
            gemm::gemm(
                rows.len(),
                columns.len(),
                k,
                output.first.add(rows.start * output.stride + columns.start),
                1,
                output.stride as isize,
                accumulate,
                a_first.as_ptr(),
                a.strides.1 as isize,
                a.strides.0 as isize,
                b_first.as_ptr(),
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
}

/// The most rows of a product that is cut by its columns: packing pays from more on.
pub(super) const FEW_ROWS: usize = 15;

/// Rows, or columns, of a block: at least two million multiplications, at most a sixteenth of all rows beyond that.
fn block_rows(m: usize, work_per_row: usize) -> usize {
    let least = (2_000_000 / work_per_row.max(1)).max(1);
    least.max(m.div_ceil(16)).next_multiple_of(16)
}

/// The unit of large products on this processor, for people.
pub(super) fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return panels::instructions();
    #[cfg(not(target_arch = "x86_64"))]
    ""
}
