//! Writing a model directory that Transformers and vLLM load.

use std::path::Path;

use super::ModelConfig;
use crate::error::Result;

/// Dtype of the weights that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

/// Writes `config.json`, sharded safetensors and, copied from `source`, the tokenizer and generation files.
///
/// `weights` is in the order of `ParameterLayout::for_model`. With `source` its `config.json` is carried over key by key
/// (only the dtype changes), so that nothing that another program reads is lost. The directory appears whole or not at
/// all: it is written beside its name and renamed.
pub fn write_model(
    path: &Path,
    config: &ModelConfig,
    source: Option<&Path>,
    weights: &[f32],
    dtype: ExportDType,
) -> Result<()> {
    let _ = (path, config, source, weights, dtype);
    todo!()
}
