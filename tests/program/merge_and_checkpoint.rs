//! The commands that read and write files: `temper merge`, `temper checkpoint`.

use std::path::Path;

use temper::checkpoint::{Snapshot, Tensor, save};
use temper::fingerprint::Fingerprint;
use temper::huggingface::{ExportDType, ModelDirectory, write_adapter, write_model};
use temper::model::{AdapterConfig, AdapterLayout, ModelConfig, ModelLayout, Projection};

use crate::support::models::TINY_CONFIG;
use crate::support::program::{run, stderr, stdout, temper};

/// One factor pair of the second layer is not 0, so that the merged model differs by a known outer product alone.
#[test]
fn merge_adds_alpha_over_r_times_b_a_to_the_named_weight_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| at(name).to_str().unwrap().to_string();
    let config = ModelConfig::from_json(TINY_CONFIG, Path::new("config.json")).unwrap();
    let layout = ModelLayout::new(&config).unwrap();
    let weights: Vec<f32> = (0..layout.len()).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
    write_model(&at("model"), &config, None, &weights, ExportDType::F32).unwrap();

    let targets = [Projection::QProj, Projection::DownProj].into();
    let adapter = AdapterConfig { rank: 2, alpha: 3.0, dropout: 0.0, rank_stabilised: false, targets };
    let factors_layout = AdapterLayout::new(&config, &adapter).unwrap();
    let mut factors = vec![0.0f32; factors_layout.len()];
    let stem = "base_model.model.model.layers.1.mlp.down_proj";
    let mut fill = |suffix: &str, value: fn(usize) -> f32| {
        let block = factors_layout.find(&format!("{stem}.{suffix}.weight")).unwrap().block;
        factors[block.offset..][..block.len()].iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
    };
    fill("lora_A", |i| i as f32 - 5.0);
    fill("lora_B", |i| (i * i) as f32 / 4.0);
    write_adapter(&at("adapter"), &config, &adapter, &factors, Path::new("model")).unwrap();

    let output = run(&mut temper(&[
        "merge",
        "--model",
        &path("model"),
        "--adapter",
        &path("adapter"),
        "--out",
        &path("merged"),
    ]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let merged = ModelDirectory::open(&at("merged")).unwrap().read_weights().unwrap();

    let block = layout.find("model.layers.1.mlp.down_proj.weight").unwrap().block;
    let mut expected = weights;
    for row in 0..block.rows {
        for column in 0..block.cols {
            let product = (0..2).map(|r| {
                let b = row * 2 + r;
                let a = r * block.cols + column;
                (b * b) as f32 / 4.0 * (a as f32 - 5.0)
            });
            expected[block.offset + row * block.cols + column] += 1.5 * product.sum::<f32>();
        }
    }
    // Every number is a small multiple of 1/16: the sums are exact.
    assert_eq!(merged, expected);

    let again = run(&mut temper(&[
        "merge",
        "--model",
        &path("model"),
        "--adapter",
        &path("adapter"),
        "--out",
        &path("merged"),
    ]));
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
}

fn snapshot(step: u64) -> Snapshot {
    let tensors = vec![Tensor::new("weights", (0..100).map(|i| i as f32 + step as f32).collect())];
    Snapshot { step, config_hash: Fingerprint::of(&7).unwrap(), state: serde_json::json!({ "step": step }), tensors }
}

#[test]
fn checkpoint_lists_what_a_run_has_saved() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("temper/checkpoints");
    for step in [5, 10] {
        save(&root, &snapshot(step), 2).unwrap();
    }
    let output = run(&mut temper(&["checkpoint", "ls", folder.path().to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let listed = stdout(&output);
    assert!(listed.contains("step-00000005") && listed.contains("step-00000010"), "{listed}");
    let json = run(&mut temper(&["checkpoint", "ls", root.to_str().unwrap(), "--json"]));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json[0]["step"].as_u64(), json[1]["step"].as_u64()), (Some(5), Some(10)));
}

#[test]
fn checkpoint_verify_passes_whole_checkpoints_and_names_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("temper/checkpoints");
    save(&root, &snapshot(5), 2).unwrap();
    let damaged = save(&root, &snapshot(10), 2).unwrap();
    let directory = folder.path().to_str().unwrap().to_string();
    let output = run(&mut temper(&["checkpoint", "verify", &directory]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("intact").count(), 2);

    let file = damaged.join("tensors.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for named in [&directory, damaged.to_str().unwrap()] {
        let output = run(&mut temper(&["checkpoint", "verify", named, "--json"]));
        assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
        assert!(stderr(&output).contains("step-00000010"), "{}", stderr(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let broken = json.as_array().unwrap().iter().filter(|v| !v["problems"].as_array().unwrap().is_empty());
        assert_eq!(broken.count(), 1);
    }
    // A checkpoint without a manifest is not passed by.
    std::fs::remove_file(damaged.join("manifest.json")).unwrap();
    let output = run(&mut temper(&["checkpoint", "verify", &directory]));
    assert_ne!(output.status.code(), Some(0), "{}", stdout(&output));
}
