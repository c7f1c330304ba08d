//! `temper/cost.json` in a model's directory: what its defence cost, for whoever attacks it later.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::read_capped;
use crate::files::write_json;
use crate::redteam::DefenderCost;

fn path(model: &Path) -> PathBuf {
    model.join("temper").join("cost.json")
}

impl DefenderCost {
    /// Writes it into a model's directory.
    pub fn write(&self, model: &Path) -> Result<()> {
        let path = path(model);
        let folder = model.join("temper");
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        write_json(&path, self)
    }

    /// Reads it from a model's directory; none where nobody wrote it.
    pub fn read(model: &Path) -> Result<Option<Self>> {
        let path = path(model);
        if !path.exists() {
            return Ok(None);
        }
        let cost: Self = serde_json::from_slice(&read_capped(&path, 1 << 16)?)
            .map_err(|error| Error::input(&path, format!("it is no cost of a defence: {error}"), "remove it"))?;
        let good = |value: f64| value.is_finite() && value >= 0.0;
        if !(good(cost.seconds) && good(cost.flop)) {
            return Err(Error::input(&path, "a cost is below 0 or no finite number", "remove the file"));
        }
        Ok(Some(cost))
    }
}
