//! What a fine-tuning run does, as data: a user's attack, a row of a suite, a simulated attack of the nested loop and the
//! demonstration's training are all described by a [`FineTune`] and checked here.

use std::fmt;

use super::{Selection, Source, Trainer, add_attack_noise};
use crate::error::{Error, Result};
use crate::model::{AdapterConfig, Model, Parameters};
use crate::ops::Backend;
use crate::optimizer::{OptimizerConfig, Schedule};
use crate::settings::{at_least, at_most, fault, fraction, not_negative, positive};

/// The most steps of a run: more than anybody means, and few enough to be counted.
pub const MAX_STEPS: u64 = 1 << 32;

/// A fine-tuning run. `S` names a stream of data.
#[derive(Clone, Debug, PartialEq)]
pub struct FineTune<S> {
    /// What it trains on.
    pub source: Source<S>,
    /// Which samples of it, and how much of each answer.
    pub selection: Selection,
    /// The LoRA adapter that it trains; all weights where absent.
    pub adapter: Option<AdapterConfig>,
    /// The optimizer with its schedule.
    pub optimizer: OptimizerConfig,
    /// Sequences of one step; each stream has its own batch where absent.
    pub batch: Option<usize>,
    /// Steps, those of the kick included.
    pub steps: u64,
    /// Large steps at the start.
    pub kick: Option<Kick>,
    /// Standard deviation of the noise that each tensor gets before the first step, relative to the tensor's root mean
    /// square; 0 for none.
    pub noise: f64,
    /// Steps at the start that climb the loss.
    pub negated_steps: u64,
}

/// Steps at the start of a run that carry the weights out of the neighbourhood which a defender looked at, before the
/// others settle. They are a run of their own: after them the optimizer starts anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kick {
    /// How many.
    pub steps: u64,
    /// Their learning rate, which is constant.
    pub lr: f64,
}

impl<S> FineTune<S> {
    /// A run of `steps` steps on `source` that trains all weights, without noise and without climbing.
    pub fn new(source: Source<S>, optimizer: OptimizerConfig, steps: u64) -> Self {
        let selection = Selection::default();
        Self {
            source,
            selection,
            adapter: None,
            optimizer,
            batch: None,
            steps,
            kick: None,
            noise: 0.0,
            negated_steps: 0,
        }
    }

    /// The optimizer that takes `step`: that of the kick, or the run's own, whose schedule begins after the kick.
    pub fn optimizer_at(&self, step: u64) -> OptimizerConfig {
        match self.kick {
            Some(Kick { steps, lr }) if step < steps => {
                OptimizerConfig { lr, schedule: Schedule::constant(), ..self.optimizer.clone() }
            }
            _ => self.optimizer.clone(),
        }
    }

    /// Whether the optimizer starts anew before `step`: the kick is over.
    pub fn restarts_at(&self, step: u64) -> bool {
        self.kick.is_some_and(|kick| kick.steps == step)
    }

    /// The factor on the gradient of `step`: −1 climbs the loss.
    pub fn scale_at(&self, step: u64) -> f32 {
        if step < self.negated_steps { -1.0 } else { 1.0 }
    }

    /// Whether the first steps of a longer run would be other steps: a decay that ends with the run, or a switch at a fraction
    /// of it.
    pub fn depends_on_length(&self) -> bool {
        self.optimizer.schedule.decay.depends_on_length() || matches!(self.source, Source::Switch { .. })
    }

    /// The trainer of the run, before its first step; the factors of LoRA and their dropout masks are functions of `seed`.
    pub fn trainer<B: Backend>(&self, model: &Model<B>, seed: u64) -> Result<Trainer<B>> {
        Trainer::started(model, self.adapter.as_ref(), self.optimizer_at(0), seed)
    }

    /// Adds the run's noise to the weights that it starts from; the noise is a function of `seed`.
    pub fn disturb<B: Backend>(&self, model: &Model<B>, weights: &mut Parameters<B>, seed: u64) -> Result<()> {
        if self.noise > 0.0 { add_attack_noise(model, weights, self.noise, seed) } else { Ok(()) }
    }
}

impl<S: fmt::Display> FineTune<S> {
    /// Fails where a setting is out of its range. `key` is the place of the settings: errors name `KEY.lr`, `KEY.rank`, ….
    pub fn check(&self, key: &str) -> Result<()> {
        let at = |name: &str| format!("{key}.{name}");
        at_least(&at("steps"), self.steps, 1)?;
        at_most(&at("steps"), self.steps, MAX_STEPS)?;
        if let Some(batch) = self.batch {
            at_least(&at("batch"), batch as u64, 1)?;
        }
        check_optimizer(key, &self.optimizer)?;
        if let Some(kick) = self.kick {
            at_least(&at("kick_steps"), kick.steps, 1)?;
            if kick.steps >= self.steps {
                let problem = format!("is {}, and the whole attack has {} steps", kick.steps, self.steps);
                return Err(fault(at("kick_steps"), problem, "leave steps to settle: raise `steps`, or lower it"));
            }
            positive(&at("kick_lr"), kick.lr)?;
        }
        self.selection.check(key)?;
        not_negative(&at("noise"), self.noise)?;
        at_most(&at("negated_steps"), self.negated_steps, self.steps)?;
        if let Some(adapter) = &self.adapter {
            adapter.check(key)?;
        }
        self.source.check(&at("data"))
    }
}

