//! One outer step of the nested loop, with a full-parameter and a LoRA attack, on the device and on the CPU backend: that
//! kernels which are right one by one are also put together rightly.
//!
//! The CPU computes in f32 with sums of another order, so numbers differ by rounding, which Adam's division by √v enlarges where a
//! gradient is small. Bounds are for whole gradients and weight changes, whose small elements hardly count.

use std::sync::Arc;
use std::time::Instant;

use super::compare::{Comparison, compare};
use super::{Finding, Row};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::data::{DataStream, StreamOptions};
use crate::error::Result;
use crate::model::{AdapterConfig, Model, ModelConfig, ModelFamily, Parameters, Recompute, RopeScaling};
use crate::objective::{EntropyOver, TermLoss};
use crate::ops::{Backend, DType};
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::random::{Random, Stream};
use crate::tar::{
    Adversary, Attack, AttackLength, BASE, Combine, Displacement, Draw, Hardener, Point, RESISTANCE, RETAIN, Settings,
    Simulation, Streams, Term, Trained,
};
use crate::training::{MemorySettings, Source};

/// The name of its rows.
pub(super) const OPERATION: &str = "outer step against CPU";
const VOCABULARY: usize = 67;
const LENGTH: usize = 13;
const INNER_STEPS: u64 = 4;

/// Largest relative errors of the losses, the outer gradient and the weights' change.
struct Bounds {
    losses: f64,
    gradient: f64,
    change: f64,
}

impl Bounds {
    fn new(dtype: DType) -> Self {
        match dtype {
            // Weights, activations and their gradients are rounded at every operation of two layers.
            DType::Bf16 => Self { losses: 1e-2, gradient: 5e-2, change: 5e-2 },
            _ => Self { losses: 1e-5, gradient: 1e-4, change: 1e-3 },
        }
    }
}

/// What an outer step leaves behind.
struct Outcome {
    losses: Vec<f64>,
    gradient: Vec<f64>,
    change: Vec<f64>,
}

/// The rows of the comparison.
pub(super) fn rows(cuda: &Cuda, seed: u64, dtype: &'static str) -> Vec<Row> {
    let start = Instant::now();
    let bounds = Bounds::new(cuda.compute_dtype());
    let findings = match (outer_step(cuda.clone(), seed), outer_step(Cpu, seed)) {
        (Ok(found), Ok(expected)) => vec![
            finding("losses", compare(&found.losses, &expected.losses), bounds.losses),
            finding("outer gradient", compare(&found.gradient, &expected.gradient), bounds.gradient),
            finding("change of weights", compare(&found.change, &expected.change), bounds.change),
        ],
        (Err(error), _) | (_, Err(error)) => vec![Finding::failed("", error.to_string())],
    };
    let shape = format!("2 layers, K = {INNER_STEPS}, 2 trajectories");
    let seconds = start.elapsed().as_secs_f64();
    findings.into_iter().map(|finding| finding.row(OPERATION, dtype, &shape, seconds)).collect()
}

/// Only the norm counts here: single elements of a change that Adam normalised may turn their sign.
fn finding(output: &str, comparison: Comparison, bound: f64) -> Finding {
    let worst = if comparison.worst.is_finite() { 0.0 } else { comparison.worst };
    Finding::compared(output, Comparison { worst, ..comparison }, bound)
}

fn outer_step<B: Backend>(backend: B, seed: u64) -> Result<Outcome> {
    let model = Arc::new(Model::new(backend.clone(), config(), LENGTH)?);
    let start = initial_weights(&model, seed);
    let weights = Parameters::from_host(&backend, "self-test weights", model.layout(), &start)?;
    let reference = Parameters::from_host(&backend, "self-test reference", model.layout(), &start)?;
    let mut hardener = Hardener::new(model, weights, reference, streams(seed)?, settings(seed))?;
    let report = hardener.outer_step(&mut |_| Ok(()))?;
    let mut losses = vec![report.retain_loss];
    for trajectory in &report.trajectories {
        losses.extend(trajectory.attack_losses.iter().chain(&trajectory.tr_losses));
    }
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    let after = hardener.weights().download(&backend)?;
    let change = after.iter().zip(&start).map(|(after, before)| f64::from(*after) - f64::from(*before)).collect();
    Ok(Outcome { losses, gradient: wide(hardener.outer_gradient().download(&backend)?), change })
}

