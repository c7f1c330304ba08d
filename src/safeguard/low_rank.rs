//! The leading part of a matrix: the sum of its first singular vectors with their singular values, which is the nearest
//! matrix of that rank.
//!
//! Block Krylov iteration with restarts (Musco and Musco, arXiv 1504.05477): a few vectors are multiplied by the matrix and
//! its transpose in turn, the space of all products is searched for the best vectors (Rayleigh and Ritz), and those are
//! where the next cycle begins. Everything is f64 and in a fixed order. A whole decomposition of the matrices of an 8B model
//! costs hundreds of times as much.

use rayon::prelude::*;

use crate::random::{Random, Stream};

/// Vectors more than the rank in a block: what converges them is the gap to the first singular value behind the block.
const SPARE: usize = 8;
/// Blocks of a cycle.
const BLOCKS: usize = 8;
/// Cycles after which the search ends without a result.
const MOST_CYCLES: usize = 200;
/// ‖M Mᵀ u − σ² u‖ at which a vector counts as found, as a part of the largest σ².
const TOLERANCE: f64 = 1e-10;
/// Columns that a task multiplies at a time: a piece of a row that stays in the first cache.
const COLUMNS: usize = 256;

/// A matrix of finite numbers.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    /// [rows, cols], row-major.
    pub values: &'a [f32],
    pub rows: usize,
    pub cols: usize,
}

/// The leading part of a matrix.
pub(super) struct LeadingPart {
    /// [rows, cols], row-major.
    pub values: Vec<f32>,
    /// Floating-point operations of the products that found it.
    pub flop: f64,
}

/// Vectors of equal length.
type Vectors = Vec<Vec<f64>>;

impl Values<'_> {
    /// M X: for each vector of as many numbers as there are columns, one of as many as there are rows.
    fn times(&self, x: &Vectors) -> Vectors {
        let row = |row: &[f32]| -> Vec<f64> {
            x.iter().map(|x| row.iter().zip(x).map(|(a, x)| f64::from(*a) * x).sum()).collect()
        };
        let products: Vec<Vec<f64>> = self.values.par_chunks(self.cols).map(row).collect();
        (0..x.len()).map(|vector| products.iter().map(|row| row[vector]).collect()).collect()
    }

    /// Mᵀ Y.
    fn transposed_times(&self, y: &Vectors) -> Vectors {
        let piece = |first: usize| -> Vectors {
            let last = (first + COLUMNS).min(self.cols);
            let mut sums = vec![vec![0.0; last - first]; y.len()];
            for (index, row) in self.values.chunks(self.cols).enumerate() {
                for (sum, y) in sums.iter_mut().zip(y) {
                    let factor = y[index];
                    sum.iter_mut().zip(&row[first..last]).for_each(|(sum, a)| *sum += factor * f64::from(*a));
                }
            }
            sums
        };
        let starts: Vec<usize> = (0..self.cols).step_by(COLUMNS).collect();
        let pieces: Vec<Vectors> = starts.into_par_iter().map(piece).collect();
        (0..y.len()).map(|vector| pieces.iter().flat_map(|piece| piece[vector].iter().copied()).collect()).collect()
    }
}

/// A matrix seen from its shorter side: `ahead` goes there from the longer one.
struct Sides<'a> {
    matrix: Values<'a>,
    /// Whether the shorter side is the columns.
    flipped: bool,
    flop: f64,
}

impl Sides<'_> {
    fn shorter(&self) -> usize {
        self.matrix.rows.min(self.matrix.cols)
    }

    fn ahead(&mut self, x: &Vectors) -> Vectors {
        self.count(x.len());
        if self.flipped { self.matrix.transposed_times(x) } else { self.matrix.times(x) }
    }

    fn back(&mut self, y: &Vectors) -> Vectors {
        self.count(y.len());
        if self.flipped { self.matrix.times(y) } else { self.matrix.transposed_times(y) }
    }

    fn count(&mut self, vectors: usize) {
        self.flop += 2.0 * self.matrix.values.len() as f64 * vectors as f64;
    }
}

