//! Products of a few rows with a transposed matrix, as generation has them: every element is the scalar product of two rows that
//! lie in memory as they are multiplied, so nothing is packed, and the larger operand is read once.
//!
//! A sum has sixteen parts in an order that depends on the depth alone: neither the other rows nor the threads change a bit.
//! The processor must have AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{FEW_ROWS, Output, Product, Threads};

/// Numbers of the other operand below which its reading takes no noticeable time. Models of a few hundred thousand weights then
/// give the same bits on every processor.
const LEAST_NUMBERS: usize = 1 << 18;
/// Numbers of a register.
const LANES: usize = 16;
/// Rows of each operand that are multiplied at a time: their sums stay in registers.
const TILE: usize = 4;
/// Multiplications of a task, so that it outlasts its scheduling.
const TASK_WORK: usize = 1 << 18;

/// Writes the product and returns true, where it is one of a few rows with a transposed matrix.
pub(super) fn write(product: &Product, output: Output, threads: Threads) -> bool {
    let Product { m, n, k, a, b, .. } = *product;
    if m > FEW_ROWS || k < LANES || n * k < LEAST_NUMBERS || a.strides.1 != 1 || b.strides.0 != 1 {
        return false;
    }
    if !is_x86_feature_detected!("avx512f") {
        return false;
    }
    let columns = (TASK_WORK / (m * k)).max(TILE).next_multiple_of(TILE);
    let task = |task: usize| {
        // SAFETY: the processor has AVX-512, the product's caller has checked the output's extent, and every column has one
        // task.
        unsafe { write_columns(product, output, task * columns..n.min((task + 1) * columns)) }
    };
    match n.div_ceil(columns) {
        1 => task(0),
        tasks if threads == Threads::All => (0..tasks).into_par_iter().for_each(task),
        tasks => (0..tasks).for_each(task),
    }
    true
}

/// Writes some columns of the output.
///
/// # Safety
/// The output has `m` rows of at least `columns.end` numbers, and no other thread uses these columns.
#[target_feature(enable = "avx512f")]
unsafe fn write_columns(product: &Product, output: Output, columns: Range<usize>) {
    let Product { m, k, a, b, alpha, accumulate, .. } = *product;
    for column in columns.clone().step_by(TILE) {
        let width = (columns.end - column).min(TILE);
        // A place beyond the last row has the last row once more, and its sum is not written.
        let right = [0, 1, 2, 3].map(|j| &b.values[(column + j.min(width - 1)) * b.strides.1..][..k]);
        for row in (0..m).step_by(TILE) {
            let height = (m - row).min(TILE);
            let left = [0, 1, 2, 3].map(|i| &a.values[(row + i.min(height - 1)) * a.strides.0..][..k]);
            let sums = match height {
                1 => [rows_with_four([left[0]], right, TILE * b.strides.1)[0]; TILE],
                _ => rows_with_four(left, right, TILE * b.strides.1),
            };
            for (i, sums) in sums.iter().enumerate().take(height) {
                for (j, sum) in sums.iter().enumerate().take(width) {
                    // SAFETY: as the caller vouches.
                    unsafe {
                        let place = output.first.add((row + i) * output.stride + column + j);
                        *place = if accumulate { alpha * sum + *place } else { alpha * sum };
                    }
                }
            }
        }
    }
}

