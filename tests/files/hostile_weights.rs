//! Hostile and broken weight files, indexes, configurations and adapters: each is a one-line error that names the file, and
//! nothing panics, hangs or reads outside its buffers.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use temper::huggingface::{ExportDType, ModelDirectory, TensorFile, read_adapter, write_model};
use temper::model::{ModelConfig, ModelLayout};

use crate::support::models::TINY_CONFIG;

fn config() -> ModelConfig {
    ModelConfig::from_json(TINY_CONFIG, Path::new("config.json")).unwrap()
}

/// A safetensors file of this header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The error of opening these bytes as a safetensors file, which must be one line that names the file.
fn refusal(bytes: &[u8]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("weights.safetensors");
    fs::write(&path, bytes).unwrap();
    let Err(error) = TensorFile::open(&path) else { panic!("the file was accepted") };
    one_line(&error.to_string(), "weights.safetensors")
}

fn one_line(message: &str, names: &str) -> String {
    assert!(message.contains(names) && !message.contains('\n'), "{message}");
    message.to_string()
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(refusal(&file(header, &[0; 8])).contains("duplicate key `a`"));
    let same = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(refusal(&file(same, &[0; 4])).contains("duplicate key `a`"));
}

#[test]
fn empty_shapes_that_hide_huge_ones_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#;
    refusal(&file(header, &[]));
}

#[test]
fn a_thousand_dimensions_are_refused() {
    let shape = vec!["1"; 1000].join(",");
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#);
    assert!(refusal(&file(&header, &[0; 4])).contains("1000 dimensions"));
}

#[test]
fn headers_that_lie_about_their_length_are_refused() {
    for length in [u64::MAX, 100_000_001, 9, 0] {
        refusal(&[&length.to_le_bytes()[..], b"{}"].concat());
    }
    refusal(&[]);
    refusal(b"1234567");
}

#[test]
fn offsets_that_overlap_leave_holes_or_trail_are_refused() {
    let tensor = |name: &str, from: i64, to: i64| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{from},{to}]}}"#)
    };
    for (header, bytes) in [
        (format!("{{{},{}}}", tensor("a", 0, 4), tensor("b", 2, 6)), 6),
        (format!("{{{},{}}}", tensor("a", 0, 4), tensor("b", 8, 12)), 12),
        (format!("{{{}}}", tensor("a", 0, 4)), 9),
        (format!("{{{}}}", tensor("a", 0, 4)), 3),
        (format!("{{{}}}", tensor("a", -4, 0)), 4),
        (format!("{{{}}}", tensor("a", 4, 0)), 4),
    ] {
        refusal(&file(&header, &vec![0; bytes]));
    }
}

#[test]
fn unknown_dtypes_and_overflowing_shapes_are_refused() {
    refusal(&file(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]));
    let shape = "[4294967296,4294967296,4294967296]";
    refusal(&file(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#), &[0; 4]));
}

/// Offsets after a U8 tensor, or a header whose length is no multiple of 8, put floats at odd addresses.
#[test]
fn misaligned_floats_are_read_correctly() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("odd.safetensors");
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#;
    for padding in 0..8 {
        let header = format!("{header}{}", " ".repeat(padding));
        let data = [&[7u8][..], &1.5f32.to_le_bytes(), &(-2.25f32).to_le_bytes()].concat();
        fs::write(&path, file(&header, &data)).unwrap();
        let tensors = TensorFile::open(&path).unwrap();
        assert_eq!(tensors.read_f32("b").unwrap(), [1.5, -2.25]);
    }
}

/// A tiny model directory.
fn model(scratch: &Path) -> PathBuf {
    let path = scratch.join("model");
    let weights: Vec<f32> = (0..ModelLayout::new(&config()).unwrap().len()).map(|i| (i % 7) as f32).collect();
    write_model(&path, &config(), None, &weights, ExportDType::F32).unwrap();
    path
}

#[test]
fn a_file_cut_at_any_byte_of_its_header_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    let whole = fs::read(path.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in (0..header).chain([header, header + 1, whole.len() - 1]) {
        fs::write(path.join("model.safetensors"), &whole[..length]).unwrap();
        let Err(error) = ModelDirectory::open(&path) else { panic!("accepted at {length} bytes") };
        one_line(&error.to_string(), "model.safetensors");
    }
}

