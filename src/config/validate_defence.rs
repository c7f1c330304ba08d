//! What must hold between the settings of `[defence]`. Each finding names the key and the remedy.

use super::validate::{Simulated, check_outer, stream_exists};
use super::{
    AblationPoint, AttackPoint, CombineChoice, CompatConfig, DefenceConfig, FrozenAttackPoint, NoisePoint,
    ParameterChoice, PersistentPoint, PointConfig, RoundingPoint, RunConfig, SimulatedAttacks, StepPoint, TermConfig,
};
use crate::error::Result;
use crate::settings::{at_least, at_most, fault, finite, fraction, positive, repeated, suggestion};
use crate::tar::{BASE, SignMask};
use crate::training::check_optimizer;

pub(super) fn check(config: &RunConfig, defence: &DefenceConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
    if written("tar") && !config.tar.is_default() {
        return Err(fault("tar", "a run has [tar] or [defence], and this one has both", "keep one of them"));
    }
    refuse_idle_compat(&config.compat)?;
    check_rounds(defence)?;
    at_least("defence.outer_steps", defence.steps(), 1)?;
    check_outer(config, "defence.outer", &defence.outer.optimizer_config(defence.steps()))?;
    if let Some(bound) = defence.lower_bound {
        finite("defence.lower_bound", bound)?;
        if defence.point.is_empty() {
            return Err(fault("defence.lower_bound", "has no effect: there is no point", "remove it"));
        }
    }
    if let Some(start) = &defence.start {
        start.check("defence.start")?;
        if config.safeguard.is_some() {
            let problem =
                "disturbs what the safeguard of the same run has made, and the reference model is the one before it";
            return Err(fault(
                "defence.start",
                problem,
                "make the safeguarded model first, and name it as `model.path`",
            ));
        }
    }
    if let Some(part) = &defence.trained {
        check_list("defence.trained.layers", part.layers.as_deref())?;
        check_list("defence.trained.modules", part.modules.as_deref())?;
    }
    for (name, point) in &defence.point {
        check_point(config, &format!("defence.point.{name}"), name, point)?;
    }
    check_terms(config, defence)?;
    check_combine(defence)?;
    check_attacks(config, defence, written)
}

/// `[compat]` has settings of `[tar]`, which a defence says in the losses themselves.
fn refuse_idle_compat(compat: &CompatConfig) -> Result<()> {
    let default = CompatConfig::default();
    let idle = [
        ("entropy_over", compat.entropy_over != default.entropy_over),
        ("representations_over", compat.representations_over != default.representations_over),
        ("skip_first_retain_batch", compat.skip_first_retain_batch),
    ];
    match idle.iter().find(|(_, differs)| *differs) {
        None => Ok(()),
        Some((name, _)) => {
            let remedy = "remove it; a loss has its own `over`";
            Err(fault(format!("compat.{name}"), "has no effect with [defence]", remedy))
        }
    }
}

fn check_list<T: PartialEq>(key: &str, list: Option<&[T]>) -> Result<()> {
    match list {
        Some([]) => Err(fault(key, "is empty", "remove it for all, or name some")),
        Some(entries) if repeated(entries).is_some() => Err(fault(key, "has an entry twice", "name each once")),
        _ => Ok(()),
    }
}

