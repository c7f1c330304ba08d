//! Rotary frequencies of a configuration.

use std::f64::consts::TAU;

use super::{ModelConfig, RopeScaling};
use crate::error::Result;
use crate::ops::{Backend, RopeTable, Tensor};

impl ModelConfig {
    /// Angle per position of each of the D/2 pairs, as Transformers computes them (`ROPE_INIT_FUNCTIONS`).
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let yarn = self.yarn();
        let frequency = |index: usize| {
            // Positions for each radian, without scaling.
            let slowness = self.rope_theta.powf(2.0 * index as f64 / self.head_dim as f64);
            yarn.as_ref().map_or_else(|| self.scaled(1.0 / slowness) as f32, |yarn| yarn.frequency(index, slowness))
        };
        (0..self.head_dim / 2).map(frequency).collect()
    }

    /// Factor on every rotated query and key.
    pub fn rope_attention_factor(&self) -> f64 {
        match self.rope_scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
        }
    }

    /// cos and sin for positions `0..positions`, times the attention factor.
    pub(super) fn rope_table<B: Backend>(&self, backend: &B, positions: usize) -> Result<RopeTable<B>> {
        let frequencies = self.rope_frequencies();
        let factor = self.rope_attention_factor();
        let angles: Vec<f32> = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let cos: Vec<f32> = angles.iter().map(|a| (factor * f64::from(*a).cos()) as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| (factor * f64::from(*a).sin()) as f32).collect();
        Ok(RopeTable {
            cos: Tensor::from_f32(backend, "rope cos", positions, frequencies.len(), &cos)?,
            sin: Tensor::from_f32(backend, "rope sin", positions, frequencies.len(), &sin)?,
        })
    }

    /// The frequency of a pair, which is `frequency` without scaling.
    fn scaled(&self, frequency: f64) -> f64 {
        match self.rope_scaling {
            // Yarn has its own way, as it depends on the pair's index.
            RopeScaling::Default | RopeScaling::Yarn { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let wavelength = TAU / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    /// What yarn does to the pairs of a head, where it is the scaling.
    fn yarn(&self) -> Option<Yarn> {
        let RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } =
            self.rope_scaling
        else {
            return None;
        };
        let size = self.head_dim as f64;
        // The pair, as a real number, that turns so many times within the original context.
        let pair = |turns: f64| {
            size * (original_max_position_embeddings as f64 / (turns * TAU)).ln() / (2.0 * self.rope_theta.ln())
        };
        let round = |pair: f64, rounded: fn(f64) -> f64| if truncate { rounded(pair) } else { pair };
        let first = round(pair(beta_fast), f64::floor).max(0.0);
        let last = round(pair(beta_slow), f64::ceil).min(size - 1.0);
        // Transformers' way around a range of no width.
        let width = if first == last { 0.001 } else { last - first };
        Some(Yarn { factor: factor as f32, first: first as f32, width: width as f32 })
    }
}

/// The pairs before `first` keep their frequency, those from `first + width` on have it divided.
struct Yarn {
    factor: f32,
    first: f32,
    width: f32,
}

impl Yarn {
    /// In f32 and in the order of Transformers, so that angles of late positions are theirs.
    fn frequency(&self, index: usize, slowness: f64) -> f32 {
        let slowness = slowness as f32;
        let kept = 1.0 - ((index as f32 - self.first) / self.width).clamp(0.0, 1.0);
        1.0 / (self.factor * slowness) * (1.0 - kept) + 1.0 / slowness * kept
    }
}
