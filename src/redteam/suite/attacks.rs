//! From the tables of a suite to the attacks to run: defaults filled in, one attack for each seed.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::schema::{DataTable, MetricKind, Suite};
use crate::config::{AbliterationSearch, AttackForm, AttackTable, Texts};
use crate::data::DataFile;
use crate::edits::Quantization;
use crate::error::{Error, Result};
use crate::redteam::AttackKind;
use crate::settings::suggestion;
use crate::training::{FineTune, Source};

/// What a data file is to an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The restricted data that he has.
    Restricted,
    /// Harmless data.
    Retain,
    /// Restricted data from elsewhere.
    Ood,
    /// Prompts that should be refused.
    RestrictedPrompts,
    /// Prompts that should be answered.
    HarmlessPrompts,
    /// The rows that the restricted score is measured on. An attack on some of them is scored on those that it holds out.
    Measured,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Restricted, Self::Retain, Self::Ood, Self::RestrictedPrompts, Self::HarmlessPrompts, Self::Measured];

    /// The name in suite files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restricted => "restricted",
            Self::Retain => "retain",
            Self::Ood => "ood",
            Self::RestrictedPrompts => "restricted_prompts",
            Self::HarmlessPrompts => "harmless_prompts",
            Self::Measured => "measured",
        }
    }

    /// The role of this name; `key` is the setting that has it.
    pub fn named(key: &str, name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| {
            let problem = format!("`{name}` is no role of [data]");
            Error::config(key, problem, suggestion(name, Self::ALL.iter().map(|role| role.name())))
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Suite {
    /// The file of a role. Prompts are those of the data where they have no file of their own.
    pub fn file(&self, role: Role) -> Option<&DataFile> {
        let DataTable { restricted, retain, ood, restricted_prompts, harmless_prompts, .. } = &self.data;
        match role {
            Role::Restricted => restricted.as_ref(),
            Role::Retain => retain.as_ref(),
            Role::Ood => ood.as_ref(),
            Role::RestrictedPrompts => restricted_prompts.as_ref().or(restricted.as_ref()),
            Role::HarmlessPrompts => harmless_prompts.as_ref().or(retain.as_ref()),
            Role::Measured => self.restricted.as_ref().map(|table| &table.data),
        }
    }

    /// Why the rows of a role cannot be trained on, where they cannot.
    fn no_rows(&self, role: Role) -> Option<String> {
        let metric = self.restricted.as_ref().map(|table| table.metric);
        if role == Role::Measured && metric != Some(MetricKind::Exact) {
            return Some("it trains on measured rows: only restricted.metric = \"exact\" has any".into());
        }
        self.file(role).is_none().then(|| format!("[data] has no `{}`", role.name()))
    }
}

/// What stands before a question or at the start of its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Prefill {
    /// So many rows of the restricted data, drawn by the seed.
    Demonstrations(usize),
    /// The beginning of the answer; of several the best counts.
    Answers(Vec<String>),
}

/// What an attack does.
#[derive(Clone, Debug, PartialEq)]
pub enum AttackMethod {
    /// Fine-tunes.
    Finetune(FineTune<Role>),
    /// Projects a direction out of the weights; found at this depth, or the best.
    Abliteration {
        /// A fraction of the layers.
        depth: Option<f64>,
    },
    /// Searches for the edit that projects directions out of the weights of chosen layers.
    SearchedAbliteration(AbliterationSearch),
    /// Leaves the weights.
    Prefill(Prefill),
    /// Rounds the weights.
    Quantize(Quantization),
    /// Moves the weights towards another model's, or beyond them; of several ways the best counts.
    Merge {
        /// The factors on the difference.
        coefficients: Vec<f64>,
    },
}

impl AttackMethod {
    /// The roles whose data it reads.
    pub fn roles(&self) -> Vec<Role> {
        match self {
            Self::Finetune(fine_tune) => fine_tune.source.streams().into_iter().copied().collect(),
            Self::Abliteration { .. } | Self::SearchedAbliteration(_) => {
                vec![Role::RestrictedPrompts, Role::HarmlessPrompts]
            }
            Self::Prefill(Prefill::Demonstrations(_)) => vec![Role::Restricted],
            Self::Prefill(Prefill::Answers(_)) | Self::Quantize(_) | Self::Merge { .. } => Vec::new(),
        }
    }
}

/// One attack with one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Attack {
    /// Unique in the run; also the name of a file.
    pub id: String,
    /// The name in the suite.
    pub name: String,
    /// What it is, in a line for people.
    pub about: String,
    /// What is done to the model.
    pub kind: AttackKind,
    /// The seed.
    pub seed: u64,
    /// Number of the trial where a search proposed it.
    pub trial: Option<u64>,
    /// What to do.
    pub method: AttackMethod,
    /// Every setting, for results.
    pub settings: BTreeMap<String, Value>,
    /// Why it cannot be run, where it cannot.
    pub unavailable: Option<String>,
}