/// The scalar products of some rows with four others, all of one length. `ahead`: elements from each of the four to the row
/// that will be in its place next.
///
/// Loops count, since iterators over pairs are calls where the compiler does not optimise across crates.
#[inline]
#[target_feature(enable = "avx512f")]
fn rows_with_four<const ROWS: usize>(left: [&[f32]; ROWS], right: [&[f32]; TILE], ahead: usize) -> [[f32; TILE]; ROWS] {
    let depth = right[0].len();
    assert!(left.iter().chain(&right).all(|row| row.len() == depth));
    let left = left.map(<[f32]>::as_ptr);
    let right = right.map(<[f32]>::as_ptr);
    let mut sums = [[_mm512_setzero_ps(); TILE]; ROWS];
    let mut first = 0;
    while first < depth {
        let mask = if depth - first < LANES { (1 << (depth - first)) - 1 } else { u16::MAX };
        let mut y = [_mm512_setzero_ps(); TILE];
        for j in 0..TILE {
            // SAFETY: every row has `depth` numbers; the mask leaves out what is beyond.
            y[j] = unsafe { _mm512_maskz_loadu_ps(mask, right[j].add(first)) };
            // The rows of the next tile: four streams of a few kilobytes are too short for the processor to foresee. A place
            // beyond the matrix is no access.
            _mm_prefetch::<_MM_HINT_T0>(right[j].wrapping_add(first + ahead).cast());
        }
        for i in 0..ROWS {
            // SAFETY: as above.
            let x = unsafe { _mm512_maskz_loadu_ps(mask, left[i].add(first)) };
            for j in 0..TILE {
                sums[i][j] = _mm512_fmadd_ps(x, y[j], sums[i][j]);
            }
        }
        first += LANES;
    }
    let mut numbers = [[0.0; TILE]; ROWS];
    for i in 0..ROWS {
        for j in 0..TILE {
            numbers[i][j] = _mm512_reduce_add_ps(sums[i][j]);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::product::Operand;
    use super::*;
    use crate::random::{Random, Stream};

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, Stream::Weights, 0, 0);
        (0..count).map(|_| random.normal() as f32).collect()
    }

    fn product<'a>(a: &'a [f32], b: &'a [f32], [m, n, k]: [usize; 3]) -> Product<'a> {
        let a = Operand::rows(a, k + 3);
        let b = Operand::rows(b, k + 1).transposed();
        Product { m, n, k, a, b, alpha: 0.75, accumulate: true }
    }

    /// Rows that lie apart, every remainder of rows, columns and depths, against sums in f64; what is between the rows of the
    /// output stays as it was, and threads change no bit.
    #[test]
    fn products_of_few_rows_are_those_of_f64() {
        if !is_x86_feature_detected!("avx512f") {
            eprintln!("left out: this processor has no AVX-512");
            return;
        }
        for shape @ [m, n, k] in [[1, 16_384, 16], [2, 700, 577], [3, 9001, 31], [4, 4096, 64], [15, 2051, 200]] {
            let a = numbers(m * (k + 3), 1);
            let b = numbers(n * (k + 1), 2);
            let before = numbers(m * (n + 2), 3);
            let product = product(&a, &b, shape);
            let [this, all] = [Threads::This, Threads::All].map(|threads| {
                let mut out = before.clone();
                assert!(write(&product, Output::new(&mut out, n + 2), threads));
                out
            });
            assert_eq!(this, all, "threads change bits");
            for row in 0..m {
                assert_eq!(this[row * (n + 2) + n..][..2], before[row * (n + 2) + n..][..2], "a gap was written");
                for column in 0..n {
                    let terms = (0..k).map(|d| f64::from(a[row * (k + 3) + d]) * f64::from(b[column * (k + 1) + d]));
                    let place = row * (n + 2) + column;
                    let exact = 0.75 * terms.sum::<f64>() + f64::from(before[place]);
                    let error = (f64::from(this[place]) - exact).abs() / (k as f64).sqrt();
                    assert!(error < 1e-6, "{shape:?} at {row}, {column}: {error:e}");
                }
            }
        }
    }

    /// A row has the same bits whatever rows are with it.
    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        if !is_x86_feature_detected!("avx512f") {
            eprintln!("left out: this processor has no AVX-512");
            return;
        }
        let [m, n, k] = [11, 901, 333];
        let a = numbers(m * (k + 3), 4);
        let b = numbers(n * (k + 1), 5);
        let rows = |first: usize, count: usize| {
            let mut out = vec![0.0; count * n];
            assert!(write(&product(&a[first * (k + 3)..], &b, [count, n, k]), Output::new(&mut out, n), Threads::This));
            out
        };
        let all = rows(0, m);
        for (first, count) in [(0, 1), (2, 6), (10, 1), (5, 3)] {
            assert_eq!(rows(first, count), all[first * n..][..count * n]);
        }
    }
}
