//! What the tables of a run file describe: the streams in use, the gradients and attacks of a step, the outer optimizer and the
//! safeguard's.

use std::collections::BTreeSet;

use super::{
    AdversaryConfig, DefenceConfig, OuterConfig, PointConfig, RoundConfig, RunConfig, SafeguardConfig, StepPoint,
    TermConfig,
};
use crate::objective::TermLoss;
use crate::optimizer::{OptimizerConfig, Schedule};
use crate::tar::AttackLength;

impl RunConfig {
    /// The names of the streams that the method uses; `[data]` may hold more.
    pub fn used_streams(&self) -> BTreeSet<&str> {
        let safeguard = self.safeguard.iter().flat_map(|table| [table.data.as_str(), self.safeguard_retain(table)]);
        let tar = &self.tar;
        let held_out = tar.adversary.iter().filter_map(|adversary| adversary.tr_data.as_deref());
        let of_defence: Vec<&str> = match &self.defence {
            Some(defence) => defence.streams(),
            None => streams_of(&tar.adversary).chain(held_out).chain([&*tar.tr_data, &*tar.retain_data]).collect(),
        };
        safeguard.chain(of_defence).collect()
    }

    /// The stream of the retain loss of a safeguard.
    pub fn safeguard_retain<'a>(&'a self, table: &'a SafeguardConfig) -> &'a str {
        table.retain_data.as_deref().unwrap_or(&self.tar.retain_data)
    }
}

fn streams_of(adversaries: &[AdversaryConfig]) -> impl Iterator<Item = &str> {
    adversaries.iter().flat_map(|adversary| adversary.data.streams()).map(String::as_str)
}

impl DefenceConfig {
    /// The streams that it names, some of them several times.
    fn streams(&self) -> Vec<&str> {
        let terms = self.term.iter().map(|term| term.data.as_str());
        let points = self.point.values().flat_map(|point| match point {
            PointConfig::Step(step) => vec![step.data.as_str()],
            PointConfig::Ablation(ablation) => vec![ablation.restricted.as_str(), ablation.harmless.as_str()],
            PointConfig::Persistent(adversary) => vec![adversary.data.as_str()],
            _ => Vec::new(),
        });
        let held_out = self.adversary.iter().filter_map(|adversary| adversary.tr_data.as_deref());
        terms.chain(points).chain(held_out).chain(streams_of(&self.adversary)).collect()
    }

    /// Outer steps of the run.
    pub fn steps(&self) -> u64 {
        let all = self.round.iter().map(|round| round.outer_steps.saturating_mul(round.repeat));
        self.outer_steps.unwrap_or_else(|| all.fold(0, u64::saturating_add))
    }

    /// The simulated attacks of the run, where a point is reached by some: there is one such point at most.
    pub fn simulated(&self) -> Option<SimulatedAttacks> {
        let steps = self.steps();
        self.point.values().find_map(|point| match point {
            PointConfig::Attack(attack) => {
                Some(SimulatedAttacks { length: attack.length(), count: steps.saturating_mul(attack.tasks) })
            }
            PointConfig::FrozenAttack(frozen) => {
                let count = steps.saturating_sub(frozen.first).div_ceil(frozen.refresh.max(1));
                Some(SimulatedAttacks { length: frozen.length(), count })
            }
            _ => None,
        })
    }

    /// The simulated attacks of an outer step, expected over the draws: each adversary with its number of trajectories.
    pub fn trajectories(&self) -> Vec<(&AdversaryConfig, f64)> {
        let total: f64 = self.adversary.iter().map(|adversary| adversary.weight).sum();
        let count = self.simulated().map_or(0, |simulated| simulated.count) as f64 / self.steps().max(1) as f64;
        self.adversary.iter().map(|adversary| (adversary, count * adversary.weight / total)).collect()
    }

