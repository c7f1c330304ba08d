//! From the tables of a run file to the settings of the nested loop.

use super::{
    AblationPoint, AdversaryConfig, AttackPoint, CombineChoice, DefenceConfig, FrozenAttackPoint, PersistentPoint,
    PointConfig, RoundConfig, RunConfig, ScriptEntry, StepPoint, TermConfig, TrainedConfig,
};
use crate::error::{Error, Result};
use crate::tar::{
    Ablation, Adversary, Attack, AttackLength, Combine, Displacement, Draw, FrozenAttack, Noise, Persistent, Point,
    Round, Settings, Simulation, Step, Term, Trained,
};
use crate::training::MemorySettings;

/// The settings of the loop, with what attacks trade for memory.
pub(crate) fn settings(config: &RunConfig, memory: MemorySettings) -> Result<Settings> {
    let defence = config.composition();
    let displaced = |(name, point): (&String, &PointConfig)| {
        let displacement = match point {
            PointConfig::Attack(attack) => {
                let simulation = simulation(attack.length(), &defence, config)?;
                let AttackPoint { schedule_lambda, tasks, .. } = *attack;
                Displacement::Attack(Attack { simulation, schedule_lambda, tasks })
            }
            PointConfig::FrozenAttack(frozen) => {
                let simulation = simulation(frozen.length(), &defence, config)?;
                let FrozenAttackPoint { refresh, first, .. } = *frozen;
                Displacement::FrozenAttack(FrozenAttack { simulation, refresh, first })
            }
            PointConfig::Noise(noise) => Displacement::Noise(Noise { relative: noise.relative, tasks: noise.tasks }),
            PointConfig::Ablation(ablation) => {
                let AblationPoint { restricted, harmless, depth, batches, refresh } = ablation.clone();
                Displacement::Ablation(Ablation { restricted, harmless, depth, batches, refresh })
            }
            PointConfig::Rounding(rounding) => Displacement::Rounding(rounding.quantization()),
            PointConfig::Persistent(PersistentPoint { data, lr, fork_every }) => {
                Displacement::Persistent(Persistent { data: data.clone(), lr: *lr, fork_every: *fork_every })
            }
            PointConfig::Step(StepPoint { data, loss, size, direction }) => {
                let (data, loss) = (data.clone(), loss.clone());
                Displacement::Step(Step { data, loss, size: *size, direction: *direction })
            }
        };
        Ok(Point { name: name.clone(), displacement })
    };
    Ok(Settings {
        seed: config.seed,
        points: defence.point.iter().map(displaced).collect::<Result<_>>()?,
        terms: defence.term.iter().map(term).collect(),
        combine: match defence.combine {
            CombineChoice::Sum => Combine::Sum,
            CombineChoice::SignMask(mask) => Combine::SignMask(mask),
        },
        trained: trained(defence.trained.as_ref()),
        rounds: rounds(&defence),
        lower_bound: defence.lower_bound,
        outer: defence.outer.optimizer_config(defence.steps()),
        memory,
    })
}

fn trained(part: Option<&TrainedConfig>) -> Trained {
    match part {
        None => Trained::All,
        Some(part) => Trained::Part { layers: part.layers.clone(), modules: part.modules.clone() },
    }
}

fn rounds(defence: &DefenceConfig) -> Vec<Round> {
    let round = |table: &RoundConfig| Round {
        steps: table.outer_steps,
        outer: table.outer.as_ref().unwrap_or(&defence.outer).optimizer_config(table.outer_steps),
        trained: trained(table.trained.as_ref().or(defence.trained.as_ref())),
        weights: table.weights.clone(),
    };
    defence.round.iter().flat_map(|table| (0..table.repeat).map(move |_| round(table))).collect()
}

fn term(table: &TermConfig) -> Term {
    let (loss, data, at) = (table.loss.clone(), table.data.clone(), table.at.clone());
    Term { name: table.name(), loss, data, weight: table.weight, at }
}

fn simulation(length: AttackLength, defence: &DefenceConfig, config: &RunConfig) -> Result<Simulation> {
    let adversaries: Vec<Adversary> = defence.adversary.iter().map(|table| adversary(table, length, config)).collect();
    let script = defence.script.iter().map(|entry| scripted(entry, &adversaries)).collect::<Result<_>>()?;
    Ok(Simulation { length, adversaries, script, pool: defence.pool, curriculum: defence.curriculum })
}

fn adversary(table: &AdversaryConfig, length: AttackLength, config: &RunConfig) -> Adversary {
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
        ..Adversary::new(&table.name, table.source(), Vec::new(), table.optimizer_config(lr, length, &config.compat))
    }
}

fn scripted(entry: &ScriptEntry, adversaries: &[Adversary]) -> Result<Draw> {
    let adversary = adversaries.iter().position(|a| a.name == entry.adversary).ok_or_else(|| {
        let problem = format!("there is no adversary `{}`", entry.adversary);
        Error::config("script.adversary", problem, "use the name of an adversary's table")
    })?;
    Ok(Draw { switch_at: entry.switch_at, ..Draw::new(adversary, entry.lr) })
}
