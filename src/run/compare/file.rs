//! What a comparison is asked for: the file, its checks, and the runs that come of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::redteam::suite::Suite;
use crate::settings::{add_place, fault, parse, read_text, repeated, to_toml, typed};

/// More than anybody compares.
const MAX_ENTRIES: usize = 1000;

/// A comparison of defences as a user asks for it: every defence of one model, with every seed, against every suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// Seeds of the hardening runs: each defence with a run file is run once with each.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// What all defences start from.
    pub model: ComparedModel,
    /// The defences.
    pub defence: Vec<DefenceEntry>,
    /// The suites that attack each of the defended models.
    pub suite: Vec<SuiteEntry>,
}

fn default_seeds() -> Vec<u64> {
    vec![42]
}

/// `[model]` of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparedModel {
    /// The model that the defences harden. It takes the place of the path in their run files.
    pub path: PathBuf,
    /// The frozen reference model; where absent, what each run file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
}

/// `[[defence]]`: a run file of `temper harden`, a finished model, or neither, which is the model as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefenceEntry {
    /// Its name in reports and in the names of folders.
    pub name: String,
    /// The run file. Its model, reference and seed are those of the comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<PathBuf>,
    /// The directory of a model that is hardened already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Keys of the run file that are to have other values: `tar.outer_steps=100`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
}

/// `[[suite]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteEntry {
    /// Its name in reports and in the names of folders.
    pub name: String,
    /// The suite file of `temper redteam`.
    pub file: PathBuf,
    /// Keys of the suite file that are to have other values: `suite="strong"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
}

/// A model to attack, and the hardening run that makes it where there is one.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Which defence it is of.
    pub defence: usize,
    /// The seed, where it is hardened here.
    pub seed: Option<u64>,
    /// The run that makes it.
    pub run: Option<RunConfig>,
    /// Its directory, unless a run makes it.
    pub model: PathBuf,
}

impl CompareConfig {
    /// Reads the comparison file at `path` and checks it. Relative paths count from its folder.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_text(&read_text(path, "pass a TOML comparison file")?, path)
    }

    /// As [`CompareConfig::load`], from the text of a file that lies (or would lie) at `path`.
    pub fn from_text(text: &str, path: &Path) -> Result<Self> {
        let tree = parse(text, path)?;
        let mut config: Self = typed(&tree, path)?;
        config.check().map_err(|error| add_place(error, &tree, path))?;
        let file = std::path::absolute(path).map_err(Error::io("find", path))?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        for path in config.paths_mut() {
            *path = folder.join(&*path);
        }
        Ok(config)
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let defences = self.defence.iter_mut().flat_map(|defence| defence.run.iter_mut().chain(&mut defence.model));
        let suites = self.suite.iter_mut().map(|suite| &mut suite.file);
        std::iter::once(&mut self.model.path).chain(&mut self.model.reference).chain(defences).chain(suites)
    }

    /// The whole configuration as a file with absolute paths.
    pub fn resolved(&self) -> Result<String> {
        to_toml(self, "comparison file")
    }

    /// Fails where entries are missing or contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.seeds.is_empty() {
            return Err(fault("seeds", "the list is empty", "give at least one seed"));
        }
        if let Some(seed) = repeated(&self.seeds) {
            return Err(fault("seeds", format!("{seed} is there twice"), "name each seed once"));
        }
        check_names("defence", self.defence.iter().map(|defence| defence.name.as_str()))?;
        check_names("suite", self.suite.iter().map(|suite| suite.name.as_str()))?;
        for (index, defence) in self.defence.iter().enumerate() {
            if defence.run.is_some() && defence.model.is_some() {
                let problem = format!("`{}` has both a run file and a finished model", defence.name);
                return Err(fault(format!("defence.{index}.model"), problem, "leave one of them out"));
            }
            if defence.run.is_none() && !defence.set.is_empty() {
                let problem = format!("`{}` has no run file to set keys of", defence.name);
                return Err(fault(format!("defence.{index}.set"), problem, "remove it, or name a `run`"));
            }
        }
        Ok(())
    }

    /// All models to attack, each with its run file read and checked.
    pub(super) fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for (index, defence) in self.defence.iter().enumerate() {
            let Some(file) = &defence.run else {
                let model = defence.model.as_ref().unwrap_or(&self.model.path).clone();
                candidates.push(Candidate { defence: index, seed: None, run: None, model });
                continue;
            };
            for &seed in &self.seeds {
                let run = self.run_config(file, &defence.set, seed)?;
                if run.tuning.is_some() {
                    let problem = format!("the run file of `{}` pins measured choices", defence.name);
                    let remedy = "remove `tuning` from it: all defences of a comparison run by the device's choices";
                    return Err(Error::config(format!("defence.{index}.run"), problem, remedy));
                }
                candidates.push(Candidate { defence: index, seed: Some(seed), run: Some(run), model: PathBuf::new() });
            }
        }
        Ok(candidates)
    }

    fn run_config(&self, file: &Path, set: &[String], seed: u64) -> Result<RunConfig> {
        let mut overrides = set.to_vec();
        overrides.push(format!("seed={seed}"));
        overrides.push(format!("model.path={}", quoted(&self.model.path)));
        if let Some(reference) = &self.model.reference {
            overrides.push(format!("model.reference={}", quoted(reference)));
        }
        RunConfig::load(file, &overrides)
    }

    /// The suites, read and checked.
    pub(super) fn suites(&self) -> Result<Vec<Suite>> {
        self.suite.iter().map(|entry| Suite::load(&entry.file, &entry.set)).collect()
    }
}

/// A path as TOML (and JSON) writes it.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Names are parts of the names of folders: each is one, and there are no two alike.
fn check_names<'a>(key: &str, names: impl ExactSizeIterator<Item = &'a str> + Clone) -> Result<()> {
    if names.len() == 0 {
        return Err(fault(key, "there is none", format!("add a table [[{key}]]")));
    }
    if names.len() > MAX_ENTRIES {
        return Err(fault(key, format!("{} tables", names.len()), format!("use at most {MAX_ENTRIES}")));
    }
    let fits = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
    };
    for (index, name) in names.clone().enumerate() {
        let key = format!("{key}.{index}.name");
        if !fits(name) {
            let problem = format!("`{name}` cannot be the name of a folder");
            return Err(fault(&key, problem, "use up to 64 letters, digits, -, _ and ., not . first"));
        }
        if names.clone().take(index).any(|other| other == name) {
            return Err(fault(&key, format!("`{name}` is there twice"), "give each its own name"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example is read as it is, and no key of the settings is missing from it.
    #[test]
    fn the_example_has_every_key() {
        let config =
            CompareConfig::from_text(include_str!("../../../examples/compare.toml"), Path::new("/x/compare.toml"))
                .unwrap();
        assert_eq!(config.seeds, [1, 2, 3]);
        assert_eq!(config.model.reference.as_deref(), Some(Path::new("/x/base")));
        assert!(config.defence.iter().any(|defence| !defence.set.is_empty()));
        assert!(config.defence.iter().any(|defence| defence.model.is_some()));
        assert!(config.suite.iter().all(|suite| !suite.set.is_empty()));
        let again =
            CompareConfig::from_text(&config.resolved().unwrap(), Path::new("/elsewhere/compare.toml")).unwrap();
        assert_eq!(again, config);
    }
}
