//! A model directory for tests of text: a byte-level BPE tokenizer with a few merges and Llama 3's special tokens.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use temper::huggingface::{ExportDType, write_model};
use temper::model::{ModelConfig, ModelLayout};
use temper::random::{Random, Stream};

pub const BEGIN: &str = "<|begin_of_text|>";
pub const END_OF_TURN: &str = "<|eot_id|>";
pub const SPECIAL: [&str; 5] = [BEGIN, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN, "<|end_of_text|>"];

/// Llama 3's layout of a conversation.
pub const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}\
<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

/// The tokens that consist of more than a byte, in order of their ids from 256.
const MERGED: [&str; 9] = ["he", "ll", "hell", "hello", "Ġhello", "ĊĊ", "us", "er", "Ġt"];

/// The letter by which byte-level BPE writes a byte.
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    if printable(byte) { byte.into() } else { char::from_u32(256 + before).unwrap() }
}

/// Number of tokens.
pub const VOCABULARY: usize = 256 + MERGED.len() + SPECIAL.len();

/// The `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let mut vocabulary: serde_json::Map<_, _> = (0..=255u8).map(|b| (letter(b).to_string(), json!(b))).collect();
    vocabulary.extend(MERGED.iter().enumerate().map(|(i, token)| (token.to_string(), json!(256 + i))));
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ċ Ċ", "u s", "e r", "Ġ t"];
    let special = |(i, text): (usize, &&str)| {
        json!({"id": 256 + MERGED.len() + i, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let begin = 256 + MERGED.len();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges}
    })
}

/// Writes the directory; `template` is the chat template of its `tokenizer_config.json`.
pub fn write(directory: &Path, template: Option<&str>) {
    std::fs::write(directory.join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
    let mut settings = json!({"bos_token": BEGIN, "eos_token": {"content": END_OF_TURN}});
    if let Some(template) = template {
        settings["chat_template"] = json!(template);
    }
    std::fs::write(directory.join("tokenizer_config.json"), settings.to_string()).unwrap();
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 265, "eos_token_id": 268});
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
}

/// A model of random weights with a tokenizer and a chat template.
pub fn with_weights(folder: &Path) -> PathBuf {
    let source = folder.join("source");
    let model = folder.join("model");
    std::fs::create_dir(&source).unwrap();
    write(&source, Some(LLAMA3));
    let config = ModelConfig { max_position_embeddings: 512, ..ModelConfig::from_directory(&source).unwrap() };
    let mut random = Random::new(2, Stream::Weights, 0, 0);
    let len = ModelLayout::new(&config).unwrap().len();
    let weights: Vec<f32> = (0..len).map(|_| 0.3 * random.normal() as f32).collect();
    write_model(&model, &config, Some(&source), &weights, ExportDType::F32).unwrap();
    model
}

/// Writes a data file beside the model.
pub fn data(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}
