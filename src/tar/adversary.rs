//! Which attack a trajectory simulates: adversaries as data, the draw of one of them, and the attack that is drawn.

use rand_distr::Distribution;
use serde::{Deserialize, Serialize};

use super::{AttackLength, LearningRates, ShareRange, Simulation};
use crate::error::{Error, Result};
use crate::model::AdapterConfig;
use crate::optimizer::{Decay, OptimizerConfig};
use crate::random::{Random, weighted};
use crate::settings::fault;
use crate::training::{FineTune, Source};

/// What an adversary trains on. Streams are named; a switch happens at step ⌊K · Beta(a, b)⌋ and has (a, b).
pub type AdversarySource = Source<String, [f64; 2]>;

/// A kind of attacker.
#[derive(Clone, Debug, PartialEq)]
pub struct Adversary {
    /// Its name.
    pub name: String,
    /// What it trains on.
    pub source: AdversarySource,
    /// The share of one stream of its mixture, drawn for each attack; the weights of the mixture count where absent.
    pub share: Option<ShareRange>,
    /// How often it is drawn, relative to the others.
    pub weight: f64,
    /// LoRA, or all weights where absent.
    pub adapter: Option<AdapterConfig>,
    /// LoRA ranks, one drawn for each attack; the rank of `adapter` where there is none. All have the factor α/r of `adapter`.
    pub ranks: Vec<usize>,
    /// Learning rates, one drawn for each attack.
    pub learning_rates: LearningRates,
    /// What the learning rate does after its warm-up, one drawn for each attack; the optimizer's own where there is none.
    pub schedules: Vec<Decay>,
    /// Its optimizer; the learning rate comes from the draw.
    pub optimizer: OptimizerConfig,
    /// K, where it is not the method's.
    pub inner_steps: Option<u64>,
    /// A tamper-resistance gradient after every n-th inner step, where that is not as the method says.
    pub tr_every: Option<u64>,
    /// Sequences of an inner step; each stream has its own batch where absent.
    pub batch: Option<usize>,
    /// Stream of the tamper-resistance loss, where it is not the method's.
    pub tr_data: Option<String>,
}

/// The attack of one trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    /// Index into the list of adversaries.
    pub adversary: usize,
    /// Learning rate.
    pub lr: f64,
    /// First inner step on the second stream, for switching adversaries.
    pub switch_at: Option<u64>,
    /// The drawn share of a stream, where its range was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// LoRA rank, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The course of the learning rate, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Decay>,
}

impl Draw {
    /// The attack of adversary number `adversary` at learning rate `lr`; all else is as the adversary has it first.
    pub fn new(adversary: usize, lr: f64) -> Self {
        Self { adversary, lr, switch_at: None, share: None, rank: None, schedule: None }
    }
}

impl Adversary {
    /// An adversary of weight 1 that trains all weights, with everything else as the method has it.
    pub fn new(name: &str, source: AdversarySource, learning_rates: Vec<f64>, optimizer: OptimizerConfig) -> Self {
        Self {
            name: name.into(),
            source,
            share: None,
            weight: 1.0,
            adapter: None,
            ranks: Vec::new(),
            learning_rates: LearningRates::List(learning_rates),
            schedules: Vec::new(),
            optimizer,
            inner_steps: None,
            tr_every: None,
            batch: None,
            tr_data: None,
        }
    }

    /// The whole length of its attacks in `simulation`.
    pub fn whole_length(&self, simulation: &Simulation) -> AttackLength {
        let AttackLength { inner_steps, tr_every } = simulation.length;
        AttackLength {
            inner_steps: self.inner_steps.unwrap_or(inner_steps),
            tr_every: self.tr_every.unwrap_or(tr_every),
        }
    }

    /// Its adapter at each of its ranks; none where it trains all weights.
    pub fn adapters(&self) -> Vec<AdapterConfig> {
        let Some(adapter) = &self.adapter else { return Vec::new() };
        if self.ranks.is_empty() {
            return vec![adapter.clone()];
        }
        self.ranks.iter().map(|&rank| adapter.with_rank(rank)).collect()
    }

    /// The place of the drawn rank among [`Adversary::adapters`].
    pub(super) fn rank_place(&self, draw: &Draw) -> Result<usize> {
        let Some(rank) = draw.rank else { return Ok(0) };
        self.ranks.iter().position(|own| *own == rank).ok_or_else(|| {
            let problem = format!("`{}` has no rank {rank}", self.name);
            fault("tar.adversary.rank", problem, "draw one of its ranks")
        })
    }

    /// The attack of a trajectory of `steps` inner steps that has drawn `draw`.
    pub(super) fn attack(&self, draw: &Draw, steps: u64) -> Result<FineTune<String>> {
        // A script may leave out the switch of an adversary: then there is none.
        let mut source = self.source.try_map(|name| Ok(name.clone()), |_| Ok(draw.switch_at.unwrap_or(u64::MAX)))?;
        if let (Source::Mixture(parts), Some(range), Some(share)) = (&mut source, &self.share, draw.share) {
            *parts = range.weights(parts, share);
        }
        let mut optimizer = OptimizerConfig { lr: draw.lr, ..self.optimizer.clone() };
        optimizer.schedule.total = steps;
        if let Some(decay) = draw.schedule.or(self.schedules.first().copied()) {
            optimizer.schedule.decay = decay;
        }
        let adapter = self.adapters().get(self.rank_place(draw)?).cloned();
        Ok(FineTune { adapter, batch: self.batch, ..FineTune::new(source, optimizer, steps) })
    }
}

