//! Attack files: what `temper attack` reads, and what it writes beside its result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::{AttackForm, AttackTable, ParameterChoice, SchedulefreePoint};
use crate::data::{Columns, DataFile, check_batch};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::huggingface::ExportDType;
use crate::settings::{add_place, at_least, at_most, fault, parse, read_text, suggestion, to_toml, typed};
use crate::training::FineTune;

/// A whole attack file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackConfig {
    /// Seed of the data's order, of the adapter's initialisation and dropout, of noise and of a mixture's draws.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The model to attack.
    pub model: AttackModel,
    /// The data streams, by the names that the attack uses.
    pub data: BTreeMap<String, AttackData>,
    /// What the attack does, written as a row of a suite.
    #[serde(default, serialize_with = "without_labels")]
    pub attack: AttackTable,
    /// When to write checkpoints.
    #[serde(default)]
    pub checkpoint: AttackCheckpoints,
    /// Behaviours of the TAR authors' code that differ from what is right.
    #[serde(default)]
    pub compat: AttackCompat,
}

fn default_seed() -> u64 {
    42
}

/// `[model]` of an attack file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackModel {
    /// Hugging Face directory of the model.
    pub path: PathBuf,
    /// PEFT directory of a LoRA adapter to start from; its own rank, alpha, dropout and targets count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Dtype of the weights that are written; the model's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ExportDType>,
}

/// `[data.NAME]` of an attack file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackData {
    /// The data file, or a directory of them.
    pub path: PathBuf,
    /// What its columns are, where they have names of their own: `{ prompt = "Behavior" }`.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Whether each pass has its own random order; otherwise file order.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Longest sequence in tokens; longer ones are cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Whether sequences lie one after another (packed) or are padded to the longest of the batch.
    #[serde(default = "yes")]
    pub pack: bool,
}

fn yes() -> bool {
    true
}

fn default_max_length() -> usize {
    256
}

impl AttackData {
    /// A file that is read with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            columns: Columns::default(),
            shuffle: true,
            max_length: default_max_length(),
            pack: true,
        }
    }

    /// The file, and what its columns are.
    pub fn file(&self) -> DataFile {
        DataFile { path: self.path.clone(), columns: self.columns.clone() }
    }
}

/// `[checkpoint]` of an attack file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttackCheckpoints {
    /// Steps between checkpoints; 0 for none but the one at a stop.
    pub every: u64,
    /// How many are kept.
    pub keep: usize,
}

impl Default for AttackCheckpoints {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

/// `[compat]` of an attack file: each key's default is the right behaviour.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttackCompat {
    /// Which point of a schedule-free optimizer is written.
    pub schedulefree_point: SchedulefreePoint,
    /// The authors' broken linear warm-up; the same as `attack.official_warmup`.
    #[serde(skip_serializing)]
    pub official_warmup: bool,
}

/// Writes the table of an attack without the name and the description that only a suite needs.
fn without_labels<S: Serializer>(table: &AttackTable, serializer: S) -> Result<S::Ok, S::Error> {
    let mut written = toml::Table::try_from(table).map_err(serde::ser::Error::custom)?;
    written.retain(|key, value| !(matches!(key, "name" | "about") && value.as_str() == Some("")));
    written.serialize(serializer)
}

impl AttackConfig {
    /// The attack on the model at `model` with the data at `data` and the default of everything else.
    pub fn new(model: impl Into<PathBuf>, data: impl Into<PathBuf>) -> Self {
        Self {
            seed: default_seed(),
            model: AttackModel { path: model.into(), adapter: None, dtype: None },
            data: BTreeMap::from([("data".to_string(), AttackData::new(data))]),
            attack: AttackTable::default(),
            checkpoint: AttackCheckpoints::default(),
            compat: AttackCompat::default(),
        }
    }

