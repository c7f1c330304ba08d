//! A model of a few thousand random weights, and made-up data for it: to try the library in a second, without a download.

use std::path::Path;

use super::experiment::random_weights;
use crate::error::{Error, Result};
use crate::huggingface::{ExportDType, write_model};
use crate::model::{ModelConfig, ModelFamily, ModelLayout, RopeScaling};
use crate::random::{Random, Stream};

/// Token ids of the toy model.
const VOCAB_SIZE: usize = 64;
/// Tokens of a row of data.
const ROW_TOKENS: u64 = 16;
/// Rows of a data file.
const ROWS: usize = 32;
/// Tokens that follow one another in a circle.
const CYCLE: u64 = 16;

/// Writes into `folder` a Llama of 9,000 random weights (`model`), and rows of token ids for it: two sets of sequences that
/// it can learn, `restricted.jsonl` and `retain.jsonl`.
pub fn write(folder: &Path, seed: u64) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let config = config();
    let weights = random_weights(&ModelLayout::new(&config)?, seed);
    write_model(&folder.join("model"), &config, None, &weights, ExportDType::F32)?;
    write_rows(&folder.join("restricted.jsonl"), &mut Random::new(seed, Stream::Demo, 0, 0), 8)?;
    write_rows(&folder.join("retain.jsonl"), &mut Random::new(seed, Stream::Demo, 0, 1), 32)
}

fn config() -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Llama,
        vocab_size: VOCAB_SIZE,
        hidden_size: 16,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![],
        pad_token_id: Some(0),
        dtype: None,
    }
}

/// Rows that count up in a circle of tokens from `base` on, each from its own place.
fn write_rows(path: &Path, random: &mut Random, base: u64) -> Result<()> {
    let mut text = String::new();
    for _ in 0..ROWS {
        let first = random.below(CYCLE as usize) as u64;
        let tokens: Vec<u64> = (first..first + ROW_TOKENS).map(|at| base + at % CYCLE).collect();
        text += &format!("{}\n", serde_json::json!({ "input_ids": tokens }));
    }
    std::fs::write(path, text).map_err(Error::io("write", path))
}
