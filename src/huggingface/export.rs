//! Writing a model directory that Transformers and vLLM load.

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::strict_json;
use crate::error::{Error, Result};
use crate::files::{sync, write_directory, write_json};
use crate::model::{ModelConfig, ModelLayout, RopeScaling, WindowKeys};
use crate::ops;

/// Dtype of the weights that are written. Settings name it `f32`, `bf16` or `f16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportDType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl FromStr for ExportDType {
    type Err = Error;

    /// The dtype that settings call so.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(Error::config("dtype", format!("`{text}` is no dtype"), "use f32, bf16 or f16")),
        }
    }
}

impl ExportDType {
    /// The name in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// Little-endian bytes, rounded to nearest even.
    fn encode(self, values: &[f32]) -> Vec<u8> {
        fn bytes<const N: usize>(values: &[f32], of: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
            let mut out = vec![0; values.len() * N];
            let chunks = out.par_chunks_mut(N << 16).zip(values.par_chunks(1 << 16));
            chunks.for_each(|(out, values)| {
                out.chunks_exact_mut(N).zip(values).for_each(|(out, &value)| out.copy_from_slice(&of(value)));
            });
            out
        }
        match self {
            Self::F32 => bytes(values, f32::to_le_bytes),
            Self::Bf16 => bytes(values, |value| bf16::from_f32(value).to_le_bytes()),
            Self::F16 => bytes(values, |value| f16::from_f32(value).to_le_bytes()),
        }
    }

    /// Whether this finite number would become infinite: from half a step above the largest one on, it rounds up.
    fn overflows(self, value: f32) -> bool {
        let limit = match self {
            Self::F32 => return false,
            Self::Bf16 => f32::from_bits(0x7f7f_8000),
            Self::F16 => 65_520.0,
        };
        value.is_finite() && value.abs() >= limit
    }

    /// Fails where a weight of a model would become infinite in this dtype.
    ///
    /// # Errors
    /// [`Error::Config`] that names the tensor.
    pub fn expect_range(self, layout: &ModelLayout, weights: &[f32]) -> Result<()> {
        let outside = layout.entries().iter().find(|entry| self.overflows_in(&weights[entry.block.range()]));
        outside.map_or(Ok(()), |entry| Err(self.out_of_range(&entry.name)))
    }

    /// This dtype, or the next with a wider range where a weight of a model would become infinite in it: bfloat16, float32.
    pub fn wide_enough(self, layout: &ModelLayout, weights: &[f32]) -> Self {
        let fits = |dtype: &Self| dtype.expect_range(layout, weights).is_ok();
        [self, Self::Bf16].into_iter().find(fits).unwrap_or(Self::F32)
    }

    fn overflows_in(self, values: &[f32]) -> bool {
        self != Self::F32 && values.par_iter().any(|&value| self.overflows(value))
    }

    fn out_of_range(self, tensor: &str) -> Error {
        let problem = format!("tensor `{tensor}` has numbers beyond the range of {}", self.name());
        Error::config("dtype", problem, "write bf16 or f32")
    }

    const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Largest weight file, as in Transformers.
const SHARD_BYTES: u64 = 5_000_000_000;

/// The tokenizer and generation files that are carried over.
const COMPANIONS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
];

/// Writes `config.json`, sharded safetensors and, copied from `source`, the tokenizer and generation files.
///
/// `weights` is in the order of [`ModelLayout`]. With `source` its `config.json` is carried over key by
/// key (only the dtype changes), so that nothing that another program reads is lost. The directory appears whole or not
/// at all: it is written beside its name and renamed. It must not exist, or be empty.
pub fn write_model(
    path: &Path,
    config: &ModelConfig,
    source: Option<&Path>,
    weights: &[f32],
    dtype: ExportDType,
) -> Result<()> {
    write_directory(path, |directory| fill_model(directory, config, source, weights, dtype))
}