/// Draws the attack of a trajectory from the trajectory's own sequence; `inner_steps` is an adversary's K.
///
/// # Errors
/// When no adversary has a positive weight, or a Beta distribution's parameters are not positive.
pub(super) fn draw_attack(
    adversaries: &[Adversary],
    random: &mut Random,
    inner_steps: impl Fn(&Adversary) -> u64,
) -> Result<Draw> {
    let index = weighted(random, adversaries.iter().map(|a| a.weight)).ok_or_else(|| {
        Error::config("tar.adversary", "no adversary has a positive weight", "give at least one a weight above 0")
    })?;
    let adversary = &adversaries[index];
    let Some(lr) = adversary.learning_rates.draw(random) else {
        return Err(Error::config("tar.adversary.lr", "the list is empty", "give at least one learning rate"));
    };
    let switch_at = match &adversary.source {
        Source::Switch { at: [a, b], .. } => Some(switch_step(random, *a, *b, inner_steps(adversary))?),
        _ => None,
    };
    // What adversaries could not draw at first follows what they could: seeds keep their attacks.
    Ok(Draw {
        switch_at,
        share: adversary.share.as_ref().map(|range| range.draw(random)),
        rank: one_of(&adversary.ranks, random),
        schedule: one_of(&adversary.schedules, random),
        ..Draw::new(index, lr)
    })
}

/// One of several; none is drawn where there is no choice.
fn one_of<T: Copy>(choices: &[T], random: &mut Random) -> Option<T> {
    if choices.len() < 2 { None } else { Some(choices[random.below(choices.len())]) }
}

fn switch_step(random: &mut Random, a: f64, b: f64, inner_steps: u64) -> Result<u64> {
    let beta = rand_distr::Beta::new(a, b).map_err(|_| {
        Error::config("tar.adversary.switch", format!("Beta({a}, {b}) does not exist"), "use two positive numbers")
    })?;
    Ok((beta.sample(random) * inner_steps as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerKind;
    use crate::random::Stream;

    fn adversary(name: &str, weight: f64, source: AdversarySource) -> Adversary {
        let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 0.0);
        Adversary { weight, ..Adversary::new(name, source, vec![1.0, 2.0], optimizer) }
    }

    fn draw(all: &[Adversary], outer: u64) -> Draw {
        draw_attack(all, &mut Random::new(1, Stream::Adversary, outer, 0), |_| 64).unwrap()
    }

    #[test]
    fn draws_follow_the_weights_and_the_published_switch_distribution() {
        let streams = ["retain".to_string(), "forget".to_string()];
        let all = [
            adversary("never", 0.0, AdversarySource::One("x".into())),
            adversary("one", 1.0, AdversarySource::One("x".into())),
            adversary("switch", 3.0, AdversarySource::Switch { streams, at: [6.0, 3.0] }),
        ];
        let draws: Vec<Draw> = (0..4000).map(|i| draw(&all, i)).collect();
        let share = |index| draws.iter().filter(|d| d.adversary == index).count() as f64 / draws.len() as f64;
        assert_eq!(share(0), 0.0);
        assert!((share(2) - 0.75).abs() < 0.03, "{}", share(2));
        let switches: Vec<f64> = draws.iter().filter_map(|d| d.switch_at).map(|s| s as f64).collect();
        let mean = switches.iter().sum::<f64>() / switches.len() as f64;
        // E⌊64·Beta(6,3)⌋ is 42.15.
        assert!((mean - 42.15).abs() < 0.6, "{mean}");
        assert!(switches.iter().all(|&s| (0.0..64.0).contains(&s)));
        assert_eq!(draws[17], draw(&all, 17));
    }

    /// A mixture with ranges of everything, and the same adversary with none: learning rates, switches and adversaries of a
    /// seed are the same, and what is drawn besides is within its range and reaches the attack.
    #[test]
    fn what_is_drawn_from_ranges_comes_after_what_was_always_drawn() {
        let source = || AdversarySource::Mixture(vec![("forget".into(), 1.0), ("retain".into(), 1.0)]);
        let plain = [adversary("mixed", 1.0, source()), adversary("other", 1.0, source())];
        let schedules: Vec<Decay> = ["constant", "cosine:0.1"].map(|text| text.parse().unwrap()).into();
        let ranged = plain.clone().map(|adversary| Adversary {
            share: Some(ShareRange { of: "forget".into(), from: 0.1, to: 0.4 }),
            adapter: Some(AdapterConfig::new(8)),
            ranks: vec![8, 2],
            schedules: schedules.clone(),
            batch: Some(3),
            ..adversary
        });
        let mut seen = [false; 4];
        for outer in 0..64 {
            let before = draw(&plain, outer);
            let drawn = draw(&ranged, outer);
            assert_eq!((before.adversary, before.lr), (drawn.adversary, drawn.lr));
            let share = drawn.share.unwrap();
            assert!((0.1..=0.4).contains(&share));
            let attack = ranged[drawn.adversary].attack(&drawn, 20).unwrap();
            assert_eq!(attack.source, Source::Mixture(vec![("forget".into(), share), ("retain".into(), 1.0 - share)]));
            let adapter = attack.adapter.unwrap();
            assert_eq!((Some(adapter.rank), adapter.scale()), (drawn.rank, 2.0));
            let schedule = attack.optimizer.schedule;
            assert_eq!((Some(schedule.decay), schedule.total, attack.batch), (drawn.schedule, 20, Some(3)));
            seen[usize::from(adapter.rank == 2)] = true;
            seen[2 + usize::from(schedule.decay == schedules[1])] = true;
        }
        assert_eq!(seen, [true; 4]);
        let foreign = Draw { rank: Some(3), ..Draw::new(0, 1.0) };
        assert!(ranged[0].attack(&foreign, 20).is_err());
    }
}
