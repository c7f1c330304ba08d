//! Parity of the nested loop with the TAR authors' own training loop: three outer steps of the reference trajectory.

use crate::reference::{Bounds, Reference, load, rows, within};
use crate::support::models::fixture;
use crate::support::numbers::relative_to_update;
use temper::data::{DataStream, StreamOptions};
use temper::huggingface::TensorFile;
use temper::objective::{EntropyOver, TermLoss};
use temper::ops::Backend;
use temper::optimizer::{OptimizerConfig, OptimizerKind, Schedule};
use temper::tar::{
    Adversary, AdversarySource, Attack, AttackLength, BASE, Combine, Displacement, Draw, Hardener, Point, RESISTANCE,
    RETAIN, Settings, Simulation, Streams, Term, Trained,
};
use temper::training::MemorySettings;

/// The batches of a stream, from number `first` on, in file order. Their rows all have one length.
fn stream(tensors: &TensorFile, name: &str, first: usize, vocab_size: usize) -> (String, DataStream) {
    let mut samples = Vec::new();
    let mut batch_size = 0;
    for i in first.. {
        let key = format!("batch.{name}.{i}");
        if tensors.info(&key).is_none() {
            break;
        }
        let batch = rows(tensors, &key);
        batch_size = batch.segments.len();
        let row = |s: &temper::ops::Segment| batch.tokens[s.start..s.start + s.length].to_vec();
        samples.extend(batch.segments.iter().map(|s| (row(s), row(s))));
    }
    let options = StreamOptions {
        batch: batch_size,
        max_length: 256,
        shuffle: false,
        pack: true,
        pad_token_id: 0,
        vocab_size,
        seed: 0,
    };
    (name.to_string(), DataStream::from_samples(name, samples, options).unwrap())
}

fn adversary(name: &str, source: AdversarySource) -> Adversary {
    Adversary::new(name, source, vec![1e-3], OptimizerConfig::new(OptimizerKind::AdamW, 1e-3))
}

fn settings() -> Settings {
    let switch = AdversarySource::Switch { streams: ["adv_retain".into(), "forget_train".into()], at: [6.0, 3.0] };
    let draw = |adversary, lr, switch_at| Draw { switch_at, ..Draw::new(adversary, lr) };
    let simulation = Simulation {
        length: AttackLength { inner_steps: 8, tr_every: 4 },
        adversaries: vec![
            adversary("pile", AdversarySource::One("pile".into())),
            adversary("camel", AdversarySource::One("camel".into())),
            adversary("retain_forget_switch", switch),
        ],
        script: vec![draw(0, 1e-3, None), draw(2, 3e-4, Some(5)), draw(1, 1e-3, None)],
        pool: None,
        curriculum: None,
    };
    let attack = Attack { simulation, schedule_lambda: Some(0.0625), tasks: 1 };
    let over = EntropyOver::All;
    let term = |name: &str, loss, weight, (data, at): (&str, &str)| Term {
        name: name.into(),
        loss,
        data: data.into(),
        weight,
        at: at.into(),
    };
    Settings {
        seed: 1,
        points: vec![Point { name: "attacked".into(), displacement: Displacement::Attack(attack) }],
        terms: vec![
            term(RESISTANCE, TermLoss::NegativeEntropy { over }, 4.0, ("meta", "attacked")),
            term(RETAIN, TermLoss::Retain { over }, 1.0, ("retain", BASE)),
        ],
        combine: Combine::Sum,
        trained: Trained::All,
        rounds: vec![],
        lower_bound: None,
        outer: OptimizerConfig {
            schedule: Schedule { warmup: 2, ..Schedule::constant() },
            ..OptimizerConfig::new(OptimizerKind::ScheduleFreeAdamW, 2e-3)
        },
        memory: MemorySettings::default(),
    }
}

pub fn three_outer_steps_end_where_the_authors_loop_ends<B: Backend>(backend: &B, bounds: &Bounds) {
    let reference = Reference::open(backend, "llama3");
    let tensors = TensorFile::open(&fixture("llama3/tar.safetensors")).unwrap();
    let facts = std::fs::read_to_string(fixture("llama3/tar.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    let vocab_size = reference.model.config.vocab_size;
    // The authors' loop consumes one retain batch, without an update, before it begins.
    let streams = Streams(
        [("pile", 0), ("camel", 0), ("adv_retain", 0), ("forget_train", 0), ("meta", 0), ("retain", 1)]
            .map(|(name, first)| stream(&tensors, name, first, vocab_size))
            .into(),
    );
    let start = reference.weights.download(backend).unwrap();
    let model = reference.model.clone();
    let base = reference.base();
    let weights = load(&model, &reference.path);
    let mut hardener = Hardener::new(model, weights, base, streams, settings()).unwrap();
    for step in 0..3 {
        hardener.outer_step(&mut |_| Ok(())).unwrap();
        let gradient = hardener.outer_gradient().download(backend).unwrap();
        for entry in hardener.outer_gradient().layout().entries() {
            let place = entry.block.range();
            let ours = gradient[place].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let theirs = facts["outer_gradient_norms"][step][&entry.name].as_f64().unwrap();
            within(
                &format!("outer gradient norm {step} of {}", entry.name),
                (ours / theirs - 1.0).abs(),
                bounds.outer_norm,
            );
        }
    }
    let after = hardener.final_weights(true).unwrap();
    for entry in reference.model.layout().entries() {
        let place = entry.block.range();
        let theirs = tensors.read_f32(&format!("after.{}", entry.name)).unwrap();
        let error = relative_to_update(&after[place.clone()], &theirs, &start[place]);
        within(&format!("weights of {}", entry.name), error, bounds.nested);
    }
}

/// With both scales 0 the attacks leave no trace: the weights come back bit for bit.
pub fn attacks_are_undone_bit_for_bit<B: Backend>(backend: &B, _: &Bounds) {
    let reference = Reference::open(backend, "llama3");
    let tensors = TensorFile::open(&fixture("llama3/tar.safetensors")).unwrap();
    let vocab_size = reference.model.config.vocab_size;
    let streams = Streams(
        ["pile", "camel", "adv_retain", "forget_train", "meta", "retain"]
            .map(|name| stream(&tensors, name, 0, vocab_size))
            .into(),
    );
    let start = reference.weights.download(backend).unwrap();
    let mut settings = settings();
    settings.terms.iter_mut().for_each(|term| term.weight = 0.0);
    // AdamW's decay would move the weights even without a gradient; schedule-free AdamW decays nothing by default.
    let model = reference.model.clone();
    let base = reference.base();
    let weights = load(&model, &reference.path);
    let mut hardener = Hardener::new(model, weights, base, streams, settings).unwrap();
    let report = hardener.outer_step(&mut |_| Ok(())).unwrap();
    let losses = &report.trajectories[0].attack_losses;
    assert!(losses.last().unwrap() != losses.first().unwrap(), "the attack moved the weights meanwhile");
    let after = hardener.weights().download(backend).unwrap();
    assert!(start.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits()));
}
