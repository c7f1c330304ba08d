//! Parity of RMU and MUDMAN with PyTorch, which follows the algorithms of the papers: a few steps of each end at its weights.

use temper::data::{DataStream, StreamOptions};
use temper::huggingface::TensorFile;
use temper::objective::{EntropyOver, HiddenKind, HiddenTerm, TermLoss};
use temper::ops::Backend;
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::tar::{
    BASE, Combine, Displacement, Hardener, Persistent, Point, Settings, SignMask, Streams, Term, Trained,
};
use temper::training::MemorySettings;

use crate::reference::{Bounds, Reference, load, within};
use crate::support::numbers::relative_to_update;

const ADVERSARY: &str = "adversary";

fn facts<B: Backend>(reference: &Reference<B>, defence: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(reference.path.join("unlearning.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all[defence].clone()
}

/// `forget` and `retain`: the first and the last four batches of attacks.
fn streams<B: Backend>(reference: &Reference<B>) -> Streams {
    let stream = |(name, first): (&str, usize)| {
        let mut samples = Vec::new();
        for i in first..first + 4 {
            let batch = reference.batch(&format!("attack.batch.{i}"));
            let row = |s: &temper::ops::Segment| batch.tokens[s.start..s.start + s.length].to_vec();
            samples.extend(batch.segments.iter().map(|s| (row(s), row(s))));
        }
        let options = StreamOptions {
            batch: samples.len() / 4,
            max_length: 256,
            shuffle: false,
            pack: true,
            pad_token_id: 0,
            vocab_size: reference.model.config.vocab_size,
            seed: 0,
        };
        (name.to_string(), DataStream::from_samples(name, samples, options).unwrap())
    };
    Streams([("forget", 0), ("retain", 4)].map(stream).into())
}

fn term(loss: TermLoss, data: &str, weight: f64, at: &str) -> Term {
    Term { name: data.into(), loss, data: data.into(), weight, at: at.into() }
}

fn part(facts: &serde_json::Value, layers: Option<Vec<usize>>) -> Trained {
    Trained::Part { layers, modules: Some(vec![facts["module"].as_str().unwrap().parse().unwrap()]) }
}

/// Takes the steps of `defence`, the second half from what the first half keeps for a checkpoint, and compares each trained
/// tensor and each loss with PyTorch's.
fn follow<B: Backend>(reference: &Reference<B>, bounds: &Bounds, defence: &str, settings: Settings) {
    let backend = reference.backend();
    let facts = facts(reference, defence);
    let theirs = TensorFile::open(&reference.path.join(format!("{defence}.safetensors"))).unwrap();
    let start = reference.weights.download(backend).unwrap();
    let begin = || {
        let weights = load(&reference.model, &reference.path);
        let (model, base) = (reference.model.clone(), reference.base());
        Hardener::new(model, weights, base, streams(reference), settings.clone()).unwrap()
    };
    let mut hardener = begin();
    let steps = facts["losses"].as_array().unwrap();
    for (step, losses) in steps.iter().enumerate() {
        if step == steps.len() / 2 {
            let (state, tensors) = (hardener.state(), hardener.tensors().unwrap());
            hardener = begin();
            hardener.restore(&state, &tensors).unwrap();
        }
        let report = hardener.outer_step(&mut |_| Ok(())).unwrap();
        assert!(!report.skipped);
        for (term, expected) in report.terms.iter().zip(losses.as_array().unwrap()) {
            let error = (term.loss / expected.as_f64().unwrap() - 1.0).abs();
            within(&format!("{defence}, loss of {}", term.name), error, bounds.loss);
        }
    }
    let after = hardener.weights().download(backend).unwrap();
    let mut trained = 0;
    for entry in reference.model.layout().entries() {
        let place = entry.block.range();
        let (ours, before) = (&after[place.clone()], &start[place]);
        match theirs.read_f32(&format!("after.{}", entry.name)) {
            Ok(expected) => {
                let error = relative_to_update(ours, &expected, before);
                within(&format!("{defence}, update of {}", entry.name), error, bounds.update);
                trained += 1;
            }
            Err(_) => assert_eq!(ours, before, "{defence}: {} is not trained", entry.name),
        }
    }
    assert!(trained > 0);
}

pub fn rmu_ends_where_pytorch_ends<B: Backend>(backend: &B, bounds: &Bounds) {
    let reference = Reference::open(backend, "mistral");
    let facts = facts(&reference, "rmu");
    let number = |name: &str| facts[name].as_f64().unwrap();
    let at = |kind| {
        let depths = vec![number("depth") as usize];
        TermLoss::HiddenStates(HiddenTerm { kind, depths, over: EntropyOver::Valid })
    };
    let seed = facts["seed"].as_u64().unwrap();
    let steered = HiddenKind::ControlVector { coefficient: number("coefficient") as f32, seed };
    let layers = facts["layers"].as_array().unwrap().iter().map(|layer| layer.as_u64().unwrap() as usize).collect();
    let settings = Settings {
        seed: 1,
        points: vec![],
        terms: vec![
            term(at(steered), "forget", 1.0, BASE),
            term(at(HiddenKind::SquaredDistance), "retain", number("alpha"), BASE),
        ],
        combine: Combine::Sum,
        trained: part(&facts, Some(layers)),
        rounds: vec![],
        lower_bound: None,
        outer: OptimizerConfig { weight_decay: Some(0.0), ..OptimizerConfig::new(OptimizerKind::AdamW, number("lr")) },
        memory: MemorySettings::default(),
    };
    follow(&reference, bounds, "rmu", settings);
}

pub fn mudman_ends_where_pytorch_ends<B: Backend>(backend: &B, bounds: &Bounds) {
    let reference = Reference::open(backend, "mistral");
    let facts = facts(&reference, "mudman");
    let number = |name: &str| facts[name].as_f64().unwrap();
    let adversary = Persistent {
        data: "forget".into(),
        lr: number("adversary_lr"),
        fork_every: facts["fork_every"].as_u64().unwrap(),
    };
    let settings = Settings {
        seed: 1,
        points: vec![Point { name: ADVERSARY.into(), displacement: Displacement::Persistent(adversary) }],
        terms: vec![
            term(TermLoss::NegativeEntropy { over: EntropyOver::All }, "forget", 1.0, ADVERSARY),
            term(TermLoss::CrossEntropy, "retain", number("retain_lr"), BASE),
        ],
        combine: Combine::SignMask(SignMask { decay: number("decay"), norm: number("norm") }),
        trained: part(&facts, None),
        rounds: vec![],
        lower_bound: None,
        outer: OptimizerConfig::new(OptimizerKind::Sgd, 1.0),
        memory: MemorySettings::default(),
    };
    follow(&reference, bounds, "mudman", settings);
}
