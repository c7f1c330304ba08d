//! Configurations written from the published facts of real models parse and give the published parameter counts.

use std::path::Path;

use serde_json::{Value, json};
use temper::model::{ModelConfig, ModelFamily, RopeScaling};

fn parse(json: &Value) -> ModelConfig {
    ModelConfig::from_json(&json.to_string(), Path::new("config.json")).unwrap()
}

/// (vocabulary, hidden, intermediate, layers, heads, key/value heads).
fn model(kind: &str, [v, d, f, l, h, g]: [u64; 6]) -> Value {
    json!({
        "model_type": kind, "hidden_act": "silu", "vocab_size": v, "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": l, "num_attention_heads": h, "num_key_value_heads": g, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
        "bos_token_id": 128000, "eos_token_id": 128001,
    })
}

fn llama31_scaling() -> Value {
    json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
           "rope_type": "llama3"})
}

#[test]
fn published_models_have_their_published_sizes() {
    let mut llama32 = model("llama", [128256, 2048, 8192, 16, 32, 8]);
    llama32["tie_word_embeddings"] = json!(true);
    llama32["head_dim"] = json!(64);
    let mut llama31 = model("llama", [128256, 4096, 14336, 32, 32, 8]);
    llama31["rope_scaling"] = llama31_scaling();
    llama31["max_position_embeddings"] = json!(131072);
    llama31["eos_token_id"] = json!([128001, 128008, 128009]);
    let mut large = model("mistral", [32768, 12288, 28672, 88, 96, 8]);
    large["head_dim"] = json!(128);
    for (name, config, parameters) in [
        ("Llama-3-8B", model("llama", [128256, 4096, 14336, 32, 32, 8]), 8_030_261_248),
        ("Llama-3.1-8B", llama31, 8_030_261_248),
        ("Llama-3.1-70B", model("llama", [128256, 8192, 28672, 80, 64, 8]), 70_553_706_496),
        ("Llama-3.1-405B", model("llama", [128256, 16384, 53248, 126, 128, 8]), 405_853_388_800),
        ("Llama-3.2-1B", llama32, 1_235_814_400),
        ("Mistral-7B-v0.3", model("mistral", [32768, 4096, 14336, 32, 32, 8]), 7_248_023_552),
        ("Mistral-Large-2407", large, 122_610_069_504),
    ] {
        assert_eq!(parse(&config).parameter_count(), parameters, "{name}");
    }
}

#[test]
fn old_and_new_spellings_of_the_rotary_settings_mean_the_same() {
    let mut old = model("llama", [128256, 4096, 14336, 32, 32, 8]);
    old["rope_scaling"] = llama31_scaling();
    let mut older = old.clone();
    older["rope_scaling"]["type"] = older["rope_scaling"]["rope_type"].take();
    let mut new = old.clone();
    new.as_object_mut().unwrap().remove("rope_scaling");
    new.as_object_mut().unwrap().remove("rope_theta");
    new["rope_parameters"] = llama31_scaling();
    new["rope_parameters"]["rope_theta"] = json!(500000.0);
    new["dtype"] = new["torch_dtype"].take();
    let parsed = parse(&old);
    assert_eq!(parsed, parse(&new));
    assert_eq!(parsed, parse(&older));
    assert!(matches!(parsed.rope_scaling, RopeScaling::Llama3 { factor, .. } if factor == 8.0));
    assert_eq!(parsed.rope_theta, 500_000.0);
}

#[test]
fn what_a_file_leaves_out_has_the_architectures_default() {
    let mut config = model("mistral", [32000, 4096, 14336, 32, 32, 8]);
    config["sliding_window"] = json!(4096);
    config["eos_token_id"] = json!([2, 128008]);
    let parsed = parse(&config);
    assert_eq!((parsed.family, parsed.head_dim), (ModelFamily::Mistral, 128));
    assert_eq!((parsed.sliding_window, parsed.tie_word_embeddings), (Some(4096), false));
    assert_eq!(parsed.eos_token_ids, [2, 128008]);
    assert_eq!((parsed.rope_scaling, parsed.pad_token_id), (RopeScaling::Default, None));
    // MistralConfig has a window unless the file says null.
    config["sliding_window"] = json!(null);
    assert_eq!(parse(&config).sliding_window, None);
    for key in ["sliding_window", "num_key_value_heads", "max_position_embeddings"] {
        config.as_object_mut().unwrap().remove(key);
    }
    let parsed = parse(&config);
    assert_eq!((parsed.sliding_window, parsed.num_key_value_heads), (Some(4096), 8));
    assert_eq!(parsed.max_position_embeddings, 131_072);
    // A Llama configuration may carry the key; its layers have no window, and by default a key/value head for each head.
    config["model_type"] = json!("llama");
    config["sliding_window"] = json!(4096);
    let parsed = parse(&config);
    assert_eq!((parsed.sliding_window, parsed.num_key_value_heads), (None, 32));
    assert_eq!(parsed.max_position_embeddings, 2048);
}

/// The names of code of the model's own, and notes of other programs, change nothing.
#[test]
fn remote_code_and_notes_are_passed_over() {
    let plain = model("llama", [128256, 4096, 14336, 32, 32, 8]);
    let mut decorated = plain.clone();
    decorated["auto_map"] = json!({"AutoModelForCausalLM": "evil.Model"});
    decorated["use_cache"] = json!(true);
    decorated["transformers_version"] = json!("4.45.0");
    assert_eq!(parse(&plain), parse(&decorated));
}
