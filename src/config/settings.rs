//! From the tables of a run file to the settings of the method.

use super::{AdversaryConfig, RunConfig, ScriptEntry, TrLoss};
use crate::error::{Error, Result};
use crate::tar::{Adversary, Draw, ResistanceLoss, Settings};
use crate::training::MemorySettings;

/// The method's settings, with what attacks trade for memory.
pub(crate) fn settings(config: &RunConfig, memory: MemorySettings) -> Result<Settings> {
    let tar = &config.tar;
    let adversaries: Vec<Adversary> = tar.adversary.iter().map(|a| adversary(a, config)).collect();
    let script = tar.script.iter().map(|entry| scripted(entry, &adversaries)).collect::<Result<_>>()?;
    Ok(Settings {
        seed: config.seed,
        inner_steps: tar.inner_steps,
        tr_every: tar.tr_every,
        tr_scale: tar.tr_scale,
        schedule_lambda: tar.schedule_lambda,
        tasks_per_step: tar.tasks_per_step,
        tr_loss: match tar.tr_loss {
            TrLoss::MaxEntropy => ResistanceLoss::MaxEntropy(config.compat.entropy_over),
            TrLoss::Dpo => ResistanceLoss::Preference { beta: tar.dpo_beta as f32 },
        },
        tr_data: tar.tr_data.clone(),
        retain_data: tar.retain_data.clone(),
        retain_scale: tar.retain_scale,
        retain_representations: tar.retain_representations,
        representations_over: config.compat.representations_over,
        lower_bound: tar.lower_bound,
        outer: tar.outer.optimizer_config(tar.outer_steps),
        adversaries,
        script,
        pool: tar.pool,
        curriculum: tar.curriculum,
        memory,
    })
}

fn adversary(table: &AdversaryConfig, config: &RunConfig) -> Adversary {
    let lr = table.lr.ends().first().copied().unwrap_or(0.0);
    Adversary {
        share: table.share.clone(),
        weight: table.weight,
        adapter: table.adapter_config(),
        ranks: table.rank.0.clone(),
        learning_rates: table.lr.clone(),
        schedules: table.schedule.0.clone(),
        inner_steps: table.inner_steps,
        tr_every: table.tr_every,
        batch: table.batch,
        tr_data: table.tr_data.clone(),
        ..Adversary::new(
            &table.name,
            table.source(),
            Vec::new(),
            table.optimizer_config(lr, &config.tar, &config.compat),
        )
    }
}

fn scripted(entry: &ScriptEntry, adversaries: &[Adversary]) -> Result<Draw> {
    let adversary = adversaries.iter().position(|a| a.name == entry.adversary).ok_or_else(|| {
        let problem = format!("there is no adversary `{}`", entry.adversary);
        Error::config("tar.script.adversary", problem, "use the name of a [[tar.adversary]] table")
    })?;
    Ok(Draw { switch_at: entry.switch_at, ..Draw::new(adversary, entry.lr) })
}
