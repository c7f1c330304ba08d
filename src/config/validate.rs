//! What must hold between the settings of a run file. Each finding names the key and the remedy.

use super::{AdversaryConfig, AdversaryData, DataConfig, ParameterChoice, RunConfig, SchedulefreePoint, ScriptEntry};
use crate::error::Result;
use crate::optimizer::OptimizerKind;
use crate::settings::{at_least, betas, fault, finite, not_negative, positive, suggestion};

/// The dtypes of written weights.
const DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// Rows of a batch are counted in 32 bits on every backend.
const MAX_TOKENS: usize = u32::MAX as usize;

/// Checks `config`. `written` tells whether a dotted key stands in the run file, its preset or an override.
pub(super) fn check(config: &RunConfig, written: impl Fn(&str) -> bool) -> Result<()> {
    if let Some(dtype) = config.model.dtype.as_deref().filter(|dtype| !DTYPES.contains(dtype)) {
        return Err(fault("model.dtype", format!("`{dtype}` is no dtype"), suggestion(dtype, DTYPES.into_iter())));
    }
    for (name, stream) in &config.data {
        check_stream(&format!("data.{name}"), stream)?;
    }
    if let Some(safeguard) = &config.safeguard {
        stream_exists(config, "safeguard.data", &safeguard.data)?;
        at_least("safeguard.steps", safeguard.steps, 1)?;
        positive("safeguard.lr", safeguard.lr)?;
    }
    check_method(config)?;
    check_outer(config)?;
    check_adversaries(config, &written)?;
    for (index, entry) in config.tar.script.iter().enumerate() {
        check_script(config, &format!("tar.script.{index}"), entry)?;
    }
    if config.checkpoint.keep == 0 {
        return Err(fault("checkpoint.keep", "is 0", "keep at least 1, or write none with checkpoint.every = 0"));
    }
    warn_of_unused_streams(config);
    Ok(())
}

fn check_stream(key: &str, stream: &DataConfig) -> Result<()> {
    at_least(&format!("{key}.batch"), stream.batch as u64, 1)?;
    // The first token of a sequence has no prediction.
    at_least(&format!("{key}.max_length"), stream.max_length as u64, 2)?;
    match stream.batch.checked_mul(stream.max_length) {
        Some(tokens) if tokens <= MAX_TOKENS => Ok(()),
        _ => Err(fault(format!("{key}.batch"), "batch · max_length is 2^32 tokens or more", "lower one of them")),
    }
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
        let largest = tar.tr_scale * (-lambda * (tar.inner_steps - 1) as f64).exp();
        if !(largest as f32).is_finite() {
            let problem = format!("{lambda} gives the first inner step a weight that is no finite f32");
            return Err(fault("tar.schedule_lambda", problem, "use a value of 0 or more"));
        }
    }
    stream_exists(config, "tar.tr_data", &tar.tr_data)?;
    stream_exists(config, "tar.retain_data", &tar.retain_data)
}

fn check_outer(config: &RunConfig) -> Result<()> {
    let outer = &config.tar.outer;
    positive("tar.outer.lr", outer.lr)?;
    betas("tar.outer.betas", outer.betas)?;
    if let Some(decay) = outer.weight_decay {
        not_negative("tar.outer.weight_decay", decay)?;
    }
    let schedule_free = outer.optimizer == OptimizerKind::ScheduleFreeAdamW;
    if config.compat.schedulefree_point == SchedulefreePoint::Train && !schedule_free {
        let problem = "has no effect: the outer optimizer is not schedule-free";
        return Err(fault(
            "compat.schedulefree_point",
            problem,
            "remove it, or set tar.outer.optimizer = \"schedulefree_adamw\"",
        ));
    }
    Ok(())
}

fn check_adversaries(config: &RunConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
    let adversaries = &config.tar.adversary;
    if adversaries.is_empty() {
        return Err(fault("tar.adversary", "there is none", "add a table [[tar.adversary]] with name, data and lr"));
    }
    for (index, adversary) in adversaries.iter().enumerate() {
        let key = format!("tar.adversary.{index}");
        if adversaries[..index].iter().any(|other| other.name == adversary.name) {
            let problem = format!("`{}` is the name of two adversaries", adversary.name);
            return Err(fault(format!("{key}.name"), problem, "give each its own"));
        }
        check_adversary(config, &key, adversary)?;
        if adversary.params == ParameterChoice::Full {
            let lora_keys = ["rank", "alpha", "dropout", "targets"].map(|name| format!("{key}.{name}"));
            if let Some(key) = lora_keys.into_iter().find(|key| written(key)) {
                // A resolved file writes every key, so a value equal to the default is no mistake.
                if !has_default_adapter(adversary) {
                    return Err(fault(
                        key,
                        "has no effect with params = \"full\"",
                        "set params = \"lora\", or remove it",
                    ));
                }
            }
        }
    }
    let total: f64 = adversaries.iter().map(|adversary| adversary.weight).sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err(fault(
            "tar.adversary",
            "the weights add up to 0 or to no finite number",
            "give one a weight above 0",
        ));
    }
    Ok(())
}

fn has_default_adapter(adversary: &AdversaryConfig) -> bool {
    let defaults = AdversaryConfig::new(&adversary.name, adversary.data.clone(), &adversary.lr);
    (adversary.rank, adversary.alpha, adversary.dropout, &adversary.targets)
        == (defaults.rank, defaults.alpha, defaults.dropout, &defaults.targets)
}

