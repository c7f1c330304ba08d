//! `temper/cost.json` in a model's directory: the cost of its defence, to be compared with the cost of attacks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_capped, write_json};

/// The cost of a defence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefenderCost {
    /// Seconds on the device.
    pub seconds: f64,
    /// Floating-point operations, counted from the architecture.
    pub flop: f64,
    /// The device that it ran on, in words.
    pub device: String,
}

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

    /// The cost of this defence after `before`, which its model had had already.
    pub fn after(self, before: Self) -> Self {
        let device =
            if before.device == self.device { self.device } else { format!("{}, then {}", before.device, self.device) };
        Self { seconds: before.seconds + self.seconds, flop: before.flop + self.flop, device }
    }

    /// Reads it from a model's directory; `None` where nobody wrote it.
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
