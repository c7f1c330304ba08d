//! The tables and keys of a run file, with their defaults. Spelling is public: other tools write these files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AdversaryConfig, DefenceConfig, ScriptEntry, forms};
use crate::data::{Columns, DataFile};
use crate::huggingface::ExportDType;
use crate::model::Recompute;
use crate::objective::EntropyOver;
use crate::optimizer::{Decay, OptimizerKind};
use crate::tar::{Curriculum, PoolSettings};
use crate::training::{MemorySettings, Moments, Source};
use crate::tuning::TuningPin;

/// A whole run file of `temper harden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The preset that the file starts from (`bio`, `booster`, …: docs/defences.md); its own keys win. A resolved file holds
    /// the values instead of the name.
    #[serde(default, skip_serializing)]
    pub preset: Option<String>,
    /// Seed of every random draw.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Which measured choices of the device's kernels the run follows: `"off"`, or a file of `temper tune`. Where absent, what
    /// the device was opened with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<TuningPin>,
    /// The model to harden.
    pub model: ModelSection,
    /// The data streams, by the names that the other tables use.
    pub data: BTreeMap<String, DataConfig>,
    /// A plain safeguard to train first; absent where the model has had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safeguard: Option<SafeguardConfig>,
    /// TAR.
    #[serde(default, skip_serializing_if = "TarConfig::is_default")]
    pub tar: TarConfig,
    /// Another defence in the place of `[tar]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defence: Option<DefenceConfig>,
    /// When to write checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What attacks trade for memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Behaviours of the authors' code that differ from what is right.
    #[serde(default)]
    pub compat: CompatConfig,
}

fn default_seed() -> u64 {
    42
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Hugging Face directory of the model to harden, already with its plain safeguard.
    pub path: PathBuf,
    /// Directory of the frozen reference model of the retain loss; the model itself where absent.
    pub reference: Option<PathBuf>,
    /// Dtype of the files that are written; the input's where absent.
    pub dtype: Option<ExportDType>,
}

/// `[data.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The data file, or a directory of them.
    pub path: PathBuf,
    /// What its columns are, where they have names of their own: `{ prompt = "Behavior" }`.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Whether each pass has its own random order; otherwise file order.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Sequences of one batch.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Longest sequence in tokens; longer ones are cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Whether sequences lie one after another (packed) or are padded to the longest of the batch.
    #[serde(default = "yes")]
    pub pack: bool,
}

impl DataConfig {
    /// The file, and what its columns are.
    pub fn file(&self) -> DataFile {
        DataFile { path: self.path.clone(), columns: self.columns.clone() }
    }
}

fn yes() -> bool {
    true
}

fn default_batch() -> usize {
    8
}

fn default_max_length() -> usize {
    256
}

/// `[safeguard]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafeguardConfig {
    /// What it does.
    pub method: SafeguardMethod,
    /// Stream of restricted data (for refusal: of preference pairs).
    pub data: String,
    /// Stream of its retain loss; that of `[tar]` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_data: Option<String>,
    /// Steps. The published random mapping takes 600.
    #[serde(default = "safeguard_steps")]
    pub steps: u64,
    /// Its optimizer.
    #[serde(default = "schedulefree_adamw")]
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    #[serde(default = "safeguard_lr")]
    pub lr: f64,
    /// Warm-up steps.
    #[serde(default = "safeguard_warmup")]
    pub warmup: u64,
}

fn safeguard_steps() -> u64 {
    600
}

fn schedulefree_adamw() -> OptimizerKind {
    OptimizerKind::ScheduleFreeAdamW
}

fn safeguard_lr() -> f64 {
    1e-5
}

fn safeguard_warmup() -> u64 {
    100
}

/// `safeguard.method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SafeguardMethod {
    /// Hidden states to random directions.
    RandomMapping,
    /// A uniform next-token distribution.
    MaxEntropy,
    /// Refusals preferred to compliance.
    Refusal,
}

/// `[tar]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TarConfig {
    /// N.
    pub outer_steps: u64,
    /// K.
    pub inner_steps: u64,
    /// A TR gradient is taken after every `tr_every`-th inner step.
    pub tr_every: u64,
    /// Factor on every TR gradient.
    pub tr_scale: f64,
    /// λ of the weight exp(λ(k − (K−1))) of inner step k; `"equal"` in a run file, `None` here, for equal weights.
    #[serde(with = "forms::number_or_equal")]
    pub schedule_lambda: Option<f64>,
    /// Factor on the retain gradient.
    pub retain_scale: f64,
    /// Whether the retain loss includes the distance of the hidden states to the reference model's.
    pub retain_representations: bool,
    /// Trajectories per outer step; each meta-gradient is divided by their number.
    pub tasks_per_step: u64,
    /// The tamper-resistance loss.
    pub tr_loss: TrLoss,
    /// β of direct preference optimization.
    pub dpo_beta: f64,
    /// Stream of the held-out batches that the tamper-resistance loss sees.
    pub tr_data: String,
    /// Stream of the retain loss.
    pub retain_data: String,
    /// Stop adding TR gradients once their weighted loss sum is below this bound (the authors': −ln V); absent: unbounded.
    pub lower_bound: Option<f64>,
    /// The outer optimizer.
    pub outer: OuterConfig,
    /// The adversaries that trajectories are drawn from.
    pub adversary: Vec<AdversaryConfig>,
    /// Scripted draws: entry i decides trajectory i; after the last one, draws are random again.
    pub script: Vec<ScriptEntry>,
    /// Attacks that brought much back are kept and met again; never where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolSettings>,
    /// Attacks begin short and grow; they have their whole length at once where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<Curriculum>,
}