fn check_adversary(config: &RunConfig, key: &str, adversary: &AdversaryConfig) -> Result<()> {
    if adversary.name.is_empty() {
        return Err(fault(format!("{key}.name"), "is empty", "give it a name for logs and scripts"));
    }
    not_negative(&format!("{key}.weight"), adversary.weight)?;
    if adversary.lr.is_empty() {
        return Err(fault(format!("{key}.lr"), "has no entry", "give at least one learning rate"));
    }
    for rate in &adversary.lr {
        positive(&format!("{key}.lr"), *rate)?;
    }
    if let Some(decay) = adversary.weight_decay {
        not_negative(&format!("{key}.weight_decay"), decay)?;
    }
    betas(&format!("{key}.betas"), adversary.betas)?;
    if adversary.params == ParameterChoice::Lora {
        check_adapter(key, adversary)?;
    }
    check_adversary_data(config, key, adversary)
}

fn check_adapter(key: &str, adversary: &AdversaryConfig) -> Result<()> {
    at_least(&format!("{key}.rank"), adversary.rank as u64, 1)?;
    positive(&format!("{key}.alpha"), adversary.alpha)?;
    if !(0.0..1.0).contains(&adversary.dropout) {
        return Err(fault(
            format!("{key}.dropout"),
            format!("is {}", adversary.dropout),
            "use 0 or more and less than 1",
        ));
    }
    if adversary.targets.is_empty() {
        return Err(fault(format!("{key}.targets"), "is empty", "name at least one projection, such as \"q_proj\""));
    }
    for (index, target) in adversary.targets.iter().enumerate() {
        if adversary.targets[..index].contains(target) {
            return Err(fault(format!("{key}.targets"), format!("`{}` stands twice", target.name()), "name each once"));
        }
    }
    Ok(())
}

fn check_adversary_data(config: &RunConfig, key: &str, adversary: &AdversaryConfig) -> Result<()> {
    let data = format!("{key}.data");
    for name in adversary.data.streams() {
        stream_exists(config, &data, name)?;
    }
    if let AdversaryData::Mixture(weights) = &adversary.data {
        for (name, weight) in weights {
            not_negative(&format!("{data}.{name}"), *weight)?;
        }
        let total: f64 = weights.values().sum();
        if !(total > 0.0 && total.is_finite()) {
            return Err(fault(
                data,
                "the weights add up to 0 or to no finite number",
                "give a stream a weight above 0",
            ));
        }
    }
    let switch = format!("{key}.switch");
    match (&adversary.data, adversary.switch) {
        (AdversaryData::Switch(_), None) if draws_are_left(config) => {
            Err(fault(switch, "missing for an adversary of two streams", "add switch = { beta = [6, 3] }"))
        }
        (AdversaryData::Switch(_), Some(draw)) => {
            positive(&format!("{switch}.beta"), draw.beta[0])?;
            positive(&format!("{switch}.beta"), draw.beta[1])
        }
        (AdversaryData::Switch(_), None) | (_, None) => Ok(()),
        (_, Some(_)) => {
            Err(fault(switch, "needs two streams to switch between", "write data = [\"first\", \"second\"]"))
        }
    }
}

/// Whether a trajectory is left to chance after the script.
fn draws_are_left(config: &RunConfig) -> bool {
    (config.tar.script.len() as u64) < config.tar.outer_steps.saturating_mul(config.tar.tasks_per_step)
}

fn check_script(config: &RunConfig, key: &str, entry: &ScriptEntry) -> Result<()> {
    let adversaries = &config.tar.adversary;
    let Some(adversary) = adversaries.iter().find(|adversary| adversary.name == entry.adversary) else {
        let names = adversaries.iter().map(|adversary| adversary.name.as_str());
        let problem = format!("there is no adversary `{}`", entry.adversary);
        return Err(fault(format!("{key}.adversary"), problem, suggestion(&entry.adversary, names)));
    };
    positive(&format!("{key}.lr"), entry.lr)?;
    let switch = format!("{key}.switch_at");
    match (&adversary.data, entry.switch_at) {
        (AdversaryData::Switch(_), None) => {
            Err(fault(switch, "missing for an adversary of two streams", "add the inner step at which it switches"))
        }
        (AdversaryData::Switch(_), Some(step)) if step > config.tar.inner_steps => {
            Err(fault(switch, format!("is {step}"), format!("use at most inner_steps = {}", config.tar.inner_steps)))
        }
        (AdversaryData::Switch(_), Some(_)) | (_, None) => Ok(()),
        (_, Some(_)) => Err(fault(switch, format!("`{}` has one stage", adversary.name), "remove it")),
    }
}

fn stream_exists(config: &RunConfig, key: &str, name: &str) -> Result<()> {
    if config.data.contains_key(name) {
        return Ok(());
    }
    let names = config.data.keys().map(String::as_str);
    Err(fault(key, format!("there is no [data.{name}]"), suggestion(name, names)))
}

fn warn_of_unused_streams(config: &RunConfig) {
    let used = config.used_streams();
    for name in config.data.keys().filter(|name| !used.contains(name.as_str())) {
        tracing::warn!("[data.{name}] is not used");
    }
}
