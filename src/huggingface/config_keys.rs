//! Which keys of `config.json` are understood. A key that is not is refused: the next architecture's switch, read past,
//! would be another model than the one computed here.

use serde_json::Value;

use super::json_keys::Keys;
use crate::error::{Error, Result};
use crate::model::Family;

/// The keys that are read elsewhere.
const READ: &[&str] = &[
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
];

/// The keys that change nothing which a model computes from tokens: how its weights were initialised, which program wrote
/// or runs it, names of labels and special tokens, and how Transformers generates where nobody says otherwise.
const HARMLESS: &[&str] = &[
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "low_memory",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "min_new_tokens",
    "min_p",
    "model_max_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token",
    "penalty_alpha",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "stop_strings",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "transformers_weights",
    "typical_p",
    "unk_token",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// A value of a key that goes with what is computed here.
enum Neutral {
    Flag(bool),
    Number(f64),
    Text(&'static [&'static str]),
    Empty,
}

/// The keys of which one value goes with what is computed here, and what the others would ask for.
const NEUTRAL: &[(&str, Neutral, &str)] = &[
    ("add_cross_attention", Neutral::Flag(false), "attention to an encoder is not supported"),
    (
        "attention_bias",
        Neutral::Flag(false),
        "biases of attention are not supported, but for those that Qwen 2 always has",
    ),
    ("attention_dropout", Neutral::Number(0.0), "dropout of attention is not supported"),
    ("cross_attention_hidden_size", Neutral::Empty, "attention to an encoder is not supported"),
    ("embd_pdrop", Neutral::Number(0.0), "dropout of embeddings is not supported"),
    ("embedding_dropout", Neutral::Number(0.0), "dropout of embeddings is not supported"),
    ("hidden_act", Neutral::Text(&["silu", "swish"]), "only silu is supported"),
    ("hidden_dropout", Neutral::Number(0.0), "dropout of hidden states is not supported"),
    ("is_causal", Neutral::Flag(true), "only causal attention is supported"),
    ("is_encoder_decoder", Neutral::Flag(false), "encoders are not supported"),
    ("mlp_bias", Neutral::Flag(false), "biases of the MLP are not supported"),
    ("neftune_noise_alpha", Neutral::Number(0.0), "noise on embeddings is not supported"),
    ("partial_rotary_factor", Neutral::Number(1.0), "only heads that are rotated whole are supported"),
    ("pruned_heads", Neutral::Empty, "pruned heads are not supported"),
    ("qk_layernorm", Neutral::Flag(false), "norms of heads are supported in Qwen 3 alone"),
    ("resid_pdrop", Neutral::Number(0.0), "dropout of hidden states is not supported"),
    ("residual_dropout", Neutral::Number(0.0), "dropout of hidden states is not supported"),
    ("rope_interleaved", Neutral::Flag(false), "only pairs of the two halves of a head are rotated"),
    ("tie_encoder_decoder", Neutral::Flag(false), "encoders are not supported"),
    ("use_mrope", Neutral::Flag(false), "rotation by several positions is not supported"),
    ("use_qk_norm", Neutral::Flag(false), "norms of heads are supported in Qwen 3 alone"),
];

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Flag(flag) => value.as_bool() == Some(*flag),
            Self::Number(number) => value.as_f64() == Some(*number),
            Self::Text(names) => value.as_str().is_some_and(|text| names.contains(&text)),
            Self::Empty => {
                value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
            }
        }
    }
}

/// Refuses by name the first key that is set and may change what a model of `family` computes in a way that is not
/// computed here.
pub(super) fn check(keys: &Keys, family: &Family) -> Result<()> {
    if keys.get("quantization_config").is_some() {
        return keys.refuse("quantization_config", "is present; use the weights before quantisation");
    }
    for (key, value) in keys.present() {
        // What Transformers notes for itself begins with an underscore.
        if READ.contains(&key) || HARMLESS.contains(&key) || key.starts_with('_') {
            continue;
        }
        match NEUTRAL.iter().find(|(name, ..)| *name == key) {
            Some((_, neutral, _)) if neutral.is(value) => {}
            Some((_, _, why)) => return keys.refuse(key, &format!("is {value}; {why}")),
            None => {
                let problem = format!("`{key}` is not understood, and may change what the model computes");
                let remedy = "remove the key if it changes nothing; else the model is of no supported architecture";
                return Err(Error::input(keys.path, problem, remedy));
            }
        }
    }
    let classes = keys.get("architectures").and_then(Value::as_array);
    if classes.is_some_and(|classes| !classes.is_empty() && !classes.iter().any(|class| class == family.class)) {
        let path = keys.path.display();
        tracing::warn!("{path}: architectures does not name {}, which its model_type is read as", family.class);
    }
    Ok(())
}
