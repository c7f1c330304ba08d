//! `config.json`: reads the architecture of a model from the old and the new Hugging Face spelling, and checks it.

use std::path::Path;

use serde_json::Value;

use super::json_keys::Keys;
use super::{config_keys, rope_json, strict_json};
use crate::error::{Error, Result};
use crate::model::{DeclaredDType, Family, ModelConfig, ModelFamily, WindowKeys};

impl ModelConfig {
    /// The tokens that end a generated text, as Transformers takes them: those of `generation_config.json` in the model's
    /// directory where it names some, else those of `config.json`.
    pub fn stop_tokens(&self, directory: &Path) -> Result<Vec<u32>> {
        let path = directory.join("generation_config.json");
        if !path.is_file() {
            return Ok(self.eos_token_ids.clone());
        }
        let map = strict_json::object(&strict_json::read_small_file(&path)?, &path)?;
        let named = Keys { path: &path, map }.tokens("eos_token_id")?;
        Ok(if named.is_empty() { self.eos_token_ids.clone() } else { named })
    }

    /// Reads `config.json` of a model directory.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        if !path.exists() {
            let remedy = "name a Hugging Face model directory: config.json, *.safetensors and the tokenizer's files";
            return Err(Error::input(directory, "there is no config.json here", remedy));
        }
        let text = strict_json::read_small_file(&path)?;
        Self::from_json(&text, &path)
    }

    /// Reads the text of a `config.json`; `path` is the file that errors name. A key that is absent, or null, has the default
    /// of its class in Transformers where that class has one that published files rely on; sizes must be stated. A key that
    /// may change what the model computes and is not understood is refused by name.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let keys = Keys { path, map: strict_json::object(text, path)? };
        let family = family(&keys)?;
        let description = family.description();
        config_keys::check(&keys, description)?;
        let absent = &description.absent;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_hidden_layers = keys.size_up_to("num_hidden_layers", MAX_LAYERS)?;
        let max_position_embeddings = keys.size_or("max_position_embeddings", absent.max_position_embeddings)?;
        let rope = rope_json::read(&keys, max_position_embeddings)?;
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size: keys.size("hidden_size")?,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: match absent.num_key_value_heads {
                // The classes read null as one for each head.
                Some(count) if !keys.map.contains_key("num_key_value_heads") => count,
                _ => keys.size_or("num_key_value_heads", num_attention_heads)?,
            },
            head_dim: head_dim(&keys, description)?,
            rms_norm_eps: rms_norm_eps(&keys)?,
            max_position_embeddings,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            sliding_window: sliding_window(&keys, description, num_hidden_layers)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id")?,
            pad_token_id: padding_token(&keys)?,
            dtype: declared_dtype(&keys)?,
        };
        config.check_shape(path)?;
        Ok(config)
    }

    fn check_shape(&self, path: &Path) -> Result<()> {
        let refuse = |problem: String| Err(Error::input(path, problem, "use the file that came with the model"));
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let h = self.num_attention_heads;
            let g = self.num_key_value_heads;
            return refuse(format!("num_key_value_heads is {g}, which does not divide num_attention_heads, {h}"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head_dim is {}, which is not an even number above 0", self.head_dim));
        }
        let per_layer =
            self.hidden_size as u128 * (2 * self.attention().qkv_cols() as u128 + 4 * self.intermediate_size as u128);
        let total = self.num_hidden_layers as u128 * per_layer + 2 * self.vocab_size as u128 * self.hidden_size as u128;
        if total > 1 << 43 {
            return refuse(format!("its sizes describe a model of about {total} parameters"));
        }
        Ok(())
    }
}

/// Far above the 126 of the deepest published model; a layout names every tensor of a layer, so it must be bounded.
const MAX_LAYERS: usize = 4096;

fn family(keys: &Keys) -> Result<ModelFamily> {
    let Some(name) = keys.text("model_type")? else { return keys.refuse("model_type", "is missing") };
    let Some(family) = ModelFamily::ALL.into_iter().find(|family| family.description().model_type == name) else {
        let known: Vec<&str> = ModelFamily::ALL.iter().map(|family| family.description().model_type).collect();
        return keys.refuse("model_type", &format!("is `{name}`; supported are {}", known.join(", ")));
    };
    if keys.map.contains_key("auto_map") {
        tracing::warn!("{}: auto_map names code of the model's own, which is never run", keys.path.display());
    }
    Ok(family)
}

