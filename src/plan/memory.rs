//! The sizes that decide the memory of a run, and the buffers of the CPU backend, all f32.

use super::{Buffer, Layout, Place};
use crate::backend::cpu::LOSS_HEAD_CHUNK;
use crate::config::{
    AdversaryConfig, CombineChoice, DataConfig, DefenceConfig, MemoryConfig, ParameterChoice, PointConfig, RunConfig,
    TermConfig,
};
use crate::error::{Error, Result};
use crate::model::{
    AdapterConfig, AdapterLayout, ModelConfig, ModelLayout, Recompute, WorkspaceShapes, hidden_states_bytes,
};
use crate::objective::{TermLoss, teacher_bytes, token_loss_bytes};
use crate::ops::DType;
use crate::optimizer::{OptimizerKind, SHIFT_WINDOW};
use crate::training::{MemorySettings, Moments};

/// Bytes of an f32.
const F32: u64 = 4;

/// The sizes that decide the memory of a run, in elements.
pub(super) struct Needs<'a> {
    pub(super) model: &'a ModelConfig,
    /// Elements of all weights.
    pub(super) parameters: u64,
    /// Elements of the gradients that an attack keeps which steps within the backward pass.
    pub(super) part_gradients: u64,
    /// Tokens of the largest batch of any stream.
    pub(super) largest_batch: u64,
    /// The optimizers of full-parameter adversaries, each kind once.
    pub(super) full_optimizers: Vec<OptimizerKind>,
    /// LoRA adversaries: elements of the factors, states of the optimizer.
    pub(super) adapters: Vec<(u64, u64)>,
    /// The adapters of LoRA adversaries.
    lora: Vec<AdapterConfig>,
    /// States of the outer optimizer.
    pub(super) outer_states: u64,
    /// States of the optimizer of a safeguard that is trained first.
    pub(super) safeguard_states: Option<u64>,
    /// How many times the reference model's hidden states are kept at once.
    pub(super) hidden_states: u64,
    /// How many teachers are kept at once.
    pub(super) teachers: u64,
    /// What the ways to points keep.
    pub(super) ways: Ways,
}

impl<'a> Needs<'a> {
    pub(super) fn new(run: &RunConfig, model: &'a ModelConfig) -> Result<Self> {
        let layout = ModelLayout::new(model)?;
        let defence = run.composition();
        let gradients = defence.gradients();
        let lora: Vec<AdapterConfig> = defence.adversary.iter().flat_map(AdversaryConfig::adapter_configs).collect();
        let used = run.used_streams();
        let streams: Vec<(&str, &DataConfig)> =
            run.data.iter().map(|(name, data)| (name.as_str(), data)).filter(|(name, _)| used.contains(name)).collect();
        let batch = |(name, data): &(&str, &DataConfig)| {
            let on_stream = gradients.iter().filter(|taken| taken.data == *name);
            let sequences = on_stream.map(|taken| taken.loss.sequences_of_sample() as u64).max().unwrap_or(1);
            (data.batch as u64).saturating_mul(data.max_length as u64).saturating_mul(sequences)
        };
        // Batches of adversaries that have a size of their own.
        let own = defence.adversary.iter().filter_map(|adversary| Some((adversary.batch? as u64, &adversary.data)));
        let own = own.flat_map(|(size, source)| {
            let tables = source.streams().into_iter().filter_map(|name| run.data.get(name));
            tables.map(move |data| size.saturating_mul(data.max_length as u64))
        });
        let mut full_optimizers: Vec<OptimizerKind> = Vec::new();
        for adversary in defence.adversary.iter().filter(|a| a.params == ParameterChoice::Full) {
            if !full_optimizers.contains(&adversary.optimizer) {
                full_optimizers.push(adversary.optimizer);
            }
        }
        let states_of = |adversary: &AdversaryConfig| {
            let states = adversary.optimizer.rule().states() as u64;
            std::iter::repeat_n(states, adversary.adapter_configs().len())
        };
        let lora_states = defence.adversary.iter().flat_map(states_of);
        let factors = |adapter| Ok(AdapterLayout::new(model, adapter)?.len() as u64);
        let factors: Vec<u64> = lora.iter().map(factors).collect::<Result<_>>()?;
        // An embedding that is also the head has a gradient of its own.
        let tied = if layout.is_tied() { layout.embed_tokens().len() } else { 0 };
        let positions = model.max_position_embeddings;
        if let Some((name, _)) = streams.iter().find(|(_, data)| data.max_length > positions) {
            return Err(too_long(name, positions));
        }
        Ok(Self {
            model,
            parameters: layout.len() as u64,
            part_gradients: (layout.largest_part() + tied) as u64,
            largest_batch: streams.iter().map(batch).chain(own).max().unwrap_or(0),
            full_optimizers,
            adapters: factors.into_iter().zip(lora_states).collect(),
            lora,
            outer_states: defence.outer.optimizer.rule().states() as u64,
            safeguard_states: run.safeguard.as_ref().map(|table| table.optimizer.rule().states() as u64),
            hidden_states: kept_at_once(&defence, TermLoss::keeps_hidden_states),
            teachers: kept_at_once(&defence, TermLoss::keeps_teacher),
            ways: Ways::of(&defence),
        })
    }

