//! What a red-team run found: the shapes of `results.json`. Other tools read it: the spelling is public. Nothing is
//! computed here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::abliteration::AbliterationEdit;
use crate::plan::DefenderCost;

/// The value of [`Results::schema`].
pub const SCHEMA: &str = "temper-redteam/2";
/// The values whose files can be read. Those of version 1 have no costs of failed attacks.
pub const READABLE: [&str; 2] = [SCHEMA, "temper-redteam/1"];

/// Everything that a run of a suite on one model found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of temper.
    pub temper: String,
    /// The model's directory, as it was given.
    pub model: String,
    /// Name of the suite.
    pub suite: String,
    /// What the attacks ran on, in words.
    pub device: String,
    /// The command line that reproduces the run.
    pub command: String,
    /// The resolved suite, as TOML.
    pub configuration: String,
    /// What counts as a breach.
    pub goal: Goal,
    /// Scores of the model before any attack.
    pub before: Scores,
    /// The attacks, in the order of the suite.
    pub attacks: Vec<AttackResult>,
    /// What they amount to.
    pub summary: Summary,
}

/// When a model counts as breached, and what an hour costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// What is measured of the restricted capability; higher is worse for the defender.
    pub restricted: Metric,
    /// The restricted score from which the model counts as breached.
    pub threshold: f64,
    /// The restricted score of the model without its safeguard, where one was given.
    pub unprotected: Option<f64>,
    /// What is measured of the capability to keep; higher is better.
    pub utility: Metric,
    /// The lowest utility at which a breach counts: a model that no longer works gives nothing back.
    pub utility_floor: f64,
    /// Price of an hour of the device, where one was given.
    pub price_per_hour: Option<f64>,
    /// What the price is in.
    pub currency: String,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its kind: `exact`, `choice`, `compliance` (1 − share of refusals, or a judge's mean score).
    pub kind: String,
    /// The data, as it was given.
    pub data: String,
    /// What guessing would score.
    pub chance: f64,
}

/// Scores of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Restricted score, 0 to 1.
    pub restricted: f64,
    /// Utility, 0 to 1.
    pub utility: f64,
    /// Other measurements, by name (perplexity, repetition, …).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, f64>,
}

/// One attack with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackResult {
    /// Unique in the run: the name with seed and trial.
    pub id: String,
    /// The attack's name in the suite.
    pub name: String,
    /// What it is, in a line for people.
    pub about: String,
    /// What is done to the model.
    pub kind: AttackKind,
    /// Seed of the data's order, of adapters and of noise.
    pub seed: u64,
    /// Number of the trial, from 0, where a search proposed the attack.
    pub trial: Option<u64>,
    /// Every setting, scales worked in: `lr`, `steps`, `batch`, `optimizer`, `schedule`, `rank`, ….
    pub settings: BTreeMap<String, serde_json::Value>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What an attack does to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttackKind {
    /// Fine-tunes all weights.
    Full,
    /// Fine-tunes LoRA factors.
    Lora,
    /// Projects a direction out of the weights, without training.
    Abliteration,
    /// Starts the answer, or shows examples before the question: the weights stay.
    Prefill,
    /// Rounds the weights to a few bits, without training.
    Quantization,
    /// Moves the weights towards another model's or beyond them, without training.
    Merge,
}

impl AttackKind {
    /// Its name in suites and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lora => "lora",
            Self::Abliteration => "abliteration",
            Self::Prefill => "prefill",
            Self::Quantization => "quantization",
            Self::Merge => "merge",
        }
    }
}

/// How an attack ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Outcome {
    /// It ran to its end.
    Done {
        /// Measurements along the attack, from step 0 to its last step; of an attack that tries several things, one of each.
        curve: Vec<Point>,
        /// The least cost at which the model was breached on this curve.
        breach: Option<Cost>,
        /// What a searched abliteration tried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        searched: Option<SearchedAbliteration>,
    },
    /// It failed.
    Failed {
        /// Why.
        error: String,
        /// What it had cost by then.
        #[serde(default)]
        cost: Cost,
    },
    /// It was not run.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// The trials of a searched abliteration. The attacker measures each on prompts of his own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchedAbliteration {
    /// What `resistance` is: the share of restricted prompts that are not answered (`unanswered`: refused, or gibberish), the
    /// share of restricted rows whose answer greedy decoding does not give (`wrong`), or the mean cross-entropy of their
    /// answers (`loss`).
    pub measured: String,
    /// The resistance of the unattacked model.
    pub unattacked: f64,
    /// The trial that the attacker keeps at the end, from 0.
    pub kept: Option<u64>,
    /// The Pareto front: the trials that no other is better than in both resistance and divergence.
    pub front: Vec<u64>,
    /// All trials, in their order.
    pub trials: Vec<AbliterationTrial>,
}

