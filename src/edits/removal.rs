//! Directions taken out of the weights that write to the residual stream (Arditi et al. 2024, arXiv 2406.11717, section 4.1).

use rayon::prelude::*;

use crate::model::Model;
use crate::ops::Backend;

/// Columns that one task goes over.
const COLUMNS: usize = 512;

/// What is taken out of a matrix [d, in] whose outputs go to the residual stream: W − w Σ r rᵀ W over the directions r.
#[derive(Clone, Copy, Debug)]
pub struct Removal<'a> {
    /// Orthonormal directions of the residual stream, of d numbers each.
    pub directions: &'a [Vec<f32>],
    /// w: 1 leaves nothing along a direction, 2 mirrors it.
    pub weight: f64,
    /// Whether each row of the matrix is scaled to the norm that it had.
    pub preserve_norms: bool,
}

impl Removal<'_> {
    /// Edits `matrix`, which has `columns` columns and as many rows as a direction has numbers. Sums are f64.
    pub fn apply(&self, matrix: &mut [f32], columns: usize) {
        if self.weight == 0.0 || self.directions.is_empty() {
            return;
        }
        let along: Vec<Vec<f64>> = self.directions.iter().map(|r| components(matrix, columns, r)).collect();
        matrix.par_chunks_exact_mut(columns).enumerate().for_each(|(index, row)| {
            let removed = |column: usize| -> f64 {
                let parts = self.directions.iter().zip(&along);
                parts.map(|(r, along)| along[column] * f64::from(r[index])).sum()
            };
            let edited = row.iter().enumerate().map(|(column, w)| f64::from(*w) - self.weight * removed(column));
            if !self.preserve_norms {
                let edited: Vec<f32> = edited.map(|w| w as f32).collect();
                row.copy_from_slice(&edited);
                return;
            }
            let edited: Vec<f64> = edited.collect();
            let before = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
            let after = edited.iter().map(|w| w * w).sum::<f64>().sqrt();
            // A row of which nothing is left has no direction to be scaled in.
            let scale = if after > 0.0 { before / after } else { 0.0 };
            row.iter_mut().zip(edited).for_each(|(w, edited)| *w = (scale * edited) as f32);
        });
    }
}

/// rᵀ W: the component of each column along `direction`.
fn components(matrix: &[f32], columns: usize, direction: &[f32]) -> Vec<f64> {
    let part = |start: usize| {
        let end = (start + COLUMNS).min(columns);
        let mut sums = vec![0.0f64; end - start];
        for (row, r) in matrix.chunks_exact(columns).zip(direction) {
            let r = f64::from(*r);
            sums.iter_mut().zip(&row[start..end]).for_each(|(sum, w)| *sum += f64::from(*w) * r);
        }
        sums
    };
    let starts: Vec<usize> = (0..columns).step_by(COLUMNS).collect();
    starts.into_par_iter().map(part).collect::<Vec<_>>().concat()
}

/// Takes the component along `direction` (of length 1) out of everything that a model writes to its residual stream: the
/// rows of the embedding, and the outputs of o_proj and down_proj. `weights` are all of the model's, in its layout. A
/// head that is tied to the embedding changes with it.
pub fn project_out<B: Backend>(model: &Model<B>, weights: &mut [f32], direction: &[f32]) {
    let layout = model.layout();
    for row in weights[layout.embed_tokens().range()].chunks_exact_mut(direction.len()) {
        let along: f64 = row.iter().zip(direction).map(|(w, r)| f64::from(*w) * f64::from(*r)).sum();
        row.iter_mut().zip(direction).for_each(|(w, r)| *w = (f64::from(*w) - along * f64::from(*r)) as f32);
    }
    let directions = [direction.to_vec()];
    let removal = Removal { directions: &directions, weight: 1.0, preserve_norms: false };
    for layer in 0..model.config.num_hidden_layers {
        let blocks = layout.layer(layer);
        for block in [blocks.o_proj, blocks.down_proj] {
            removal.apply(&mut weights[block.range()], block.cols);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, Stream};

    const ROWS: usize = 24;
    const COLUMNS: usize = 700;

    fn matrix(seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, Stream::Weights, 0, 0);
        (0..ROWS * COLUMNS).map(|_| random.normal() as f32).collect()
    }

    /// Two orthonormal directions.
    fn directions() -> Vec<Vec<f32>> {
        let unit = |at: &[usize]| {
            let mut direction = vec![0.0f32; ROWS];
            at.iter().for_each(|&index| direction[index] = 0.5);
            direction
        };
        let mut second = unit(&[3, 5, 9, 23]);
        second[9] = -0.5;
        second[23] = -0.5;
        vec![unit(&[3, 5, 9, 23]), second]
    }

    fn component(matrix: &[f32], direction: &[f32], column: usize) -> f64 {
        (0..ROWS).map(|row| f64::from(matrix[row * COLUMNS + column]) * f64::from(direction[row])).sum()
    }

    #[test]
    fn a_weight_of_w_leaves_1_minus_w_along_the_directions_and_all_of_the_rest() {
        let before = matrix(1);
        let directions = directions();
        // Along an index that no direction has, and along one that is orthogonal to both.
        let other = |row: usize| (0..ROWS).map(|index| f32::from(u8::from(index == row))).collect::<Vec<f32>>();
        let mut orthogonal = other(3);
        orthogonal[5] = -1.0;
        for weight in [1.0, 0.8, 1.5, -0.25] {
            let mut after = before.clone();
            Removal { directions: &directions, weight, preserve_norms: false }.apply(&mut after, COLUMNS);
            for column in [0, 1, 511, 512, 699] {
                for direction in &directions {
                    let left = component(&after, direction, column);
                    let expected = (1.0 - weight) * component(&before, direction, column);
                    assert!((left - expected).abs() < 1e-6, "{weight}: {left} and {expected}");
                }
                for direction in [&other(7), &orthogonal] {
                    let apart = component(&after, direction, column) - component(&before, direction, column);
                    assert!(apart.abs() < 1e-6, "{weight}: {apart}");
                }
            }
        }
        let mut same = before.clone();
        Removal { directions: &directions, weight: 0.0, preserve_norms: true }.apply(&mut same, COLUMNS);
        assert!(same == before);
    }

    #[test]
    fn rows_keep_their_norms_where_that_is_asked_and_lose_them_where_not() {
        let before = matrix(2);
        let directions = directions();
        let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
        let worst = |preserve_norms: bool| {
            let mut after = before.clone();
            Removal { directions: &directions, weight: 1.2, preserve_norms }.apply(&mut after, COLUMNS);
            assert!(after != before);
            let rows = before.chunks_exact(COLUMNS).zip(after.chunks_exact(COLUMNS));
            rows.map(|(before, after)| (norm(after) / norm(before) - 1.0).abs()).fold(0.0, f64::max)
        };
        assert!(worst(true) < 1e-6, "{}", worst(true));
        assert!(worst(false) > 0.01, "{}", worst(false));
    }
}
