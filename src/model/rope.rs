//! Rotary frequencies of a configuration.

use super::{ModelConfig, RopeScaling};
use crate::error::Result;
use crate::ops::{Backend, RopeTable, Tensor};

impl ModelConfig {
    /// Angle per position of each of the D/2 pairs, as Transformers computes them (`ROPE_INIT_FUNCTIONS`).
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| 1.0 / self.rope_theta.powf(2.0 * i as f64 / self.head_dim as f64));
        plain.map(|frequency| self.rope_scaling.apply(frequency) as f32).collect()
    }

    /// cos and sin for positions `0..positions`.
    pub(super) fn rope_table<B: Backend>(&self, backend: &B, positions: usize) -> Result<RopeTable<B>> {
        let frequencies = self.rope_frequencies();
        let angles: Vec<f32> = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let cos: Vec<f32> = angles.iter().map(|a| f64::from(*a).cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| f64::from(*a).sin() as f32).collect();
        Ok(RopeTable {
            cos: Tensor::from_f32(backend, "rope cos", positions, frequencies.len(), &cos)?,
            sin: Tensor::from_f32(backend, "rope sin", positions, frequencies.len(), &sin)?,
        })
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
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
}
