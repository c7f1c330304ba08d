//! The table of an attack: a row of a suite (`[[attack]]`) and what an attack file does (`[attack]`) are written the same
//! way, read the same way and checked here.

use serde::{Deserialize, Serialize};

use super::{AbliterationSearch, DataNames, ParameterChoice, Texts};
use crate::error::Result;
use crate::model::{AdapterConfig, Projection};
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
use crate::settings::{fault, repeated};
use crate::training::{FineTune, Kick, Selection, Source, switch_step};

/// `kind` of an attack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttackForm {
    /// Fine-tuning.
    #[default]
    Finetune,
    /// Projection of a direction out of the weights.
    Abliteration,
    /// Examples before each question, or the beginning of its answer.
    Prefill,
    /// Rounding of the weights to a few bits.
    Quantization,
    /// Weights between the model's and another model's, or beyond them.
    Merge,
}

/// `[[attack]]`. Which keys have an effect depends on `kind` and `params`; others are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackTable {
    /// Its name, unique in a suite; an attack file needs none.
    #[serde(default)]
    pub name: String,
    /// What it is, in a line for people.
    #[serde(default)]
    pub about: String,
    /// What it does.
    #[serde(default)]
    pub kind: AttackForm,
    /// Its seeds; those of the suite where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<u64>>,
    /// What it trains on, by role: one, two that are trained on one after the other, or a mixture (each step draws one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataNames>,
    /// Where two roles switch, as a fraction of the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<f64>,
    /// The share of the samples of each role that it never trains on; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// The most samples of each role that it trains on, drawn by its seed; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Tokens of each answer that it learns, from the answer's start; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<usize>,
    /// What it trains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<ParameterChoice>,
    /// LoRA rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// LoRA alpha; twice the rank where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// LoRA dropout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// The projections that LoRA adapts; all seven where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<Projection>>,
    /// The optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerKind>,
    /// Peak learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Warm-up steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u64>,
    /// What the learning rate does after its warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Decay>,
    /// Weight decay; the optimizer's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// β1 and β2 of the Adam family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Sequences of one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Steps, those of the kick included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The first steps, which have a learning rate of their own; after them the optimizer starts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kick_steps: Option<u64>,
    /// Learning rate of the kick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kick_lr: Option<f64>,
    /// Gaussian noise on every tensor before the first step, relative to the root mean square of the tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// The first steps climb the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negated_steps: Option<u64>,
    /// The TAR authors' broken linear warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub official_warmup: Option<bool>,
    /// Rows of the restricted data that are shown before each question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<usize>,
    /// How each answer begins, for `metric = "compliance"`; of several beginnings the best counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Texts>,
    /// Depth that abliteration takes its direction from, as a fraction of the layers; the best of all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<f64>,
    /// How abliteration searches for its edit; one direction at full weight where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<AbliterationSearch>,
    /// Bits that quantization leaves of a weight; 4 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Neighbouring weights of a row that are rounded with one scale; 128 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Whether the grid is the same on both sides of 0; otherwise it reaches from the lowest to the highest weight of the
    /// group. False where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// How far a merge goes towards the other model: 0.5 is half way, 1 is the other model, 2 lies as far behind it. The best
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficients: Option<Vec<f64>>,
}

/// Fails where a list of projections names one twice.
pub(super) fn check_targets(key: &str, targets: &[Projection]) -> Result<()> {
    match repeated(targets) {
        None => Ok(()),
        Some(target) => Err(fault(key, format!("`{}` stands twice", target.name()), "name each once")),
    }
}

impl AttackTable {
    /// The same attack with every default of its fine-tuning written out; `data` is what it trains on where it names nothing.
    pub(crate) fn with_defaults(mut self, data: &str) -> Self {
        let optimizer = self.optimizer.unwrap_or(OptimizerKind::AdamW);
        let plain = OptimizerConfig { weight_decay: self.weight_decay, ..OptimizerConfig::new(optimizer, 0.0) };
        self.data.get_or_insert_with(|| Source::One(data.into()));
        self.optimizer = Some(optimizer);
        self.weight_decay = Some(plain.weight_decay());
        self.lr.get_or_insert(2e-5);
        self.warmup.get_or_insert(0);
        self.schedule.get_or_insert(Decay::Constant);
        self.batch.get_or_insert(32);
        self.steps.get_or_insert(500);
        if *self.params.get_or_insert(ParameterChoice::Full) == ParameterChoice::Lora {
            let rank = *self.rank.get_or_insert(16);
            self.alpha.get_or_insert(2.0 * rank as f64);
            self.dropout.get_or_insert(0.0);
            self.targets.get_or_insert_with(|| Projection::ALL.to_vec());
        }
        self
    }

