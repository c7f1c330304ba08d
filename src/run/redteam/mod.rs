//! `temper redteam`: a suite of attacks on one model, from files to files. A suite that was stopped or killed goes on
//! without repeating the attacks that it has finished.

mod files;
mod measures;
mod setup;
mod workers;

use std::path::PathBuf;

use files::Files;
use setup::Setup;
use workers::{Message, Pool};

use super::signals::StopFlag;
use super::{Event, Observer};
use crate::error::Result;
use crate::ops::Backend;
use crate::redteam::suite::{Attack, SearchTable, Suite};
use crate::redteam::{AttackResult, Attacker, Outcome, Results, SCHEMA, Summary, Trial, propose};

/// A red-team run as a user asks for it.
#[derive(Clone, Debug)]
pub struct RedteamConfig {
    /// The suite.
    pub suite: Suite,
    /// The model.
    pub model: PathBuf,
    /// Output directory.
    pub out: PathBuf,
    /// How many attacks run side by side.
    pub jobs: Jobs,
    /// Bytes that attacks may use, where that is known before they ask for them: on the CPU.
    pub memory: Option<u64>,
    /// The command line, for the results.
    pub command: String,
}

/// How many attacks run side by side, each with an equal share of the threads. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jobs {
    /// So many, or as many as the memory holds.
    UpTo(usize),
    /// So many; it is an error if the memory does not hold them.
    Exactly(usize),
}

/// Attacks a model with every attack of a suite and writes what was found to `config.out`.
///
/// An attack that fails is a row of the results.
///
/// # Errors
/// [`crate::Error::Interrupted`] after `stop` was requested; attacks under way are lost. Errors of the device and of the output
/// directory end the run.
pub fn redteam<B: Backend>(
    backend: B,
    config: &RedteamConfig,
    resume: bool,
    stop: &StopFlag,
    observe: &mut Observer,
) -> Result<Results> {
    let attacks = config.suite.attacks()?;
    let (target, identity) = setup::open(backend, config, &attacks)?;
    let files = Files::open(&config.out, &config.suite.resolved()?, &identity, resume)?;
    let setup = Setup::new(config, target)?;
    let mut run = Run::new(config, setup, files, attacks, stop)?;
    run.take_finished(observe)?;
    observe(Event::Begin { from: run.steps_done, steps: run.steps })?;
    run.finish_attacks(observe)?;
    if let Some(search) = &config.suite.search {
        run.search(search, observe)?;
    }
    run.publish()
}

