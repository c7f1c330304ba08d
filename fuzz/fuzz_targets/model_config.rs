//! Any text as `config.json`: an error, or an architecture whose layout can be made.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use temper::model::ModelConfig;

fuzz_target!(|text: &str| {
    if let Ok(config) = ModelConfig::from_json(text, Path::new("config.json")) {
        assert!(config.num_attention_heads % config.num_key_value_heads == 0);
        assert!(config.rope_frequencies().iter().all(|frequency| frequency.is_finite()));
    }
});
