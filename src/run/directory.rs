//! The output directory of a run.

use std::path::{Path, PathBuf};

use super::{Control, Event};
use crate::checkpoint::{self, Snapshot};
use crate::error::{Error, Result};
use crate::files::{write_atomically, write_json};
use crate::fingerprint::Fingerprint;
use crate::huggingface::{ExportDType, ModelDirectory, fill_model};
use crate::model::ModelLayout;
use crate::ops::Backend;

/// The folder of the run's own files.
const FOLDER: &str = "temper";
/// The device's measured choices, as the run began with them.
const CHOICES: &str = "choices.json";

/// A model at the end of a run.
pub(super) struct FinishedModel<'a> {
    /// Where it came from; its configuration and tokenizer are carried over.
    pub source: &'a ModelDirectory,
    /// Its weights, in the order of the layout.
    pub weights: &'a [f32],
    /// The dtype that was asked for.
    pub dtype: ExportDType,
}

/// The output directory: the finished model at its top, the run's own files in its folder `temper`.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    top: PathBuf,
    config_hash: Fingerprint,
}

impl RunDirectory {
    /// Prepares `top` for a run with this resolved configuration, which is written to `temper/run.toml`. Checkpoints are
    /// taken from and for runs of `config_hash` only.
    ///
    /// # Errors
    /// When it already holds a run (unless `resume`), or something that is not a run.
    pub fn open(top: &Path, resolved: &str, config_hash: Fingerprint, resume: bool) -> Result<Self> {
        let directory = Self { top: top.to_path_buf(), config_hash };
        let settings = directory.file("run.toml");
        let holds_run = settings.exists();
        if holds_run && !resume {
            let remedy = "go on with it by `resume`, or choose another `out`";
            return Err(Error::config("out", format!("{} already holds a run", top.display()), remedy));
        }
        // A process that was killed at its very start leaves the folder without its first file: nothing is lost, and the run
        // begins again.
        let foreign = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() != FOLDER);
        let occupied = std::fs::read_dir(top).is_ok_and(|mut entries| entries.any(foreign));
        if occupied && !holds_run {
            let problem = format!("{} is not empty and holds no run", top.display());
            return Err(Error::config("out", problem, "choose a new or empty directory"));
        }
        std::fs::create_dir_all(directory.folder()).map_err(Error::io("create", directory.folder()))?;
        write_atomically(&settings, resolved.as_bytes())?;
        Ok(directory)
    }

    /// Where a run in `top` keeps the measured choices that it began with: what it follows when it is resumed.
    pub fn kept_choices(top: &Path) -> PathBuf {
        top.join(FOLDER).join(CHOICES)
    }

    /// Keeps the measured choices that `backend` follows; a run that begins does so before its first checkpoint.
    pub fn keep_choices<B: Backend>(&self, backend: &B) -> Result<()> {
        match backend.kept_choices()? {
            Some(choices) => write_json(&self.file(CHOICES), &choices),
            None => Ok(()),
        }
    }

    /// The directory itself.
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// The folder of the run's own files.
    pub fn folder(&self) -> PathBuf {
        self.top.join(FOLDER)
    }

    /// One of the run's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.folder().join("checkpoints")
    }

    /// Saves a checkpoint of this run.
    pub fn save(
        &self,
        step: u64,
        state: serde_json::Value,
        tensors: Vec<checkpoint::Tensor>,
        keep: usize,
    ) -> Result<()> {
        let snapshot = Snapshot { step, config_hash: self.config_hash, state, tensors };
        checkpoint::save(&self.checkpoints(), &snapshot, keep).map(|_| ())
    }

    /// The newest intact checkpoint of this run and where it lies.
    pub fn latest(&self) -> Result<Option<(PathBuf, Snapshot)>> {
        let Some(path) = checkpoint::latest(&self.checkpoints())? else { return Ok(None) };
        let snapshot = checkpoint::load(&path)?;
        snapshot.expect_config(&path, self.config_hash)?;
        Ok(Some((path, snapshot)))
    }

    /// Writes a finished model. Where its weights do not fit `dtype`, it is written in a wider one, and the observer is told:
    /// a run that is over must not be lost.
    pub(super) fn publish_model(&self, model: FinishedModel, control: &mut Control) -> Result<()> {
        let FinishedModel { source, weights, dtype } = model;
        let written = dtype.wide_enough(&ModelLayout::new(&source.config)?, weights);
        if written != dtype {
            control.tell(Event::WiderDType { asked: dtype, written });
        }
        let fill = |path: &Path| fill_model(path, &source.config, Some(&source.path), weights, written);
        self.publish("config.json", fill)
    }

    /// Writes what is finished: `fill` fills a directory beside the final place, whose files then move to the top,
    /// `marker` last, so that a directory with a marker is complete.
    pub fn publish(&self, marker: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let staging = self.file("export");
        if staging.exists() {
            std::fs::remove_dir_all(&staging).map_err(Error::io("remove", &staging))?;
        }
        std::fs::create_dir(&staging).map_err(Error::io("create", &staging))?;
        fill(&staging)?;
        let entries = std::fs::read_dir(&staging).map_err(Error::io("read", &staging))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(Error::io("read", &staging))?.file_name());
        }
        names.sort_by_key(|name| name.as_os_str() == marker);
        for name in names {
            let target = self.top.join(&name);
            std::fs::rename(staging.join(&name), &target).map_err(Error::io("write", &target))?;
        }
        std::fs::remove_dir(&staging).map_err(Error::io("remove", &staging))?;
        std::fs::File::open(&self.top).and_then(|top| top.sync_all()).map_err(Error::io("sync", &self.top))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(top: &Path, resume: bool) -> Result<RunDirectory> {
        RunDirectory::open(top, "seed = 1\n", Fingerprint::of("run").unwrap(), resume)
    }

    #[test]
    fn a_run_that_was_killed_before_its_first_file_begins_again() {
        for resume in [false, true] {
            let top = tempfile::tempdir().unwrap();
            std::fs::create_dir(top.path().join(FOLDER)).unwrap();
            let directory = open(top.path(), resume).unwrap();
            assert_eq!(std::fs::read_to_string(directory.file("run.toml")).unwrap(), "seed = 1\n");
        }
    }

    #[test]
    fn what_is_not_a_run_is_left_alone() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("letter.txt"), "dear").unwrap();
        assert!(matches!(open(top.path(), true), Err(Error::Config { key, .. }) if key == "out"));
        let run = tempfile::tempdir().unwrap();
        open(run.path(), false).unwrap();
        assert!(matches!(open(run.path(), false), Err(Error::Config { key, .. }) if key == "out"));
        open(run.path(), true).unwrap();
    }
}