/// Fails where an optimizer cannot train, or not at all. `key` is the place of its settings: errors name `KEY.lr`, ….
pub fn check_optimizer(key: &str, optimizer: &OptimizerConfig) -> Result<()> {
    positive(&format!("{key}.lr"), optimizer.lr)?;
    optimizer.validate().map_err(|error| match error {
        Error::Config { key: inner, problem, remedy } => {
            let name = inner.strip_prefix("optimizer.").unwrap_or(&inner);
            Error::config(format!("{key}.{name}"), problem, remedy)
        }
        other => other,
    })
}

/// The step at which a run of `steps` steps switches its stream, where that is said as a fraction of the steps.
///
/// # Errors
/// When `fraction` is not between 0 and 1; `key` is its setting.
pub fn switch_step(key: &str, at: f64, steps: u64) -> Result<u64> {
    fraction(key, at)?;
    Ok((at * steps as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerKind;

    fn plain() -> FineTune<&'static str> {
        FineTune::new(Source::One("data"), OptimizerConfig::new(OptimizerKind::AdamW, 1e-3), 10)
    }

    fn lora(change: impl FnOnce(&mut AdapterConfig)) -> FineTune<&'static str> {
        let mut adapter = AdapterConfig::new(4);
        change(&mut adapter);
        FineTune { adapter: Some(adapter), ..plain() }
    }

    /// Each setting that is out of its range, and the key that the error names. A good description passes.
    #[test]
    fn every_bound_is_checked_and_named() {
        plain().check("attack").unwrap();
        lora(|_| ()).check("attack").unwrap();
        let optimizer = |change: fn(&mut OptimizerConfig)| {
            let mut optimizer = plain().optimizer;
            change(&mut optimizer);
            FineTune { optimizer, ..plain() }
        };
        let selected = |change: fn(&mut Selection)| {
            let mut run = plain();
            change(&mut run.selection);
            run
        };
        for (wrong, key) in [
            (FineTune { steps: 0, ..plain() }, "attack.steps"),
            (FineTune { steps: MAX_STEPS + 1, ..plain() }, "attack.steps"),
            (FineTune { batch: Some(0), ..plain() }, "attack.batch"),
            (FineTune { noise: f64::NAN, ..plain() }, "attack.noise"),
            (FineTune { noise: -0.1, ..plain() }, "attack.noise"),
            (FineTune { negated_steps: 11, ..plain() }, "attack.negated_steps"),
            (FineTune { kick: Some(Kick { steps: 0, lr: 1.0 }), ..plain() }, "attack.kick_steps"),
            (FineTune { kick: Some(Kick { steps: 10, lr: 1.0 }), ..plain() }, "attack.kick_steps"),
            (FineTune { kick: Some(Kick { steps: 1, lr: f64::NAN }), ..plain() }, "attack.kick_lr"),
            (selected(|s| s.held_out = 1.0), "attack.held_out"),
            (selected(|s| s.held_out = f64::NAN), "attack.held_out"),
            (selected(|s| s.samples = Some(0)), "attack.samples"),
            (selected(|s| s.opening = Some(0)), "attack.opening"),
            (FineTune { source: Source::Mixture(vec![("a", -1.0)]), ..plain() }, "attack.data.a"),
            (FineTune { source: Source::Mixture(vec![("a", 0.0)]), ..plain() }, "attack.data"),
            (optimizer(|o| o.lr = 0.0), "attack.lr"),
            (optimizer(|o| o.lr = f64::INFINITY), "attack.lr"),
            (optimizer(|o| o.betas = [1.0, 0.9]), "attack.betas"),
            (optimizer(|o| o.weight_decay = Some(-1.0)), "attack.weight_decay"),
            (optimizer(|o| o.schedule.decay = "cosine".parse().unwrap()), "attack.schedule"),
            (lora(|a| a.rank = 0), "attack.rank"),
            (lora(|a| a.rank = 1_000_000_000), "attack.rank"),
            (lora(|a| a.alpha = f64::NAN), "attack.alpha"),
            (lora(|a| a.dropout = 1.0), "attack.dropout"),
            (lora(|a| a.targets.clear()), "attack.targets"),
        ] {
            let error = wrong.check("attack").unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: ")) && !error.contains('\n'), "{error} is not about {key}");
        }
    }

    #[test]
    fn a_switch_is_a_fraction_of_the_steps() {
        assert_eq!(switch_step("switch", 0.3, 40).unwrap(), 12);
        for wrong in [-0.1, 1.5, f64::NAN] {
            assert!(switch_step("switch", wrong, 40).is_err());
        }
    }
}
