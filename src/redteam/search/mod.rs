//! The search for an attack: which hyperparameters to try next, given what the trials so far have scored. A round of
//! trials is a function of the trials before it, the suite and the seed, so that a search that was stopped goes on as if it
//! had not been, and rounds run side by side with the same results.

mod front;
mod joint;
mod parzen;

pub(super) use front::front;
pub(super) use joint::{Observed, propose_together};
pub(super) use parzen::Dimension;

use super::suite::{Attack, AttackMethod, SearchMethod, SearchTable, Suite};
use crate::config::{AttackTable, DataNames, ParameterChoice};
use crate::error::Result;
use crate::random::{Random, Stream};
use crate::training::FineTune;

/// Trials that are proposed at once, after the random ones: they do not see each other.
const ROUND: u64 = 4;
/// The name of searched attacks.
const NAME: &str = "search";
/// Keeps the draws of the search apart from those of attacks.
const DRAWS: u64 = 16;

/// A trial of the search.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What was tried.
    pub attack: Attack,
    /// Its best restricted score within the utility floor; none where it failed.
    pub score: Option<f64>,
}

/// The next attacks to try after `trials`, which are the first ones of the search in their order; none when there are
/// enough.
pub fn propose(table: &SearchTable, suite: &Suite, trials: &[Trial]) -> Result<Vec<Attack>> {
    let done = trials.len() as u64;
    let startup = match table.method {
        SearchMethod::Tpe => table.startup.min(table.trials),
        SearchMethod::Random => table.trials,
    };
    let end = if done < startup { startup } else { (done + ROUND).min(table.trials) };
    let seen: Vec<(Vec<f64>, f64)> = if done < startup {
        Vec::new()
    } else {
        trials.iter().filter_map(|trial| Some((values(table, &trial.attack)?, trial.score?))).collect()
    };
    (done..end).map(|number| attack(table, suite, number, &seen)).collect()
}

/// The attacks of the search that need the most memory.
pub(crate) fn largest(table: &SearchTable, suite: &Suite) -> Result<Vec<Attack>> {
    let extreme = |params: &ParameterChoice| {
        let written = AttackTable {
            name: NAME.into(),
            params: Some(*params),
            rank: (*params == ParameterChoice::Lora).then_some(table.rank[1] as usize),
            batch: Some(table.batch[1] as usize),
            ..AttackTable::default()
        };
        suite.attack_of(&written.filled(&[table.seed]), table.seed, Some(0))
    };
    table.params.iter().map(extreme).collect()
}

/// The places of the hyperparameters in a trial's values.
const PARAMS: usize = 0;
const DATA: usize = 1;
const SCHEDULE: usize = 2;
const LR: usize = 3;
const STEPS: usize = 4;
const BATCH: usize = 5;
const RANK: usize = 6;

fn dimensions(table: &SearchTable) -> [Dimension; 7] {
    let whole = |[low, high]: [u64; 2]| Dimension::Whole(low, high);
    [
        Dimension::Choice(table.params.len()),
        Dimension::Choice(table.data.len()),
        Dimension::Choice(table.schedule.len()),
        Dimension::Log(table.lr[0], table.lr[1]),
        whole(table.steps),
        whole(table.batch),
        whole(table.rank),
    ]
}

/// Trial `number`, given the values and scores of trials before.
fn attack(table: &SearchTable, suite: &Suite, number: u64, seen: &[(Vec<f64>, f64)]) -> Result<Attack> {
    let mut chosen = [0.0; 7];
    for (index, dimension) in dimensions(table).into_iter().enumerate() {
        let mut random = Random::new(table.seed, Stream::RedTeam, number, DRAWS + index as u64);
        // A trial without LoRA says nothing about ranks.
        let known = seen.iter().filter_map(|(values, score)| Some((*values.get(index)?, *score)));
        let known: Vec<(f64, f64)> = known.filter(|(value, _)| !value.is_nan()).collect();
        chosen[index] = dimension.propose(&known, &mut random);
    }
    let lora = table.params.get(chosen[PARAMS] as usize) == Some(&ParameterChoice::Lora);
    let written = AttackTable {
        name: NAME.into(),
        about: "found by the search".into(),
        data: table.data.get(chosen[DATA] as usize).cloned(),
        params: Some(if lora { ParameterChoice::Lora } else { ParameterChoice::Full }),
        rank: lora.then_some(chosen[RANK] as usize),
        lr: Some(chosen[LR]),
        schedule: table.schedule.get(chosen[SCHEDULE] as usize).copied(),
        batch: Some(chosen[BATCH] as usize),
        steps: Some(chosen[STEPS] as u64),
        ..AttackTable::default()
    };
    suite.attack_of(&written.filled(&[table.seed]), table.seed, Some(number))
}