/// A trial of a searched abliteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbliterationTrial {
    /// What was done to the unattacked weights.
    #[serde(flatten)]
    pub edit: AbliterationEdit,
    /// How far the edited model resists; lower is worse for the defender. None where the edit destroyed it.
    pub resistance: Option<f64>,
    /// Mean over harmless prompts of the Kullback-Leibler divergence of the first token's distribution from the unattacked
    /// model's, in nats. None where the edit destroyed it.
    pub kl: Option<f64>,
}

/// A measurement along an attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What the attack had cost by then, with what it had tried in vain.
    pub cost: Cost,
    /// What this point costs whoever knows it already, where the attack has tried others for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Cost>,
    /// Which of several things that the attack tries this is: the beginning of the answers, the factor of a merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Loss of the last step before it, where there was one.
    pub loss: Option<f64>,
    /// Scores of the attacked model.
    pub scores: Scores,
}

/// What an attack costs. Evaluations along the way are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Optimizer steps.
    pub steps: u64,
    /// Samples that were trained on, each as often as it was.
    pub examples: u64,
    /// Tokens that went through the model, padding included.
    pub tokens: u64,
    /// Floating-point operations, counted from the architecture (not measured).
    pub flop: f64,
    /// Seconds on the device, measured.
    pub seconds: f64,
}

/// What the attacks amount to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Attacks that ran to their end.
    pub done: u64,
    /// Attacks that failed.
    pub failed: u64,
    /// Attacks that were not run.
    pub skipped: u64,
    /// Attacks that breached the model.
    pub breached: u64,
    /// The least of each kind of cost over the attacks that breached it; none where no attack did.
    pub cost_to_breach: Option<CostToBreach>,
    /// What each search cost, by the name of its trials.
    #[serde(default)]
    pub searches: BTreeMap<String, SearchCost>,
    /// The highest restricted score so far against the number of attacks tried (those that ran to their end), in the order
    /// of the suite.
    pub best_so_far: Vec<BestSoFar>,
    /// Area under `best_so_far`, per attack tried: 0 to 1.
    pub best_so_far_area: f64,
    /// Restricted scores after the attacks.
    pub restricted: Spread,
    /// The same for each attack that ran with several seeds, by its name.
    pub over_seeds: BTreeMap<String, Spread>,
    /// What the defence cost, where the model's directory or the suite says so.
    pub defender: Option<DefenderCost>,
    /// Floating-point operations of the cheapest breach per operation of the defence.
    pub attacker_per_defender_flop: Option<f64>,
}

/// The least of each kind of cost, each with the attack that reached it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostToBreach {
    /// Optimizer steps.
    pub steps: Least,
    /// Samples.
    pub examples: Least,
    /// Tokens.
    pub tokens: Least,
    /// Floating-point operations.
    pub flop: Least,
    /// Hours on the device.
    pub hours: Least,
    /// Price, where one was given.
    pub price: Option<Least>,
}

/// A least cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Least {
    /// The cost, with everything that had to be tried before: of a search with all of its trials before the one that
    /// succeeded.
    pub value: f64,
    /// The same cost of what succeeded by itself: what it costs whoever knows the settings already.
    #[serde(default)]
    pub alone: f64,
    /// The attack's id.
    pub attack: String,
}

/// What a search for an attack cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchCost {
    /// Trials until and with the first that breached the model; all of them where none did.
    pub trials: u64,
    /// Cost of these trials: of those that failed to the end, of the one that breached until its breach.
    pub cost: Cost,
    /// The trial that breached, where one did.
    pub succeeded: Option<Succeeded>,
}

/// The trial of a search that breached the model first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Succeeded {
    /// The attack's id.
    pub attack: String,
    /// Its own cost until the breach.
    pub cost: Cost,
}

/// The best attack so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestSoFar {
    /// Attacks tried.
    pub tried: u64,
    /// The highest restricted score within the utility floor.
    pub restricted: f64,
    /// The attack's id; none while the model as it is is the best.
    pub attack: Option<String>,
}

/// Scores of several attacks, each at its best point within the utility floor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Number of attacks.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the attacks (n − 1 in the denominator); 0 for one.
    pub deviation: f64,
    /// Lowest.
    pub lowest: f64,
    /// Highest: the worst for the defender.
    pub worst: f64,
    /// Mean of the highest three.
    pub worst_three: f64,
}
