//! What must hold between the settings of a run file. Each finding names the key and the remedy.

use super::validate_defence;
use super::{AdversaryConfig, DataConfig, ParameterChoice, RunConfig, SchedulefreePoint, ScriptEntry};
use crate::data::check_batch;
use crate::error::Result;
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::settings::{at_least, betas, fault, finite, not_negative, positive, suggestion};
use crate::tar::AttackLength;
use crate::training::{Source, check_optimizer};

/// Checks `config`. `written` tells whether a dotted key stands in the run file, its preset or an override.
pub(super) fn check(config: &RunConfig, written: impl Fn(&str) -> bool) -> Result<()> {
    for (name, stream) in &config.data {
        check_stream(&format!("data.{name}"), stream)?;
    }
    if let Some(safeguard) = &config.safeguard {
        stream_exists(config, "safeguard.data", &safeguard.data)?;
        if safeguard.retain_data.is_some() || config.defence.is_some() {
            stream_exists(config, "safeguard.retain_data", config.safeguard_retain(safeguard))?;
        }
        at_least("safeguard.steps", safeguard.steps, 1)?;
        check_optimizer("safeguard", &safeguard.optimizer_config())?;
    }
    match &config.defence {
        Some(defence) => validate_defence::check(config, defence, &written)?,
        None => check_tar(config, &written)?,
    }
    if config.checkpoint.keep == 0 {
        return Err(fault("checkpoint.keep", "is 0", "keep at least 1, or write none with checkpoint.every = 0"));
    }
    Ok(())
}

/// Checks `[tar]`.
fn check_tar(config: &RunConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
    let tar = &config.tar;
    if !written("tar") {
        return Err(fault("tar", "missing", "add a table [tar] or [defence], or a preset"));
    }
    check_method(config)?;
    check_outer(config, "tar.outer", &tar.outer.optimizer_config(tar.outer_steps))?;
    let simulated = Simulated {
        key: "tar",
        adversaries: &tar.adversary,
        script: &tar.script,
        length: tar.length(),
        trajectories: tar.outer_steps.saturating_mul(tar.tasks_per_step),
    };
    simulated.check(config, written)
}

fn check_stream(key: &str, stream: &DataConfig) -> Result<()> {
    at_least(&format!("{key}.batch"), stream.batch as u64, 1)?;
    // The first token of a sequence has no prediction.
    at_least(&format!("{key}.max_length"), stream.max_length as u64, 2)?;
    check_batch(&format!("{key}.batch"), stream.batch, stream.max_length)
}

fn check_method(config: &RunConfig) -> Result<()> {
    let tar = &config.tar;
    at_least("tar.outer_steps", tar.outer_steps, 1)?;
    at_least("tar.inner_steps", tar.inner_steps, 1)?;
    at_least("tar.tr_every", tar.tr_every, 1)?;
    at_least("tar.tasks_per_step", tar.tasks_per_step, 1)?;
    if tar.tr_every > tar.inner_steps {
        let problem =
            format!("is {}, more than inner_steps = {}: no TR gradient is ever taken", tar.tr_every, tar.inner_steps);
        return Err(fault("tar.tr_every", problem, format!("set it to at most {}", tar.inner_steps)));
    }
    not_negative("tar.tr_scale", tar.tr_scale)?;
    not_negative("tar.retain_scale", tar.retain_scale)?;
    positive("tar.dpo_beta", tar.dpo_beta)?;
    if let Some(bound) = tar.lower_bound {
        finite("tar.lower_bound", bound)?;
    }
    if let Some(lambda) = tar.schedule_lambda {
        finite("tar.schedule_lambda", lambda)?;
        let own = tar.adversary.iter().filter_map(|adversary| adversary.inner_steps);
        let longest = own.chain([tar.inner_steps]).max().unwrap_or(1);
        let largest = tar.tr_scale * (-lambda * longest.saturating_sub(1) as f64).exp();
        if !(largest as f32).is_finite() {
            let problem = format!("{lambda} gives the first inner step a weight that is no finite f32");
            return Err(fault("tar.schedule_lambda", problem, "use a value of 0 or more"));
        }
    }
    tar.pool.iter().try_for_each(|pool| pool.check("tar.pool"))?;
    tar.curriculum.iter().try_for_each(|curriculum| curriculum.check("tar.curriculum"))?;
    stream_exists(config, "tar.tr_data", &tar.tr_data)?;
    stream_exists(config, "tar.retain_data", &tar.retain_data)
}