/// The values of a trial, in the order of [`dimensions`]; not a number where one does not apply.
fn values(table: &SearchTable, attack: &Attack) -> Option<Vec<f64>> {
    let AttackMethod::Finetune(FineTune { adapter, optimizer, batch, steps, .. }) = &attack.method else { return None };
    let written = |data: &DataNames| serde_json::to_value(data).ok();
    let params = if adapter.is_some() { ParameterChoice::Lora } else { ParameterChoice::Full };
    let place = |index: Option<usize>| index.map(|index| index as f64);
    Some(vec![
        place(table.params.iter().position(|choice| *choice == params))?,
        place(table.data.iter().position(|data| written(data).as_ref() == attack.settings.get("data")))?,
        place(table.schedule.iter().position(|decay| *decay == optimizer.schedule.decay))?,
        optimizer.lr,
        *steps as f64,
        (*batch)? as f64,
        adapter.as_ref().map_or(f64::NAN, |adapter| adapter.rank as f64),
    ])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn suite(method: &str, seed: u64) -> Suite {
        let text = format!(
            "[data]\nrestricted = \"r\"\nretain = \"t\"\nood = \"o\"\n[search]\ntrials = 50\nmethod = \"{method}\"\nseed = {seed}\n\
             data = [\"restricted\", \"retain\", {{ restricted = 0.5, ood = 0.5 }}]\n"
        );
        Suite::from_text(&text, Path::new("suite.toml"), &[]).unwrap()
    }

    /// A landscape with one peak at LoRA, restricted data, lr 2e-4 and 300 steps.
    fn score(attack: &Attack) -> f64 {
        let AttackMethod::Finetune(f) = &attack.method else { panic!("not a training") };
        let lr = (f.optimizer.lr / 2e-4).ln() / 3.0;
        let steps = (f.steps as f64 / 300.0).ln() / 2.0;
        let wrong = f64::from(u8::from(f.adapter.is_none()))
            + f64::from(u8::from(f.source.streams()[0].name() != "restricted"));
        (-lr * lr - steps * steps - wrong).exp()
    }

    /// Runs a search; returns the trials.
    fn search(suite: &Suite) -> Vec<Trial> {
        let mut trials = Vec::new();
        loop {
            let round = propose(suite.search.as_ref().unwrap(), suite, &trials).unwrap();
            if round.is_empty() {
                return trials;
            }
            trials.extend(round.into_iter().map(|attack| Trial { score: Some(score(&attack)), attack }));
        }
    }

    fn best(trials: &[Trial]) -> f64 {
        trials.iter().filter_map(|trial| trial.score).fold(0.0, f64::max)
    }

    #[test]
    fn the_estimator_beats_random_search_on_average_over_twenty_seeds() {
        let mean = |method: &str| (0..20).map(|seed| best(&search(&suite(method, seed)))).sum::<f64>() / 20.0;
        let tpe = mean("tpe");
        let random = mean("random");
        assert!(1.0 - tpe < 0.5 * (1.0 - random), "tpe {tpe}, random {random}");
    }

    #[test]
    fn trials_stay_in_range_and_are_numbered() {
        for method in ["tpe", "random"] {
            let suite = suite(method, 3);
            let trials = search(&suite);
            assert_eq!(trials.len(), 50);
            for (number, trial) in (0..).zip(&trials) {
                let AttackMethod::Finetune(f) = &trial.attack.method else { panic!("not a training") };
                assert!((1e-6..=1e-3).contains(&f.optimizer.lr) && (16..=1024).contains(&f.steps));
                assert!((8..=64).contains(&f.batch.unwrap()));
                assert!(f.adapter.as_ref().is_none_or(|adapter| (8..=64).contains(&adapter.rank)));
                assert_eq!((trial.attack.trial, trial.attack.id.clone()), (Some(number), format!("search-t{number}")));
                assert_eq!(f.optimizer.schedule.total, f.steps);
            }
        }
    }

    /// Proposals depend on the finished trials and the seed, not on how the search came there.
    #[test]
    fn a_search_goes_on_as_if_it_had_not_stopped() {
        let suite = suite("tpe", 5);
        let table = suite.search.as_ref().unwrap();
        let whole = search(&suite);
        for stopped in [0, 10, 14, 46] {
            let again = propose(table, &suite, &whole[..stopped]).unwrap();
            let expected: Vec<Attack> =
                whole[stopped..stopped + again.len()].iter().map(|t| t.attack.clone()).collect();
            assert!(!again.is_empty() && again == expected, "after {stopped}");
        }
        assert_ne!(search(&self::suite("tpe", 6))[0].attack.settings, whole[0].attack.settings);
    }

    #[test]
    fn failed_trials_teach_nothing_and_do_not_stop_the_search() {
        let suite = suite("tpe", 5);
        let trials: Vec<Trial> =
            search(&suite).into_iter().take(10).map(|trial| Trial { score: None, ..trial }).collect();
        assert_eq!(propose(suite.search.as_ref().unwrap(), &suite, &trials).unwrap().len(), 4);
    }
}