fn head_dim(keys: &Keys, family: &Family) -> Result<usize> {
    if let Some(size) = family.absent.head_dim {
        return keys.size_or("head_dim", size);
    }
    if keys.get("head_dim").is_some() {
        return keys.size("head_dim");
    }
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    if hidden.is_multiple_of(heads) {
        Ok(hidden / heads)
    } else {
        keys.refuse("num_attention_heads", &format!("is {heads}, which does not divide hidden_size, {hidden}"))
    }
}

/// Checked as the f32 that is computed with, where a tiny number would be 0.
fn rms_norm_eps(keys: &Keys) -> Result<f32> {
    let epsilon = keys.positive("rms_norm_eps", Some(1e-6))?;
    match epsilon as f32 {
        computed if computed > 0.0 && computed < 1.0 => Ok(computed),
        _ => keys.refuse("rms_norm_eps", &format!("is {epsilon:e}, not a 32-bit number between 0 and 1")),
    }
}

/// The window of all layers. Layers that differ in it are refused.
fn sliding_window(keys: &Keys, family: &Family, layers: usize) -> Result<Option<usize>> {
    let listed = listed_windows(keys, layers)?;
    // The classes read null as no window.
    let stated = |absent| match keys.map.get("sliding_window") {
        None => Ok(Some(absent)),
        Some(Value::Null) => Ok(None),
        Some(_) => keys.size("sliding_window").map(Some),
    };
    let window = match &family.window {
        WindowKeys::None => None,
        WindowKeys::ForAllLayers { absent } => stated(*absent)?,
        WindowKeys::BehindLayers { .. } if !keys.flag("use_sliding_window")? => None,
        WindowKeys::BehindLayers { absent, absent_layers } => {
            let first = keys.count_or("max_window_layers", *absent_layers)?;
            if listed.is_none() && (1..layers).contains(&first) {
                let problem =
                    format!("is {first} of {layers} layers; layers that differ in their window are not supported");
                return keys.refuse("max_window_layers", &problem);
            }
            let whole = listed.map_or(first >= layers, |windowed| !windowed);
            if whole { None } else { stated(*absent)? }
        }
    };
    match listed {
        Some(windowed) if windowed != window.is_some() => {
            keys.refuse("layer_types", "does not go with the other keys of the sliding window")
        }
        _ => Ok(window),
    }
}

/// Whether `layer_types` gives all layers a window; `None` where the key is absent.
fn listed_windows(keys: &Keys, layers: usize) -> Result<Option<bool>> {
    let Some(value) = keys.get("layer_types") else { return Ok(None) };
    let kinds = value.as_array().map_or(&[][..], Vec::as_slice);
    let [full, windowed] = ["full_attention", "sliding_attention"].map(|name| kinds.iter().all(|kind| kind == name));
    if kinds.len() == layers && (full || windowed) {
        return Ok(Some(windowed));
    }
    keys.refuse("layer_types", "is not a list of one kind, full_attention or sliding_attention, for every layer")
}

/// Old Llama files have −1 where there is none. Nothing that a model computes depends on it.
fn padding_token(keys: &Keys) -> Result<Option<u32>> {
    match keys.get("pad_token_id") {
        Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(None),
        _ => Ok(keys.tokens("pad_token_id")?.first().copied()),
    }
}

fn declared_dtype(keys: &Keys) -> Result<Option<DeclaredDType>> {
    let name = match keys.text("dtype")? {
        Some(name) => Some(name),
        None => keys.text("torch_dtype")?,
    };
    match name {
        None => Ok(None),
        Some("float32") => Ok(Some(DeclaredDType::Float32)),
        Some("float16") => Ok(Some(DeclaredDType::Float16)),
        Some("bfloat16") => Ok(Some(DeclaredDType::BFloat16)),
        Some(other) => keys.refuse("dtype", &format!("is `{other}`; supported are float32, float16 and bfloat16")),
    }
}