    /// Bytes of the states of the full-parameter attacks' optimizers for each parameter: attacks follow one another, so that
    /// the largest counts.
    pub(super) fn states_bytes(&self, moments: Moments) -> u64 {
        let dtype = if moments == Moments::F32 { DType::F32 } else { DType::Bf16 };
        let states = |kind: &OptimizerKind| {
            let rule = kind.rule();
            (0..rule.states()).map(|index| rule.state_dtype(index, dtype).bytes() as u64).sum()
        };
        self.full_optimizers.iter().map(states).max().unwrap_or(0)
    }

    /// Bytes of an evaluator for the largest batch and any of the adapters, hidden states of the reference not counted.
    pub(super) fn activation_bytes(&self, compute: DType, recompute: Recompute) -> u64 {
        activation_bytes(self.model, &self.lora, self.largest_batch, compute, recompute)
    }

    /// Bytes of an evaluator for the largest batch without an adapter.
    pub(super) fn plain_activation_bytes(&self, compute: DType, recompute: Recompute) -> u64 {
        activation_bytes(self.model, &[], self.largest_batch, compute, recompute)
    }

    /// Bytes of the reference model's hidden states.
    pub(super) fn hidden_states_bytes(&self, compute: DType) -> u64 {
        hidden_states_bytes(self.model, self.largest_batch, compute)
    }

    /// The last hidden states of a teacher on the largest batch, and its head.
    pub(super) fn teacher_bytes(&self, compute: DType) -> u64 {
        teacher_bytes(self.model, self.largest_batch, compute)
    }
}

/// What the ways to points keep, in numbers of buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ways {
    /// Whole gradients of steps.
    pub(super) gradients: u64,
    /// Windows through which weights are moved.
    pub(super) windows: u64,
    /// Attack vectors in main memory.
    pub(super) vectors: u64,
    /// Copies of the weights that are edited in main memory, one at a time.
    pub(super) edits: u64,
    /// Weights of adversaries that go on learning, in main memory.
    pub(super) adversaries: u64,
    /// Masks of signs, with two gradients each.
    pub(super) masks: u64,
}

impl Ways {
    fn of(defence: &DefenceConfig) -> Self {
        let masks = u64::from(matches!(defence.combine, CombineChoice::SignMask(_)));
        let mut ways = Self { masks, ..Self::default() };
        for point in defence.point.values() {
            match point {
                PointConfig::Attack(_) => {}
                PointConfig::Step(_) => {
                    ways.gradients += 1;
                    ways.windows += 1;
                }
                PointConfig::Persistent(_) => {
                    ways.gradients += 1;
                    ways.windows += 1;
                    ways.adversaries += 1;
                }
                PointConfig::FrozenAttack(_) => {
                    ways.windows += 2;
                    ways.vectors += 1;
                    ways.edits = 1;
                }
                PointConfig::Noise(_) | PointConfig::Ablation(_) | PointConfig::Rounding(_) => ways.edits = 1,
            }
        }
        ways
    }
}

/// How many terms of one place keep something of the reference model, at the place where most do.
fn kept_at_once(defence: &DefenceConfig, keeps: impl Fn(&TermLoss) -> bool) -> u64 {
    let compares = |term: &&TermConfig| term.weight != 0.0 && keeps(&term.loss);
    let at = |place: &str| defence.term.iter().filter(compares).filter(|term| term.at == place).count() as u64;
    defence.term.iter().map(|term| at(&term.at)).max().unwrap_or(0)
}

/// Bytes of an evaluator for batches of `tokens`: its workspace and its per-token losses.
fn activation_bytes(
    model: &ModelConfig,
    adapters: &[AdapterConfig],
    tokens: u64,
    compute: DType,
    recompute: Recompute,
) -> u64 {
    let workspace = WorkspaceShapes::new(model, adapters, compute, recompute).bytes(tokens);
    workspace.saturating_add(token_loss_bytes(tokens))
}

