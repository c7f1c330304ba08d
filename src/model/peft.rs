//! PEFT LoRA adapters in and out: `adapter_config.json`, `adapter_model.safetensors`.

use std::path::Path;

use super::{AdapterConfig, ModelConfig};
use crate::error::Result;

/// Reads an adapter directory: its configuration, and its factors in the order of `ParameterLayout::for_adapter`.
pub fn read_adapter(path: &Path, model: &ModelConfig) -> Result<(AdapterConfig, Vec<f32>)> {
    let _ = (path, model);
    todo!()
}

/// Writes an adapter directory that PEFT loads. `base` is written as `base_model_name_or_path`.
pub fn write_adapter(
    path: &Path,
    model: &ModelConfig,
    adapter: &AdapterConfig,
    factors: &[f32],
    base: &Path,
) -> Result<()> {
    let _ = (path, model, adapter, factors, base);
    todo!()
}