/// The part of rank `rank`; the whole matrix where it has no more than that. `None` where the search does not converge.
pub(super) fn leading_part(matrix: Values, rank: usize) -> Option<LeadingPart> {
    let mut sides = Sides { matrix, flipped: matrix.rows > matrix.cols, flop: 0.0 };
    if rank >= sides.shorter() || matrix.values.iter().all(|&value| value == 0.0) {
        return Some(LeadingPart { values: matrix.values.to_vec(), flop: 0.0 });
    }
    let width = (rank + SPARE).min(sides.shorter());
    let mut random = Random::new(0, Stream::LowRank, 0, 0);
    let mut start: Vectors = (0..width).map(|_| (0..sides.shorter()).map(|_| random.normal()).collect()).collect();
    for _ in 0..MOST_CYCLES {
        let cycle = Cycle::run(&mut sides, start);
        let ritz = cycle.ritz(width);
        if cycle.converged(&ritz, rank) {
            return Some(LeadingPart { values: cycle.sum(&sides, &ritz[..rank.min(ritz.len())]), flop: sides.flop });
        }
        start = ritz.iter().map(|ritz| combination(&cycle.basis, &ritz.weights)).collect();
    }
    None
}

/// One cycle's space of vectors on the shorter side.
struct Cycle {
    /// Orthonormal.
    basis: Vectors,
    /// Mᵀ of each vector of the basis, where M goes ahead.
    back: Vectors,
    /// M Mᵀ of each.
    ahead: Vectors,
}

/// An approximate left singular vector.
struct Ritz {
    /// σ².
    square: f64,
    /// Its coordinates in the basis.
    weights: Vec<f64>,
}

impl Cycle {
    fn run(sides: &mut Sides, start: Vectors) -> Self {
        let mut cycle = Self { basis: Vec::new(), back: Vec::new(), ahead: Vec::new() };
        let mut next = start;
        for _ in 0..BLOCKS {
            let first = cycle.basis.len();
            for vector in next {
                if cycle.basis.len() < sides.shorter() {
                    cycle.basis.extend(orthonormal(vector, &cycle.basis));
                }
            }
            let block = cycle.basis[first..].to_vec();
            if block.is_empty() {
                break;
            }
            let back = sides.back(&block);
            next = sides.ahead(&back);
            cycle.back.extend(back);
            cycle.ahead.extend(next.iter().cloned());
        }
        cycle
    }