/// Checks the outer optimizer; `key` is the place of its table.
pub(super) fn check_outer(config: &RunConfig, key: &str, outer: &OptimizerConfig) -> Result<()> {
    betas(&format!("{key}.betas"), outer.betas)?;
    check_optimizer(key, outer)?;
    let schedule_free = outer.kind == OptimizerKind::ScheduleFreeAdamW;
    if config.compat.schedulefree_point == SchedulefreePoint::Train && !schedule_free {
        let problem = "has no effect: the outer optimizer is not schedule-free";
        let remedy = format!("remove it, or set {key}.optimizer = \"schedulefree_adamw\"");
        return Err(fault("compat.schedulefree_point", problem, remedy));
    }
    Ok(())
}

/// The simulated attacks of a run, and the place of their tables.
pub(super) struct Simulated<'a> {
    /// `tar` or `defence`.
    pub key: &'static str,
    pub adversaries: &'a [AdversaryConfig],
    pub script: &'a [ScriptEntry],
    /// The length of attacks whose adversary has none of its own.
    pub length: AttackLength,
    /// Attacks of the whole run.
    pub trajectories: u64,
}

impl Simulated<'_> {
    pub(super) fn check(&self, config: &RunConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
        let Self { key: place, adversaries, .. } = self;
        let list = format!("{place}.adversary");
        if adversaries.is_empty() {
            return Err(fault(&list, "there is none", format!("add a table [[{list}]] with name, data and lr")));
        }
        for (index, adversary) in adversaries.iter().enumerate() {
            let key = format!("{list}.{index}");
            if adversaries[..index].iter().any(|other| other.name == adversary.name) {
                let problem = format!("`{}` is the name of two adversaries", adversary.name);
                return Err(fault(format!("{key}.name"), problem, "give each its own"));
            }
            self.check_adversary(config, &key, adversary)?;
            refuse_idle_adapter(&key, adversary, written)?;
        }
        let total: f64 = adversaries.iter().map(|adversary| adversary.weight).sum();
        if !(total > 0.0 && total.is_finite()) {
            return Err(fault(list, "the weights add up to 0 or to no finite number", "give one a weight above 0"));
        }
        for (index, entry) in self.script.iter().enumerate() {
            self.check_script(&format!("{place}.script.{index}"), entry)?;
        }
        Ok(())
    }

    fn check_adversary(&self, config: &RunConfig, key: &str, adversary: &AdversaryConfig) -> Result<()> {
        if adversary.name.is_empty() {
            return Err(fault(format!("{key}.name"), "is empty", "give it a name for logs and scripts"));
        }
        not_negative(&format!("{key}.weight"), adversary.weight)?;
        self.check_adversary_data(config, key, adversary)?;
        self.check_length(config, key, adversary)?;
        adversary.check_attacks(key, self.length, &config.compat)
    }

    /// What an adversary has of its own in the place of the method's: K, the steps between gradients, the size of batches.
    fn check_length(&self, config: &RunConfig, key: &str, adversary: &AdversaryConfig) -> Result<()> {
        let length = adversary.whole_length(self.length);
        at_least(&format!("{key}.inner_steps"), length.inner_steps, 1)?;
        at_least(&format!("{key}.tr_every"), length.tr_every, 1)?;
        if length.tr_every > length.inner_steps {
            let own = if adversary.tr_every.is_some() { "tr_every" } else { "inner_steps" };
            let problem = format!(
                "a gradient after every {} of {} inner steps: no TR gradient is ever taken",
                length.tr_every, length.inner_steps
            );
            return Err(fault(format!("{key}.{own}"), problem, "give it a tr_every of at most its inner_steps"));
        }
        let Some(batch) = adversary.batch else { return Ok(()) };
        let of_batch = format!("{key}.batch");
        at_least(&of_batch, batch as u64, 1)?;
        let streams = adversary.data.streams().into_iter().filter_map(|name| config.data.get(name));
        streams.into_iter().try_for_each(|stream| check_batch(&of_batch, batch, stream.max_length))
    }

    fn check_adversary_data(&self, config: &RunConfig, key: &str, adversary: &AdversaryConfig) -> Result<()> {
        let data = format!("{key}.data");
        for name in adversary.data.streams() {
            stream_exists(config, &data, name)?;
        }
        if let Some(name) = &adversary.tr_data {
            stream_exists(config, &format!("{key}.tr_data"), name)?;
        }
        if let Some(share) = &adversary.share {
            share.check(&format!("{key}.share"), &adversary.data)?;
        }
        let switch = format!("{key}.switch");
        match (&adversary.data, adversary.switch) {
            (Source::Switch { .. }, None) if self.draws_are_left() => {
                Err(fault(switch, "missing for an adversary of two streams", "add switch = { beta = [6, 3] }"))
            }
            (Source::Switch { .. }, Some(draw)) => {
                positive(&format!("{switch}.beta"), draw.beta[0])?;
                positive(&format!("{switch}.beta"), draw.beta[1])
            }
            (Source::Switch { .. }, None) | (_, None) => Ok(()),
            (_, Some(_)) => {
                Err(fault(switch, "needs two streams to switch between", "write data = [\"first\", \"second\"]"))
            }
        }
    }

    /// Whether a trajectory is left to chance after the script.
    fn draws_are_left(&self) -> bool {
        (self.script.len() as u64) < self.trajectories
    }

    fn check_script(&self, key: &str, entry: &ScriptEntry) -> Result<()> {
        let adversaries = self.adversaries;
        let Some(adversary) = adversaries.iter().find(|adversary| adversary.name == entry.adversary) else {
            let names = adversaries.iter().map(|adversary| adversary.name.as_str());
            let problem = format!("there is no adversary `{}`", entry.adversary);
            return Err(fault(format!("{key}.adversary"), problem, suggestion(&entry.adversary, names)));
        };
        positive(&format!("{key}.lr"), entry.lr)?;
        let switch = format!("{key}.switch_at");
        let inner_steps = adversary.whole_length(self.length).inner_steps;
        match (&adversary.data, entry.switch_at) {
            (Source::Switch { .. }, None) => {
                Err(fault(switch, "missing for an adversary of two streams", "add the inner step at which it switches"))
            }
            (Source::Switch { .. }, Some(step)) if step > inner_steps => {
                Err(fault(switch, format!("is {step}"), format!("use at most inner_steps = {inner_steps}")))
            }
            (Source::Switch { .. }, Some(_)) | (_, None) => Ok(()),
            (_, Some(_)) => Err(fault(switch, format!("`{}` has one stage", adversary.name), "remove it")),
        }
    }
}

