//! From the tables of a run file to the settings of the method.

use crate::config::{AdversaryConfig, AdversaryData, CompatConfig, RunConfig, ScriptEntry, TrLoss};
use crate::error::{Error, Result};
use crate::tar::{Adversary, AdversarySource, Draw, Settings, TrResistance};
use crate::training::MemorySettings;

/// The published switch distribution, for adversaries of two streams that do not say.
const DEFAULT_SWITCH: [f64; 2] = [6.0, 3.0];

/// The method's settings, with what attacks trade for memory.
pub(super) fn settings(config: &RunConfig, memory: MemorySettings) -> Result<Settings> {
    let tar = &config.tar;
    let adversaries: Vec<Adversary> = tar.adversary.iter().map(|a| adversary(a, config)).collect();
    let script = tar.script.iter().map(|entry| draw(entry, &adversaries)).collect::<Result<_>>()?;
    Ok(Settings {
        seed: config.seed,
        inner_steps: tar.inner_steps,
        tr_every: tar.tr_every,
        tr_scale: tar.tr_scale,
        schedule_lambda: tar.schedule_lambda,
        tasks_per_step: tar.tasks_per_step,
        tr_loss: match tar.tr_loss {
            TrLoss::MaxEntropy => TrResistance::MaxEntropy(config.compat.entropy_over),
            TrLoss::Dpo => TrResistance::Preference { beta: tar.dpo_beta as f32 },
        },
        tr_data: tar.tr_data.clone(),
        retain_data: tar.retain_data.clone(),
        retain_scale: tar.retain_scale,
        retain_representations: tar.retain_representations,
        representations_over: config.compat.representations_over,
        lower_bound: tar.lower_bound,
        outer: tar.outer.optimizer_config(),
        adversaries,
        script,
        memory,
    })
}

fn adversary(table: &AdversaryConfig, config: &RunConfig) -> Adversary {
    let compat: &CompatConfig = &config.compat;
    let source = match &table.data {
        AdversaryData::One(name) => AdversarySource::One(name.clone()),
        AdversaryData::Switch(streams) => AdversarySource::Switch {
            streams: streams.clone(),
            beta: table.switch.as_ref().map_or(DEFAULT_SWITCH, |switch| switch.beta),
        },
        AdversaryData::Mixture(parts) => {
            AdversarySource::Mixture(parts.iter().map(|(name, weight)| (name.clone(), *weight)).collect())
        }
    };
    Adversary {
        name: table.name.clone(),
        source,
        weight: table.weight,
        adapter: table.adapter_config(),
        learning_rates: table.lr.clone(),
        optimizer: table.optimizer_config(table.lr.first().copied().unwrap_or(0.0), &config.tar, compat),
    }
}

fn draw(entry: &ScriptEntry, adversaries: &[Adversary]) -> Result<Draw> {
    let adversary = adversaries.iter().position(|a| a.name == entry.adversary).ok_or_else(|| {
        let problem = format!("there is no adversary `{}`", entry.adversary);
        Error::config("tar.script.adversary", problem, "use the name of a [[tar.adversary]] table")
    })?;
    Ok(Draw { adversary, lr: entry.lr, switch_at: entry.switch_at })
}