/// The error of opening `path` after its index was replaced by `index` and its only file renamed to `part.safetensors`.
fn index_refusal(index: &Value, prepare: impl FnOnce(&Path)) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    fs::rename(path.join("model.safetensors"), path.join("part.safetensors")).unwrap();
    fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    prepare(&path);
    let Err(error) = ModelDirectory::open(&path) else { panic!("{index} was accepted") };
    error.to_string()
}

fn weight_map(file: &str) -> Value {
    let names = ModelLayout::new(&config()).unwrap();
    let map: serde_json::Map<_, _> = names.entries().iter().map(|e| (e.name.clone(), json!(file))).collect();
    json!({ "weight_map": map })
}

#[test]
fn an_index_cannot_lead_out_of_its_directory() {
    for name in ["../part.safetensors", "/etc/passwd", "a/../part.safetensors", "..", "", "./part.safetensors"] {
        assert!(index_refusal(&weight_map(name), |_| {}).contains("is not a plain file name"), "{name}");
    }
    let linked = index_refusal(&weight_map("link.safetensors"), |path| {
        let outside = path.parent().unwrap().join("outside.safetensors");
        fs::rename(path.join("part.safetensors"), &outside).unwrap();
        std::os::unix::fs::symlink(outside, path.join("link.safetensors")).unwrap();
    });
    assert!(linked.contains("leaves the directory"), "{linked}");
}

#[test]
fn an_index_that_contradicts_its_files_is_refused() {
    assert!(index_refusal(&weight_map("absent.safetensors"), |_| {}).contains("absent.safetensors"));
    let mut extra = weight_map("part.safetensors");
    extra["weight_map"]["model.layers.9.norm.weight"] = json!("part.safetensors");
    assert!(index_refusal(&extra, |_| {}).contains("does not hold tensor"));
    let mut twice = weight_map("part.safetensors");
    twice["weight_map"]["model.norm.weight"] = json!("copy.safetensors");
    let message = index_refusal(&twice, |path| {
        fs::copy(path.join("part.safetensors"), path.join("copy.safetensors")).unwrap();
    });
    assert!(message.contains("is in two files"), "{message}");
    for index in [json!([]), json!({}), json!({"weight_map": 5}), json!({"weight_map": {"a": 5}})] {
        index_refusal(&index, |_| {});
    }
}

#[test]
fn pickled_weights_are_named_and_never_read() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    fs::rename(path.join("model.safetensors"), path.join("pytorch_model.bin")).unwrap();
    let message = ModelDirectory::open(&path).err().unwrap().to_string();
    assert!(message.contains("never loaded") && message.contains("save_pretrained"), "{message}");
}

/// The error of opening and reading the tiny model after one change of its configuration.
fn mismatch(from: &str, to: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    fs::write(path.join("config.json"), TINY_CONFIG.replace(from, to)).unwrap();
    let message = ModelDirectory::open(&path).and_then(|directory| directory.read_weights()).err().unwrap().to_string();
    one_line(&message, "model.safetensors")
}

