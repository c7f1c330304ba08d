//! The published `config.json` of models of every family, from public facts: each gives the published number of parameters,
//! and each of its keys is read, known to be harmless, or refused where it asks for something else.

use std::path::Path;

use serde_json::{Value, json};
use temper::Result;
use temper::model::ModelConfig;

use crate::support::models::fixture;

struct Published {
    name: &'static str,
    parameters: u64,
    config: Value,
}

fn published(name: &'static str, parameters: u64, config: Value) -> Published {
    Published { name, parameters, config }
}

/// `config` with the pairs of `changes`.
fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn qwen25() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936,
    })
}

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
    })
}

fn models() -> Vec<Published> {
    vec![
        published("Qwen2.5-0.5B", 494_032_768, qwen25()),
        published(
            "Qwen2.5-1.5B",
            1_543_714_304,
            with(
                qwen25(),
                json!({"hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 131072,
                       "max_window_layers": 28, "num_attention_heads": 12, "num_hidden_layers": 28,
                       "sliding_window": 131072}),
            ),
        ),
        published(
            "Qwen2.5-7B",
            7_615_616_512,
            with(
                qwen25(),
                json!({"hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
                       "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
                       "num_key_value_heads": 4, "sliding_window": 131072, "tie_word_embeddings": false,
                       "vocab_size": 152064}),
            ),
        ),
        published(
            "Qwen2.5-72B",
            72_706_203_648,
            with(
                qwen25(),
                json!({"hidden_size": 8192, "intermediate_size": 29568, "max_position_embeddings": 131072,
                       "max_window_layers": 80, "num_attention_heads": 64, "num_hidden_layers": 80,
                       "num_key_value_heads": 8, "sliding_window": 131072, "tie_word_embeddings": false,
                       "vocab_size": 152064}),
            ),
        ),
        published("Qwen3-0.6B", 596_049_920, qwen3()),
        published(
            "Qwen3-4B",
            4_022_468_096,
            with(
                qwen3(),
                json!({"hidden_size": 2560, "intermediate_size": 9728, "max_window_layers": 36,
                       "num_attention_heads": 32, "num_hidden_layers": 36}),
            ),
        ),
        published(
            "Qwen3-8B",
            8_190_735_360,
            with(
                qwen3(),
                json!({"hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
                       "num_attention_heads": 32, "num_hidden_layers": 36, "tie_word_embeddings": false}),
            ),
        ),
        published(
            "Qwen3-32B",
            32_762_123_264,
            with(
                qwen3(),
                json!({"hidden_size": 5120, "intermediate_size": 25600, "max_window_layers": 64,
                       "num_attention_heads": 64, "num_hidden_layers": 64, "tie_word_embeddings": false}),
            ),
        ),
        published(
            "Llama-3.3-70B-Instruct",
            70_553_706_496,
            json!({
                "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 128,
                "hidden_act": "silu", "hidden_size": 8192, "initializer_range": 0.02, "intermediate_size": 28672,
                "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
                "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "pretraining_tp": 1,
                "rms_norm_eps": 1e-05,
                "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                 "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
                "transformers_version": "4.47.0.dev0", "use_cache": true, "vocab_size": 128256,
            }),
        ),
        published(
            "Ministral-8B-Instruct-2410",
            8_019_808_256,
            json!({
                "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
                "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
                "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 32768,
                "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 36,
                "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 100000000.0, "sliding_window": 32768,
                "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.46.0.dev0",
                "use_cache": true, "vocab_size": 131072,
            }),
        ),
        published(
            "SmolLM2-135M-Instruct",
            134_515_008,
            json!({
                "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
                "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
                "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
                "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
                "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
                "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
                "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152,
            }),
        ),
    ]
}

fn parse(config: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(&config.to_string(), Path::new("config.json"))
}

#[test]
fn published_models_have_their_published_sizes() {
    for Published { name, parameters, config } in models() {
        let parsed = parse(&config).unwrap();
        assert_eq!(parsed.parameter_count(), parameters, "{name}");
        let window = if name.starts_with("Ministral") { Some(32_768) } else { None };
        assert_eq!(parsed.sliding_window, window, "{name}");
    }
}

/// Keys that may hold anything.
const HARMLESS: [&str; 8] = [
    "architectures",
    "initializer_range",
    "is_llama_config",
    "pretraining_tp",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    "auto_map",
];

/// A key that is neither harmless nor read would be accepted with a value that nobody can mean.
#[test]
fn every_key_of_a_published_file_is_read_or_harmless() {
    for Published { name, config, .. } in models() {
        let parsed = parse(&config).unwrap();
        for key in config.as_object().unwrap().keys() {
            let changed = with(config.clone(), json!({key: {"nonsense": [-7]}}));
            if HARMLESS.contains(&key.as_str()) {
                assert_eq!(parse(&changed).unwrap(), parsed, "{name}, {key}");
                continue;
            }
            // What is not reached because another key says so has its turn with that key.
            let changed = match key.as_str() {
                "sliding_window" | "max_window_layers" if name.starts_with("Qwen") => {
                    with(changed, json!({"use_sliding_window": true, "max_window_layers": changed_window(key)}))
                }
                _ => changed,
            };
            let message = parse(&changed).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")) && message.lines().count() == 1, "{name}, {key}: {message}");
        }
    }
}

