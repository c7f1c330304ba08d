//! `temper compare`: defences x seeds x suites on one model. Each part is a run of `harden` or `redteam` in a folder of its
//! own, so a comparison that was stopped or killed goes on with them, and defences or suites can be added to one.

mod file;

use std::path::Path;

pub use file::{CompareConfig, ComparedModel, DefenceEntry, SuiteEntry};

use file::Candidate;

use super::{Control, Event, RedteamConfig, harden, redteam};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::ops::Backend;
use crate::redteam::Results;
use crate::redteam::suite::Suite;
use crate::report::{DefenceComparison, Defended};

/// The comparison's own settings in its output directory.
const SETTINGS: &str = "compare.toml";

/// Hardens and attacks as `config` says, and writes the parts, `comparison.json` and pages for people to `out`.
///
/// A hardening run or a measurement that diverges is a row of the comparison.
///
/// # Errors
/// [`Error::Config`] where `out` holds something that `control` does not resume, or a model that was hardened with other
/// settings; [`Error::Interrupted`] after a request to stop.
pub fn compare<B: Backend>(
    backend: B,
    config: &CompareConfig,
    out: &Path,
    mut control: Control,
) -> Result<DefenceComparison> {
    config.check()?;
    let candidates = config.candidates()?;
    let suites = config.suites()?;
    open(out, &config.resolved()?, control.resumes())?;
    let mut run = Comparing { backend, config, out, part: 0, parts: candidates.len() * (1 + suites.len()) };
    let mut defended: Vec<Defended> = Vec::new();
    for candidate in &candidates {
        let outcome = run.candidate(candidate, &suites, &mut control);
        defended.push(keep_divergence(outcome)?.unwrap_or_else(|failed| {
            let defence = config.defence[candidate.defence].name.clone();
            Defended { defence, seed: candidate.seed, runs: vec![Err(failed); suites.len()] }
        }));
        // What is known so far can be read while the rest still runs.
        run.summary(&defended).write(out)?;
    }
    Ok(run.summary(&defended))
}

/// Prepares the output directory.
fn open(out: &Path, resolved: &str, resume: bool) -> Result<()> {
    let settings = out.join(SETTINGS);
    let holds = settings.exists();
    if holds && !resume {
        let problem = format!("{} already holds a comparison", out.display());
        return Err(Error::config("out", problem, "go on with it by `resume`, or choose another `out`"));
    }
    if !holds && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let problem = format!("{} is not empty and holds no comparison", out.display());
        return Err(Error::config("out", problem, "choose a new or empty directory"));
    }
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    write_atomically(&settings, resolved.as_bytes())
}

/// Numbers that are not finite are a finding about a defence; every other error ends the comparison.
fn keep_divergence<T>(outcome: Result<T>) -> Result<std::result::Result<T, String>> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(error @ Error::NonFinite { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// A comparison under way.
struct Comparing<'a, B: Backend> {
    backend: B,
    config: &'a CompareConfig,
    out: &'a Path,
    /// Parts begun, of all.
    part: usize,
    parts: usize,
}

impl<B: Backend> Comparing<'_, B> {
    /// Makes the model, where a run makes it, and attacks it with every suite.
    fn candidate(&mut self, candidate: &Candidate, suites: &[Suite], control: &mut Control) -> Result<Defended> {
        let defence = &self.config.defence[candidate.defence].name;
        let folder = match candidate.seed {
            Some(seed) => format!("{defence}-{seed}"),
            None => defence.clone(),
        };
        let model = match &candidate.run {
            Some(run) => {
                let top = self.out.join("models").join(&folder);
                self.begin(&format!("{folder}: hardening"), control);
                self.harden(run, &top, control)?;
                top
            }
            None => candidate.model.clone(),
        };
        let mut runs = Vec::new();
        for (entry, suite) in self.config.suite.iter().zip(suites) {
            self.begin(&format!("{folder}: suite {}", entry.name), control);
            let directory = self.out.join("redteam").join(&entry.name).join(&folder);
            let attacked = RedteamConfig::new(suite.clone(), &model, &directory);
            let outcome = keep_divergence(redteam(self.backend.clone(), &attacked, control.for_part()))?;
            runs.push(outcome.map(|results: Results| (directory, results)));
        }
        Ok(Defended { defence: defence.clone(), seed: candidate.seed, runs })
    }

    fn begin(&mut self, name: &str, control: &mut Control) {
        self.part += 1;
        control.tell(Event::Part { name, number: self.part, of: self.parts });
    }

    /// Runs `harden`, unless an earlier process has finished it.
    fn harden(&self, run: &RunConfig, top: &Path, control: &mut Control) -> Result<()> {
        // A model directory has its configuration only when it is complete.
        if !top.join("config.json").exists() {
            return harden(self.backend.clone(), run, top, control.for_part()).map(|_| ());
        }
        let before = RunConfig::load(&top.join("temper").join("run.toml"), &[])?;
        if before.config_hash()? == run.config_hash()? && before.outer_steps() == run.outer_steps() {
            return Ok(());
        }
        let problem = format!("{} was hardened with other settings", top.display());
        Err(Error::config("out", problem, "remove that folder, give the defence another name, or choose another `out`"))
    }

    fn summary(&self, defended: &[Defended]) -> DefenceComparison {
        let suites: Vec<String> = self.config.suite.iter().map(|suite| suite.name.clone()).collect();
        DefenceComparison::of(&suites, defended)
    }
}