fn config() -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Llama,
        vocab_size: VOCABULARY,
        hidden_size: 48,
        intermediate_size: 72,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        dtype: None,
    }
}

/// Normal matrices, norms of 1; rounded to bf16, so that both backends start with the same numbers.
fn initial_weights<B: Backend>(model: &Model<B>, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Stream::Weights, 0, 0);
    let mut weights = vec![0.0; model.layout().len()];
    for entry in model.layout().entries() {
        let block = entry.block;
        let scale = 1.0 / (block.cols as f64).sqrt();
        for weight in &mut weights[block.range()] {
            let value = if entry.name.ends_with("norm.weight") { 1.0 } else { (scale * random.normal()) as f32 };
            *weight = half::bf16::from_f32(value).to_f32();
        }
    }
    weights
}

/// Streams of random rows, each within tokens of its own, so that their gradients differ.
fn streams(seed: u64) -> Result<Streams> {
    let stream = |(index, name): (usize, &str)| {
        let mut random = Random::new(seed, Stream::Data, index as u64, 0);
        let row = |_| (0..LENGTH).map(|_| (index * 16 + random.below(19)) as u32).collect::<Vec<u32>>();
        let samples = (0..8).map(row).map(|row| (row.clone(), row)).collect();
        let options = StreamOptions {
            batch: 3,
            max_length: LENGTH,
            shuffle: false,
            pack: true,
            pad_token_id: 0,
            vocab_size: VOCABULARY,
            seed: 0,
        };
        Ok((name.to_string(), DataStream::from_samples(name, samples, options)?))
    };
    Ok(Streams(["attack", "held-out", "retain"].into_iter().enumerate().map(stream).collect::<Result<_>>()?))
}

fn settings(seed: u64) -> Settings {
    let adapter = AdapterConfig { dropout: 0.1, ..AdapterConfig::new(4) };
    let adversary = |name: &str, adapter| {
        let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
        Adversary { adapter, ..Adversary::new(name, Source::One("attack".into()), vec![1e-3], optimizer) }
    };
    let simulation = Simulation {
        length: AttackLength { inner_steps: INNER_STEPS, tr_every: 2 },
        adversaries: vec![adversary("all weights", None), adversary("LoRA", Some(adapter))],
        script: vec![Draw::new(0, 1e-3), Draw::new(1, 1e-3)],
        pool: None,
        curriculum: None,
    };
    let attack = Attack { simulation, schedule_lambda: Some(0.0625), tasks: 2 };
    let over = EntropyOver::All;
    let term = |name: &str, loss, weight, (data, at): (&str, &str)| Term {
        name: name.into(),
        loss,
        data: data.into(),
        weight,
        at: at.into(),
    };
    Settings {
        seed,
        points: vec![Point { name: "attacked".into(), displacement: Displacement::Attack(attack) }],
        terms: vec![
            term(RESISTANCE, TermLoss::NegativeEntropy { over }, 4.0, ("held-out", "attacked")),
            term(RETAIN, TermLoss::Retain { over }, 1.0, ("retain", BASE)),
        ],
        combine: Combine::Sum,
        trained: Trained::All,
        rounds: vec![],
        lower_bound: None,
        // Not an Adam, whose first step is the signs of the gradient, in which any rounding of a small one shows.
        outer: OptimizerConfig::new(OptimizerKind::SgdMomentum, 1e-2),
        // No bit of the results shows it, so that the CPU and the device may as well both do it.
        memory: MemorySettings {
            step_in_backward: true,
            recompute: Recompute::Layers { kept: 0 },
            ..MemorySettings::default()
        },
    }
}