impl Attack {
    /// Steps of its progress: those of a training, or the trials of a searched abliteration.
    pub fn steps(&self) -> u64 {
        match &self.method {
            AttackMethod::Finetune(finetune) => finetune.steps,
            AttackMethod::SearchedAbliteration(search) => search.trials,
            _ => 0,
        }
    }

    /// The longest answer that the attacker generates for himself in tokens, where he may generate any.
    pub fn answer_room(&self) -> Option<usize> {
        match &self.method {
            AttackMethod::Abliteration { .. } => Some(AbliterationSearch::default().max_new_tokens),
            AttackMethod::SearchedAbliteration(search) => Some(search.max_new_tokens),
            _ => None,
        }
    }
}

impl Suite {
    /// The attacks to run, in the order of the suite, seed by seed.
    ///
    /// # Errors
    /// When none of them can be run.
    pub fn attacks(&self) -> Result<Vec<Attack>> {
        let attacks = self.all_attacks()?;
        if self.search.is_none() && !attacks.iter().any(|attack| attack.unavailable.is_none()) {
            let reason = attacks.iter().find_map(|attack| attack.unavailable.clone()).unwrap_or_default();
            let problem = format!("none can be run: {reason}");
            return Err(Error::config("attack", problem, "add what they need, or choose others"));
        }
        Ok(attacks)
    }

    /// The attacks, with those that cannot be run.
    pub fn all_attacks(&self) -> Result<Vec<Attack>> {
        let chosen = |attack: &&AttackTable| self.only.as_ref().is_none_or(|only| only.contains(&attack.name));
        let mut attacks = Vec::new();
        for table in self.attack.iter().filter(chosen) {
            let table = table.filled(&self.seeds);
            for &seed in table.seeds.iter().flatten() {
                attacks.push(self.attack_of(&table, seed, None)?);
            }
        }
        Ok(attacks)
    }

    /// The attack of a table whose defaults are filled in.
    pub(crate) fn attack_of(&self, table: &AttackTable, seed: u64, trial: Option<u64>) -> Result<Attack> {
        let (kind, method) = match table.kind {
            AttackForm::Finetune => {
                let finetune = table.row_fine_tune("attack")?;
                let kind = if finetune.adapter.is_some() { AttackKind::Lora } else { AttackKind::Full };
                (kind, AttackMethod::Finetune(finetune))
            }
            AttackForm::Abliteration => {
                let searched = table.search.clone().map(AttackMethod::SearchedAbliteration);
                (AttackKind::Abliteration, searched.unwrap_or(AttackMethod::Abliteration { depth: table.layer }))
            }
            AttackForm::Prefill => {
                let answers = table.text.clone().map(|Texts(texts)| Prefill::Answers(texts));
                let prefill = answers.unwrap_or(Prefill::Demonstrations(table.demonstrations.unwrap_or(1)));
                (AttackKind::Prefill, AttackMethod::Prefill(prefill))
            }
            AttackForm::Quantization => (AttackKind::Quantization, AttackMethod::Quantize(table.quantization())),
            AttackForm::Merge => {
                let coefficients = table.coefficients.clone().unwrap_or_default();
                (AttackKind::Merge, AttackMethod::Merge { coefficients })
            }
        };
        let suffix = trial.map_or(format!("s{seed}"), |trial| format!("t{trial}"));
        Ok(Attack {
            id: format!("{}-{suffix}", table.name),
            name: table.name.clone(),
            about: table.about.clone(),
            kind,
            seed,
            trial,
            unavailable: self.missing(&method),
            settings: settings(table, &method),
            method,
        })
    }

