//! Rounding of weights to a few bits, as everybody who runs a model on a small machine does: no training and no data. A
//! safeguard that lies in small changes of the weights can be rounded away (arXiv 2410.16454).
//!
//! Each row of a projection is cut into groups of neighbouring weights (the last one may be shorter), and the weights of a
//! group are rounded to the nearest point of a grid, halves to the even one. With b bits and the weights w of a group:
//!
//! - affine: lo = min(0, min w), hi = max(0, max w), s = (hi − lo) / (2^b − 1), z = round(−lo / s),
//!   w' = s · (clamp(round(w / s) + z, 0, 2^b − 1) − z);
//! - symmetric: m = 2^(b−1) − 1, s = max |w| / m, w' = s · clamp(round(w / s), −m, m).
//!
//! The seven projections of every layer are rounded; embedding, head and norms stay, as the formats for small machines leave
//! them.

use crate::model::{Model, Projection};
use crate::ops::Backend;

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Bits that are left of a weight.
    pub bits: u32,
    /// Neighbouring weights of a row that share a scale.
    pub group: usize,
    /// Whether the grid is the same on both sides of 0.
    pub symmetric: bool,
}

impl Default for Quantization {
    /// 4 bits in groups of 128, affine.
    fn default() -> Self {
        Self { bits: 4, group: 128, symmetric: false }
    }
}

impl Quantization {
    /// Rounds the projections among `weights`, which are all of a model's, in its layout.
    pub fn round<B: Backend>(&self, model: &Model<B>, weights: &mut [f32]) {
        for layer in 0..model.config.num_hidden_layers {
            for projection in Projection::ALL {
                let block = model.layout().layer(layer).projection(projection);
                for row in weights[block.range()].chunks_exact_mut(block.cols.max(1)) {
                    row.chunks_mut(self.group.max(1)).for_each(|group| self.round_group(group));
                }
            }
        }
    }

    /// Rounds the weights of one group.
    pub fn round_group(&self, weights: &mut [f32]) {
        if self.symmetric { self.round_symmetric(weights) } else { self.round_affine(weights) }
    }

    fn round_affine(&self, weights: &mut [f32]) {
        let lowest = weights.iter().copied().fold(0.0, f32::min);
        let highest = weights.iter().copied().fold(0.0, f32::max);
        let most = ((1u32 << self.bits) - 1) as f32;
        let scale = (highest - lowest) / most;
        if scale > 0.0 {
            let zero = (-lowest / scale).round_ties_even();
            let rounded = |w: f32| ((w / scale).round_ties_even() + zero).clamp(0.0, most) - zero;
            weights.iter_mut().for_each(|w| *w = scale * rounded(*w));
        }
    }

    fn round_symmetric(&self, weights: &mut [f32]) {
        let largest = weights.iter().fold(0.0, |largest: f32, w| largest.max(w.abs()));
        let most = ((1u32 << (self.bits - 1)) - 1) as f32;
        let scale = largest / most;
        if scale > 0.0 {
            weights.iter_mut().for_each(|w| *w = scale * (*w / scale).round_ties_even().clamp(-most, most));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;
    use crate::random::{Random, Stream};

    fn rounded(bits: u32, symmetric: bool, weights: &[f32]) -> Vec<f32> {
        let mut weights = weights.to_vec();
        Quantization { bits, group: weights.len(), symmetric }.round_group(&mut weights);
        weights
    }

    /// Grids whose scale is a power of two, so that the rounded weights are exact.
    #[test]
    fn weights_go_to_the_nearest_point_of_the_grid() {
        // lo −1, hi 2.75: s = 0.25, z = 4.
        let affine = rounded(4, false, &[-1.0, 2.75, 0.1, 0.13, -0.37, 0.0, 1.125, 1.375]);
        assert_eq!(affine, [-1.0, 2.75, 0.0, 0.25, -0.25, 0.0, 1.0, 1.5]);
        // Without a negative weight the grid starts at 0: s = 0.5.
        assert_eq!(rounded(4, false, &[7.5, 3.1, 0.2]), [7.5, 3.0, 0.0]);
        assert_eq!(rounded(4, false, &[-7.5, -3.1, -0.2]), [-7.5, -3.0, 0.0]);
        // m = 7, s = 0.25.
        assert_eq!(rounded(4, true, &[-1.75, 1.0, 0.3, -0.12, 0.375]), [-1.75, 1.0, 0.25, 0.0, 0.5]);
        assert_eq!(rounded(2, true, &[-3.0, 1.0, 2.0, 1.5]), [-3.0, 0.0, 3.0, 0.0]);
        for symmetric in [false, true] {
            assert_eq!(rounded(4, symmetric, &[0.0, 0.0]), [0.0, 0.0]);
        }
    }

    /// The error of every weight is at most half a step of its own group, a second rounding changes next to nothing, and
    /// embedding, head and norms stay to the bit.
    #[test]
    fn every_projection_is_rounded_group_by_group_and_nothing_else_is() {
        let model = Model::new(Cpu, Experiment::<Cpu>::model_config(), 8).unwrap();
        let layout = model.layout();
        let mut random = Random::new(3, Stream::Weights, 0, 0);
        let start: Vec<f32> = (0..layout.len()).map(|_| random.normal() as f32).collect();
        for (group, symmetric) in [(64, false), (48, false), (64, true)] {
            let quantization = Quantization { bits: 4, group, symmetric };
            let mut weights = start.clone();
            quantization.round(&model, &mut weights);
            for entry in layout.entries() {
                let place = entry.block.range();
                if !entry.name.contains("_proj") {
                    assert!(weights[place.clone()] == start[place], "{}", entry.name);
                    continue;
                }
                let rows = start[place.clone()].chunks(entry.block.cols).zip(weights[place].chunks(entry.block.cols));
                for (before, after) in rows.flat_map(|(a, b)| a.chunks(group).zip(b.chunks(group))) {
                    let low = before.iter().copied().fold(0.0, f32::min);
                    let high = before.iter().copied().fold(0.0, f32::max);
                    let step = if symmetric { high.max(-low) / 7.0 } else { (high - low) / 15.0 };
                    // Where the grid of the affine rounding ends, its zero was rounded too.
                    let bound = if symmetric { 0.5 } else { 1.0 } * step * 1.0001;
                    assert!(before.iter().zip(after).all(|(a, b)| (a - b).abs() <= bound), "{}", entry.name);
                    let mut points: Vec<f32> = after.to_vec();
                    points.sort_by(f32::total_cmp);
                    points.dedup();
                    assert!(points.len() <= 16 && points.len() > 5, "{}: {}", entry.name, points.len());
                }
            }
        }
    }
}
