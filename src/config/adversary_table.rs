//! The tables of simulated attacks in a run file: `[[tar.adversary]]`, and `[[tar.script]]`.

use serde::{Deserialize, Serialize};

use super::attack_table::check_targets;
use super::{Choices, CompatConfig, DataNames, ParameterChoice};
use crate::error::Result;
use crate::model::{AdapterConfig, Projection};
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
use crate::settings::fault;
use crate::tar::{AttackLength, LearningRates, ShareRange};
use crate::training::{FineTune, Source, check_optimizer};

/// The published switch distribution, for adversaries of two streams that do not say.
const DEFAULT_SWITCH: [f64; 2] = [6.0, 3.0];

/// `[[tar.adversary]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversaryConfig {
    /// Its name, for logs and scripts.
    pub name: String,
    /// What it trains on.
    pub data: DataNames,
    /// How often it is drawn, relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// What it trains.
    #[serde(default)]
    pub params: ParameterChoice,
    /// The share of one stream of a mixture, drawn for each attack; the weights of `data` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<ShareRange>,
    /// Learning rates, one drawn for each attack: a number, a list, or a range.
    pub lr: LearningRates,
    /// Its optimizer, fresh for each trajectory.
    #[serde(default = "adamw")]
    pub optimizer: OptimizerKind,
    /// Warm-up steps of its learning rate.
    #[serde(default)]
    pub warmup: u64,
    /// What the learning rate does after its warm-up until the last inner step; of a list, one is drawn for each attack.
    #[serde(default = "constant")]
    pub schedule: Choices<Decay>,
    /// Weight decay; the optimizer's own where absent.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// β1 and β2 of the Adam family.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// LoRA rank, where `params = "lora"`; of a list, one is drawn for each attack.
    #[serde(default = "default_rank")]
    pub rank: Choices<usize>,
    /// LoRA alpha of the first rank; the others have the same factor α/r.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// LoRA dropout.
    #[serde(default)]
    pub dropout: f64,
    /// The projections that LoRA adapts.
    #[serde(default = "all_projections")]
    pub targets: Vec<Projection>,
    /// Where a two-stream adversary switches.
    #[serde(default)]
    pub switch: Option<SwitchDraw>,
    /// K; that of `[tar]` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_steps: Option<u64>,
    /// A tamper-resistance gradient is taken after every `tr_every`-th inner step; as `[tar]` says where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tr_every: Option<u64>,
    /// Sequences of an inner step; each stream's own `batch` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Stream of the tamper-resistance loss; that of `[tar]` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tr_data: Option<String>,
}

fn one() -> f64 {
    1.0
}

fn adamw() -> OptimizerKind {
    OptimizerKind::AdamW
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn all_projections() -> Vec<Projection> {
    Projection::ALL.to_vec()
}

fn default_rank() -> Choices<usize> {
    Choices(vec![16])
}

fn constant() -> Choices<Decay> {
    Choices(vec![Decay::Constant])
}

fn default_alpha() -> f64 {
    32.0
}

/// `switch = {beta = [6, 3]}`: the switch is at inner step ⌊K · Beta(a, b)⌋.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchDraw {
    /// Parameters of the Beta distribution.
    pub beta: [f64; 2],
}

/// `[[tar.script]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptEntry {
    /// Name of the adversary.
    pub adversary: String,
    /// Its learning rate.
    pub lr: f64,
    /// Its switch step, for adversaries of two streams.
    pub switch_at: Option<u64>,
}

impl AdversaryConfig {
    /// An adversary with the default of every other key.
    pub fn new(name: &str, data: DataNames, lr: &[f64]) -> Self {
        Self {
            name: name.to_string(),
            data,
            weight: 1.0,
            params: ParameterChoice::Full,
            share: None,
            lr: LearningRates::List(lr.to_vec()),
            optimizer: OptimizerKind::AdamW,
            warmup: 0,
            schedule: Choices(vec![Decay::Constant]),
            weight_decay: None,
            betas: [0.9, 0.999],
            rank: Choices(vec![16]),
            alpha: 32.0,
            dropout: 0.0,
            targets: Projection::ALL.to_vec(),
            switch: None,
            inner_steps: None,
            tr_every: None,
            batch: None,
            tr_data: None,
        }
    }

