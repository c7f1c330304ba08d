//! Which attack a trajectory simulates: adversaries as data, the draw of one of them, and the attack that is drawn.

use rand_distr::Distribution;

use crate::error::{Error, Result};
use crate::model::AdapterConfig;
use crate::optimizer::OptimizerConfig;
use crate::random::{Random, Stream, weighted};
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
    /// How often it is drawn, relative to the others.
    pub weight: f64,
    /// LoRA, or all weights where absent.
    pub adapter: Option<AdapterConfig>,
    /// Learning rates, one drawn per trajectory.
    pub learning_rates: Vec<f64>,
    /// Its optimizer; the learning rate comes from the draw.
    pub optimizer: OptimizerConfig,
}

/// The attack of one trajectory.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Draw {
    /// Index into the list of adversaries.
    pub adversary: usize,
    /// Learning rate.
    pub lr: f64,
    /// First inner step on the second stream, for switching adversaries.
    pub switch_at: Option<u64>,
}

impl Adversary {
    /// The attack of a trajectory of `steps` inner steps that has drawn `draw`.
    pub(super) fn attack(&self, draw: &Draw, steps: u64) -> Result<FineTune<String>> {
        // A script may leave out the switch of an adversary: then there is none.
        let source = self.source.try_map(|name| Ok(name.clone()), |_| Ok(draw.switch_at.unwrap_or(u64::MAX)))?;
        let optimizer = OptimizerConfig { lr: draw.lr, ..self.optimizer.clone() };
        Ok(FineTune { adapter: self.adapter.clone(), ..FineTune::new(source, optimizer, steps) })
    }
}

/// Draws the attack of trajectory `task` of outer step `outer`.
///
/// # Errors
/// When no adversary has a positive weight, or a Beta distribution's parameters are not positive.
pub(super) fn draw_attack(
    adversaries: &[Adversary],
    seed: u64,
    outer: u64,
    task: u64,
    inner_steps: u64,
) -> Result<Draw> {
    let mut random = Random::new(seed, Stream::Adversary, outer, task);
    let index = weighted(&mut random, adversaries.iter().map(|a| a.weight)).ok_or_else(|| {
        Error::config("tar.adversary", "no adversary has a positive weight", "give at least one a weight above 0")
    })?;
    let adversary = &adversaries[index];
    let Some(&lr) = adversary.learning_rates.get(random.below(adversary.learning_rates.len().max(1))) else {
        return Err(Error::config("tar.adversary.lr", "the list is empty", "give at least one learning rate"));
    };
    let switch_at = match &adversary.source {
        Source::Switch { at: [a, b], .. } => Some(switch_step(&mut random, *a, *b, inner_steps)?),
        _ => None,
    };
    Ok(Draw { adversary: index, lr, switch_at })
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

    fn adversary(name: &str, weight: f64, source: AdversarySource) -> Adversary {
        let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 0.0);
        Adversary { name: name.into(), source, weight, adapter: None, learning_rates: vec![1.0, 2.0], optimizer }
    }

    #[test]
    fn draws_follow_the_weights_and_the_published_switch_distribution() {
        let streams = ["retain".to_string(), "forget".to_string()];
        let all = [
            adversary("never", 0.0, AdversarySource::One("x".into())),
            adversary("one", 1.0, AdversarySource::One("x".into())),
            adversary("switch", 3.0, AdversarySource::Switch { streams, at: [6.0, 3.0] }),
        ];
        let draws: Vec<Draw> = (0..4000).map(|i| draw_attack(&all, 1, i, 0, 64).unwrap()).collect();
        let share = |index| draws.iter().filter(|d| d.adversary == index).count() as f64 / draws.len() as f64;
        assert_eq!(share(0), 0.0);
        assert!((share(2) - 0.75).abs() < 0.03, "{}", share(2));
        let switches: Vec<f64> = draws.iter().filter_map(|d| d.switch_at).map(|s| s as f64).collect();
        let mean = switches.iter().sum::<f64>() / switches.len() as f64;
        // E⌊64·Beta(6,3)⌋ is 42.15.
        assert!((mean - 42.15).abs() < 0.6, "{mean}");
        assert!(switches.iter().all(|&s| (0.0..64.0).contains(&s)));
        assert_eq!(draws[17], draw_attack(&all, 1, 17, 0, 64).unwrap());
    }
}