    /// A number of the length of an adversary's attacks, expected over the outer steps.
    pub fn mean_of(&self, adversary: &AdversaryConfig, of: impl Fn(AttackLength) -> f64) -> f64 {
        let Some(simulated) = self.simulated() else { return 0.0 };
        let whole = adversary.whole_length(simulated.length);
        self.curriculum.map_or_else(|| of(whole), |curriculum| curriculum.mean(whole, self.steps(), &of))
    }

    /// The share of the outer steps in which a term counts.
    fn share(&self, term: &TermConfig) -> f64 {
        let counts = |round: &RoundConfig| *round.weights.get(&term.name()).unwrap_or(&term.weight) != 0.0;
        if self.round.is_empty() {
            return f64::from(u8::from(term.weight != 0.0));
        }
        let length = |round: &RoundConfig| round.outer_steps as f64 * round.repeat as f64;
        let all: f64 = self.round.iter().map(length).sum();
        self.round.iter().filter(|round| counts(round)).map(length).sum::<f64>() / all
    }

    /// The gradients of all weights that an outer step takes, apart from those of attacks: of each term that counts, and of
    /// each step to a point.
    pub fn gradients(&self) -> Vec<TakenGradient<'_>> {
        let mut taken: Vec<TakenGradient> = Vec::new();
        for term in self.term.iter().filter(|term| self.share(term) > 0.0) {
            let mut add = |data, visits: f64, takes: f64| {
                let share = self.share(term);
                let name = format!("gradients of `{}`", term.name());
                let (visits, takes) = (share * visits, share * takes);
                taken.push(TakenGradient { name, data, loss: term.loss.clone(), visits, takes });
            };
            match self.point.get(&term.at) {
                Some(PointConfig::Attack(_)) => {
                    for (adversary, count) in self.trajectories() {
                        let points = self.mean_of(adversary, |length| length.points() as f64);
                        add(adversary.tr_data.as_deref().unwrap_or(&term.data), count, count * points);
                    }
                }
                Some(PointConfig::Noise(noise)) => add(&term.data, noise.tasks as f64, noise.tasks as f64),
                _ => add(&term.data, 1.0, 1.0),
            }
        }
        let to_points = self.point.iter().filter_map(|(name, point)| match point {
            PointConfig::Step(StepPoint { data, loss, .. }) => {
                let name = format!("step to `{name}`");
                Some(TakenGradient { name, data, loss: loss.clone(), visits: 1.0, takes: 1.0 })
            }
            PointConfig::Persistent(adversary) => {
                let (name, data) = (format!("step of `{name}`"), adversary.data.as_str());
                Some(TakenGradient { name, data, loss: TermLoss::CrossEntropy, visits: 1.0, takes: 1.0 })
            }
            _ => None,
        });
        taken.extend(to_points);
        taken
    }
}

/// The simulated attacks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatedAttacks {
    /// The length of each whose adversary has none of its own.
    pub length: AttackLength,
    /// How many there are in the whole run.
    pub count: u64,
}

/// Gradients of all weights on the batches of a stream.
#[derive(Clone, Debug)]
pub struct TakenGradient<'a> {
    /// What they are.
    pub name: String,
    /// The stream.
    pub data: &'a str,
    /// Their loss.
    pub loss: TermLoss,
    /// Batches of one outer step, on average over the rounds.
    pub visits: f64,
    /// Gradients of one outer step, on average over the rounds.
    pub takes: f64,
}

impl OuterConfig {
    /// The outer optimizer of a run of `outer_steps` steps.
    pub fn optimizer_config(&self, outer_steps: u64) -> OptimizerConfig {
        let schedule =
            Schedule { warmup: self.warmup, decay: self.schedule, total: outer_steps, official_warmup: false };
        OptimizerConfig {
            schedule,
            weight_decay: self.weight_decay,
            betas: self.betas,
            ..OptimizerConfig::new(self.optimizer, self.lr)
        }
    }
}

impl SafeguardConfig {
    /// The optimizer of the plain safeguard.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        let schedule = Schedule { warmup: self.warmup, ..Schedule::constant() };
        OptimizerConfig { schedule, ..OptimizerConfig::new(self.optimizer, self.lr) }
    }
}