/// Bytes that one fine-tuning attack needs on the CPU backend, with weights of its own, for batches of `tokens`.
pub(crate) fn attack_bytes(
    model: &ModelConfig,
    adapter: Option<&AdapterConfig>,
    optimizer: OptimizerKind,
    tokens: u64,
) -> u64 {
    let states = optimizer.rule().states() as u64;
    let weights = model.parameter_count();
    let trained = match adapter {
        None => weights.saturating_mul(1 + states),
        Some(adapter) => adapter.parameter_count(model).saturating_mul(2 + states),
    };
    let adapters = adapter.map_or(&[][..], std::slice::from_ref);
    let activations = activation_bytes(model, adapters, tokens, DType::F32, Recompute::Nothing);
    let logits = LOSS_HEAD_CHUNK as u64 * (model.vocab_size + 2 * model.hidden_size) as u64;
    let elements = weights.saturating_add(trained).saturating_add(logits);
    elements.saturating_mul(F32).saturating_add(activations)
}

fn too_long(stream: &str, positions: usize) -> Error {
    let problem = format!("is more than the model's max_position_embeddings = {positions}");
    Error::config(format!("data.{stream}.max_length"), problem, format!("use at most {positions}"))
}

/// The settings and buffers of a run on the CPU backend.
pub(super) fn on_cpu(needs: &Needs, pins: &MemoryConfig) -> Result<Layout> {
    let settings = pins.settings(MemorySettings::default());
    if settings.states == Moments::Bf16 {
        let problem = "bf16 moments go with bf16 weights, and the CPU has f32";
        return Err(Error::config("memory.states", problem, "use \"f32\" or \"auto\""));
    }
    Ok(Layout { settings, buffers: cpu_buffers(needs, settings) })
}

fn cpu_buffers(needs: &Needs, choice: MemorySettings) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut add = |name: &str, elements: u64, choice: &str| {
        let bytes = elements.saturating_mul(F32);
        if bytes > 0 {
            buffers.push(Buffer { name: name.into(), place: Place::Device, bytes, choice: choice.into() });
        }
    };
    let parameters = needs.parameters;
    add("attacked weights", parameters, "f32");
    add("unattacked weights", parameters, "f32, restored bit for bit after each trajectory");
    add("reference weights", parameters, "f32, frozen");
    add("meta-gradient", parameters, "f32");
    add("outer optimizer", parameters * needs.outer_states, "f32 states");
    if !needs.full_optimizers.is_empty() {
        if choice.step_in_backward {
            add("attack gradient", needs.part_gradients, "f32, a part, stepped within backward");
        } else {
            add("attack gradient", parameters, "f32, of all weights");
        }
        let states = needs.states_bytes(Moments::F32) / F32;
        add("attack optimizer", parameters * states, "f32 states, fresh for each trajectory");
    }
    for (factors, states) in &needs.adapters {
        add("attack LoRA", factors * (2 + states), "f32 factors, gradient and states");
    }
    let checkpoint = parameters * (1 + needs.outer_states + needs.ways.vectors);
    add("checkpoint", checkpoint, "copy of weights and outer states while it is written");
    let heads = if needs.teachers > 0 { 2 } else { 1 };
    let logits = (LOSS_HEAD_CHUNK * (heads * needs.model.vocab_size + (1 + heads) * needs.model.hidden_size)) as u64;
    add("logits of the loss head", logits, &format!("f32, {LOSS_HEAD_CHUNK} tokens at once"));
    let tokens = needs.largest_batch;
    let activations = needs.activation_bytes(DType::F32, choice.recompute);
    let how = if choice.recompute == Recompute::Nothing { "every one kept" } else { "some computed again" };
    add("activations", activations / F32, &format!("f32, {how}, {tokens} tokens"));
    let states = needs.hidden_states * needs.hidden_states_bytes(DType::F32);
    add("reference hidden states", states / F32, "f32, for losses that compare with them");
    let teachers = needs.teachers * needs.teacher_bytes(DType::F32);
    add("teacher", teachers / F32, "f32, its last hidden states and its head");
    let Ways { gradients, windows, vectors, edits, adversaries, masks } = needs.ways;
    add("gradients of steps", gradients * parameters, "f32, to points at one step along them");
    add("windows of points", windows * parameters.min(SHIFT_WINDOW as u64), "f32, through which weights move");
    add("frozen attack", vectors * parameters, "f32, what the last attack changed");
    add("weights at points", edits * parameters, "f32, a copy that is edited");
    add("persistent adversaries", adversaries * parameters, "f32 weights");
    add("masked and accumulated gradient", 2 * masks * parameters, "f32, of a mask of signs");
    buffers
}
