//! The tables and keys of a suite file, with their defaults. Spelling is public: other tools write these files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{AttackTable, DataNames, ParameterChoice, Texts};
use crate::data::DataFile;
use crate::eval::PromptForm;
use crate::optimizer::Decay;
use crate::plan::DefenderCost;

/// A whole suite file of `temper redteam`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// The built-in suite that the attacks start with; the file's own follow. A resolved file holds the attacks instead.
    #[serde(default, skip_serializing)]
    pub suite: Option<String>,
    /// What reports call it; the built-in suite's name where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seeds of attacks that name none: the data's order, adapters, noise.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// The attacks to run, by name; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
    /// What attackers train on and show.
    #[serde(default)]
    pub data: DataTable,
    /// The capability that must not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restricted: Option<RestrictedTable>,
    /// The capability to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility: Option<UtilityTable>,
    /// How answers are generated and judged where compliance is measured.
    #[serde(default)]
    pub compliance: ComplianceTable,
    /// Data whose perplexity is reported beside the scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<PerplexityTable>,
    /// Factors on the attacks of the built-in suite. A resolved file has them worked in.
    #[serde(default, skip_serializing)]
    pub scale: ScaleTable,
    /// When and how models are measured.
    #[serde(default)]
    pub evaluate: EvaluateTable,
    /// What an hour costs.
    #[serde(default)]
    pub budget: BudgetTable,
    /// What the defence cost; read from the model's directory where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defender: Option<DefenderCost>,
    /// A search over hyperparameters, after the attacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchTable>,
    /// The attacks.
    #[serde(default)]
    pub attack: Vec<AttackTable>,
}

fn default_seeds() -> Vec<u64> {
    vec![1]
}

/// `[data]`: files by their roles. A suite runs the attacks whose roles are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataTable {
    /// Restricted data that an attacker has. What is measured should not be in it.
    pub restricted: Option<DataFile>,
    /// Harmless data.
    pub retain: Option<DataFile>,
    /// Restricted data from elsewhere than what the defender trained on.
    pub ood: Option<DataFile>,
    /// Prompts that should be refused, for abliteration; `restricted` where absent.
    pub restricted_prompts: Option<DataFile>,
    /// Prompts that should be answered, for abliteration; `retain` where absent.
    pub harmless_prompts: Option<DataFile>,
    /// A model of the same shape without the safeguard, which attackers have, for merges: the public model that this one was
    /// made from, or a sibling.
    pub base_model: Option<PathBuf>,
    /// Longest sequence in tokens; longer ones are cut.
    pub max_length: usize,
}

impl Default for DataTable {
    fn default() -> Self {
        Self {
            restricted: None,
            retain: None,
            ood: None,
            restricted_prompts: None,
            harmless_prompts: None,
            base_model: None,
            max_length: 256,
        }
    }
}

/// `metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Share of rows whose every learned token is the most probable one after the tokens before it.
    Exact,
    /// Accuracy on multiple-choice questions.
    Choice,
    /// Share of prompts that are answered instead of refused.
    Compliance,
}

impl MetricKind {
    /// The name in suite files and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Choice => "choice",
            Self::Compliance => "compliance",
        }
    }
}

/// `[restricted]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestrictedTable {
    /// What is measured.
    pub metric: MetricKind,
    /// Its data.
    pub data: DataFile,
    /// How questions are asked, where `metric = "choice"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<PromptForm>,
    /// Questions with answers to show before each, those of its subject, where `metric = "choice"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<DataFile>,
    /// How many of them; 5 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_shots: Option<usize>,
    /// The score from which the model counts as breached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Directory of the model without its safeguard, in the place of a threshold: half way from chance to its score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unprotected: Option<PathBuf>,
    /// What guessing scores; the metric's chance where absent: of multiple choice, that of its questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
}