/// As [`write_model`], into a directory that is there already, file by file.
pub fn fill_model(
    directory: &Path,
    config: &ModelConfig,
    source: Option<&Path>,
    weights: &[f32],
    dtype: ExportDType,
) -> Result<()> {
    let layout = ModelLayout::new(config)?;
    ops::expect("write_model", "number of weights", weights.len(), layout.len())?;
    write_weights(directory, &layout, weights, dtype, SHARD_BYTES)?;
    let json = match source {
        Some(source) => carried_over(source, dtype)?,
        None => fresh(config, dtype),
    };
    write_json(&directory.join("config.json"), &Value::Object(json))?;
    match source {
        Some(source) => copy_companions(source, directory),
        None => Ok(()),
    }
}

/// Writes named tensors (name, shape, elements of `values`) into one file.
pub(super) fn write_tensors(path: &Path, tensors: &[(&str, &[usize], &[f32])], dtype: ExportDType) -> Result<()> {
    if let Some((name, ..)) = tensors.iter().find(|(.., values)| dtype.overflows_in(values)) {
        return Err(dtype.out_of_range(name));
    }
    let encoded: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| dtype.encode(values)).collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&encoded) {
        let view = TensorView::new(dtype.safetensors(), shape.to_vec(), bytes).map_err(Error::encode(path))?;
        views.push((name.to_string(), view));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => {
            Error::Io { action: "write", path: path.to_path_buf(), source }
        }
        other => Error::encode(path)(other),
    })?;
    sync(path)
}

/// One `model.safetensors`, or shards with an index where that would be too large.
fn write_weights(
    directory: &Path,
    layout: &ModelLayout,
    weights: &[f32],
    dtype: ExportDType,
    shard_bytes: u64,
) -> Result<()> {
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0;
    for (index, entry) in layout.entries().iter().enumerate() {
        let bytes = entry.block.len() as u64 * dtype.bytes();
        if size > 0 && size + bytes > shard_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        shards.last_mut().into_iter().for_each(|shard| shard.push(index));
    }
    let count = shards.len();
    let mut map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let tensors: Vec<(&str, &[usize], &[f32])> = shard
            .iter()
            .map(|&index| {
                let entry = &layout.entries()[index];
                (entry.name.as_str(), entry.shape.as_slice(), &weights[entry.block.range()])
            })
            .collect();
        write_tensors(&directory.join(&name), &tensors, dtype)?;
        map.extend(tensors.iter().map(|(tensor, _, _)| (tensor.to_string(), Value::String(name.clone()))));
    }
    if count == 1 {
        return Ok(());
    }
    let total = layout.len() as u64 * dtype.bytes();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_json(&directory.join("model.safetensors.index.json"), &index)
}

/// The source's `config.json` with another dtype, in every spelling that it uses.
fn carried_over(source: &Path, dtype: ExportDType) -> Result<Map<String, Value>> {
    let path = source.join("config.json");
    let mut map = strict_json::object(&strict_json::read_small_file(&path)?, &path)?;
    let name = Value::String(dtype.name().to_string());
    let new = map.contains_key("dtype");
    if !new || map.contains_key("torch_dtype") {
        map.insert("torch_dtype".to_string(), name.clone());
    }
    if new {
        map.insert("dtype".to_string(), name);
    }
    Ok(map)
}

/// A `config.json` for a model without a source, which Transformers 4 and 5 read alike: both spellings of the rotary
/// settings and of the dtype.
fn fresh(config: &ModelConfig, dtype: ExportDType) -> Map<String, Value> {
    let family = config.family.description();
    let mut rope = rope_table(config.rope_scaling);
    let scaling = match config.rope_scaling {
        RopeScaling::Default => Value::Null,
        _ => Value::Object(rope.clone()),
    };
    rope.insert("rope_theta".into(), config.rope_theta.into());
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => (*one).into(),
        several => several.into(),
    };
    let pairs = json!({
        "architectures": [family.class],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": f64::from(config.rms_norm_eps),
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype.name(),
        "dtype": dtype.name(),
    });
    let Value::Object(mut map) = pairs else { return Map::new() };
    let window = config.sliding_window.map_or(Value::Null, Value::from);
    match family.window {
        WindowKeys::None => {}
        WindowKeys::ForAllLayers { .. } => {
            map.insert("sliding_window".into(), window);
        }
        WindowKeys::BehindLayers { .. } => {
            map.insert("use_sliding_window".into(), config.sliding_window.is_some().into());
            map.insert("sliding_window".into(), window);
            map.insert("max_window_layers".into(), 0.into());
        }
    }
    map
}

