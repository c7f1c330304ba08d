//! Row-major matrix products as calls of a column-major library.
//!
//! Memory that holds a row-major X \[r, c\] with `leading` elements from row to row holds, read by columns, the matrix
//! Xᵀ \[c, r\] with the same leading dimension. We want C = op(A) op(B), so the library, which will write columns of
//! what it takes for C, must compute Cᵀ = op(B)ᵀ op(A)ᵀ: B comes first, A second, and m and n change places.
//!
//! - B not transposed: memory is a row-major \[k, n\], read by columns \[n, k\]. That is op(B)ᵀ already: no transposition.
//! - B transposed: memory is a row-major \[n, k\], read by columns \[k, n\] = op(B): the library must transpose it.
//! - A likewise: memory read by columns is op(A)ᵀ \[k, m\] as it is, or op(A) \[m, k\], to be transposed.
//!
//! So the flags stay with their operands, and nothing is moved or copied.

use super::super::driver::{Gemm, Operand};
use crate::ops::DType;

/// A matrix in memory, read by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ColumnMajor {
    pub rows: usize,
    pub columns: usize,
    /// Elements from one column to the next.
    pub leading: usize,
    /// Whether the library transposes it. Never for the result.
    pub transposed: bool,
    /// The power of two, at most 256, that divides its address.
    pub alignment: u32,
}

/// Everything an algorithm is chosen by: result \[rows, columns\] = op(first) op(second).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Description {
    pub first: ColumnMajor,
    pub second: ColumnMajor,
    pub result: ColumnMajor,
    pub input: DType,
    pub output: DType,
    /// Whether the result is added to what memory holds.
    pub accumulate: bool,
}

impl Description {
    /// The same of operands that are all aligned to so many bytes.
    pub(super) fn with_alignment(self, alignment: u32) -> Self {
        let align = |matrix| ColumnMajor { alignment, ..matrix };
        Self { first: align(self.first), second: align(self.second), result: align(self.result), ..self }
    }

    /// The alignment that all operands have.
    pub(super) fn least_alignment(&self) -> u32 {
        self.first.alignment.min(self.second.alignment).min(self.result.alignment)
    }

    /// Whether every row of the three matrices begins and ends with a vector of 16 bytes.
    pub(super) fn has_whole_vectors(&self) -> bool {
        let whole = |matrix: &ColumnMajor, dtype: DType| {
            [matrix.rows, matrix.leading].iter().all(|elements| (elements * dtype.bytes()).is_multiple_of(16))
        };
        let operands = whole(&self.first, self.input) && whole(&self.second, self.input);
        operands && whole(&self.result, self.output) && self.least_alignment() >= 16
    }
}

/// In the terms of the row-major product that was asked for: C \[m, n\] = A B.
impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let ColumnMajor { rows: n, columns: m, .. } = self.result;
        let k = if self.first.transposed { self.first.rows } else { self.first.columns };
        let layout = |transposed| if transposed { "t" } else { "n" };
        let letters = [layout(self.second.transposed), layout(self.first.transposed)].concat();
        let added = if self.accumulate { ", added to C" } else { "" };
        write!(
            f,
            "a product of {m} x {n} x {k} ({letters}, {:?} to {:?}{added}, aligned to {} bytes)",
            self.input,
            self.output,
            self.least_alignment()
        )
    }
}

/// A call of the library: what is computed, and on which memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Call {
    pub description: Description,
    pub first: u64,
    pub second: u64,
    pub result: u64,
    pub alpha: f32,
    pub beta: f32,
}

/// The column-major call for a row-major product.
pub(super) fn column_major(gemm: &Gemm) -> Call {
    let description = Description {
        first: transpose_of(&gemm.b, gemm.k, gemm.n),
        second: transpose_of(&gemm.a, gemm.m, gemm.k),
        result: ColumnMajor {
            rows: gemm.n,
            columns: gemm.m,
            leading: gemm.c_leading,
            transposed: false,
            alignment: alignment(gemm.c),
        },
        input: gemm.input,
        output: gemm.output,
        accumulate: gemm.beta != 0.0,
    };
    let first = gemm.b.pointer;
    let second = gemm.a.pointer;
    let result = gemm.c;
    Call { description, first, second, result, alpha: gemm.alpha, beta: gemm.beta }
}