    /// The whole length of its attacks, where those of others are as long as `length` says.
    pub fn whole_length(&self, length: AttackLength) -> AttackLength {
        AttackLength {
            inner_steps: self.inner_steps.unwrap_or(length.inner_steps),
            tr_every: self.tr_every.unwrap_or(length.tr_every),
        }
    }

    /// The optimizer of an attack that has drawn `lr`, with the first of its schedules.
    pub fn optimizer_config(&self, lr: f64, length: AttackLength, compat: &CompatConfig) -> OptimizerConfig {
        let schedule = Schedule {
            warmup: self.warmup,
            decay: self.schedule.0.first().copied().unwrap_or(Decay::Constant),
            total: self.whole_length(length).inner_steps,
            official_warmup: compat.official_warmup,
        };
        let plain = OptimizerConfig::new(self.optimizer, lr);
        OptimizerConfig { schedule, weight_decay: self.weight_decay, betas: self.betas, ..plain }
    }

    /// The LoRA adapter at the first of its ranks, where it trains one.
    pub fn adapter_config(&self) -> Option<AdapterConfig> {
        let rank = self.rank.0.first().copied().unwrap_or_default();
        (self.params == ParameterChoice::Lora).then(|| AdapterConfig {
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.iter().copied().collect(),
            ..AdapterConfig::new(rank)
        })
    }

    /// The LoRA adapter at each of its ranks; none where it trains all weights.
    pub fn adapter_configs(&self) -> Vec<AdapterConfig> {
        let Some(first) = self.adapter_config() else { return Vec::new() };
        self.rank.0.iter().map(|&rank| first.with_rank(rank)).collect()
    }

    /// What it trains on; a switch has the (a, b) of ⌊K · Beta(a, b)⌋.
    pub fn source(&self) -> Source<String, [f64; 2]> {
        let beta = self.switch.map_or(DEFAULT_SWITCH, |switch| switch.beta);
        match &self.data {
            Source::One(name) => Source::One(name.clone()),
            Source::Switch { streams, at: () } => Source::Switch { streams: streams.clone(), at: beta },
            Source::Mixture(parts) => Source::Mixture(parts.clone()),
        }
    }

    /// Fails where one of its attacks is out of range; `key` is the place of its table.
    pub(super) fn check_attacks(&self, key: &str, length: AttackLength, compat: &CompatConfig) -> Result<()> {
        check_targets(&format!("{key}.targets"), &self.targets)?;
        self.lr.check(&format!("{key}.lr"))?;
        has_entries(&format!("{key}.schedule"), &self.schedule)?;
        has_entries(&format!("{key}.rank"), &self.rank)?;
        // A switch, where it has one, is at step 0.
        let source = self.data.try_map(|name| Ok(name.clone()), |()| Ok(0))?;
        let lr = self.lr.ends().first().copied().unwrap_or_default();
        let steps = self.whole_length(length).inner_steps;
        let plain = FineTune::new(source, self.optimizer_config(lr, length, compat), steps);
        let attack = FineTune { adapter: self.adapter_config(), batch: self.batch, ..plain };
        attack.check(key)?;
        // What is drawn of one list does not decide what may be drawn of another.
        let mut optimizer = attack.optimizer;
        for decay in &self.schedule.0 {
            optimizer.schedule.decay = *decay;
            check_optimizer(key, &optimizer)?;
        }
        self.adapter_configs().iter().try_for_each(|adapter| adapter.check(key))
    }
}

fn has_entries<T>(key: &str, choices: &Choices<T>) -> Result<()> {
    if choices.0.is_empty() { Err(fault(key, "has no entry", "give at least one")) } else { Ok(()) }
}
