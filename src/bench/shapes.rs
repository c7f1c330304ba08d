//! The sizes that are measured.

use crate::model::ModelConfig;

/// Sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
}

impl BatchShape {
    /// Tokens of the batch.
    pub fn tokens(self) -> usize {
        self.sequences * self.length
    }
}

impl std::fmt::Display for BatchShape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}x{}", self.sequences, self.length)
    }
}

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
    /// Tokens of a short sequence, for attention with a cache.
    pub short_length: usize,
    /// Sequences of a full-parameter step's batch.
    pub full_step_sequences: usize,
    /// A batch of a simulated attack of TAR: the one of `preset = "bio"`, or a small one.
    pub attack: BatchShape,
    /// A batch of its tamper-resistance loss.
    pub tamper_resistance: BatchShape,
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
    /// Sets of operands of `bytes` bytes each that work rotates through, so that no cache holds a set when its turn comes again.
    pub(super) fn sets(&self, bytes: f64) -> usize {
        let wanted = (self.cold_bytes as f64 / bytes.max(1.0)).ceil() as usize;
        wanted.clamp(1, self.most_sets)
    }

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
                attack: BatchShape { sequences: 32, length: 256 },
                tamper_resistance: BatchShape { sequences: 64, length: 256 },
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
                attack: BatchShape { sequences: 3, length: 8 },
                tamper_resistance: BatchShape { sequences: 5, length: 8 },
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

    /// The batch of most rows.
    pub fn batch(&self) -> BatchShape {
        BatchShape { sequences: self.sequences, length: self.length }
    }

    /// Its tokens.
    pub fn tokens(&self) -> usize {
        self.batch().tokens()
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