/// Read as the model that the configuration describes, these weights would silently compute something else.
#[test]
fn weights_with_more_than_the_configuration_describes_are_refused() {
    let deeper = mismatch("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(deeper.contains("model.layers.1.") && deeper.contains("config.json"), "{deeper}");
    let own_head = mismatch("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert!(own_head.contains("lm_head.weight") && own_head.contains("tie_word_embeddings"), "{own_head}");
}

#[test]
fn a_stored_copy_of_a_tied_head_is_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model");
    let layout = ModelLayout::new(&config()).unwrap();
    let mut weights: Vec<f32> = (0..layout.len()).map(|i| (i % 7) as f32).collect();
    let embedding = layout.embed_tokens();
    let head = layout.lm_head();
    weights.copy_within(embedding.offset..embedding.offset + embedding.len(), head.offset);
    write_model(&path, &config(), None, &weights, ExportDType::F32).unwrap();
    fs::write(
        path.join("config.json"),
        TINY_CONFIG.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"),
    )
    .unwrap();
    let read = ModelDirectory::open(&path).unwrap().read_weights().unwrap();
    assert_eq!(read, weights[..head.offset]);
}

/// Opening a pipe would wait for ever for a writer.
#[test]
fn pipes_in_place_of_files_are_refused_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    for (number, name) in ["config.json", "part.safetensors", "adapter_model.safetensors"].into_iter().enumerate() {
        let home = scratch.path().join(number.to_string());
        fs::create_dir(&home).unwrap();
        let path = model(&home);
        fs::remove_file(path.join("model.safetensors")).unwrap();
        fs::write(path.join("model.safetensors.index.json"), weight_map("part.safetensors").to_string()).unwrap();
        fs::write(path.join("adapter_config.json"), adapter.to_string()).unwrap();
        fs::remove_file(path.join(name)).ok();
        assert!(std::process::Command::new("mkfifo").arg(path.join(name)).status().unwrap().success());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let opened = if name.starts_with("adapter") {
                read_adapter(&path, &config()).map(drop)
            } else {
                ModelDirectory::open(&path).map(drop)
            };
            sender.send(opened.map_err(|error| error.to_string()))
        });
        let opened = receiver.recv_timeout(std::time::Duration::from_secs(20)).expect("it hangs");
        assert!(one_line(&opened.unwrap_err(), name).contains("pipe"));
    }
}

/// The factors of this rank would need 13 TB: nothing may be allocated before the file has shown that it holds them.
#[test]
fn a_huge_rank_without_its_factors_is_refused_before_it_costs_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    fs::rename(path.join("model.safetensors"), path.join("adapter_model.safetensors")).unwrap();
    let settings = json!({"peft_type": "LORA", "r": 65536, "lora_alpha": 4, "target_modules": "all-linear"});
    fs::write(path.join("adapter_config.json"), settings.to_string()).unwrap();
    let large =
        TINY_CONFIG.replace("\"hidden_size\": 8", "\"hidden_size\": 16384").replace("layers\": 2", "layers\": 126");
    let large = ModelConfig::from_json(&large, Path::new("config.json")).unwrap();
    let message = read_adapter(&path, &large).unwrap_err().to_string();
    one_line(&message, "adapter_model.safetensors");
    // The same with an empty file, which has no stray tensor to stumble over first.
    fs::write(path.join("adapter_model.safetensors"), file("{}", &[])).unwrap();
    let message = read_adapter(&path, &large).unwrap_err().to_string();
    assert!(one_line(&message, "adapter_model.safetensors").contains("there is no tensor"), "{message}");
}

#[test]
fn weights_of_another_shape_than_the_configuration_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model(scratch.path());
    fs::write(path.join("config.json"), TINY_CONFIG.replace("\"vocab_size\": 20", "\"vocab_size\": 21")).unwrap();
    let message = ModelDirectory::open(&path).err().unwrap().to_string();
    assert!(message.contains("[20, 8]") && message.contains("[21, 8]"), "{message}");
}

