//! Weights beyond the range of the dtype that is to be written: found before the first step where they are there then, and
//! no reason to lose a run that has reached them.

use std::path::{Path, PathBuf};
use std::process::Command;

use temper::api::toy;
use temper::huggingface::{ExportDType, ModelDirectory, write_model};

use crate::support::program::{run, stderr, succeed, temper, text};

/// A toy model of which one weight is beyond the range of float16, and its data.
fn large(home: &Path) -> (PathBuf, PathBuf) {
    toy::write(home, 1).unwrap();
    let source = ModelDirectory::open(&home.join("model")).unwrap();
    let mut weights = source.read_weights().unwrap();
    weights[7] = 1e5;
    let path = home.join("large");
    write_model(&path, &source.config, None, &weights, ExportDType::F32).unwrap();
    (path, home.join("restricted.jsonl"))
}

fn attack(model: &Path, data: &Path, out: &Path, settings: &[&str]) -> Command {
    let mut command = temper(&["attack", "--model", &text(model), "--data", &text(data), "--out", &text(out)]);
    command.args(["--dtype", "f16", "--steps", "1", "--warmup", "0", "--batch", "2", "--device", "cpu"]);
    command.args(settings);
    command
}

#[test]
fn a_weight_that_does_not_fit_stops_a_run_before_its_first_step() {
    let home = tempfile::tempdir().unwrap();
    let (model, data) = large(home.path());
    let out = home.path().join("attacked");
    let output = run(&mut attack(&model, &data, &out, &["--params", "full"]));
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("model.embed_tokens.weight") && message.contains("range of float16"), "{message}");
    assert!(!out.exists(), "nothing was begun");
    let run_file = format!(
        "model = {{ path = {:?}, dtype = \"f16\" }}\ndata.a = {{ path = {data:?}, batch = 2 }}\n[tar]\nouter_steps = 1\n\
         inner_steps = 1\ntr_every = 1\ntr_data = \"a\"\nretain_data = \"a\"\n\
         adversary = [{{ name = \"full\", data = \"a\", lr = [1e-3] }}]\n",
        text(&model)
    );
    let run_path = home.path().join("run.toml");
    std::fs::write(&run_path, run_file).unwrap();
    let hardened = home.path().join("hardened");
    let output = run(&mut temper(&["harden", &text(&run_path), "--out", &text(&hardened), "--device", "cpu"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("range of float16") && !hardened.exists(), "{}", stderr(&output));
    // An adapter is written in float32 whatever the model's dtype is.
    succeed(&mut attack(&model, &data, &out, &["--params", "lora", "--rank", "2"]));
}

/// One step at an absurd learning rate takes the weights beyond float16: the model is kept as bfloat16, and the user is told.
#[test]
fn a_run_that_leaves_the_range_keeps_its_result() {
    let home = tempfile::tempdir().unwrap();
    let (_, data) = large(home.path());
    let model = home.path().join("model");
    let out = home.path().join("attacked");
    let output = run(&mut attack(&model, &data, &out, &["--params", "full", "--optimizer", "adamw", "--lr", "1e6"]));
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(message.contains("beyond the range of float16: the model is written in bfloat16"), "{message}");
    let written = ModelDirectory::open(&out).unwrap();
    assert_eq!(written.weights_dtype(), ExportDType::Bf16);
    assert!(written.read_weights().unwrap().iter().any(|weight| weight.is_finite() && weight.abs() > 65_504.0));
}
