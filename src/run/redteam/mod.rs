//! `temper redteam`: a suite of attacks on one model, from files to files. A suite that was stopped or killed goes on
//! without repeating the attacks that it has finished.

mod files;
mod measures;
mod setup;
mod workers;

use std::path::PathBuf;

use files::Files;
use setup::{GoalTables, Setup};
use workers::{Message, Pool, interrupted};

use super::{Control, Event, Measured, Phase};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::plan::available_memory;
use crate::redteam::suite::{Attack, SearchTable, Suite};
use crate::redteam::{AttackResult, Attacked, Attacker, Outcome, Results, SCHEMA, Summary, Trial, propose};

/// A red-team run as a user asks for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedteamConfig {
    /// The suite.
    pub suite: Suite,
    /// The model.
    pub model: PathBuf,
    /// Output directory.
    pub out: PathBuf,
    /// How many attacks run side by side, each with an equal share of the threads; results do not depend on it. Where absent:
    /// as many as there are cores, as far as the memory goes. A GPU runs one attack after another.
    pub jobs: Option<usize>,
    /// Bytes of main memory that attacks on the CPU may use together, where that is known.
    pub memory: Option<u64>,
    /// The command line, for the results; empty where there is none.
    pub command: String,
}

impl RedteamConfig {
    /// A run of `suite` on the model directory `model` that writes to `out`, on as many cores and as much memory as there
    /// are.
    pub fn new(suite: Suite, model: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        let model = model.into();
        let out = out.into();
        Self { suite, model, out, jobs: None, memory: available_memory(), command: String::new() }
    }

    /// The run as it goes on a device: a GPU runs one attack after another, and main memory does not bound it.
    fn on<B: Backend>(&self, backend: &B) -> Result<Self> {
        if backend.device_memory().is_none() {
            return Ok(self.clone());
        }
        match self.jobs {
            None | Some(1) => Ok(Self { jobs: Some(1), memory: None, ..self.clone() }),
            Some(_) => {
                Err(Error::config("jobs", "a GPU runs one attack after another", "leave it out, or use the CPU"))
            }
        }
    }
}

/// Attacks a model with every attack of a suite and writes what was found to `config.out`.
///
/// An attack that fails is a row of the results.
///
/// # Errors
/// [`crate::Error::Interrupted`] after a request to stop; attacks under way are lost. Errors of the device and of the output
/// directory end the run.
pub fn redteam<B: Backend>(backend: B, config: &RedteamConfig, mut control: Control) -> Result<Results> {
    config.suite.check()?;
    let config = &config.on(&backend)?;
    let tables = GoalTables::of(&config.suite)?;
    let attacks = config.suite.attacks()?;
    let (target, identity) = setup::open(backend, config, &attacks, tables)?;
    let files = Files::open(&config.out, &config.suite.resolved()?, &identity, control.resumes())?;
    setup::tell_counts(&config.suite, &target, tables, &mut control);
    let setup = Setup::new(config, target, tables)?;
    let mut run = Run::new(config, setup, files, attacks)?;
    run.take_finished(&mut control)?;
    run.begin(&mut control);
    run.finish_attacks(&mut control)?;
    if let Some(search) = &config.suite.search {
        run.search(search, &mut control)?;
    }
    run.publish()
}

/// A run that has been set up.
struct Run<'a, B: Backend> {
    config: &'a RedteamConfig,
    setup: Setup<B>,
    files: Files,
    jobs: usize,
    /// The attacks in the order of the results, and what became of those that are over.
    attacks: Vec<(Attack, Option<AttackResult>)>,
    steps_done: u64,
    steps: u64,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(config: &'a RedteamConfig, setup: Setup<B>, files: Files, attacks: Vec<Attack>) -> Result<Self> {
        let jobs = setup.jobs(config, &attacks)?;
        let steps = attacks.iter().filter(|attack| attack.unavailable.is_none()).map(Attack::steps).sum();
        let attacks = attacks.into_iter().map(|attack| (attack, None)).collect();
        Ok(Self { config, setup, files, jobs, attacks, steps_done: 0, steps })
    }

    /// Takes over what an earlier process finished, and settles the attacks that cannot be run.
    fn take_finished(&mut self, control: &mut Control) -> Result<()> {
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
            control.tell(Event::AttacksKept(kept));
        }
        Ok(())
    }

    fn begin(&self, control: &mut Control) {
        control.tell(Event::Begin { phase: Phase::Suite, from: self.steps_done, steps: self.steps });
    }

    /// Runs every attack that is not over.
    fn finish_attacks(&mut self, control: &mut Control) -> Result<()> {
        let open: Vec<usize> = (0..self.attacks.len()).filter(|&index| self.attacks[index].1.is_none()).collect();
        let todo: Vec<Attack> = open.iter().map(|&index| self.attacks[index].0.clone()).collect();
        let Setup { target, before, .. } = &self.setup;
        let stop = control.stop_flag();
        let pool = Pool { target, before, jobs: self.jobs, memory: self.config.memory, stop: &stop };
        let files = &self.files;
        let goal = &self.setup.goal;
        let attacks = &mut self.attacks;
        let steps_done = &mut self.steps_done;
        let config = self.config;
        let setup = &self.setup;
        let steps = self.steps;
        pool.run(&todo, &mut |message| match message {
            Message::Step { loss } => {
                *steps_done += 1;
                let finished = attacks.iter().filter(|(_, result)| result.is_some()).count();
                let measured = Measured::Suite { finished, loss };
                control.tell(Event::Step { step: (*steps_done).min(steps), measured });
                if control.stop_requested() { Err(interrupted()) } else { Ok(()) }
            }
            Message::Over { index, outcome, spent } => {
                let outcome = match outcome {
                    Ok(Attacked { curve, searched }) => {
                        Outcome::Done { breach: goal.breach(&curve).map(|point| point.cost), curve, searched }
                    }
                    Err(error) => Outcome::Failed { error: error.to_string(), cost: spent },
                };
                let (attack, result) = &mut attacks[open[index]];
                let finished = result_of(attack, outcome);
                control.tell(Event::AttackOver { result: &finished, goal });
                files.keep(&finished)?;
                *result = Some(finished);
                files.write(&results(config, setup, attacks)?)
            }
        })
    }

    /// Proposes attacks from the results of those before, and runs them.
    fn search(&mut self, table: &SearchTable, control: &mut Control) -> Result<()> {
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
            self.begin(control);
            self.finish_attacks(control)?;
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
