//! Attacks that a run keeps because they brought much back, to be met again.

use serde::{Deserialize, Serialize};

use super::adversary::draw_attack;
use super::{Adversary, Draw, Simulation, TrajectoryReport};
use crate::error::Result;
use crate::random::{Random, Stream};
use crate::settings::{at_least, at_most, fault, fraction};

/// More attacks than are worth a place in a checkpoint.
const MAX_SIZE: u64 = 1 << 16;

/// The pool's settings: with probability `share` an attack is one of those that were met before and brought most back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Attacks that are kept: those with the highest scores.
    pub size: usize,
    /// The probability that an attack is one of them instead of a new one.
    pub share: f64,
}

impl PoolSettings {
    /// Fails where a number is out of its range; `key` is the place of the table.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.size"), self.size as u64, 1)?;
        at_most(&format!("{key}.size"), self.size as u64, MAX_SIZE)?;
        fraction(&format!("{key}.share"), self.share)
    }
}

/// An attack of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HardAttack {
    /// What was drawn.
    pub draw: Draw,
    /// The tamper-resistance loss at the end of the attack when it was met last: the higher, the more came back.
    pub score: f64,
}

/// The attacks that are kept, best first: those that brought most back.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pool {
    attacks: Vec<HardAttack>,
}

impl Pool {
    /// Goes on with the attacks of a checkpoint.
    ///
    /// # Errors
    /// When one of them is of an adversary that `simulation` lacks.
    pub fn new(simulation: &Simulation, attacks: Vec<HardAttack>) -> Result<Self> {
        let count = simulation.adversaries.len();
        match attacks.iter().find(|attack| attack.draw.adversary >= count) {
            None => Ok(Self { attacks }),
            Some(attack) => {
                let problem = format!("there is no adversary {} among {count}", attack.draw.adversary);
                Err(fault("tar.pool", problem, "resume from a checkpoint of the same run"))
            }
        }
    }

    /// The attacks.
    pub fn attacks(&self) -> &[HardAttack] {
        &self.attacks
    }

    /// The attack of trajectory `task` of outer step `outer`: a new one, or one that is met again.
    pub fn draw(&self, simulation: &Simulation, seed: u64, outer: u64, task: u64) -> Result<Draw> {
        let mut random = Random::new(seed, Stream::Adversary, outer, task);
        let inner_steps = |adversary: &Adversary| simulation.length(adversary, outer).inner_steps;
        let new = draw_attack(&simulation.adversaries, &mut random, inner_steps)?;
        let again = simulation.pool.and_then(|pool| self.meet(&pool, &mut random));
        Ok(again.unwrap_or(new))
    }

    /// Keeps those of an outer step's attacks that brought most back.
    pub fn learn(&mut self, simulation: &Simulation, trajectories: &[TrajectoryReport]) {
        let Some(settings) = &simulation.pool else { return };
        for trajectory in trajectories {
            if let Some(score) = trajectory.tr_losses.last() {
                self.keep(settings, &trajectory.draw, *score);
            }
        }
    }

    /// One of the attacks, each as likely as the others, with the probability that `settings` gives; none otherwise, and none
    /// while there is none.
    fn meet(&self, settings: &PoolSettings, random: &mut Random) -> Option<Draw> {
        let again = random.uniform() < settings.share;
        if !again || self.attacks.is_empty() {
            return None;
        }
        Some(self.attacks[random.below(self.attacks.len())].draw.clone())
    }

    /// Keeps an attack that ended at `score`, or its new score where it was met before, and lets go of the lowest score where
    /// there is no room. A score that is not finite says nothing.
    fn keep(&mut self, settings: &PoolSettings, draw: &Draw, score: f64) {
        if !score.is_finite() {
            return;
        }
        self.attacks.retain(|attack| attack.draw != *draw);
        let place = self.attacks.partition_point(|attack| attack.score >= score);
        self.attacks.insert(place, HardAttack { draw: draw.clone(), score });
        self.attacks.truncate(settings.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: PoolSettings = PoolSettings { size: 3, share: 0.25 };

    fn draw(lr: f64) -> Draw {
        Draw::new(0, lr)
    }

    fn rates(pool: &Pool) -> Vec<f64> {
        pool.attacks().iter().map(|attack| attack.draw.lr).collect()
    }

    #[test]
    fn the_highest_scores_stay_and_a_new_score_takes_the_place_of_the_old() {
        let mut pool = Pool::default();
        for (lr, score) in [(1.0, -3.0), (2.0, -1.0), (3.0, -2.0), (4.0, -4.0), (5.0, f64::NAN)] {
            pool.keep(&SETTINGS, &draw(lr), score);
        }
        assert_eq!(rates(&pool), [2.0, 3.0, 1.0]);
        // The best of before was met again and brought nothing back; the next one pushes it out.
        pool.keep(&SETTINGS, &draw(2.0), -5.0);
        assert_eq!(rates(&pool), [3.0, 1.0, 2.0]);
        pool.keep(&SETTINGS, &draw(6.0), -3.0);
        assert_eq!(rates(&pool), [3.0, 1.0, 6.0]);
    }

    #[test]
    fn attacks_are_met_as_often_as_the_share_says_and_all_of_them() {
        let mut pool = Pool::default();
        let meet = |pool: &Pool, outer| pool.meet(&SETTINGS, &mut Random::new(7, Stream::Adversary, outer, 0));
        assert!((0..100).all(|outer| meet(&pool, outer).is_none()));
        (0..3).for_each(|index| pool.keep(&SETTINGS, &draw(f64::from(index)), -1.0));
        let met: Vec<Draw> = (0..4000).filter_map(|outer| meet(&pool, outer)).collect();
        // A quarter of 4000 has a deviation of 27, and a third of that quarter one of 15.
        assert!((met.len() as f64 - 1000.0).abs() < 135.0, "{}", met.len());
        for lr in 0..3 {
            let count = met.iter().filter(|draw| draw.lr == f64::from(lr)).count() as f64;
            assert!((count - met.len() as f64 / 3.0).abs() < 75.0, "{count} of {}", met.len());
        }
    }
}