#[test]
fn configurations_that_make_no_sense_name_the_key() {
    for (from, to, key) in [
        ("\"hidden_size\": 8", "\"hidden_size\": 0", "hidden_size"),
        ("\"hidden_size\": 8", "\"hidden_size\": -8", "hidden_size"),
        ("\"hidden_size\": 8", "\"hidden_size\": 1e18", "hidden_size"),
        ("\"hidden_size\": 8", "\"hidden_size\": 8.5", "hidden_size"),
        ("\"hidden_size\": 8", "\"hidden_size\": \"8\"", "hidden_size"),
        ("\"hidden_size\": 8,", "", "hidden_size"),
        ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3", "num_key_value_heads"),
        ("\"num_attention_heads\": 2", "\"num_attention_heads\": 8", "head_dim"),
        ("\"hidden_size\": 8", "\"hidden_size\": 9", "num_attention_heads"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4097", "num_hidden_layers"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 0", "rope_theta"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 0.5", "rope_theta"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 1e-320", "rope_theta"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": \"NaN\"", "rope_theta"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 1e400", "JSON"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": NaN", "JSON"),
        ("\"rms_norm_eps\": 1e-5", "\"rms_norm_eps\": -1", "rms_norm_eps"),
        ("\"rms_norm_eps\": 1e-5", "\"rms_norm_eps\": 1e-300", "rms_norm_eps"),
        ("\"rms_norm_eps\": 1e-5", "\"rms_norm_eps\": 1e300", "rms_norm_eps"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"a\\nb\\u001b[2J\"", "a\\nb\\u{1b}[2J"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"", "model_type"),
        ("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act"),
        ("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 1", "tie_word_embeddings"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": -2", "eos_token_id"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": 2, \"attention_bias\": true", "attention_bias"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": 2, \"quantization_config\": {}", "quantization_config"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": 2, \"eos_token_id\": 2", "duplicate key `eos_token_id`"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": 2, \"rope_scaling\": {\"type\": \"longrope\"}", "rope_type"),
        ("\"eos_token_id\": 2", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}", "factor"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": 2, \"dtype\": \"int8\"", "dtype"),
        ("\"vocab_size\": 20", "\"vocab_size\": 16777216", "sizes"),
    ] {
        let mut text = TINY_CONFIG.replace(from, to);
        assert_ne!(text, TINY_CONFIG, "{from}");
        if key == "sizes" {
            text = text.replace("\"hidden_size\": 8", "\"hidden_size\": 1048576");
        }
        let message = ModelConfig::from_json(&text, Path::new("config.json")).unwrap_err().to_string();
        assert!(one_line(&message, "config.json").contains(key), "{to}: {message}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(ModelConfig::from_json(&deep, Path::new("config.json")).is_err());
    assert!(ModelConfig::from_json("[]", Path::new("config.json")).is_err());
    let marked = format!("{}{TINY_CONFIG}", '\u{feff}');
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("config.json"), marked).unwrap();
    assert_eq!(ModelConfig::from_directory(scratch.path()).unwrap(), config(), "a byte-order mark is passed over");
}

#[test]
fn adapters_that_compute_something_else_are_refused_by_key() {
    let scratch = tempfile::tempdir().unwrap();
    let good = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("loftq")),
        ("alora_invocation_tokens", json!([1])),
        ("layer_replication", json!([[0, 2]])),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("a_variant_of_next_year", json!({"x": 1})),
        ("use_rslora", json!("yes")),
        ("bias", json!(5)),
        ("lora_alpha", json!(1e300)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([2])),
        ("layers_pattern", json!("blocks")),
        ("exclude_modules", json!(["q_proj"])),
        ("exclude_modules", json!("(")),
        ("bias", json!("all")),
        ("r", json!(0)),
        ("r", json!(1.5)),
        ("r", json!(1e12)),
        ("lora_dropout", json!(1.0)),
        ("lora_alpha", json!("x")),
        ("target_modules", json!(["w_proj"])),
        ("target_modules", json!(".*w_proj")),
        ("target_modules", json!("(")),
        ("target_modules", json!([])),
    ] {
        let mut settings = good.clone();
        settings[key] = value.clone();
        fs::write(scratch.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let message = read_adapter(scratch.path(), &config()).unwrap_err().to_string();
        assert!(one_line(&message, "adapter_config.json").contains(key), "{key} = {value}: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_the_weight_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), header in 0u64..64) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.safetensors");
        for bytes in [bytes.clone(), [&header.to_le_bytes()[..], &bytes].concat()] {
            fs::write(&path, bytes).unwrap();
            let _ = TensorFile::open(&path);
        }
    }

    #[test]
    fn no_damage_to_a_header_makes_the_weight_reader_panic(at in 8usize..900, byte in any::<u8>()) {
        let scratch = tempfile::tempdir().unwrap();
        let path = model(scratch.path());
        let mut bytes = fs::read(path.join("model.safetensors")).unwrap();
        let place = at.min(bytes.len() - 1);
        bytes[place] = byte;
        fs::write(path.join("model.safetensors"), bytes).unwrap();
        let _ = ModelDirectory::open(&path).map(|directory| directory.read_weights());
    }

    #[test]
    fn no_damage_to_a_configuration_makes_its_reader_panic(at in 0usize..400, text in ".{0,8}") {
        let place = (0..=at.min(TINY_CONFIG.len())).rev().find(|&i| TINY_CONFIG.is_char_boundary(i)).unwrap();
        let damaged = format!("{}{text}{}", &TINY_CONFIG[..place], &TINY_CONFIG[place..]);
        let _ = ModelConfig::from_json(&damaged, Path::new("config.json"));
    }
}