    /// What the method needs and the suite lacks.
    fn missing(&self, method: &AttackMethod) -> Option<String> {
        let reason = match method {
            AttackMethod::Merge { .. } if self.data.base_model.is_none() => {
                "[data] has no `base_model`: a model of the same shape that attackers have"
            }
            AttackMethod::Prefill(Prefill::Answers(_)) if !self.generates() => {
                "it begins answers: only restricted.metric = \"compliance\" has any"
            }
            _ => return method.roles().into_iter().find_map(|role| self.no_rows(role)),
        };
        Some(reason.into())
    }

    fn generates(&self) -> bool {
        self.restricted.as_ref().is_some_and(|table| table.metric == MetricKind::Compliance)
    }
}

impl AttackTable {
    /// The same attack with every default that applies written out. An attack that does not depend on its seed has one.
    pub(crate) fn filled(&self, seeds: &[u64]) -> Self {
        let mut filled = self.clone();
        let seeds = self.seeds.clone().unwrap_or_else(|| seeds.to_vec());
        let seedless = match self.kind {
            AttackForm::Finetune => false,
            AttackForm::Prefill => self.text.is_some(),
            AttackForm::Abliteration => self.search.is_none(),
            AttackForm::Quantization | AttackForm::Merge => true,
        };
        let most = if seedless { 1 } else { seeds.len() };
        filled.seeds = Some(seeds.into_iter().take(most).collect());
        match self.kind {
            AttackForm::Finetune => return filled.with_defaults(Role::Restricted.name()),
            AttackForm::Quantization => {
                let Quantization { bits, group, symmetric } = self.quantization();
                (filled.bits, filled.group, filled.symmetric) = (Some(bits), Some(group), Some(symmetric));
            }
            AttackForm::Abliteration | AttackForm::Prefill | AttackForm::Merge => {}
        }
        filled
    }

    /// The rounding that a row describes.
    fn quantization(&self) -> Quantization {
        let plain = Quantization::default();
        Quantization {
            bits: self.bits.unwrap_or(plain.bits),
            group: self.group.unwrap_or(plain.group),
            symmetric: self.symmetric.unwrap_or(plain.symmetric),
        }
    }

    /// The fine-tuning that a row describes; `key` is its place, for errors.
    pub(super) fn row_fine_tune(&self, key: &str) -> Result<FineTune<Role>> {
        self.fine_tune(key, Role::Restricted.name(), Role::named)
    }
}

/// The table as numbers and words by key, without what an attack's result says elsewhere.
fn settings(table: &AttackTable, method: &AttackMethod) -> BTreeMap<String, Value> {
    let written = match serde_json::to_value(table) {
        Ok(Value::Object(written)) => written,
        _ => Default::default(),
    };
    let elsewhere = ["name", "about", "kind", "seeds"];
    let mut settings: BTreeMap<String, Value> =
        written.into_iter().filter(|(key, _)| !elsewhere.contains(&key.as_str())).collect();
    if let AttackMethod::Finetune(FineTune { source: Source::Switch { at, .. }, .. }) = method {
        settings.insert("switch_at".into(), (*at).into());
    }
    settings
}
