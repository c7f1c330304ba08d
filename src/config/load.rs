//! From a run file, its preset and `--set` overrides to a checked [`RunConfig`], and back to text.

use std::path::{Path, PathBuf};

use super::{RunConfig, validate};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::settings::{Node, Origin, Value, add_place, located, parse, read_text, suggestion, to_toml, typed};
use crate::tuning::TuningPin;

/// The presets: published hyperparameters, without the paths of data and models.
const PRESETS: [(&str, &str); 13] = [
    ("bio", include_str!("presets/bio.toml")),
    ("cyber", include_str!("presets/cyber.toml")),
    ("chem", include_str!("presets/chem.toml")),
    ("refusal", include_str!("presets/refusal.toml")),
    ("tar", include_str!("presets/tar.toml")),
    ("patcher", include_str!("presets/patcher.toml")),
    ("booster", include_str!("presets/booster.toml")),
    ("ctrap", include_str!("presets/ctrap.toml")),
    ("ablation-resistant", include_str!("presets/ablation-resistant.toml")),
    ("rmu", include_str!("presets/rmu.toml")),
    ("mudman", include_str!("presets/mudman.toml")),
    ("npo-sam", include_str!("presets/npo-sam.toml")),
    ("undo", include_str!("presets/undo.toml")),
];

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
        validate::warn_of_unused_streams(&config);
        config.resolve_paths(path)?;
        Ok(config)
    }

    /// Fails where a setting is out of its range or contradicts another, as [`RunConfig::load`] does; for whoever builds a
    /// configuration in code.
    pub fn check(&self) -> Result<()> {
        validate::check(self, |_| true)
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
        let tuning = self.tuning.iter_mut().filter_map(|pin| match pin {
            TuningPin::File(path) => Some(path),
            TuningPin::Off => None,
        });
        std::iter::once(&mut self.model.path).chain(&mut self.model.reference).chain(streams).chain(tuning)
    }

    /// The whole configuration as a run file, preset and overrides worked in and paths absolute: what is written beside
    /// the results. Loading it gives the same configuration.
    pub fn resolved(&self) -> Result<String> {
        to_toml(self, "run file")
    }

    /// Tells runs whose steps differ apart. All settings count but those that only say how long to run, what to write and
    /// what to keep (`model.dtype`, `compat.schedulefree_point`, `[checkpoint]`, `memory.recompute`,
    /// `memory.step_in_backward`, and `outer_steps` unless the outer learning rate decays until the last of them), and
    /// `tuning`, of which checkpoints keep what matters. A path counts by its last part, so that a run can be moved to
    /// another folder and resumed there.
    pub fn config_hash(&self) -> Result<Fingerprint> {
        let mut steps = Self {
            preset: None,
            // Checkpoints know the choices themselves.
            tuning: None,
            checkpoint: Default::default(),
            memory: super::MemoryConfig { states: self.memory.states, ..Default::default() },
            model: super::ModelSection { dtype: None, ..self.model.clone() },
            compat: super::CompatConfig { schedulefree_point: Default::default(), ..self.compat.clone() },
            ..self.clone()
        };
        if !self.composition().outer.schedule.depends_on_length() {
            steps.set_outer_steps(0);
        }
        for path in steps.paths_mut() {
            *path = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default().into();
        }
        Fingerprint::of(&steps)
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
