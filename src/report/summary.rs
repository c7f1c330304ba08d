//! `summary.json` of the demonstration. Other tools read it: the spelling is public.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::files::write_json;

/// The outcome of the demonstration; accuracies are in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemoSummary {
    /// Seed of every draw.
    pub seed: u64,
    /// Wall-clock time of the whole command.
    pub seconds: f64,
    /// Accuracy on the facts to keep.
    pub benign: Stages,
    /// Accuracy on the restricted facts that nobody trains on after pre-training.
    pub restricted: Stages,
    /// What guessing would give.
    pub chance: f64,
    /// The attacks, with the accuracy on the restricted facts after each.
    pub attacks: Vec<AttackRow>,
}

/// An accuracy of each of the three models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// After pre-training.
    pub pretrained: f64,
    /// After the plain safeguard.
    pub unlearned: f64,
    /// After TAR.
    pub hardened: f64,
}

/// An attack's outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackRow {
    /// Its name.
    pub name: String,
    /// Its steps.
    pub steps: u64,
    /// Restricted accuracy of the plainly safeguarded model after it.
    pub unlearned_restricted: f64,
    /// Restricted accuracy of the hardened model after it.
    pub hardened_restricted: f64,
}

impl DemoSummary {
    /// Writes `summary.json`.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}
