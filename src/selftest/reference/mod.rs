//! The formulas of `crate::ops` in f64, over the numbers as they are stored: plain loops, one element or row at a time,
//! so that a few rows of a large matrix cost little. Nothing here is shared with a backend, except the generator of the
//! dropout masks, which published vectors pin down.
//!
//! Each function gives a closure from a row and the columns wanted of it to the expected numbers there.

mod attention;
mod attention_cached;
mod element;
mod heads;
mod linear;
mod loss;
mod update;

pub use attention::{Attention, Given};
pub use attention_cached::CachedAttention;
pub use element::*;
pub use heads::*;
pub use linear::*;
pub use loss::*;
pub use update::{rounded_at_random, rounding_bits, update};

/// A matrix whose elements are known by place.
pub trait Numbers: Sync {
    /// Rows.
    fn rows(&self) -> usize;
    /// Columns.
    fn cols(&self) -> usize;
    /// An element.
    fn at(&self, row: usize, col: usize) -> f64;
    /// `len` elements of a row.
    fn span(&self, row: usize, first: usize, len: usize) -> Vec<f64> {
        (first..first + len).map(|col| self.at(row, col)).collect()
    }
    /// A row.
    fn row(&self, row: usize) -> Vec<f64> {
        self.span(row, 0, self.cols())
    }
}

/// `rows` × `cols` numbers of a flat row of numbers, from `offset` on.
pub struct Part<'a> {
    pub whole: &'a dyn Numbers,
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Numbers for Part<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn at(&self, row: usize, col: usize) -> f64 {
        self.whole.at(0, self.offset + row * self.cols + col)
    }
}

/// Σ a · b. Eight partial sums: the order is nobody's business in f64, and the compiler makes vectors of them.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let whole_a = a.chunks_exact(8);
    let whole_b = b.chunks_exact(8);
    let rest: f64 = whole_a.remainder().iter().zip(whole_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in whole_a.zip(whole_b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// 1 / (1 + e⁻ˣ).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