/// A run that has been set up.
struct Run<'a, B: Backend> {
    config: &'a RedteamConfig,
    setup: Setup<B>,
    files: Files,
    stop: &'a StopFlag,
    jobs: usize,
    /// The attacks in the order of the results, and what became of those that are over.
    attacks: Vec<(Attack, Option<AttackResult>)>,
    steps_done: u64,
    steps: u64,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(
        config: &'a RedteamConfig,
        setup: Setup<B>,
        files: Files,
        attacks: Vec<Attack>,
        stop: &'a StopFlag,
    ) -> Result<Self> {
        let jobs = setup.jobs(config, &attacks)?;
        let steps = attacks.iter().filter(|attack| attack.unavailable.is_none()).map(Attack::steps).sum();
        let attacks = attacks.into_iter().map(|attack| (attack, None)).collect();
        Ok(Self { config, setup, files, stop, jobs, attacks, steps_done: 0, steps })
    }

    /// Takes over what an earlier process finished, and settles the attacks that cannot be run.
    fn take_finished(&mut self, observe: &mut Observer) -> Result<()> {
        let mut kept = 0;
        for (attack, result) in &mut self.attacks {
            if let Some(reason) = attack.unavailable.clone() {
                *result = Some(result_of(attack, Outcome::Skipped { reason }));
            } else if let Some(finished) = self.files.finished(attack)? {
                self.steps_done += attack.steps();
                *result = Some(finished);
                kept += 1;
            }
        }
        if kept > 0 {
            observe(Event::Note(&format!("{kept} attacks were finished before")))?;
        }
        Ok(())
    }

    /// Runs every attack that is not over.
    fn finish_attacks(&mut self, observe: &mut Observer) -> Result<()> {
        let open: Vec<usize> = (0..self.attacks.len()).filter(|&index| self.attacks[index].1.is_none()).collect();
        let todo: Vec<Attack> = open.iter().map(|&index| self.attacks[index].0.clone()).collect();
        let Setup { target, before, .. } = &self.setup;
        let pool = Pool { target, before, jobs: self.jobs, memory: self.config.memory, stop: self.stop };
        let (files, goal) = (&self.files, &self.setup.goal);
        let (attacks, steps_done) = (&mut self.attacks, &mut self.steps_done);
        let (config, setup, steps) = (self.config, &self.setup, self.steps);
        pool.run(&todo, &mut |message| match message {
            Message::Step { loss } => {
                *steps_done += 1;
                let over = attacks.iter().filter(|(_, result)| result.is_some()).count() as f64;
                observe(Event::Step { step: (*steps_done).min(steps), values: &[("finished", over), ("loss", loss)] })
            }
            Message::Over { index, outcome } => {
                let outcome = match outcome {
                    Ok(curve) => Outcome::Done { breach: goal.breach(&curve), curve },
                    Err(error) => Outcome::Failed { error: error.to_string() },
                };
                let (attack, result) = &mut attacks[open[index]];
                let finished = result_of(attack, outcome);
                observe(Event::Note(&in_words(&finished, goal)))?;
                files.keep(&finished)?;
                *result = Some(finished);
                files.write(&results(config, setup, attacks)?)
            }
        })
    }

    /// Proposes attacks from the results of those before, and runs them.
    fn search(&mut self, table: &SearchTable, observe: &mut Observer) -> Result<()> {
        let first = self.attacks.len();
        loop {
            let trials = self.attacks[first..].iter().map(|(attack, result)| Trial {
                attack: attack.clone(),
                score: result.as_ref().and_then(|result| score(result, &self.setup)),
            });
            let round = propose(table, &self.config.suite, &trials.collect::<Vec<_>>())?;
            if round.is_empty() {
                return Ok(());
            }
            self.steps += round.iter().map(Attack::steps).sum::<u64>();
            self.attacks.extend(round.into_iter().map(|attack| (attack, None)));
            for (attack, result) in &mut self.attacks[first..] {
                if let (None, Some(finished)) = (&result, self.files.finished(attack)?) {
                    self.steps_done += attack.steps();
                    *result = Some(finished);
                }
            }
            observe(Event::Begin { from: self.steps_done, steps: self.steps })?;
            self.finish_attacks(observe)?;
        }
    }

    fn publish(self) -> Result<Results> {
        let results = results(self.config, &self.setup, &self.attacks)?;
        self.files.write(&results)?;
        Ok(results)
    }
}

/// What a search maximises: the best restricted score within the utility floor.
fn score<B: Backend>(result: &AttackResult, setup: &Setup<B>) -> Option<f64> {
    match &result.outcome {
        Outcome::Done { curve, .. } => setup.goal.best(curve).map(|point| point.scores.restricted),
        _ => None,
    }
}

fn result_of(attack: &Attack, outcome: Outcome) -> AttackResult {
    AttackResult {
        id: attack.id.clone(),
        name: attack.name.clone(),
        about: attack.about.clone(),
        kind: attack.kind,
        seed: attack.seed,
        trial: attack.trial,
        settings: attack.settings.clone(),
        outcome,
    }
}

/// Everything found so far; attacks that are still to run are not in it.
fn results<B: Backend>(
    config: &RedteamConfig,
    setup: &Setup<B>,
    attacks: &[(Attack, Option<AttackResult>)],
) -> Result<Results> {
    let attacks: Vec<AttackResult> = attacks.iter().filter_map(|(_, result)| result.clone()).collect();
    let summary = Summary::of(&setup.goal, &setup.before, &attacks, setup.defender.clone());
    Ok(Results {
        schema: SCHEMA.into(),
        temper: env!("CARGO_PKG_VERSION").into(),
        model: config.model.display().to_string(),
        suite: config.suite.title().into(),
        device: setup.target.model.backend.description(),
        command: config.command.clone(),
        configuration: config.suite.resolved()?,
        goal: setup.goal.clone(),
        before: setup.before.clone(),
        attacks,
        summary,
    })
}

/// A line for people.
fn in_words(result: &AttackResult, goal: &crate::redteam::Goal) -> String {
    match &result.outcome {
        Outcome::Failed { error } => format!("{}: failed: {error}", result.id),
        Outcome::Skipped { reason } => format!("{}: not run: {reason}", result.id),
        Outcome::Done { curve, breach } => {
            let best = goal.best(curve).or(curve.first());
            let (restricted, utility) = best.map_or((0.0, 0.0), |p| (p.scores.restricted, p.scores.utility));
            let end = match breach {
                Some(cost) => format!("breached after {} steps", cost.steps),
                None => "not breached".into(),
            };
            format!("{}: restricted {restricted:.3} at utility {utility:.3}, {end}", result.id)
        }
    }
}