/// Fails where a full-parameter adversary says something of an adapter.
fn refuse_idle_adapter(key: &str, adversary: &AdversaryConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
    if adversary.params == ParameterChoice::Lora {
        return Ok(());
    }
    // A resolved file writes every key, so a value equal to the default is no mistake.
    let default = AdversaryConfig::new(&adversary.name, adversary.data.clone(), &[]);
    let differs = [
        ("rank", adversary.rank != default.rank),
        ("alpha", adversary.alpha != default.alpha),
        ("dropout", adversary.dropout != default.dropout),
        ("targets", adversary.targets != default.targets),
    ];
    let idle = differs.iter().find(|(name, differs)| *differs && written(&format!("{key}.{name}")));
    match idle {
        None => Ok(()),
        Some((name, _)) => {
            let remedy = "set params = \"lora\", or remove it";
            Err(fault(format!("{key}.{name}"), "has no effect with params = \"full\"", remedy))
        }
    }
}

pub(super) fn stream_exists(config: &RunConfig, key: &str, name: &str) -> Result<()> {
    if config.data.contains_key(name) {
        return Ok(());
    }
    let names = config.data.keys().map(String::as_str);
    Err(fault(key, format!("there is no [data.{name}]"), suggestion(name, names)))
}

/// Warns of data streams that nothing names.
pub(super) fn warn_of_unused_streams(config: &RunConfig) {
    let used = config.used_streams();
    for name in config.data.keys().filter(|name| !used.contains(name.as_str())) {
        tracing::warn!("[data.{name}] is not used");
    }
}