fn check_point(config: &RunConfig, key: &str, name: &str, point: &PointConfig) -> Result<()> {
    if name == BASE {
        return Err(fault(key, "is the name of the weights themselves", "give the point another"));
    }
    match point {
        PointConfig::Attack(attack) => check_attack(&format!("{key}.attack"), attack),
        PointConfig::FrozenAttack(FrozenAttackPoint { steps, refresh, .. }) => {
            at_least(&format!("{key}.frozen_attack.steps"), *steps, 1)?;
            at_least(&format!("{key}.frozen_attack.refresh"), *refresh, 1)
        }
        PointConfig::Noise(NoisePoint { relative, tasks }) => {
            positive(&format!("{key}.noise.relative"), *relative)?;
            at_least(&format!("{key}.noise.tasks"), *tasks, 1)
        }
        PointConfig::Ablation(AblationPoint { restricted, harmless, depth, batches, refresh }) => {
            let key = format!("{key}.ablation");
            stream_exists(config, &format!("{key}.restricted"), restricted)?;
            stream_exists(config, &format!("{key}.harmless"), harmless)?;
            fraction(&format!("{key}.depth"), *depth)?;
            at_least(&format!("{key}.batches"), *batches, 1)?;
            at_least(&format!("{key}.refresh"), *refresh, 1)
        }
        PointConfig::Rounding(RoundingPoint { bits, group, .. }) => {
            let key = format!("{key}.rounding");
            at_least(&format!("{key}.bits"), u64::from(*bits), 2)?;
            at_most(&format!("{key}.bits"), u64::from(*bits), 16)?;
            at_least(&format!("{key}.group"), *group as u64, 1)
        }
        PointConfig::Step(StepPoint { data, loss, size, .. }) => {
            let key = format!("{key}.step");
            stream_exists(config, &format!("{key}.data"), data)?;
            loss.check(&format!("{key}.loss"))?;
            positive(&format!("{key}.size"), *size)
        }
        PointConfig::Persistent(PersistentPoint { data, lr, fork_every }) => {
            let key = format!("{key}.persistent");
            stream_exists(config, &format!("{key}.data"), data)?;
            positive(&format!("{key}.lr"), *lr)?;
            at_least(&format!("{key}.fork_every"), *fork_every, 1)
        }
    }
}

/// Checks the rounds, which all have one kind of optimizer and name terms that exist.
fn check_rounds(defence: &DefenceConfig) -> Result<()> {
    let names: Vec<String> = defence.term.iter().map(TermConfig::name).collect();
    for (index, round) in defence.round.iter().enumerate() {
        let key = format!("defence.round.{index}");
        at_least(&format!("{key}.outer_steps"), round.outer_steps, 1)?;
        at_least(&format!("{key}.repeat"), round.repeat, 1)?;
        if let Some(outer) = &round.outer {
            check_optimizer(&format!("{key}.outer"), &outer.optimizer_config(round.outer_steps))?;
            if outer.optimizer != defence.outer.optimizer {
                let remedy = format!("use {} in every round", defence.outer.optimizer);
                return Err(fault(format!("{key}.outer.optimizer"), "differs from that of the defence", remedy));
            }
        }
        for (name, weight) in &round.weights {
            if !names.contains(name) {
                let problem = format!("there is no term `{name}`");
                return Err(fault(
                    format!("{key}.weights.{name}"),
                    problem,
                    suggestion(name, names.iter().map(String::as_str)),
                ));
            }
            finite(&format!("{key}.weights.{name}"), *weight)?;
        }
    }
    Ok(())
}

fn check_attack(key: &str, attack: &AttackPoint) -> Result<()> {
    at_least(&format!("{key}.steps"), attack.steps, 1)?;
    at_least(&format!("{key}.every"), attack.every, 1)?;
    at_least(&format!("{key}.tasks"), attack.tasks, 1)?;
    if attack.every > attack.steps {
        let problem = format!("is {}, more than steps = {}: no gradient is ever taken", attack.every, attack.steps);
        return Err(fault(format!("{key}.every"), problem, format!("set it to at most {}", attack.steps)));
    }
    let Some(lambda) = attack.schedule_lambda else { return Ok(()) };
    finite(&format!("{key}.schedule_lambda"), lambda)?;
    if !((-lambda * (attack.steps - 1) as f64).exp() as f32).is_finite() {
        let problem = format!("{lambda} gives the first inner step a weight that is no finite f32");
        return Err(fault(format!("{key}.schedule_lambda"), problem, "use a value of 0 or more"));
    }
    Ok(())
}

