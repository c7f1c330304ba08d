//! `[defence]`: a defence composed of points, terms and what is trained; and the composition that `[tar]` stands for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AdversaryConfig, CompatConfig, OuterConfig, RunConfig, ScriptEntry, TarConfig, TrLoss, forms};
use crate::edits::Quantization;
use crate::model::Projection;
use crate::objective::TermLoss;
use crate::safeguard::Disturbance;
use crate::tar::{AttackLength, BASE, Curriculum, Direction, PoolSettings, RESISTANCE, RETAIN, SignMask};

/// `[defence]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefenceConfig {
    /// Outer steps; those of all rounds where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer_steps: Option<u64>,
    /// The gradients taken at points are dropped in steps whose Σ weight · loss at points is below this bound; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_bound: Option<f64>,
    /// How the gradients of the terms become the gradient of a step.
    #[serde(default)]
    pub combine: CombineChoice,
    /// What happens to the weights before the first step; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Disturbance>,
    /// The weights that change.
    #[serde(default, with = "forms::part_or_all")]
    pub trained: Option<TrainedConfig>,
    /// The outer optimizer.
    #[serde(default)]
    pub outer: OuterConfig,
    /// The points beside the weights where gradients are taken, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub point: BTreeMap<String, PointConfig>,
    /// The terms, in the order in which their gradients are added.
    #[serde(default)]
    pub term: Vec<TermConfig>,
    /// The adversaries that attacks are drawn from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adversary: Vec<AdversaryConfig>,
    /// Scripted draws of the first attacks; see `[[tar.script]]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<ScriptEntry>,
    /// Attacks that brought much back are kept and met again; never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolSettings>,
    /// Attacks begin short and grow; they have their whole length at once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<Curriculum>,
    /// Stages that follow one another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub round: Vec<RoundConfig>,
}

/// `[[defence.round]]`: a stage, with a fresh outer optimizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundConfig {
    /// Its outer steps.
    pub outer_steps: u64,
    /// How many such rounds follow one another.
    #[serde(default = "once")]
    pub repeat: u64,
    /// Its outer optimizer; that of the defence where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<OuterConfig>,
    /// The part of the weights that changes; that of the defence where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<TrainedConfig>,
    /// Its weights of terms, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
}

fn once() -> u64 {
    1
}

/// `defence.combine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CombineChoice {
    /// Their sum.
    #[default]
    Sum,
    /// The accumulated gradient at the base, and of the gradient at points what has its signs.
    SignMask(SignMask),
}

/// `defence.trained`, where it is not `"all"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedConfig {
    /// The layers, from 0; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// The projections, with their biases; every tensor of the layers where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<Vec<Projection>>,
}

/// `[defence.point.NAME]`: one key, which says how the point is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointConfig {
    /// Simulated fine-tuning attacks, with gradients along each.
    Attack(AttackPoint),
    /// What a simulated attack changed some outer steps ago.
    FrozenAttack(FrozenAttackPoint),
    /// One normalised step along the gradient of a loss.
    Step(StepPoint),
    /// Gaussian noise.
    Noise(NoisePoint),
    /// The removal of the direction that tells two kinds of prompts apart.
    Ablation(AblationPoint),
    /// Rounding of the projections to a few bits.
    Rounding(RoundingPoint),
    /// An adversary that goes on learning from one outer step to the next.
    Persistent(PersistentPoint),
}

/// `frozen_attack` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenAttackPoint {
    /// K, the steps of one attack.
    pub steps: u64,
    /// Outer steps that one attack serves.
    pub refresh: u64,
    /// The outer step that begins with the first attack; before it the point is the base.
    #[serde(default)]
    pub first: u64,
}

/// `noise` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoisePoint {
    /// Standard deviation, relative to the root mean square of the weight's tensor.
    pub relative: f64,
    /// Draws in one outer step; each gradient is divided by their number.
    #[serde(default = "once")]
    pub tasks: u64,
}

/// `ablation` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationPoint {
    /// Stream of restricted prompts.
    pub restricted: String,
    /// Stream of harmless prompts.
    pub harmless: String,
    /// Depth of the hidden states that the direction is taken from, as a fraction of the layers.
    pub depth: f64,
    /// Batches of each stream that it is found with.
    #[serde(default = "once")]
    pub batches: u64,
    /// Outer steps that one direction serves.
    #[serde(default = "once")]
    pub refresh: u64,
}

/// `rounding` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundingPoint {
    /// Bits that are left of a weight.
    pub bits: u32,
    /// Neighbouring weights of a row that share a scale.
    pub group: usize,
    /// Whether the grid is the same on both sides of 0.
    pub symmetric: bool,
}

impl Default for RoundingPoint {
    fn default() -> Self {
        let Quantization { bits, group, symmetric } = Quantization::default();
        Self { bits, group, symmetric }
    }
}

impl RoundingPoint {
    /// The rounding.
    pub fn quantization(&self) -> Quantization {
        Quantization { bits: self.bits, group: self.group, symmetric: self.symmetric }
    }
}

