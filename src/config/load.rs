//! From a run file, its preset and `--set` overrides to a checked [`RunConfig`], and back to text.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::reader::suggestion;
use super::tree::{Node, Origin, Value, lines_of};
use super::{CompatConfig, RunConfig, validate};
use crate::checkpoint::hash_config;
use crate::error::{Error, Result};

/// The presets: published hyperparameters of TAR, without the paths of data and models.
const PRESETS: [(&str, &str); 4] = [
    ("bio", include_str!("presets/bio.toml")),
    ("cyber", include_str!("presets/cyber.toml")),
    ("chem", include_str!("presets/chem.toml")),
    ("refusal", include_str!("presets/refusal.toml")),
];

/// No run file is near this long; a larger file is not one.
const MAX_BYTES: u64 = 1 << 20;

impl RunConfig {
    /// Reads the run file at `path`, lays it over its preset and `overrides` (`tar.outer.lr=1e-5`) over it, and checks
    /// the result. Relative paths, also those of overrides, count from the folder of the run file.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = read_text(path, "pass a TOML run file")?;
        Self::from_text(&text, path, overrides)
    }

    /// As [`RunConfig::load`], from the text of a run file that lies (or would lie) at `path`.
    pub fn from_text(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let own = parse(text, path)?;
        let mut tree = match own.find("preset") {
            Some(name) => own.clone().over(preset(name, path)?),
            None => own,
        };
        for assignment in overrides {
            tree.set(assignment)?;
        }
        let mut config: Self = typed(&tree, path)?;
        validate::check(&config, |key| tree.find(key).is_some()).map_err(|error| add_place(error, &tree, path))?;
        config.resolve_paths(path)?;
        Ok(config)
    }

    fn resolve_paths(&mut self, run_file: &Path) -> Result<()> {
        let run_file = std::path::absolute(run_file).map_err(Error::io("find", run_file))?;
        let folder = run_file.parent().unwrap_or(Path::new("/"));
        for path in self.paths_mut() {
            *path = folder.join(&*path);
        }
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let streams = self.data.values_mut().map(|stream| &mut stream.path);
        std::iter::once(&mut self.model.path).chain(&mut self.model.reference).chain(streams)
    }

    /// The whole configuration as a run file, preset and overrides worked in and paths absolute: what is written beside
    /// the results. Loading it gives the same configuration.
    pub fn resolved(&self) -> Result<String> {
        to_toml(self, "run file")
    }

    /// A number that is the same for runs whose steps are the same: of all settings but those that only say how long to
    /// run, what to write and what to keep (`tar.outer_steps`, `model.dtype`, `compat.schedulefree_point`, `[checkpoint]`,
    /// `memory.recompute`, `memory.step_in_backward`). Of a path
    /// only the last part counts, so that a run can be moved to another folder and resumed there.
    pub fn config_hash(&self) -> Result<u64> {
        let mut steps = Self {
            preset: None,
            checkpoint: Default::default(),
            memory: super::MemoryConfig { states: self.memory.states, ..Default::default() },
            model: super::ModelSection { dtype: None, ..self.model.clone() },
            compat: super::CompatConfig { schedulefree_point: Default::default(), ..self.compat.clone() },
            tar: super::TarConfig { outer_steps: 0, ..self.tar.clone() },
            ..self.clone()
        };
        for path in steps.paths_mut() {
            *path = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default().into();
        }
        Ok(hash_config(&steps.resolved()?))
    }
}

/// The text of a settings file; `remedy` says what to pass instead of one that cannot be it.
pub(crate) fn read_text(path: &Path, remedy: &str) -> Result<String> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let refuse = |problem: &str| Error::config(path.display().to_string(), problem, remedy);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text"))
}

/// The tree of a settings file's text; `path` is for messages.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Node> {
    Node::parse(text, lines_of(text)).map_err(|error| {
        let key = format!("{}, {}", path.display(), error.origin);
        Error::config(key, error.problem, "write the file as TOML")
    })
}

/// A tree as the settings that it must be; `path` is for messages.
pub(crate) fn typed<'de, T: Deserialize<'de>>(tree: &'de Node, path: &Path) -> Result<T> {
    T::deserialize(tree).map_err(|error| {
        let place = error.origin.map_or(String::new(), |origin| located(origin, path));
        Error::config(error.key(), format!("{}{place}", error.problem), error.remedy)
    })
}

/// Settings as TOML.
pub(crate) fn to_toml(settings: &impl serde::Serialize, what: &str) -> Result<String> {
    toml::to_string(settings).map_err(|error| {
        let problem = error.to_string().trim().replace('\n', ", ");
        Error::config(what, problem, "use UTF-8 paths and finite numbers")
    })
}

impl CompatConfig {
    /// The `compat` keys that `--set` gives to a command without a run file.
    pub fn from_overrides(overrides: &[String]) -> Result<Self> {
        let mut tree = Node::parse("[compat]", |_| Origin::Preset)
            .map_err(|e| Error::config("compat", e.problem, "report this as a defect"))?;
        for assignment in overrides {
            if !assignment.trim_start().starts_with("compat.") {
                let key = assignment.split('=').next().unwrap_or("").trim();
                return Err(Error::config(key, "this command only has the keys of [compat]", "use compat.KEY=VALUE"));
            }
            tree.set(assignment)?;
        }
        let table = tree.find("compat").unwrap_or(&tree);
        Self::deserialize(table).map_err(|e| Error::config(format!("compat.{}", e.key()), e.problem, e.remedy))
    }
}

fn preset(name: &Node, path: &Path) -> Result<Node> {
    let place = located(name.origin, path);
    let names = PRESETS.map(|(name, _)| name);
    let Value::Text(wanted) = &name.value else {
        let remedy = format!("known are {}", names.join(", "));
        return Err(Error::config("preset", format!("expected the name of a preset{place}"), remedy));
    };
    let Some((_, text)) = PRESETS.iter().find(|(name, _)| name == wanted) else {
        let problem = format!("there is no preset `{wanted}`{place}");
        return Err(Error::config("preset", problem, suggestion(wanted, names.into_iter())));
    };
    Node::parse(text, |_| Origin::Preset).map_err(|e| Error::config("preset", e.problem, "report this as a defect"))
}

fn located(origin: Origin, path: &Path) -> String {
    match origin {
        Origin::Line(line) => format!(" (line {line} of {})", path.display()),
        other => format!(" (from {other})"),
    }
}

/// Adds to a finding about a key where it was written, if it was written.
pub(crate) fn add_place(error: Error, tree: &Node, path: &Path) -> Error {
    match error {
        Error::Config { key, problem, remedy } => {
            let place = tree.find(&key).map_or(String::new(), |node| located(node.origin, path));
            Error::Config { problem: format!("{problem}{place}"), key, remedy }
        }
        other => other,
    }
}