fn check_terms(config: &RunConfig, defence: &DefenceConfig) -> Result<()> {
    if defence.term.is_empty() {
        return Err(fault("defence.term", "there is none", "add a table [[defence.term]] with loss and data"));
    }
    let names: Vec<String> = defence.term.iter().map(TermConfig::name).collect();
    for (index, term) in defence.term.iter().enumerate() {
        let key = format!("defence.term.{index}");
        if names[..index].contains(&names[index]) {
            let problem = format!("`{}` is the name of two terms", names[index]);
            return Err(fault(format!("{key}.name"), problem, "give each its own"));
        }
        stream_exists(config, &format!("{key}.data"), &term.data)?;
        term.loss.check(&format!("{key}.loss"))?;
        finite(&format!("{key}.weight"), term.weight)?;
        let places = || defence.point.keys().map(String::as_str).chain([BASE]);
        if places().all(|place| place != term.at) {
            let problem = format!("there is no [defence.point.{}]", term.at);
            return Err(fault(format!("{key}.at"), problem, suggestion(&term.at, places())));
        }
    }
    let idle = |name: &&String| defence.term.iter().all(|term| term.at != **name);
    match defence.point.keys().find(idle) {
        None => Ok(()),
        Some(name) => {
            Err(fault(format!("defence.point.{name}"), "has no effect: no term is at it", "add a term, or remove it"))
        }
    }
}

/// A mask of signs needs gradients on both sides, and numbers that mean something.
fn check_combine(defence: &DefenceConfig) -> Result<()> {
    let CombineChoice::SignMask(SignMask { decay, norm }) = defence.combine else { return Ok(()) };
    let key = "defence.combine.sign_mask";
    if !(0.0..1.0).contains(&decay) {
        return Err(fault(format!("{key}.decay"), format!("is {decay}"), "use a number from 0 to below 1"));
    }
    positive(&format!("{key}.norm"), norm)?;
    let at_base = defence.term.iter().filter(|term| term.at == BASE).count();
    if at_base == 0 || at_base == defence.term.len() {
        let problem = "masks the gradients at points by the signs of those at the base, and one of them is missing";
        return Err(fault(key, problem, "have a term at a point and one at `base`, or use \"sum\""));
    }
    Ok(())
}

/// Checks the adversaries, which are there if and only if a point is reached by attacks.
fn check_attacks(config: &RunConfig, defence: &DefenceConfig, written: &impl Fn(&str) -> bool) -> Result<()> {
    let is_attacked = |point: &&PointConfig| matches!(point, PointConfig::Attack(_) | PointConfig::FrozenAttack(_));
    let attacked = defence.point.values().filter(is_attacked).count();
    let simulated = defence.simulated();
    defence.pool.iter().try_for_each(|pool| pool.check("defence.pool"))?;
    defence.curriculum.iter().try_for_each(|curriculum| curriculum.check("defence.curriculum"))?;
    let idle = [
        ("adversary", !defence.adversary.is_empty()),
        ("script", !defence.script.is_empty()),
        ("pool", defence.pool.is_some()),
        ("curriculum", defence.curriculum.is_some()),
    ];
    match (simulated, attacked) {
        (_, 2..) => {
            let problem = "two points are reached by attacks";
            Err(fault("defence.point", problem, "keep one, and give it several adversaries"))
        }
        (Some(SimulatedAttacks { length, count: trajectories }), _) => {
            let (adversaries, script) = (&defence.adversary[..], &defence.script[..]);
            Simulated { key: "defence", adversaries, script, length, trajectories }.check(config, written)?;
            check_frozen(defence)
        }
        (None, _) => match idle.iter().find(|(_, is_there)| *is_there) {
            None => Ok(()),
            Some((name, _)) => {
                let problem = "has no effect: no point is reached by attacks";
                Err(fault(format!("defence.{name}"), problem, "add a point with `attack`, or remove it"))
            }
        },
    }
}

/// Fails where adversaries of a frozen attack say something of gradients along it, of which there are none.
fn check_frozen(defence: &DefenceConfig) -> Result<()> {
    if !defence.point.values().any(|point| matches!(point, PointConfig::FrozenAttack(_))) {
        return Ok(());
    }
    if defence.pool.is_some() {
        return Err(fault("defence.pool", "has no effect: a frozen attack has no loss at its end", "remove it"));
    }
    for (index, adversary) in defence.adversary.iter().enumerate() {
        let key = |name: &str| format!("defence.adversary.{index}.{name}");
        if adversary.params == ParameterChoice::Lora {
            return Err(fault(key("params"), "a frozen attack trains all weights", "set it to \"full\""));
        }
        if adversary.tr_data.is_some() || adversary.tr_every.is_some() {
            let name = if adversary.tr_data.is_some() { "tr_data" } else { "tr_every" };
            return Err(fault(key(name), "has no effect: no gradient is taken along a frozen attack", "remove it"));
        }
    }
    Ok(())
}
