//! `temper lox`: what it adds to the weights is what PyTorch's singular value decomposition gives.

use temper::huggingface::{ModelDirectory, TensorFile};
use temper::model::ModelLayout;
use temper::plan::DefenderCost;

use crate::support::models::fixture;
use crate::support::numbers::relative;
use crate::support::program::{run, stderr, stdout, temper, text};

#[test]
fn an_extrapolation_adds_the_leading_part_of_what_the_alignment_changed() {
    let folder = tempfile::tempdir().unwrap();
    let facts = std::fs::read_to_string(fixture("qwen3/lox.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    let expected = TensorFile::open(&fixture("qwen3/lox.safetensors")).unwrap();
    let out = folder.path().join("out");
    let coefficient = facts["coefficient"].to_string();
    let rank = facts["rank"].to_string();
    let output = run(&mut temper(&[
        "lox",
        "--model",
        &text(&fixture("qwen3")),
        "--base",
        &text(&fixture("qwen3/base")),
        "--out",
        &text(&out),
        "--rank",
        &rank,
        "--coefficient",
        &coefficient,
        "--dtype",
        "f32",
    ]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim_end(), text(&out));
    let model = ModelDirectory::open(&fixture("qwen3")).unwrap();
    let before = model.read_weights().unwrap();
    let after = ModelDirectory::open(&out).unwrap().read_weights().unwrap();
    let mut whole = 0;
    for entry in ModelLayout::new(&model.config).unwrap().entries() {
        let place = entry.block.range();
        let added: Vec<f32> = after[place.clone()].iter().zip(&before[place]).map(|(a, b)| a - b).collect();
        let norm = added.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let theirs = facts["norms"][&entry.name].as_f64().unwrap_or(0.0);
        assert!((norm - theirs).abs() <= 1e-5 * theirs, "{}: {norm} and not {theirs}", entry.name);
        if let Ok(theirs) = expected.read_f32(&entry.name) {
            let error = relative(&added, &theirs);
            assert!(error < 1e-4, "{}: {error:.1e}", entry.name);
            whole += 1;
        }
    }
    assert_eq!(whole, 3);
    let cost = DefenderCost::read(&out).unwrap().unwrap();
    assert!(cost.flop > 0.0 && cost.seconds > 0.0);
}

#[test]
fn wrong_extrapolations_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out"));
    let model = text(&fixture("qwen3"));
    let base = text(&fixture("qwen3/base"));
    let other = text(&fixture("qwen2"));
    for (base, flag, value, words, code) in [
        (&base, "--rank", "0", "--rank: is 0", 2),
        (&base, "--coefficient", "nan", "--coefficient: is NaN", 2),
        (&other, "--rank", "1", "its architecture is not that of", 3),
    ] {
        let output = run(&mut temper(&["lox", "--model", &model, "--base", base, "--out", &out, flag, value]));
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    assert!(!folder.path().join("out").exists());
}