    /// The fine-tuning that the table describes. `key` is its place, `data` what it trains on where it names nothing, and
    /// `named` finds a stream by its name; `key.data` is the place of the name.
    pub(crate) fn fine_tune<S>(
        &self,
        key: &str,
        data: &str,
        named: impl Fn(&str, &str) -> Result<S>,
    ) -> Result<FineTune<S>> {
        let table = self.clone().with_defaults(data);
        let steps = table.steps.unwrap_or_default();
        let kick = table.kick(key)?;
        let plain = OptimizerConfig::new(table.optimizer.unwrap_or(OptimizerKind::AdamW), table.lr.unwrap_or_default());
        let schedule = Schedule {
            warmup: table.warmup.unwrap_or_default(),
            decay: table.schedule.unwrap_or(Decay::Constant),
            total: steps.saturating_sub(kick.map_or(0, |kick| kick.steps)),
            official_warmup: table.official_warmup.unwrap_or_default(),
        };
        let optimizer = OptimizerConfig {
            schedule,
            weight_decay: table.weight_decay,
            betas: table.betas.unwrap_or(plain.betas),
            ..plain
        };
        Ok(FineTune {
            source: table.source(key, steps, named)?,
            selection: Selection {
                held_out: table.held_out.unwrap_or_default(),
                samples: table.samples,
                opening: table.opening,
            },
            adapter: table.adapter(key)?,
            optimizer,
            batch: table.batch,
            steps,
            kick,
            noise: table.noise.unwrap_or_default(),
            negated_steps: table.negated_steps.unwrap_or_default(),
        })
    }

    fn kick(&self, key: &str) -> Result<Option<Kick>> {
        match (self.kick_steps, self.kick_lr) {
            (Some(steps), Some(lr)) => Ok(Some(Kick { steps, lr })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(fault(format!("{key}.kick_lr"), "missing", "add the learning rate of the kick")),
            (None, Some(_)) => {
                Err(fault(format!("{key}.kick_steps"), "missing", "add the number of steps of the kick"))
            }
        }
    }

    fn adapter(&self, key: &str) -> Result<Option<AdapterConfig>> {
        if self.params != Some(ParameterChoice::Lora) {
            return Ok(None);
        }
        check_targets(&format!("{key}.targets"), self.targets.as_deref().unwrap_or_default())?;
        let plain = AdapterConfig::new(self.rank.unwrap_or_default());
        Ok(Some(AdapterConfig {
            alpha: self.alpha.unwrap_or(plain.alpha),
            dropout: self.dropout.unwrap_or(plain.dropout),
            targets: self.targets.as_ref().map_or(plain.targets.clone(), |targets| targets.iter().copied().collect()),
            ..plain
        }))
    }

    fn source<S>(&self, key: &str, steps: u64, named: impl Fn(&str, &str) -> Result<S>) -> Result<Source<S>> {
        let place = format!("{key}.data");
        let switch = format!("{key}.switch");
        let Some(data) = &self.data else { return Err(fault(place, "missing", "name what it trains on")) };
        if self.switch.is_some() && !matches!(data, Source::Switch { .. }) {
            let remedy = "write data = [\"first\", \"second\"]";
            return Err(fault(switch, "needs two streams to switch between", remedy));
        }
        data.try_map(
            |name| named(&place, name),
            |()| match self.switch {
                Some(at) => switch_step(&switch, at, steps),
                None => {
                    let remedy = "add the fraction of the steps at which it switches";
                    Err(fault(&switch, "missing for an attack on two streams", remedy))
                }
            },
        )
    }

    /// Fails where a key is written that has no effect in this kind of attack; `key` is the place of the table.
    pub(crate) fn refuse_idle_keys(&self, key: &str) -> Result<()> {
        let lora = [
            ("rank", self.rank.is_some()),
            ("alpha", self.alpha.is_some()),
            ("dropout", self.dropout.is_some()),
            ("targets", self.targets.is_some()),
        ];
        let finetune = [
            ("data", self.data.is_some()),
            ("switch", self.switch.is_some()),
            ("held_out", self.held_out.is_some()),
            ("samples", self.samples.is_some()),
            ("opening", self.opening.is_some()),
            ("params", self.params.is_some()),
            ("optimizer", self.optimizer.is_some()),
            ("lr", self.lr.is_some()),
            ("warmup", self.warmup.is_some()),
            ("schedule", self.schedule.is_some()),
            ("weight_decay", self.weight_decay.is_some()),
            ("betas", self.betas.is_some()),
            ("batch", self.batch.is_some()),
            ("steps", self.steps.is_some()),
            ("kick_steps", self.kick_steps.is_some()),
            ("kick_lr", self.kick_lr.is_some()),
            ("noise", self.noise.is_some()),
            ("negated_steps", self.negated_steps.is_some()),
            ("official_warmup", self.official_warmup.is_some()),
        ];
        let prefill = [("demonstrations", self.demonstrations.is_some()), ("text", self.text.is_some())];
        let abliteration = [("layer", self.layer.is_some()), ("search", self.search.is_some())];
        let quantization =
            [("bits", self.bits.is_some()), ("group", self.group.is_some()), ("symmetric", self.symmetric.is_some())];
        let merge = [("coefficients", self.coefficients.is_some())];
        let is_lora = self.kind == AttackForm::Finetune && self.params == Some(ParameterChoice::Lora);
        for (keys, has_effect, remedy) in [
            (&lora[..], is_lora, "set params = \"lora\""),
            (&finetune, self.kind == AttackForm::Finetune, "set kind = \"finetune\""),
            (&prefill, self.kind == AttackForm::Prefill, "set kind = \"prefill\""),
            (&abliteration, self.kind == AttackForm::Abliteration, "set kind = \"abliteration\""),
            (&quantization, self.kind == AttackForm::Quantization, "set kind = \"quantization\""),
            (&merge, self.kind == AttackForm::Merge, "set kind = \"merge\""),
        ] {
            let idle = keys.iter().find(|(_, written)| *written && !has_effect);
            if let Some((name, _)) = idle {
                let remedy = format!("{remedy}, or remove it");
                return Err(fault(format!("{key}.{name}"), "has no effect in this attack", remedy));
            }
        }
        Ok(())
    }
}
