//! The sizes that are measured.

use crate::model::ModelConfig;

/// Sizes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShapesName {
    /// Llama 3 8B with batches of 16,384 tokens.
    Llama3_8b,
    /// Small enough for the simulator: all code runs, in seconds.
    Tiny,
}

/// A model and the batches that go through it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    /// Which.
    pub name: ShapesName,
    /// The model.
    pub model: ModelConfig,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Tokens of a short sequence, for attention.
    pub short_length: usize,
    /// Sequences of a full-parameter step's batch.
    pub full_step_sequences: usize,
    /// r of the adapters.
    pub rank: usize,
    /// Elements of a pass over all parameters, unless fewer fit.
    pub vector_elements: usize,
    /// Rows, columns and summands of the product that gives the matmul rate.
    pub matmul_size: usize,
    /// Bytes of the copy that gives the bandwidth.
    pub copy_bytes: usize,
    /// Bytes that the sets of operands of a row have together, at least: several times the largest cache.
    pub cold_bytes: usize,
    /// Most sets of operands.
    pub most_sets: usize,
    /// Random numbers that operands are filled from.
    pub pool_elements: usize,
}

impl Shapes {
    /// The sizes called `name`.
    pub fn named(name: ShapesName) -> Self {
        match name {
            ShapesName::Llama3_8b => Self {
                name,
                model: ModelConfig::llama3_8b(),
                sequences: 8,
                length: 2048,
                short_length: 256,
                full_step_sequences: 4,
                rank: 16,
                vector_elements: 1_000_000_000,
                matmul_size: 8192,
                copy_bytes: 2 << 30,
                // Three times the 60 MB of the largest L2 cache of a Hopper device, rounded up.
                cold_bytes: 192 << 20,
                most_sets: 64,
                pool_elements: (1 << 24) - 3,
            },
            ShapesName::Tiny => Self {
                name,
                model: tiny(),
                sequences: 2,
                length: 24,
                short_length: 8,
                full_step_sequences: 1,
                rank: 4,
                vector_elements: 5003,
                matmul_size: 128,
                copy_bytes: 1 << 16,
                cold_bytes: 192 << 20,
                most_sets: 2,
                pool_elements: 4093,
            },
        }
    }

    /// Tokens of a batch.
    pub fn tokens(&self) -> usize {
        self.sequences * self.length
    }
}

/// Every kernel runs, and most sizes are no multiple of a tile.
fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: 203,
        hidden_size: 128,
        intermediate_size: 160,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        ..ModelConfig::llama3_8b()
    }
}
