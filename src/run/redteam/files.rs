//! The output directory of a red-team run: `attacks/ID.json` as each attack ends, `results.json` with all of them and the
//! report beside it, and in `temper` what the run itself keeps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::read_capped;
use crate::files::write_json;
use crate::fingerprint::Fingerprint;
use crate::redteam::suite::Attack;
use crate::redteam::{AttackResult, Outcome, Results};
use crate::report::write_results;
use crate::run::RunDirectory;

/// No result of one attack is near this long.
const MAX_BYTES: u64 = 64 << 20;

/// Fingerprints of everything that results depend on besides the settings of an attack.
pub(super) type Identity = BTreeMap<String, Fingerprint>;

/// The files of a run.
pub(super) struct Files {
    out: PathBuf,
}

impl Files {
    /// Prepares `out`. `identity` tells the model, the measurements and the data; attacks that were finished with others
    /// say nothing about this run.
    pub(super) fn open(out: &Path, resolved: &str, identity: &Identity, resume: bool) -> Result<Self> {
        let path = out.join("temper").join("identity.json");
        let mut all = identity.clone();
        if resume && path.exists() {
            let there: Identity = serde_json::from_slice(&read_capped(&path, 1 << 16)?).map_err(|error| {
                Error::input(&path, format!("it is not of a run of this version: {error}"), "choose another `out`")
            })?;
            if let Some((what, _)) =
                there.iter().find(|(what, value)| identity.get(*what).is_some_and(|own| own != *value))
            {
                let problem = format!("{} holds a run with another {what}", out.display());
                return Err(Error::config("resume", problem, "choose another `out`"));
            }
            // Files that the other process's attacks used still belong to their results.
            for (what, value) in there {
                all.entry(what).or_insert(value);
            }
        }
        let directory = RunDirectory::open(out, resolved, Fingerprint::of(identity)?, resume)?;
        write_json(&directory.file("identity.json"), &all)?;
        let attacks = out.join("attacks");
        std::fs::create_dir_all(&attacks).map_err(Error::io("create", &attacks))?;
        Ok(Self { out: out.to_path_buf() })
    }

    fn attack(&self, id: &str) -> PathBuf {
        self.out.join("attacks").join(format!("{id}.json"))
    }

    /// The result of an attack that an earlier process ran to its end with the same settings. One that failed is tried
    /// again.
    pub(super) fn finished(&self, attack: &Attack) -> Result<Option<AttackResult>> {
        let path = self.attack(&attack.id);
        if !path.exists() {
            return Ok(None);
        }
        let result: AttackResult = serde_json::from_slice(&read_capped(&path, MAX_BYTES)?)
            .map_err(|error| Error::input(&path, format!("it is no result: {error}"), "remove it"))?;
        let same = result.id == attack.id && result.settings == attack.settings && result.seed == attack.seed;
        if !same {
            let problem = "it is the result of an attack with other settings";
            return Err(Error::input(&path, problem, "choose another `out`, or remove it to run the attack again"));
        }
        Ok(matches!(result.outcome, Outcome::Done { .. }).then_some(result))
    }

    /// Keeps the result of an attack.
    pub(super) fn keep(&self, result: &AttackResult) -> Result<()> {
        write_json(&self.attack(&result.id), result)
    }

    /// Writes `results.json`, the report and the tables.
    pub(super) fn write(&self, results: &Results) -> Result<()> {
        write_results(&self.out, results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions before BLAKE3 wrote 16 digits, which say nothing about the numbers of this version.
    #[test]
    fn a_run_of_an_older_version_is_not_resumed() {
        let out = tempfile::tempdir().unwrap();
        let identity = Identity::from([("model".to_string(), Fingerprint::of("a model").unwrap())]);
        Files::open(out.path(), "", &identity, false).unwrap();
        Files::open(out.path(), "", &identity, true).unwrap();
        let path = out.path().join("temper/identity.json");
        std::fs::write(&path, "{\"model\": \"00c0ffee00c0ffee\"}").unwrap();
        let error = Files::open(out.path(), "", &identity, true).err().unwrap();
        assert!(error.to_string().contains("not of a run of this version"), "{error}");
    }
}
