//! The presets `npo-sam` and `undo`, from a run file to a model: two outer steps end where PyTorch's steps end, which were written
//! from the papers.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use temper::huggingface::{ModelDirectory, TensorFile};
use temper::model::ModelLayout;

use crate::support::models::fixture;
use crate::support::numbers::relative;
use crate::support::program::{succeed, temper, text};

/// The batches of a stream as rows of a data file.
fn write_rows(path: &Path, batches: &Value) {
    let mut lines = String::new();
    for row in batches.as_array().unwrap().iter().flat_map(|batch| batch.as_array().unwrap()) {
        writeln!(lines, "{}", json!({ "input_ids": row })).unwrap();
    }
    std::fs::write(path, lines).unwrap();
}

/// Runs a preset with the fixture's data and sizes, and holds the change of the weights from `start` times the model to
/// PyTorch's.
fn hold_update(preset: &str, streams: &[&str], keys: impl FnOnce(&Value) -> String, start: impl FnOnce(&Value) -> f32) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let facts = std::fs::read_to_string(fixture(&format!("llama3/defences/{preset}.json"))).unwrap();
    let facts: Value = serde_json::from_str(&facts).unwrap();
    let expected = TensorFile::open(&fixture(&format!("llama3/defences/{preset}.safetensors"))).unwrap();
    let mut run = format!(
        "preset = \"{preset}\"\n[model]\npath = '{}'\ndtype = \"f32\"\n[defence]\nouter_steps = {}\n{}\n\
         [defence.outer]\noptimizer = \"sgd_momentum\"\nlr = {}\nwarmup = 0\n",
        text(&fixture("llama3")),
        facts["steps"],
        keys(&facts),
        facts["lr"]
    );
    for stream in streams {
        write_rows(&at(&format!("{stream}.jsonl")), &facts[*stream]);
        write!(run, "[data.{stream}]\npath = \"{stream}.jsonl\"\nbatch = 4\nshuffle = false\n").unwrap();
    }
    std::fs::write(at("run.toml"), run).unwrap();
    succeed(&mut temper(&["harden", &text(&at("run.toml")), "--out", &text(&at("out")), "--device", "cpu"]));
    let model = ModelDirectory::open(&fixture("llama3")).unwrap();
    let before = model.read_weights().unwrap();
    let after = ModelDirectory::open(&at("out")).unwrap().read_weights().unwrap();
    let start = start(&facts);
    let mut whole = 0;
    for entry in ModelLayout::new(&model.config).unwrap().entries() {
        let place = entry.block.range();
        let update: Vec<f32> = after[place.clone()].iter().zip(&before[place]).map(|(a, b)| a - start * b).collect();
        let norm = update.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let theirs = facts["norms"][&entry.name].as_f64().unwrap();
        assert!((norm / theirs - 1.0).abs() < 1e-4, "{preset}, {}: {norm} and not {theirs}", entry.name);
        if let Ok(theirs) = expected.read_f32(&format!("update.{}", entry.name)) {
            let error = relative(&update, &theirs);
            assert!(error < 1e-4, "{preset}, {}: {error:.1e}", entry.name);
            whole += 1;
        }
    }
    assert_eq!(whole, 3);
}

/// The step is longer than published: a gradient taken at the weights themselves would be 40 % away.
#[test]
fn npo_with_sharpness_aware_minimisation_takes_the_steps_of_pytorch() {
    let step = |facts: &Value| {
        let npo = format!("{{ npo = {{ beta = {}, length_normalised = true }} }}", facts["beta"]);
        format!("point.sharp.step = {{ data = \"forget\", loss = {npo}, size = {}, direction = \"up\" }}", facts["rho"])
    };
    hold_update("npo-sam", &["forget", "retain"], step, |_| 1.0);
}

#[test]
fn undo_takes_the_steps_of_pytorch_from_shrunk_weights() {
    let start = |facts: &Value| 1.0 - facts["shrink"].as_f64().unwrap() as f32;
    hold_update("undo", &["retain"], |_| String::new(), start);
}
