//! Floating-point operations of passes through a model, and of an outer step. A multiply and an add are two operations.
//!
//! Counted are the matrix products of the linear layers and of the head (2 per weight and token forward, 4 backward, 2
//! of these without weight gradients) and of causal attention (its backward is 2.5 times its forward). Every sequence
//! counts as `max_length`, in whose place a run and `temper plan` put the longest of the stream: this is exact for the
//! published runs, which pad, and an upper bound with packing.

use serde::Serialize;

use crate::config::{AdversaryConfig, DefenceConfig, ParameterChoice, RunConfig, SafeguardMethod, TakenGradient};
use crate::model::{LayerMemory, ModelConfig, Recompute};
use crate::training::Source;

/// One kind of work in an outer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Work {
    /// The kind of work.
    pub name: String,
    /// Passes over a batch, expected over the draws.
    pub passes: f64,
    /// Tokens, expected over the draws.
    pub tokens: f64,
    /// Floating-point operations, expected over the draws.
    pub flop: f64,
}

/// The work of one outer step of `run`: adversaries by their weights, whatever else they draw at its mean, attacks as long as
/// they are on the average of all outer steps. An attack that is met again counts as a new one.
/// Layers that run forward again to save memory are a row of their own.
pub(super) fn outer_step(run: &RunConfig, model: &ModelConfig, recompute: Recompute, largest_batch: u64) -> Vec<Work> {
    let defence = run.composition();
    let costs = Costs::new(model);
    let mut work = Vec::new();
    for (adversary, trajectories) in defence.trajectories() {
        let steps = mean_steps(adversary, &defence);
        work.push(attack(run, &costs, model, adversary, steps).times(trajectories));
    }
    let gradients = defence.gradients();
    let batches = |taken: &TakenGradient, name: &str, backward, count: f64| {
        let pass = costs.pass(name, run, taken.data, backward).times(taken.loss.sequences_of_sample() as f64 * count);
        Work { passes: count, ..pass }
    };
    for taken in &gradients {
        add_row(&mut work, batches(taken, &taken.name, Backward::Weights, taken.takes));
    }
    if let Recompute::Layers { .. } = recompute {
        work.push(again(run, &costs, &defence, recompute, largest_batch));
    }
    for taken in gradients.iter().filter(|taken| taken.loss.needs_reference()) {
        add_row(&mut work, batches(taken, "reference model", Backward::None, taken.visits));
    }
    work
}

/// Adds work to the row of its name.
fn add_row(rows: &mut Vec<Work>, work: Work) {
    match rows.iter_mut().find(|row| row.name == work.name) {
        Some(row) => row.add(&work),
        None => rows.push(work),
    }
}

/// Inner steps of an attack of `adversary`, expected over the outer steps.
fn mean_steps(adversary: &AdversaryConfig, defence: &DefenceConfig) -> f64 {
    defence.mean_of(adversary, |length| length.inner_steps as f64)
}

/// Operations of the plain safeguard of `run`, where it has one: in each step the removal gradient and the retain gradient,
/// with what the reference model computes for them.
pub(super) fn safeguard(run: &RunConfig, model: &ModelConfig) -> f64 {
    let Some(table) = &run.safeguard else { return 0.0 };
    let costs = Costs::new(model);
    let flop = |stream: &str, backward| costs.pass("safeguard", run, stream, backward).flop;
    let retain = run.safeguard_retain(table);
    let gradients = |pairs: f64| pairs * flop(&table.data, Backward::Weights) + flop(retain, Backward::Weights);
    let step = match table.method {
        SafeguardMethod::RandomMapping => gradients(1.0),
        SafeguardMethod::MaxEntropy => gradients(1.0) + flop(retain, Backward::None),
        SafeguardMethod::Refusal => {
            gradients(2.0) + flop(retain, Backward::None) + 2.0 * flop(&table.data, Backward::None)
        }
    };
    step * table.steps as f64
}

/// One trajectory's attack.
fn attack(run: &RunConfig, costs: &Costs, model: &ModelConfig, adversary: &AdversaryConfig, steps: f64) -> Work {
    let backward = match adversary.params {
        ParameterChoice::Full => Backward::Weights,
        ParameterChoice::Lora => Backward::Inputs,
    };
    let name = format!("attack `{}`", adversary.name);
    let mut sum = Work::none(&name);
    for (stream, passes) in shares(adversary, steps) {
        sum.add(&costs.pass_of(adversary.batch, run, stream, backward).times(passes));
    }
    let adapters = adversary.adapter_configs();
    let factors: f64 = adapters.iter().map(|a| Costs::factors_per_token(a.parameter_count(model))).sum();
    if !adapters.is_empty() {
        sum.flop += factors / adapters.len() as f64 * sum.tokens;
    }
    sum
}

/// The streams that an attack of `steps` steps trains on, each with its expected number of steps.
fn shares(adversary: &AdversaryConfig, steps: f64) -> Vec<(&str, f64)> {
    match &adversary.data {
        Source::One(name) => vec![(name, steps)],
        Source::Switch { streams: [first, second], .. } => {
            let before = adversary.switch.map_or(0.0, |draw| mean_switch(draw.beta, steps));
            vec![(first, before), (second, steps - before)]
        }
        Source::Mixture(parts) => {
            let drawn = adversary.share.as_ref().map(|range| range.weights(parts, range.mean()));
            let parts: Vec<(&str, f64)> = match &drawn {
                Some(drawn) => parts.iter().zip(drawn).map(|((name, _), (_, mean))| (name.as_str(), *mean)).collect(),
                None => parts.iter().map(|(name, weight)| (name.as_str(), *weight)).collect(),
            };
            let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
            parts.iter().map(|(name, weight)| (*name, steps * weight / total)).collect()
        }
    }
}