impl Default for TarConfig {
    fn default() -> Self {
        Self {
            outer_steps: 750,
            inner_steps: 64,
            tr_every: 4,
            tr_scale: 4.0,
            schedule_lambda: Some(0.0625),
            retain_scale: 1.0,
            retain_representations: true,
            tasks_per_step: 1,
            tr_loss: TrLoss::MaxEntropy,
            dpo_beta: 0.1,
            tr_data: "meta".into(),
            retain_data: "retain".into(),
            lower_bound: None,
            outer: OuterConfig::default(),
            adversary: Vec::new(),
            script: Vec::new(),
            pool: None,
            curriculum: None,
        }
    }
}

/// `tar.tr_loss`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrLoss {
    /// Minus the entropy of the next-token distribution (knowledge).
    MaxEntropy,
    /// Direct preference optimization, with `dpo_beta` (refusal).
    Dpo,
}

/// `[tar.outer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OuterConfig {
    /// `schedulefree_adamw` or `adamw`.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Warm-up steps.
    pub warmup: u64,
    /// What the learning rate does after its warm-up; a decay ends with the last of `outer_steps`.
    pub schedule: Decay,
    /// Weight decay; the optimizer's own where absent.
    pub weight_decay: Option<f64>,
    /// β1 and β2 of the Adam family.
    pub betas: [f64; 2],
}

impl Default for OuterConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::ScheduleFreeAdamW,
            lr: 2e-5,
            warmup: 32,
            schedule: Decay::Constant,
            weight_decay: None,
            betas: [0.9, 0.999],
        }
    }
}

/// What an attack trains on, as files write it: `"forget"`; `["retain", "forget"]`, the first until the switch and then the
/// second; or `{forget = 0.5, retain = 0.5}`, of which each step draws one. A key of its own says when a switch happens.
pub type DataNames = Source<String, ()>;

/// `params`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterChoice {
    /// All weights.
    #[default]
    Full,
    /// LoRA factors.
    Lora,
}

/// `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Outer steps between checkpoints; 0 for none but the one at a stop.
    pub every: u64,
    /// How many are kept.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 50, keep: 2 }
    }
}

/// `[memory]`: what attacks trade for memory. `"auto"` is what fits the GPU that the run is on, as `temper plan` says, and
/// on the CPU the first choice of each key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// How the optimizer of a full-parameter attack stores its moments.
    pub states: StatesChoice,
    /// What backward passes compute a second time. Changes no result.
    pub recompute: RecomputeChoice,
    /// Whether a full-parameter attack steps within the backward pass, without a whole gradient; `"auto"` in a run file,
    /// `None` here. Changes no result.
    #[serde(with = "forms::boolean_or_auto")]
    pub step_in_backward: Option<bool>,
}

/// `memory.states`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatesChoice {
    /// f32 if it fits.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, rounded at random; on a GPU with bf16 weights.
    Bf16,
}

/// `memory.recompute`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecomputeChoice {
    /// As little as possible.
    #[default]
    Auto,
    /// Nothing.
    Nothing,
    /// What needs no matrix product.
    Cheap,
    /// Besides, whole layers: on a GPU no more than there is no room for, on the CPU all.
    Layers,
}

impl MemoryConfig {
    /// The moments that a run file asks for.
    pub fn states(&self) -> Option<Moments> {
        match self.states {
            StatesChoice::Auto => None,
            StatesChoice::F32 => Some(Moments::F32),
            StatesChoice::Bf16 => Some(Moments::Bf16),
        }
    }

    /// The recomputation that a run file asks for.
    pub fn recompute(&self) -> Option<Recompute> {
        match self.recompute {
            RecomputeChoice::Auto => None,
            RecomputeChoice::Nothing => Some(Recompute::Nothing),
            RecomputeChoice::Cheap => Some(Recompute::Cheap),
            RecomputeChoice::Layers => Some(Recompute::Layers { kept: 0 }),
        }
    }

    /// The settings that a run file asks for, and `otherwise` where it leaves the choice.
    pub fn settings(&self, otherwise: MemorySettings) -> MemorySettings {
        MemorySettings {
            states: self.states().unwrap_or(otherwise.states),
            step_in_backward: self.step_in_backward.unwrap_or(otherwise.step_in_backward),
            recompute: self.recompute().unwrap_or(otherwise.recompute),
        }
    }
}

/// `[compat]`: each key's default is the right behaviour.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompatConfig {
    /// Which positions the entropy loss averages over: real tokens (`valid`), every position with padding (`all`), or
    /// only those that predict a learned token (`learned`).
    pub entropy_over: EntropyOver,
    /// Which positions the distance to the reference model's hidden states averages over.
    pub representations_over: EntropyOver,
    /// Which point of the schedule-free optimizer is saved.
    pub schedulefree_point: SchedulefreePoint,
    /// The authors' broken linear warm-up of attacks.
    pub official_warmup: bool,
    /// Consume one retain batch before the first outer step, as the authors' FSDP warm-up does.
    pub skip_first_retain_batch: bool,
}

/// `compat.schedulefree_point`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulefreePoint {
    /// x, the averaged iterate.
    #[default]
    Average,
    /// y, the point where gradients are taken.
    Train,
}