/// A window that is in use, so that the other key of the pair is read.
fn changed_window(key: &str) -> Value {
    if key == "sliding_window" { json!(0) } else { json!({"nonsense": [-7]}) }
}

/// Null is what typed tables write where there is nothing: but for the two keys of which Transformers' classes say otherwise.
#[test]
fn a_key_that_is_null_is_a_key_that_is_absent() {
    for Published { name, config, .. } in models() {
        for key in config.as_object().unwrap().keys() {
            if ["sliding_window", "num_key_value_heads"].contains(&key.as_str()) {
                continue;
            }
            let null = with(config.clone(), json!({key: null}));
            let mut absent = config.clone();
            absent.as_object_mut().unwrap().remove(key);
            let outcome = |config: &Value| parse(config).map_err(|error| error.to_string());
            assert_eq!(outcome(&null), outcome(&absent), "{name}, {key}");
        }
    }
}

/// Keys that other architectures, other programs or a later version use to say that something else is computed.
#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (changes, key) in [
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling"),
        (json!({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}), "rope_scaling"),
        (json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}), "rope_type"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "rope_type"),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.0}}), "attn_factor"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 40}}), "beta_slow"),
        (json!({"rope_scaling": {"rope_type": "default", "factor": 4.0}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}), "mrope_section"),
        (json!({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "rope_parameters"),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}), "rope_parameters"),
        (
            json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling",
        ),
        (json!({"partial_rotary_factor": 0.25}), "partial_rotary_factor"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"qk_layernorm": true}), "qk_layernorm"),
        (json!({"use_qk_norm": true}), "use_qk_norm"),
        (json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"attention_multiplier": 0.1}), "attention_multiplier"),
        (json!({"logits_scaling": 8.0}), "logits_scaling"),
        (json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        (json!({"attention_dropout": 0.1}), "attention_dropout"),
        (json!({"hidden_act": "gelu_pytorch_tanh"}), "hidden_act"),
        (json!({"is_causal": false}), "is_causal"),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (json!({"use_mrope": true}), "use_mrope"),
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"text_config": {"hidden_size": 8}}), "text_config"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"quantization": {"bits": 4}}), "quantization"),
        (json!({"use_sliding_window": true, "max_window_layers": 12}), "max_window_layers"),
        (json!({"use_sliding_window": true, "max_window_layers": -1}), "max_window_layers"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"layer_types": vec!["sliding_attention"; 28]}), "layer_types"),
        (json!({"layer_types": vec!["linear_attention"; 28]}), "layer_types"),
        (json!({"next_years_switch": false}), "next_years_switch"),
    ] {
        let message = parse(&with(qwen3(), changes)).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")) && message.lines().count() == 1, "{key}: {message}");
    }
}

/// The values of those keys that ask for what is computed anyway.
#[test]
fn keys_that_ask_for_nothing_else_change_nothing() {
    let expected = parse(&qwen3()).unwrap();
    for changes in [
        json!({"rope_scaling": {"rope_theta": 1000000.0}}),
        json!({"rope_scaling": {"type": "default", "rope_type": "default"}}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1000000, "partial_rotary_factor": 1.0}}),
        json!({"partial_rotary_factor": 1.0, "qk_layernorm": false, "mlp_bias": false, "is_causal": true}),
        json!({"layer_types": vec!["full_attention"; 28]}),
        json!({"use_sliding_window": true, "sliding_window": 64}),
        json!({"_name_or_path": "somewhere", "_attn_implementation_autoset": true, "unsloth_fixed": true}),
        json!({"final_logit_softcapping": null, "quantization_config": null}),
        json!({"pad_token_id": -1}),
    ] {
        assert_eq!(parse(&with(qwen3(), changes.clone())).unwrap(), expected, "{changes}");
    }
}

#[test]
fn a_window_holds_for_every_layer_or_for_none() {
    let window = |changes: Value| parse(&with(qwen3(), changes)).unwrap().sliding_window;
    let on = |changes: Value| with(changes, json!({"use_sliding_window": true, "sliding_window": 64}));
    assert_eq!(window(on(json!({"max_window_layers": 0}))), Some(64));
    assert_eq!(window(on(json!({"layer_types": vec!["sliding_attention"; 28]}))), Some(64));
    assert_eq!(window(on(json!({"max_window_layers": 28}))), None);
    assert_eq!(window(json!({"use_sliding_window": true, "max_window_layers": 0})), None);
    assert_eq!(window(json!({"sliding_window": 64, "max_window_layers": 0})), None);
}

/// Frequencies and factors for every setting of a scaling, against those of Transformers (`tests/fixtures/rope.py`).
#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("rope.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 9);
    for case in cases {
        let config = parse(&case["config"]).unwrap();
        let theirs: Vec<f64> = serde_json::from_value(case["frequencies"].clone()).unwrap();
        let ours = config.rope_frequencies();
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((f64::from(*ours) / theirs - 1.0).abs() < 2e-6, "{case}: {ours} instead of {theirs}");
        }
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((config.rope_attention_factor() / factor - 1.0).abs() < 1e-12, "{case}");
    }
}
