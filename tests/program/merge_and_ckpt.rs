//! The commands that read and write files: `temper merge`, `temper ckpt`.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use temper::checkpoint::{Snapshot, TensorData, save};
use temper::huggingface::{ExportDType, ModelDirectory, write_adapter, write_model};
use temper::model::{AdapterConfig, ModelConfig, ParameterLayout, Projection};

const MODEL: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "max_position_embeddings": 64, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
}"#;

fn temper(arguments: &[&str]) -> Output {
    Command::cargo_bin("temper").unwrap().env_remove("RUST_LOG").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One factor pair of the second layer is not 0, so that the merged model differs by a known outer product alone.
#[test]
fn merge_adds_alpha_over_r_times_b_a_to_the_named_weight_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| at(name).to_str().unwrap().to_string();
    let config = ModelConfig::from_json(MODEL, Path::new("config.json")).unwrap();
    let layout = ParameterLayout::for_model(&config);
    let weights: Vec<f32> = (0..layout.len()).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
    write_model(&at("model"), &config, None, &weights, ExportDType::F32).unwrap();

    let targets = vec![Projection::QProj, Projection::DownProj];
    let adapter = AdapterConfig { rank: 2, alpha: 3.0, dropout: 0.0, rank_stabilised: false, targets };
    let factors_layout = ParameterLayout::for_adapter(&config, &adapter);
    let mut factors = vec![0.0f32; factors_layout.len()];
    let stem = "base_model.model.model.layers.1.mlp.down_proj";
    let mut fill = |suffix: &str, value: fn(usize) -> f32| {
        let block = factors_layout.find(&format!("{stem}.{suffix}.weight")).unwrap().block;
        factors[block.offset..][..block.len()].iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
    };
    fill("lora_A", |i| i as f32 - 5.0);
    fill("lora_B", |i| (i * i) as f32 / 4.0);
    write_adapter(&at("adapter"), &config, &adapter, &factors, Path::new("model")).unwrap();

    let output = temper(&["merge", "--model", &path("model"), "--adapter", &path("adapter"), "--out", &path("merged")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let merged = ModelDirectory::open(&at("merged")).unwrap().read_weights().unwrap();

    let block = layout.find("model.layers.1.mlp.down_proj.weight").unwrap().block;
    let mut expected = weights;
    for row in 0..block.rows {
        for column in 0..block.cols {
            let product = (0..2).map(|r| {
                let (b, a) = (row * 2 + r, r * block.cols + column);
                (b * b) as f32 / 4.0 * (a as f32 - 5.0)
            });
            expected[block.offset + row * block.cols + column] += 1.5 * product.sum::<f32>();
        }
    }
    // Every number is a small multiple of 1/16: the sums are exact.
    assert_eq!(merged, expected);

    let again = temper(&["merge", "--model", &path("model"), "--adapter", &path("adapter"), "--out", &path("merged")]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("exists already"), "{}", text(&again.stderr));
}

fn snapshot(step: u64) -> Snapshot {
    let tensors = vec![("weights".to_string(), TensorData::F32((0..100).map(|i| i as f32 + step as f32).collect()))];
    Snapshot { step, config_hash: 7, state: serde_json::json!({ "step": step }), tensors }
}

#[test]
fn ckpt_lists_what_a_run_has_saved() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("temper/checkpoints");
    for step in [5, 10] {
        save(&root, &snapshot(step), 2).unwrap();
    }
    let output = temper(&["ckpt", "ls", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    assert!(listed.contains("step-00000005") && listed.contains("step-00000010"), "{listed}");
    let json = temper(&["ckpt", "ls", root.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json[0]["step"].as_u64(), json[1]["step"].as_u64()), (Some(5), Some(10)));
}

#[test]
fn ckpt_verify_passes_whole_checkpoints_and_names_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("temper/checkpoints");
    save(&root, &snapshot(5), 2).unwrap();
    let damaged = save(&root, &snapshot(10), 2).unwrap();
    let run = folder.path().to_str().unwrap().to_string();
    let output = temper(&["ckpt", "verify", &run]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("intact").count(), 2);

    let file = damaged.join("tensors.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for named in [&run, damaged.to_str().unwrap()] {
        let output = temper(&["ckpt", "verify", named, "--json"]);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stdout));
        assert!(text(&output.stderr).contains("step-00000010"), "{}", text(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let broken = json.as_array().unwrap().iter().filter(|v| !v["problems"].as_array().unwrap().is_empty());
        assert_eq!(broken.count(), 1);
    }
    // A checkpoint without a manifest is not passed by.
    std::fs::remove_file(damaged.join("manifest.json")).unwrap();
    let output = temper(&["ckpt", "verify", &run]);
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stdout));
}
