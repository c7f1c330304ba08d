//! PEFT LoRA adapters in and out: `adapter_config.json`, `adapter_model.safetensors`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::export::{ExportDType, write_tensors};
use super::peft_modules::AdaptedModules;
use super::{TensorFile, strict_json};
use crate::error::{Error, Result};
use crate::files::{write_directory, write_json};
use crate::model::{AdapterConfig, AdapterLayout, MAX_RANK, ModelConfig};
use crate::ops;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const OTHER_MODEL: &str = "use an adapter that was trained on this model's architecture";
/// The settings of PEFT that are read here, or that do not change what a trained adapter computes. Any other one that is
/// set is refused: PEFT's list of variants grows, and an unknown one read as plain LoRA would be silently wrong.
const UNDERSTOOD: [&str; 24] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Initialisations that leave the base model as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, …) change it, so that the
/// factors mean nothing without that change.
const INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Reads an adapter directory: its configuration, and its factors in the order of [`AdapterLayout`].
///
/// An adapter may adapt a projection in some layers only. Its factors are zero in the others then, which adds nothing to
/// the weights and stays so in training, where the gradient of each factor is a product with the other.
pub fn read_adapter(path: &Path, model: &ModelConfig) -> Result<(AdapterConfig, Vec<f32>)> {
    let config_path = path.join(CONFIG);
    let map = strict_json::object(&strict_json::read_small_file(&config_path)?, &config_path)?;
    let (config, modules) = parse(&map, &config_path, model)?;
    let weights = path.join(WEIGHTS);
    if !weights.is_file() && path.join("adapter_model.bin").is_file() {
        let remedy = "load it with PEFT and call save_pretrained, which writes safetensors";
        return Err(Error::input(path, "it has only pickled weights, which can run code", remedy));
    }
    let file = TensorFile::open(&weights)?;
    let layout = AdapterLayout::new(model, &config)?;
    if let Some(extra) = file.names().into_iter().find(|name| layout.find(name).is_none() || !modules.has_factor(name))
    {
        let problem = format!("tensor `{extra}` belongs to no adapted projection of the model");
        return Err(Error::input(&weights, problem, OTHER_MODEL));
    }
    // All before the first allocation: a file that claims a huge rank must prove it.
    let adapted = || layout.entries().iter().filter(|entry| modules.has_factor(&entry.name));
    for entry in adapted() {
        match file.info(&entry.name) {
            Some(info) if info.shape == entry.shape => {}
            found => {
                let problem = match found {
                    None => format!("there is no tensor `{}`", entry.name),
                    Some(info) => {
                        format!("tensor `{}` has shape {:?}, expected {:?}", entry.name, info.shape, entry.shape)
                    }
                };
                return Err(Error::input(&weights, problem, OTHER_MODEL));
            }
        }
    }
    let mut factors = vec![0.0; layout.len()];
    for entry in adapted() {
        file.read_f32_into(&entry.name, &mut factors[entry.block.range()])?;
    }
    Ok((config, factors))
}

fn parse(map: &Map<String, Value>, path: &Path, model: &ModelConfig) -> Result<(AdapterConfig, AdaptedModules)> {
    let refuse = |problem: String| Error::input(path, problem, "use a plain LoRA adapter");
    let is_off = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(table) => table.is_empty(),
        _ => false,
    };
    if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(refuse("`peft_type` is not LORA".into()));
    }
    if let Some((key, _)) = map.iter().find(|(key, value)| !UNDERSTOOD.contains(&key.as_str()) && !is_off(value)) {
        return Err(refuse(format!("`{key}` is set, which is not supported")));
    }
    if map.get("bias").is_some_and(|bias| !bias.is_null() && bias != "none") {
        return Err(refuse("`bias` is not none".into()));
    }
    match map.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(name)) if INITIALISATIONS.contains(&name.as_str()) => {}
        Some(other) => {
            let problem = format!("`init_lora_weights` is {other}, whose factors belong to a changed base model");
            return Err(Error::input(path, problem, "convert it to plain LoRA with PEFT"));
        }
    }
    let rank_stabilised = match map.get("use_rslora") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(other) => return Err(refuse(format!("`use_rslora` is {other}, not true or false"))),
    };
    let number = |key: &str, default: Option<f64>| match map.get(key).filter(|value| !value.is_null()) {
        None => default.ok_or_else(|| refuse(format!("`{key}` is missing"))),
        Some(value) => {
            value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| refuse(format!("`{key}` is {value}, not a number")))
        }
    };
    let rank = number("r", None)?;
    if rank.fract() != 0.0 || !(1.0..=MAX_RANK as f64).contains(&rank) {
        return Err(refuse(format!("`r` is {rank}, not a whole number from 1 to {MAX_RANK}")));
    }
    let dropout = number("lora_dropout", Some(0.0))?;
    if !(0.0..1.0).contains(&dropout) {
        return Err(refuse(format!("`lora_dropout` is {dropout}, not a number in [0, 1)")));
    }
    let alpha = number("lora_alpha", None)?;
    if alpha.abs() > 1e6 {
        return Err(refuse(format!("`lora_alpha` is {alpha:e}, not a number of at most a million")));
    }
    let modules = AdaptedModules::of(map, model).map_err(|(key, problem)| refuse(format!("`{key}` {problem}")))?;
    let targets = modules.projections.clone();
    // The factors of layers that are not adapted take memory which no file has paid for; so they stay below the model's.
    if rank > model.hidden_size as f64 && modules.count() < targets.len() * model.num_hidden_layers {
        return Err(refuse(format!("`r` is {rank}, more than the hidden size, in an adapter of some layers only")));
    }
    Ok((AdapterConfig { rank: rank as usize, alpha, dropout, rank_stabilised, targets }, modules))
}

/// Writes an adapter directory that PEFT loads. `base` is written as `base_model_name_or_path`. The directory must not
/// exist, or be empty; it appears whole or not at all.
pub fn write_adapter(
    path: &Path,
    model: &ModelConfig,
    adapter: &AdapterConfig,
    factors: &[f32],
    base: &Path,
) -> Result<()> {
    write_directory(path, |directory| fill_adapter(directory, model, adapter, factors, base))
}

/// As [`write_adapter`], into a directory that is there already, file by file.
pub fn fill_adapter(
    directory: &Path,
    model: &ModelConfig,
    adapter: &AdapterConfig,
    factors: &[f32],
    base: &Path,
) -> Result<()> {
    let layout = AdapterLayout::new(model, adapter)?;
    ops::expect("write_adapter", "number of factors", factors.len(), layout.len())?;
    let tensors: Vec<(&str, &[usize], &[f32])> = layout
        .entries()
        .iter()
        .map(|entry| (entry.name.as_str(), entry.shape.as_slice(), &factors[entry.block.range()]))
        .collect();
    let targets: Vec<&str> = adapter.targets.iter().map(|target| target.name()).collect();
    let alpha = if adapter.alpha.fract() == 0.0 { json!(adapter.alpha as i64) } else { json!(adapter.alpha) };
    let config = json!({
        "base_model_name_or_path": base.to_string_lossy(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_rslora": adapter.rank_stabilised,
    });
    write_tensors(&directory.join(WEIGHTS), &tensors, ExportDType::F32)?;
    write_json(&directory.join(CONFIG), &config)
}