    /// The best vectors of the space, the largest σ first.
    fn ritz(&self, count: usize) -> Vec<Ritz> {
        let size = self.basis.len();
        let rows: Vec<Vec<f64>> = self.back.par_iter().map(|a| self.back.iter().map(|b| dot(a, b)).collect()).collect();
        let (squares, vectors) = symmetric_eigenvectors(rows);
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| squares[b].total_cmp(&squares[a]));
        let ritz =
            |&index: &usize| Ritz { square: squares[index], weights: vectors.iter().map(|row| row[index]).collect() };
        order.iter().take(count).map(ritz).collect()
    }

    /// Whether the first `rank` are eigenvectors of M Mᵀ.
    fn converged(&self, ritz: &[Ritz], rank: usize) -> bool {
        let Some(largest) = ritz.first().map(|ritz| ritz.square) else { return true };
        ritz.iter().take(rank).all(|ritz| {
            let vector = combination(&self.basis, &ritz.weights);
            let image = combination(&self.ahead, &ritz.weights);
            let residual: f64 =
                image.iter().zip(&vector).map(|(image, vector)| (image - ritz.square * vector).powi(2)).sum();
            residual.sqrt() <= TOLERANCE * largest
        })
    }

    /// Σ u uᵀ M over these vectors u, in the order of the matrix.
    fn sum(&self, sides: &Sides, ritz: &[Ritz]) -> Vec<f32> {
        let shorter: Vectors = ritz.iter().map(|ritz| combination(&self.basis, &ritz.weights)).collect();
        let longer: Vectors = ritz.iter().map(|ritz| combination(&self.back, &ritz.weights)).collect();
        let (left, right) = if sides.flipped { (&longer, &shorter) } else { (&shorter, &longer) };
        let mut values = vec![0.0; sides.matrix.values.len()];
        values.par_chunks_mut(sides.matrix.cols).enumerate().for_each(|(row, out)| {
            for (col, out) in out.iter_mut().enumerate() {
                *out = left.iter().zip(right).map(|(u, v)| u[row] * v[col]).sum::<f64>() as f32;
            }
        });
        values
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Σ weight · vector.
fn combination(vectors: &Vectors, weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vectors.first().map_or(0, Vec::len)];
    for (vector, weight) in vectors.iter().zip(weights) {
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}

/// What a vector adds to an orthonormal basis, with length 1; `None` where that is rounding alone. Twice is enough: the second
/// pass removes what rounding left of the first.
fn orthonormal(vector: Vec<f64>, basis: &Vectors) -> Option<Vec<f64>> {
    let length = dot(&vector, &vector).sqrt();
    let mut rest = vector;
    for _ in 0..2 {
        for other in basis {
            let along = dot(&rest, other);
            rest.iter_mut().zip(other).for_each(|(rest, other)| *rest -= along * other);
        }
    }
    let left = dot(&rest, &rest).sqrt();
    if left <= 1e-12 * length {
        return None;
    }
    rest.iter_mut().for_each(|value| *value /= left);
    Some(rest)
}

/// The eigenvalues of a symmetric matrix, and a matrix whose columns are its eigenvectors. Jacobi's cyclic method.
fn symmetric_eigenvectors(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    const MOST_SWEEPS: usize = 60;
    let size = a.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..size).map(|i| (0..size).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let norm: f64 = a.iter().flatten().map(|value| value * value).sum();
    for _ in 0..MOST_SWEEPS {
        let off: f64 = (0..size).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        if off <= 1e-32 * norm {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    ((0..size).map(|i| a[i][i]).collect(), vectors)
}

/// Turns two axes so that the element between them becomes 0.
fn rotate(a: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
    let sine = tangent * cosine;
    let turn = |row: &mut [f64]| {
        let (x, y) = (row[p], row[q]);
        row[p] = cosine * x - sine * y;
        row[q] = sine * x + cosine * y;
    };
    a.iter_mut().for_each(|row| turn(row));
    let (above, below) = a.split_at_mut(q);
    for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    vectors.iter_mut().for_each(|row| turn(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normals(seed: u64, count: usize) -> Vec<f64> {
        let mut random = Random::new(seed, Stream::Weights, 0, 0);
        (0..count).map(|_| random.normal()).collect()
    }

    /// `count` orthonormal vectors of a length.
    fn frame(seed: u64, count: usize, length: usize) -> Vectors {
        let mut basis = Vectors::new();
        for index in 0..count {
            basis.extend(orthonormal(normals(seed + index as u64, length), &basis));
        }
        basis
    }

    /// Σ σ u vᵀ of the first `rank` of known singular vectors.
    fn known([rows, cols]: [usize; 2], squares: &[f64], rank: usize) -> Vec<f32> {
        let left = frame(10, squares.len(), rows);
        let right = frame(500, squares.len(), cols);
        let mut values = vec![0.0f64; rows * cols];
        for ((u, v), sigma) in left.iter().zip(&right).zip(squares).take(rank) {
            for (row, u) in values.chunks_mut(cols).zip(u) {
                row.iter_mut().zip(v).for_each(|(value, v)| *value += sigma * u * v);
            }
        }
        values.into_iter().map(|value| value as f32).collect()
    }

    fn relative(a: &[f32], b: &[f32]) -> f64 {
        let square = |x: f64| x * x;
        let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        (difference / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
    }

    /// A matrix that is made of known singular vectors: tall, wide and square, with a spectrum that falls slowly.
    #[test]
    fn the_leading_part_is_the_sum_of_the_first_singular_vectors() {
        let spectrum: Vec<f64> = (0..40).map(|i| 3.0 * 0.95f64.powi(i)).collect();
        for [rows, cols] in [[40, 173], [211, 60], [64, 64]] {
            let values = known([rows, cols], &spectrum, spectrum.len());
            for rank in [1, 6, 39] {
                let found = leading_part(Values { values: &values, rows, cols }, rank).unwrap();
                let error = relative(&found.values, &known([rows, cols], &spectrum, rank));
                assert!(error < 2e-6, "{rows} × {cols}, rank {rank}: {error:.1e}");
                assert!(found.flop > 0.0);
            }
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_its_own_leading_part() {
        let values = known([30, 50], &[4.0, 1.0], 2);
        for rank in [2, 5, 30, 99] {
            let found = leading_part(Values { values: &values, rows: 30, cols: 50 }, rank).unwrap();
            assert!(relative(&found.values, &values) < 1e-6, "rank {rank}");
        }
        let zeros = vec![0.0; 1500];
        assert_eq!(leading_part(Values { values: &zeros, rows: 30, cols: 50 }, 3).unwrap().values, zeros);
    }

    /// Equal singular values, for which no vectors are better than others: any of them will do, and the search ends.
    #[test]
    fn equal_singular_values_are_no_trap() {
        let values = known([90, 120], &[2.0; 50], 50);
        let found = leading_part(Values { values: &values, rows: 90, cols: 120 }, 3).unwrap();
        let square: f64 = found.values.iter().map(|value| f64::from(*value).powi(2)).sum();
        assert!((square - 12.0).abs() < 1e-4, "{square}");
    }
}