    /// Reads the attack file at `path`, lays `overrides` (`attack.lr=1e-5`) over it, and checks the result. Relative paths,
    /// also those of overrides, count from the folder of the file.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_text(&read_text(path, "pass a TOML attack file")?, path, overrides)
    }

    /// As [`AttackConfig::load`], from the text of a file that lies (or would lie) at `path`.
    pub fn from_text(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let mut tree = parse(text, path)?;
        for assignment in overrides {
            tree.set(assignment)?;
        }
        let mut config: Self = typed(&tree, path)?;
        config.check().map_err(|error| add_place(error, &tree, path))?;
        let fine_tune = config.fine_tune()?;
        let used = fine_tune.source.streams();
        for name in config.data.keys().filter(|name| !used.contains(name)) {
            tracing::warn!("[data.{name}] is not used");
        }
        config.resolve_paths(path)?;
        Ok(config)
    }

    /// The same attack with `overrides` laid over it, checked. Paths stay as they are written.
    pub fn with_overrides(&self, overrides: &[String]) -> Result<Self> {
        let path = Path::new("attack.toml");
        let mut config = self.clone();
        if !overrides.is_empty() {
            let mut tree = parse(&to_toml(self, "attack file")?, path)?;
            for assignment in overrides {
                tree.set(assignment)?;
            }
            config = typed(&tree, path)?;
        }
        config.check()?;
        Ok(config)
    }

    /// The whole attack as a file: defaults and overrides worked in and paths absolute. Loading it gives the same attack.
    pub fn resolved(&self) -> Result<String> {
        let mut whole = self.with_defaults();
        for path in whole.paths_mut() {
            *path = std::path::absolute(&*path).map_err(Error::io("find", &*path))?;
        }
        to_toml(&whole, "attack file")
    }

    fn with_defaults(&self) -> Self {
        let mut attack = self.attack.clone().with_defaults(self.only_stream());
        if self.compat.official_warmup {
            attack.official_warmup = Some(true);
        }
        Self { attack, ..self.clone() }
    }

    /// What the attack does; `S` names a stream of [`AttackConfig::data`].
    ///
    /// # Errors
    /// When it names no stream, or one that there is not.
    pub fn fine_tune(&self) -> Result<FineTune<String>> {
        let data = self.only_stream();
        if self.attack.data.is_none() && data.is_empty() {
            let remedy = "name a stream, two of them, or a mixture { first = 0.5, second = 0.5 }";
            return Err(fault("attack.data", format!("missing: there are {} streams", self.data.len()), remedy));
        }
        let mut fine_tune = self.attack.fine_tune("attack", data, |key, name| {
            if self.data.contains_key(name) {
                Ok(name.to_string())
            } else {
                let known = suggestion(name, self.data.keys().map(String::as_str));
                Err(fault(key, format!("there is no [data.{name}]"), known))
            }
        })?;
        fine_tune.optimizer.schedule.official_warmup |= self.compat.official_warmup;
        Ok(fine_tune)
    }

    /// Fails where a setting is out of its range or contradicts another. [`AttackConfig::load`] has seen to it; whoever builds
    /// an attack in code may ask.
    pub fn check(&self) -> Result<()> {
        // TOML has no number above.
        at_most("seed", self.seed, i64::MAX as u64)?;
        if self.attack.kind != AttackForm::Finetune {
            return Err(fault("attack.kind", "an attack file describes fine-tuning", "run other kinds in a suite"));
        }
        if self.attack.seeds.is_some() {
            return Err(fault("attack.seeds", "an attack file has one seed", "write `seed = …` at its top"));
        }
        self.attack.refuse_idle_keys("attack")?;
        let fine_tune = self.fine_tune()?;
        fine_tune.check("attack")?;
        for (name, data) in &self.data {
            let key = format!("data.{name}");
            // The first token of a sequence has no prediction.
            at_least(&format!("{key}.max_length"), data.max_length as u64, 2)?;
            check_batch("attack.batch", fine_tune.batch.unwrap_or(1), data.max_length)?;
        }
        if self.model.adapter.is_some() && self.attack.params != Some(ParameterChoice::Lora) {
            let remedy = "set attack.params = \"lora\", or merge the adapter into the model first";
            return Err(fault("model.adapter", "a full-parameter attack trains no adapter", remedy));
        }
        at_least("checkpoint.keep", self.checkpoint.keep as u64, 1)
    }

    /// Tells attacks whose steps differ apart. All settings count but the number of steps, what is written and what is kept. A
    /// path counts by its last part, so that an attack can be moved to another folder and resumed there.
    pub fn config_hash(&self) -> Result<Fingerprint> {
        let mut same = Self {
            model: AttackModel { dtype: None, ..self.model.clone() },
            attack: AttackTable { steps: None, name: String::new(), about: String::new(), ..self.attack.clone() },
            checkpoint: AttackCheckpoints::default(),
            compat: AttackCompat { schedulefree_point: SchedulefreePoint::default(), ..self.compat.clone() },
            ..self.clone()
        };
        for path in same.paths_mut() {
            *path = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default().into();
        }
        Fingerprint::of(&same.with_defaults())
    }

    /// The name of the stream where there is one; otherwise nothing.
    fn only_stream(&self) -> &str {
        match self.data.keys().next() {
            Some(name) if self.data.len() == 1 => name,
            _ => "",
        }
    }

    fn resolve_paths(&mut self, file: &Path) -> Result<()> {
        let file = std::path::absolute(file).map_err(Error::io("find", file))?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
        for path in self.paths_mut() {
            *path = folder.join(&*path);
        }
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let streams = self.data.values_mut().map(|stream| &mut stream.path);
        std::iter::once(&mut self.model.path).chain(&mut self.model.adapter).chain(streams)
    }
}