/// `attack` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttackPoint {
    /// K, the steps of one attack.
    pub steps: u64,
    /// Gradients are taken after every n-th step.
    pub every: u64,
    /// λ of the factor exp(λ(k − (K−1))) on the gradients after step k; `"equal"` in a run file, `None` here, for 1/K.
    #[serde(with = "forms::number_or_equal")]
    pub schedule_lambda: Option<f64>,
    /// Attacks in one outer step; each gradient is divided by their number.
    pub tasks: u64,
}

impl Default for AttackPoint {
    fn default() -> Self {
        let TarConfig { inner_steps, tr_every, schedule_lambda, tasks_per_step, .. } = TarConfig::default();
        Self { steps: inner_steps, every: tr_every, schedule_lambda, tasks: tasks_per_step }
    }
}

/// `step` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepPoint {
    /// Stream of the loss.
    pub data: String,
    /// The loss whose gradient it follows.
    #[serde(default = "cross_entropy")]
    pub loss: TermLoss,
    /// The length of the step, as an L2 norm over the trained weights.
    pub size: f64,
    /// `down` the loss, or `up`.
    #[serde(default)]
    pub direction: Direction,
}

/// `persistent` of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistentPoint {
    /// The stream that it learns.
    pub data: String,
    /// The learning rate of its plain SGD.
    pub lr: f64,
    /// It starts from the weights again at every n-th outer step.
    pub fork_every: u64,
}

/// `[[defence.term]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermConfig {
    /// Its name in the metrics stream; its data and its point where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The loss.
    pub loss: TermLoss,
    /// Stream of its batches.
    pub data: String,
    /// Factor on its gradient; below 0 the loss is climbed.
    #[serde(default = "whole")]
    pub weight: f64,
    /// Where the gradient is taken: `base`, or the name of a point.
    #[serde(default = "base")]
    pub at: String,
}

impl TermConfig {
    /// Its name in the metrics stream.
    pub fn name(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None if self.at == BASE => self.data.clone(),
            None => format!("{} {}", self.data, self.at),
        }
    }
}

fn whole() -> f64 {
    1.0
}

fn cross_entropy() -> TermLoss {
    TermLoss::CrossEntropy
}

fn base() -> String {
    BASE.into()
}

/// The name of the point of TAR's composition.
const ATTACKED: &str = "attacked";

impl AttackPoint {
    /// The length of its attacks.
    pub fn length(&self) -> AttackLength {
        AttackLength { inner_steps: self.steps, tr_every: self.every }
    }
}

impl FrozenAttackPoint {
    /// The length of its attacks, along which no gradient is taken but at the end.
    pub fn length(&self) -> AttackLength {
        AttackLength { inner_steps: self.steps, tr_every: self.steps }
    }
}

impl TarConfig {
    /// The length of its attacks.
    pub fn length(&self) -> AttackLength {
        AttackLength { inner_steps: self.inner_steps, tr_every: self.tr_every }
    }

    /// Whether no key of `[tar]` was written.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The composition that it stands for: tamper-resistance gradients at attacked points, and the retain gradient at the
    /// base.
    fn composition(&self, compat: &CompatConfig) -> DefenceConfig {
        let attack = AttackPoint {
            steps: self.inner_steps,
            every: self.tr_every,
            schedule_lambda: self.schedule_lambda,
            tasks: self.tasks_per_step,
        };
        let term = |name: &str, loss, data: &str, weight, at: &str| TermConfig {
            name: Some(name.into()),
            loss,
            data: data.into(),
            weight,
            at: at.into(),
        };
        let resistance = match self.tr_loss {
            TrLoss::MaxEntropy => TermLoss::NegativeEntropy { over: compat.entropy_over },
            TrLoss::Dpo => TermLoss::Preference { beta: self.dpo_beta as f32 },
        };
        let retain = if self.retain_representations {
            TermLoss::Retain { over: compat.representations_over }
        } else {
            TermLoss::CrossEntropy
        };
        DefenceConfig {
            outer_steps: Some(self.outer_steps),
            lower_bound: self.lower_bound,
            combine: CombineChoice::Sum,
            start: None,
            trained: None,
            outer: self.outer.clone(),
            point: [(ATTACKED.to_string(), PointConfig::Attack(attack))].into(),
            term: vec![
                term(RESISTANCE, resistance, &self.tr_data, self.tr_scale, ATTACKED),
                term(RETAIN, retain, &self.retain_data, self.retain_scale, BASE),
            ],
            adversary: self.adversary.clone(),
            script: self.script.clone(),
            pool: self.pool,
            curriculum: self.curriculum,
            round: Vec::new(),
        }
    }
}

impl RunConfig {
    /// The composition of the run: `[defence]`, or what `[tar]` stands for.
    pub fn composition(&self) -> DefenceConfig {
        self.defence.clone().unwrap_or_else(|| self.tar.composition(&self.compat))
    }

    /// Outer steps of the run.
    pub fn outer_steps(&self) -> u64 {
        self.defence.as_ref().map_or(self.tar.outer_steps, DefenceConfig::steps)
    }

    /// Changes the outer steps of the run.
    pub fn set_outer_steps(&mut self, steps: u64) {
        match &mut self.defence {
            Some(defence) => defence.outer_steps = Some(steps),
            None => self.tar.outer_steps = steps,
        }
    }
}