/// The transpose of op(X) \[rows, columns\], given the memory of the row-major X.
fn transpose_of(operand: &Operand, rows: usize, columns: usize) -> ColumnMajor {
    let (memory_rows, memory_columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    ColumnMajor {
        rows: memory_columns,
        columns: memory_rows,
        leading: operand.leading,
        transposed: operand.transposed,
        alignment: alignment(operand.pointer),
    }
}

fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, Stream};

    /// A column-major library, as its manual defines it, on f32 memory addressed in elements.
    fn library(call: &Call, memory: &mut [f32]) {
        let Description { first, second, result, .. } = call.description;
        let at = |matrix: &ColumnMajor, base: u64, row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            assert!(row < matrix.rows && column < matrix.columns, "outside the declared matrix");
            assert!(matrix.leading >= matrix.rows, "columns overlap");
            base as usize + row + column * matrix.leading
        };
        let depth = if first.transposed { first.rows } else { first.columns };
        let depth_of_second = if second.transposed { second.columns } else { second.rows };
        assert_eq!(depth, depth_of_second);
        for column in 0..result.columns {
            for row in 0..result.rows {
                let terms = (0..depth)
                    .map(|i| memory[at(&first, call.first, row, i)] * memory[at(&second, call.second, i, column)]);
                let product: f32 = terms.sum();
                let place = at(&result, call.result, row, column);
                let before = if call.beta == 0.0 { 0.0 } else { call.beta * memory[place] };
                memory[place] = call.alpha * product + before;
            }
        }
    }

    /// The product as [`Gemm`] defines it.
    fn naive(gemm: &Gemm, memory: &mut [f32]) {
        let at = |x: &Operand, row: usize, column: usize| {
            let (row, column) = if x.transposed { (column, row) } else { (row, column) };
            x.pointer as usize + row * x.leading + column
        };
        for row in 0..gemm.m {
            for column in 0..gemm.n {
                let terms = (0..gemm.k).map(|i| memory[at(&gemm.a, row, i)] * memory[at(&gemm.b, i, column)]);
                let product: f32 = terms.sum();
                let place = gemm.c as usize + row * gemm.c_leading + column;
                let before = if gemm.beta == 0.0 { 0.0 } else { gemm.beta * memory[place] };
                memory[place] = gemm.alpha * product + before;
            }
        }
    }

    /// All of memory is compared, so a call that writes beside C fails too; C starts as NaN where it must not be read.
    #[test]
    fn a_column_major_library_computes_the_row_major_product() {
        let mut random = Random::new(11, Stream::Demo, 0, 0);
        for case in 0..64u32 {
            let [m, n, k] = [3 + case as usize % 5, 2 + case as usize % 7, 1 + case as usize % 4];
            let a_transposed = case & 1 != 0;
            let b_transposed = case & 2 != 0;
            let beta = f32::from((case & 4 != 0) as u8);
            let padding = case as usize % 3;
            let operand = |pointer, rows: usize, columns: usize, transposed| {
                let leading = if transposed { rows } else { columns } + padding;
                Operand { pointer, leading, transposed }
            };
            let gemm = Gemm {
                m,
                n,
                k,
                a: operand(7, m, k, a_transposed),
                b: operand(400, k, n, b_transposed),
                c: 800,
                c_leading: n + padding,
                input: DType::F32,
                output: DType::F32,
                alpha: 0.5 + case as f32,
                beta,
            };
            let mut expected: Vec<f32> = (0..1200).map(|_| random.normal() as f32).collect();
            if beta == 0.0 {
                expected[800..].fill(f32::NAN);
            }
            let mut found = expected.clone();
            naive(&gemm, &mut expected);
            library(&column_major(&gemm), &mut found);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{gemm:?}");
        }
    }

    #[test]
    fn alignment_is_the_largest_power_of_two_up_to_256() {
        let found = [0x7f00_0000_1000u64, 0x1010, 0x1002, 0x1001].map(alignment);
        assert_eq!(found, [256, 16, 2, 1]);
    }
}