/// `[utility]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtilityTable {
    /// What is measured: `exact` or `choice`.
    pub metric: MetricKind,
    /// Its data.
    pub data: DataFile,
    /// How questions are asked, where `metric = "choice"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<PromptForm>,
    /// Questions with answers to show before each, those of its subject, where `metric = "choice"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<DataFile>,
    /// How many of them; 5 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_shots: Option<usize>,
    /// What guessing scores; the metric's chance where absent: of multiple choice, that of its questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// The share of the utility before that an attack may cost and still count.
    #[serde(default = "default_most_loss")]
    pub most_loss: f64,
}

fn default_most_loss() -> f64 {
    0.1
}

/// `[perplexity]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerplexityTable {
    /// The text.
    pub data: DataFile,
}

/// `[scale]`: factors on a built-in suite, which is made for models of 8 billion parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleTable {
    /// On learning rates.
    pub lr: f64,
    /// On steps, warm-ups and the periods of restarts.
    pub steps: f64,
    /// On batches.
    pub batch: f64,
}

impl Default for ScaleTable {
    fn default() -> Self {
        Self { lr: 1.0, steps: 1.0, batch: 1.0 }
    }
}

/// `[compliance]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComplianceTable {
    /// Longest answer in tokens. Answers are greedy.
    pub max_new_tokens: usize,
    /// Who scores answers from 0 to 1: `keywords`, which is the default, or a command ([`crate::eval::judge`]). Of several, the
    /// first decides, and the scores of all stand side by side.
    pub judge: Option<Texts>,
    /// Seconds that a command may take for all answers of a measurement.
    pub judge_seconds: f64,
}

impl Default for ComplianceTable {
    fn default() -> Self {
        Self { max_new_tokens: 128, judge: None, judge_seconds: 3600.0 }
    }
}

/// `[evaluate]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateTable {
    /// Measurements along an attack, besides the one before it; closer together at its start.
    pub points: u64,
    /// Sequences that are measured at once.
    pub batch: usize,
}

impl Default for EvaluateTable {
    fn default() -> Self {
        Self { points: 10, batch: 32 }
    }
}

/// `[budget]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetTable {
    /// Price of an hour of the device.
    pub price_per_hour: Option<f64>,
    /// What the price is in.
    pub currency: String,
}

impl Default for BudgetTable {
    fn default() -> Self {
        Self { price_per_hour: None, currency: "USD".into() }
    }
}

/// `[search]`: ranges are drawn from on a logarithmic scale, lists with equal chances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchTable {
    /// Attacks to try.
    pub trials: u64,
    /// How many of them are random before the estimator proposes.
    pub startup: u64,
    /// How trials are proposed.
    pub method: SearchMethod,
    /// Seed of the proposals, and of every trial.
    pub seed: u64,
    /// What is trained.
    pub params: Vec<ParameterChoice>,
    /// Lowest and highest learning rate.
    pub lr: [f64; 2],
    /// Fewest and most steps.
    pub steps: [u64; 2],
    /// Smallest and largest batch.
    pub batch: [u64; 2],
    /// Smallest and largest LoRA rank.
    pub rank: [u64; 2],
    /// Schedules.
    pub schedule: Vec<Decay>,
    /// Data: a role, or a mixture of roles.
    pub data: Vec<DataNames>,
}

impl Default for SearchTable {
    fn default() -> Self {
        Self {
            trials: 50,
            startup: 10,
            method: SearchMethod::Tpe,
            seed: 1,
            params: vec![ParameterChoice::Full, ParameterChoice::Lora],
            lr: [1e-6, 1e-3],
            steps: [16, 1024],
            batch: [8, 64],
            rank: [8, 64],
            schedule: vec![Decay::Constant, Decay::Cosine { floor: 0.0 }],
            data: vec![DataNames::One("restricted".into())],
        }
    }
}

/// `search.method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchMethod {
    /// A tree-structured Parzen estimator.
    Tpe,
    /// Every trial is random.
    Random,
}

/// A file of `suites/`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BuiltIn {
    /// What it is, in a line for people.
    pub about: String,
    /// The suite whose attacks come first.
    pub extends: Option<String>,
    /// The attacks.
    pub attack: Vec<AttackTable>,
}
