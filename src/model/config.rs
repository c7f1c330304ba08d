//! The architecture of a model.

use super::{ModelFamily, ModelLayout};
use crate::ops::AttentionShape;

/// The change of rotary frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub enum RopeScaling {
    /// No change.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's piecewise scaling.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above original / this are divided.
        low_freq_factor: f64,
        /// Wavelengths below original / this are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): high frequencies are kept, low ones divided by `factor`, those between them mixed.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: usize,
        /// Frequencies of more turns than this within the original context are kept.
        beta_fast: f64,
        /// Frequencies of fewer turns than this within the original context are divided.
        beta_slow: f64,
        /// Whether the ends of the mixed range are rounded outwards to whole frequencies.
        truncate: bool,
        /// Factor on every rotated query and key.
        attention_factor: f64,
    },
}

/// The dtype that `config.json` declares for the weights (`dtype`, or `torch_dtype` in older files).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum DeclaredDType {
    /// `float32`.
    Float32,
    /// `float16`.
    Float16,
    /// `bfloat16`.
    BFloat16,
}

/// The architecture of a decoder-only transformer of the Llama kind.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelConfig {
    /// The architecture class.
    pub family: ModelFamily,
    /// V.
    pub vocab_size: usize,
    /// d.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G.
    pub num_key_value_heads: usize,
    /// D; hidden_size / num_attention_heads where the file does not say.
    pub head_dim: usize,
    /// ε of every RMS norm.
    pub rms_norm_eps: f32,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The sliding window of every layer, in tokens.
    pub sliding_window: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Start-of-text token.
    pub bos_token_id: Option<u32>,
    /// End-of-text tokens (Llama 3.1 has several).
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Dtype declared for the weight files.
    pub dtype: Option<DeclaredDType>,
}

impl ModelConfig {
    /// The shape of the attention layers.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape {
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            sliding_window: self.sliding_window,
        }
    }

    /// Number of parameters, or `u64::MAX` where they are more than a buffer can hold. A tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        ModelLayout::new(self).map_or(u64::MAX, |layout| layout.len() as u64)
    }

    /// The architecture of Meta-Llama-3-8B, which plans and benches are about; without the tokenizer's ids.
    pub(crate) fn llama3_8b() -> Self {
        Self {
            family: ModelFamily::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 128,
            rms_norm_eps: 1e-5,
            max_position_embeddings: 8192,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::Default,
            sliding_window: None,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            dtype: None,
        }
    }
}
