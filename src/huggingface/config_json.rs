//! `config.json`: reads the architecture of a model from the old and the new Hugging Face spelling, and checks it.

use std::path::Path;

use serde_json::{Map, Value};

use super::strict_json;
use crate::error::{Error, Result};
use crate::model::{DeclaredDType, ModelConfig, ModelFamily, RopeScaling};

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

    /// Reads the text of a `config.json`; `path` is the file that errors name. A key that is absent has the default of
    /// its class in Transformers where that class has one that published files rely on; sizes must be stated.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let keys = Keys { path, map: strict_json::object(text, path)? };
        let family = keys.family()?;
        keys.refuse_what_is_not_computed()?;
        let rope = Keys { path, map: keys.rope_table()? };
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size: keys.size("hidden_size")?,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size_up_to("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads: keys.size("num_attention_heads")?,
            num_key_value_heads: match (family, keys.map.get("num_key_value_heads")) {
                (ModelFamily::Mistral, None) => 8,
                (_, None | Some(Value::Null)) => keys.size("num_attention_heads")?,
                (_, Some(_)) => keys.size("num_key_value_heads")?,
            },
            head_dim: keys.head_dim()?,
            rms_norm_eps: keys.rms_norm_eps()?,
            max_position_embeddings: match (family, keys.get("max_position_embeddings")) {
                (ModelFamily::Llama, None) => 2048,
                (ModelFamily::Mistral, None) => 131_072,
                (_, Some(_)) => keys.size("max_position_embeddings")?,
            },
            rope_theta: match rope.get("rope_theta") {
                None => keys.at_least_one("rope_theta", Some(10_000.0))?,
                Some(_) => rope.at_least_one("rope_theta", None)?,
            },
            rope_scaling: rope.rope_scaling()?,
            sliding_window: match (family, keys.map.get("sliding_window")) {
                (ModelFamily::Llama, _) | (_, Some(Value::Null)) => None,
                (ModelFamily::Mistral, None) => Some(4096),
                (ModelFamily::Mistral, Some(_)) => Some(keys.size("sliding_window")?),
            },
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id")?,
            pad_token_id: keys.tokens("pad_token_id")?.first().copied(),
            dtype: keys.dtype()?,
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

/// Far above the 126 of the deepest published model; a layout names nine tensors a layer, so it must be bounded.
const MAX_LAYERS: usize = 4096;

/// The keys of a JSON object, with errors that name file and key.
struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Keys<'_> {
    /// A key's value; null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn refuse<T>(&self, key: &str, problem: &str) -> Result<T> {
        Err(Error::input(self.path, format!("`{key}` {problem}"), "use the file that came with the model"))
    }

    /// A whole number from 1 to 2²⁴ (the largest published vocabulary, width or context is far below).
    fn size(&self, key: &str) -> Result<usize> {
        self.size_up_to(key, 1 << 24)
    }

    fn size_up_to(&self, key: &str, largest: usize) -> Result<usize> {
        match self.get(key) {
            None => self.refuse(key, "is missing"),
            Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
                Some(size) if (1..=largest).contains(&size) => Ok(size),
                _ => self.refuse(key, &format!("is {value}, not a whole number from 1 to {largest}")),
            },
        }
    }

    fn head_dim(&self) -> Result<usize> {
        if self.get("head_dim").is_some() {
            return self.size("head_dim");
        }
        let hidden = self.size("hidden_size")?;
        let heads = self.size("num_attention_heads")?;
        if hidden.is_multiple_of(heads) {
            Ok(hidden / heads)
        } else {
            self.refuse("num_attention_heads", &format!("is {heads}, which does not divide hidden_size, {hidden}"))
        }
    }

    /// Checked as the f32 that is computed with, where a tiny number would be 0.
    fn rms_norm_eps(&self) -> Result<f32> {
        let epsilon = self.positive("rms_norm_eps", Some(1e-6))?;
        match epsilon as f32 {
            computed if computed > 0.0 && computed < 1.0 => Ok(computed),
            _ => self.refuse("rms_norm_eps", &format!("is {epsilon:e}, not a 32-bit number between 0 and 1")),
        }
    }

    /// Below 1, rotary frequencies would grow with the dimension, without bound.
    fn at_least_one(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.positive(key, default)? {
            number if number >= 1.0 => Ok(number),
            number => self.refuse(key, &format!("is {number:e}, not at least 1")),
        }
    }

    fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => self.refuse(key, "is missing"),
            (Some(value), _) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(number),
                _ => self.refuse(key, &format!("is {value}, not a finite number above 0")),
            },
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self.refuse(key, &format!("is {value}, not true or false")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => self.refuse(key, &format!("is {value}, not a text")),
        }
    }

    /// A token id, or a list of them.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        match ids {
            Some(ids) => Ok(ids),
            None => self.refuse(key, "is not a token id"),
        }
    }

    fn family(&self) -> Result<ModelFamily> {
        if self.map.contains_key("auto_map") {
            tracing::warn!("{}: auto_map names code of the model's own, which is never run", self.path.display());
        }
        match self.text("model_type")? {
            Some("llama") => Ok(ModelFamily::Llama),
            Some("mistral") => Ok(ModelFamily::Mistral),
            None => self.refuse("model_type", "is missing"),
            Some(other) => self.refuse("model_type", &format!("is `{other}`; supported are llama and mistral")),
        }
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return self.refuse(key, "is true; models with biases are not supported");
            }
        }
        match self.text("hidden_act")? {
            None | Some("silu") => {}
            Some(other) => return self.refuse("hidden_act", &format!("is `{other}`; only silu is supported")),
        }
        match self.get("quantization_config") {
            None => Ok(()),
            Some(_) => self.refuse("quantization_config", "is present; use the weights before quantisation"),
        }
    }

    /// The rotary settings: `rope_parameters` (Transformers 5) or `rope_scaling` (before).
    fn rope_table(&self) -> Result<Map<String, Value>> {
        for key in ["rope_parameters", "rope_scaling"] {
            match self.get(key) {
                None => {}
                Some(Value::Object(table)) => return Ok(table.clone()),
                Some(value) => return self.refuse(key, &format!("is {value}, not an object")),
            }
        }
        Ok(Map::new())
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let kind = match self.text("rope_type")? {
            Some(kind) => Some(kind),
            None => self.text("type")?,
        };
        match kind {
            None | Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.at_least_one("factor", None)? }),
            Some("llama3") => {
                let low = self.positive("low_freq_factor", None)?;
                let high = self.positive("high_freq_factor", None)?;
                if low >= high {
                    return self.refuse("low_freq_factor", "is not below high_freq_factor");
                }
                Ok(RopeScaling::Llama3 {
                    factor: self.at_least_one("factor", None)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: self.size("original_max_position_embeddings")?,
                })
            }
            Some(other) => self.refuse("rope_type", &format!("is `{other}`; supported are default, linear and llama3")),
        }
    }

    fn dtype(&self) -> Result<Option<DeclaredDType>> {
        let name = match self.text("dtype")? {
            Some(name) => Some(name),
            None => self.text("torch_dtype")?,
        };
        match name {
            None => Ok(None),
            Some("float32") => Ok(Some(DeclaredDType::Float32)),
            Some("float16") => Ok(Some(DeclaredDType::Float16)),
            Some("bfloat16") => Ok(Some(DeclaredDType::BFloat16)),
            Some(other) => self.refuse("dtype", &format!("is `{other}`; supported are float32, float16 and bfloat16")),
        }
    }
}