/// The layers that run forward a second time, without their last product, in passes that have a backward one.
fn again(run: &RunConfig, costs: &Costs, defence: &DefenceConfig, recompute: Recompute, largest_batch: u64) -> Work {
    // Sequences and their length of a batch, and the passes over such batches.
    let mut passes: Vec<((usize, usize), f64)> = Vec::new();
    let size = |stream: &str| run.data.get(stream).map_or((0, 0), |data| (data.batch, data.max_length));
    for (adversary, trajectories) in defence.trajectories() {
        for (stream, steps) in shares(adversary, mean_steps(adversary, defence)) {
            let (batch, length) = size(stream);
            passes.push(((adversary.batch.unwrap_or(batch), length), steps * trajectories));
        }
    }
    for taken in defence.gradients() {
        let (rows, length) = size(taken.data);
        passes.push(((rows * taken.loss.sequences_of_sample(), length), taken.takes));
    }
    let layers = costs.model.num_hidden_layers;
    let memory = LayerMemory { layers, slots: recompute.slots(layers).rest, capacity: largest_batch as usize };
    let mut sum = Work { name: "layers run forward again".into(), passes: 0.0, tokens: 0.0, flop: 0.0 };
    for ((batch, length), passes) in passes {
        let again = layers - memory.kept_layers(batch * length);
        if again > 0 {
            let tokens = passes * (batch * length) as f64;
            sum.passes += passes;
            sum.tokens += tokens;
            sum.flop += tokens * costs.layers_again(again, length);
        }
    }
    sum
}

/// E⌊K·Beta(a, b)⌋: the mean of K·Beta less a half, which the rounding down costs a density that is smooth on the scale
/// of a step.
fn mean_switch([a, b]: [f64; 2], steps: f64) -> f64 {
    (steps * a / (a + b) - 0.5).clamp(0.0, steps)
}

/// The gradients that a backward pass computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Backward {
    /// There is none.
    None,
    /// Gradients of inputs alone: the weights are frozen.
    Inputs,
    /// Gradients of inputs and weights.
    Weights,
}

/// Costs of a model per token.
pub(crate) struct Costs<'a> {
    model: &'a ModelConfig,
    /// Weights of the linear layers and of the head.
    matmul_weights: f64,
}

impl<'a> Costs<'a> {
    pub(crate) fn new(model: &'a ModelConfig) -> Self {
        let attention = model.attention();
        let d = model.hidden_size as f64;
        let f = model.intermediate_size as f64;
        let layer = d * attention.qkv_cols() as f64 + d * attention.query_cols() as f64 + 3.0 * d * f;
        let matmul_weights = layer * model.num_hidden_layers as f64 + d * model.vocab_size as f64;
        Self { model, matmul_weights }
    }

    /// One pass over one batch of a stream.
    fn pass(&self, name: &str, run: &RunConfig, stream: &str, backward: Backward) -> Work {
        Work { name: name.to_string(), ..self.pass_of(None, run, stream, backward) }
    }

    /// One pass over `rows` sequences of a stream; over one of its batches where absent.
    fn pass_of(&self, rows: Option<usize>, run: &RunConfig, stream: &str, backward: Backward) -> Work {
        // Validation has shown that the stream exists.
        let (batch, length) = run.data.get(stream).map_or((0, 0), |data| (rows.unwrap_or(data.batch), data.max_length));
        let tokens = batch as f64 * length as f64;
        Work { name: String::new(), passes: 1.0, tokens, flop: batch as f64 * self.sequence(length, backward) }
    }

    /// A sequence of `length` tokens through the model, without what LoRA adds.
    pub(crate) fn sequence(&self, length: usize, backward: Backward) -> f64 {
        let (linear, attention) = match backward {
            Backward::None => (2.0, 1.0),
            Backward::Inputs => (4.0, 3.5),
            Backward::Weights => (6.0, 3.5),
        };
        length as f64 * (linear * self.matmul_weights + attention * self.attention_forward(length))
    }

    /// Operations that LoRA with `factors` trained numbers adds to each token of a training step.
    pub(crate) fn factors_per_token(factors: u64) -> f64 {
        6.0 * factors as f64
    }

    /// The forward pass of `layers` layers without their last product.
    fn layers_again(&self, layers: usize, length: usize) -> f64 {
        let all = self.model.num_hidden_layers as f64;
        let d = self.model.hidden_size as f64;
        let f = self.model.intermediate_size as f64;
        let linear = (self.matmul_weights - d * self.model.vocab_size as f64) / all - d * f;
        layers as f64 * (2.0 * linear + self.attention_forward(length) / all)
    }

    /// Operations of causal attention per token of a sequence of `length`: scores and their product with the values.
    fn attention_forward(&self, length: usize) -> f64 {
        let window = self.model.sliding_window.unwrap_or(length).min(length) as f64;
        let length = length.max(1) as f64;
        let visible = (window * (window + 1.0) / 2.0 + (length - window) * window) / length;
        4.0 * self.model.attention().query_cols() as f64 * visible * self.model.num_hidden_layers as f64
    }
}

impl Work {
    fn none(name: &str) -> Self {
        Self { name: name.to_string(), passes: 0.0, tokens: 0.0, flop: 0.0 }
    }

    fn add(&mut self, other: &Self) {
        self.passes += other.passes;
        self.tokens += other.tokens;
        self.flop += other.flop;
    }

    fn times(self, factor: f64) -> Self {
        Self { name: self.name, passes: self.passes * factor, tokens: self.tokens * factor, flop: self.flop * factor }
    }
}
