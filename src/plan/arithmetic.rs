//! Floating-point operations of passes through a model, and of an outer step. A multiply and an add are two operations.
//!
//! Counted are the matrix products of the linear layers and of the head (2 per weight and token forward, 4 backward, 2
//! of these without weight gradients) and of causal attention (its backward is 2.5 times its forward). Every sequence
//! counts at its longest: this is exact for the published runs, which pad, and an upper bound with packing.

use serde::Serialize;

use crate::config::{AdversaryConfig, ParameterChoice, RunConfig, SafeguardMethod, TrLoss};
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

/// The work of one outer step of `run`: adversaries by their weights, the switch of a two-stream adversary at its mean.
/// Layers that run forward again to save memory are a row of their own.
pub(super) fn outer_step(run: &RunConfig, model: &ModelConfig, recompute: Recompute, largest_batch: u64) -> Vec<Work> {
    let tar = &run.tar;
    let costs = Costs::new(model);
    let tasks = tar.tasks_per_step as f64;
    let total_weight: f64 = tar.adversary.iter().map(|a| a.weight).sum();
    let mut work = Vec::new();
    for adversary in &tar.adversary {
        let trajectories = tasks * adversary.weight / total_weight;
        let attack = attack(run, &costs, model, adversary);
        work.push(attack.times(trajectories));
    }
    let pairs = if tar.tr_loss == TrLoss::Dpo { 2.0 } else { 1.0 };
    let tr = costs.pass("tamper-resistance gradients", run, &tar.tr_data, Backward::Weights).times(pairs);
    let mut tr = tr.times(tasks * (tar.inner_steps / tar.tr_every) as f64);
    tr.passes /= pairs;
    work.push(tr);
    if tar.retain_scale > 0.0 {
        work.push(costs.pass("retain gradient", run, &tar.retain_data, Backward::Weights));
    }
    if let Recompute::Layers { .. } = recompute {
        work.push(again(run, &costs, recompute, largest_batch));
    }
    if tar.tr_loss == TrLoss::Dpo {
        let margins = costs.pass("reference log-probabilities", run, &tar.tr_data, Backward::None).times(pairs * tasks);
        work.push(Work { passes: tasks, ..margins });
    }
    if tar.retain_scale > 0.0 && tar.retain_representations {
        work.push(costs.pass("reference hidden states", run, &tar.retain_data, Backward::None));
    }
    work
}

/// Operations of the plain safeguard of `run`, where it has one: in each step the removal gradient and the retain gradient,
/// with what the reference model computes for them.
pub(super) fn safeguard(run: &RunConfig, model: &ModelConfig) -> f64 {
    let Some(table) = &run.safeguard else { return 0.0 };
    let costs = Costs::new(model);
    let flop = |stream: &str, backward| costs.pass("safeguard", run, stream, backward).flop;
    let retain = &run.tar.retain_data;
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
fn attack(run: &RunConfig, costs: &Costs, model: &ModelConfig, adversary: &AdversaryConfig) -> Work {
    let steps = run.tar.inner_steps as f64;
    let backward = match adversary.params {
        ParameterChoice::Full => Backward::Weights,
        ParameterChoice::Lora => Backward::Inputs,
    };
    let name = format!("attack `{}`", adversary.name);
    let mut sum = Work { name: name.clone(), passes: 0.0, tokens: 0.0, flop: 0.0 };
    for (stream, passes) in shares(adversary, steps) {
        let part = costs.pass(&name, run, stream, backward).times(passes);
        sum = Work {
            passes: sum.passes + part.passes,
            tokens: sum.tokens + part.tokens,
            flop: sum.flop + part.flop,
            ..sum
        };
    }
    if let Some(adapter) = adversary.adapter_config() {
        sum.flop += Costs::factors_per_token(adapter.parameter_count(model)) * sum.tokens;
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
            let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
            parts.iter().map(|(name, weight)| (name.as_str(), steps * weight / total)).collect()
        }
    }
}

/// The layers that run forward a second time, without their last product, in passes that have a backward one.
fn again(run: &RunConfig, costs: &Costs, recompute: Recompute, largest_batch: u64) -> Work {
    let tar = &run.tar;
    let tasks = tar.tasks_per_step as f64;
    let steps = tar.inner_steps as f64;
    let total_weight: f64 = tar.adversary.iter().map(|a| a.weight).sum();
    let mut passes: Vec<(&str, usize, f64)> = Vec::new();
    for adversary in &tar.adversary {
        let trajectories = tasks * adversary.weight / total_weight;
        passes.extend(shares(adversary, steps).into_iter().map(|(stream, n)| (stream, 1, n * trajectories)));
    }
    let pairs = if tar.tr_loss == TrLoss::Dpo { 2 } else { 1 };
    passes.push((&tar.tr_data, pairs, tasks * (tar.inner_steps / tar.tr_every) as f64));
    if tar.retain_scale > 0.0 {
        passes.push((&tar.retain_data, 1, 1.0));
    }
    let layers = costs.model.num_hidden_layers;
    let memory = LayerMemory { layers, slots: recompute.slots(layers).rest, capacity: largest_batch as usize };
    let mut sum = Work { name: "layers run forward again".into(), passes: 0.0, tokens: 0.0, flop: 0.0 };
    for (stream, pairs, passes) in passes {
        let (batch, length) = run.data.get(stream).map_or((0, 0), |data| (data.batch * pairs, data.max_length));
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
        // Validation has shown that the stream exists.
        let (batch, length) = run.data.get(stream).map_or((0, 0), |data| (data.batch, data.max_length));
        let tokens = batch as f64 * length as f64;
        Work { name: name.to_string(), passes: 1.0, tokens, flop: batch as f64 * self.sequence(length, backward) }
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
    fn times(self, factor: f64) -> Self {
        Self { name: self.name, passes: self.passes * factor, tokens: self.tokens * factor, flop: self.flop * factor }
    }
}
