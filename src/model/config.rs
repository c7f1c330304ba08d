//! `config.json`: the architecture of a model, read from the old and the new Hugging Face spelling and checked.

use crate::ops::AttentionShape;

/// Which architecture class the directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFamily {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
}

/// How rotary frequencies are changed for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

/// The dtype that `config.json` declares for the weights (`dtype`, or `torch_dtype` in older files).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclaredDType {
    /// `float32`.
    Float32,
    /// `float16`.
    Float16,
    /// `bfloat16`.
    BFloat16,
}

/// The architecture of a decoder-only transformer of the Llama kind.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which class.
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
    /// Mistral's sliding window, in tokens.
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
}