/// The settings of a scaling with its type, without the base.
fn rope_table(scaling: RopeScaling) -> Map<String, Value> {
    let settings = match scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "attention_factor": attention_factor,
        }),
    };
    let Value::Object(table) = settings else { return Map::new() };
    table
}

fn copy_companions(source: &Path, directory: &Path) -> Result<()> {
    for name in COMPANIONS {
        let from = source.join(name);
        if from.is_file() {
            std::fs::copy(&from, directory.join(name)).map_err(Error::io("copy", &from))?;
            sync(&directory.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::huggingface::ModelDirectory;

    fn config() -> ModelConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2}"#;
        ModelConfig::from_json(text, Path::new("config.json")).unwrap()
    }

    /// A limit of a few tensors a file, and one below the largest tensor, which then has a file of its own.
    #[test]
    fn shards_stay_within_the_limit_and_read_back_as_one_model() {
        let (config, layout) = (config(), ModelLayout::new(&config()).unwrap());
        let weights: Vec<f32> = (0..layout.len()).map(|i| i as f32 - 700.5).collect();
        for (limit, whole) in [(1000, false), (500, false), (layout.len() as u64 * 4, true)] {
            let home = tempfile::tempdir().unwrap();
            write_weights(home.path(), &layout, &weights, ExportDType::F32, limit).unwrap();
            write_json(&home.path().join("config.json"), &Value::Object(fresh(&config, ExportDType::F32))).unwrap();
            assert_eq!(home.path().join("model.safetensors").exists(), whole);
            assert_eq!(ModelDirectory::open(home.path()).unwrap().read_weights().unwrap(), weights);
            if whole {
                continue;
            }
            let path = home.path().join("model.safetensors.index.json");
            let index: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            assert_eq!(index["metadata"]["total_size"], 4 * layout.len());
            assert_eq!(index["weight_map"].as_object().unwrap().len(), layout.entries().len());
            let mut sizes = std::collections::BTreeMap::<String, Vec<u64>>::new();
            for entry in layout.entries() {
                let file = index["weight_map"][&entry.name].as_str().unwrap().to_string();
                sizes.entry(file).or_default().push(4 * entry.block.len() as u64);
            }
            for (number, (file, tensors)) in sizes.iter().enumerate() {
                assert_eq!(*file, format!("model-{:05}-of-{:05}.safetensors", number + 1, sizes.len()));
                assert!(tensors.iter().sum::<u64>() <= limit || tensors.len() == 1, "{file}: {tensors:?}");
            }
        }
    }

    /// The limits are where the next f32 rounds to infinity.
    #[test]
    fn overflow_is_found_exactly_where_rounding_gives_infinity() {
        let below = |x: f32| f32::from_bits(x.to_bits() - 1);
        for (dtype, limit) in [(ExportDType::F16, 65_520.0), (ExportDType::Bf16, f32::from_bits(0x7f7f_8000))] {
            let infinite = |x: f32| match dtype {
                ExportDType::F16 => f16::from_f32(x).is_infinite(),
                _ => bf16::from_f32(x).is_infinite(),
            };
            for value in [limit, -limit, below(limit), -below(limit), f32::MAX, 1.0, 0.0] {
                assert_eq!(dtype.overflows(value), infinite(value), "{value:e}");
            }
        }
        assert!(!ExportDType::F16.overflows(f32::INFINITY) && !ExportDType::F32.overflows(f32::MAX));
    }
}
