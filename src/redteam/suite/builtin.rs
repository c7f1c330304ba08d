//! The suites that come with temper.

use std::path::Path;

use super::schema::{BuiltIn, ScaleTable};
use crate::config::AttackTable;
use crate::error::{Error, Result};
use crate::optimizer::Decay;
use crate::settings::{parse, suggestion, typed};

/// Names and texts.
pub const BUILT_IN: [(&str, &str); 5] = [
    ("quick", include_str!("../suites/quick.toml")),
    ("strong", include_str!("../suites/strong.toml")),
    ("strong-2026", include_str!("../suites/strong-2026.toml")),
    ("tar-weaponization", include_str!("../suites/tar-weaponization.toml")),
    ("tar-refusal", include_str!("../suites/tar-refusal.toml")),
];

/// What a built-in suite is, in a line for people.
pub fn about(name: &str) -> Result<String> {
    Ok(read(name)?.about)
}

/// The attacks of a built-in suite, `scale` worked in.
pub(super) fn attacks(name: &str, scale: ScaleTable) -> Result<Vec<AttackTable>> {
    let BuiltIn { extends, attack, .. } = read(name)?;
    let first = extends.map_or(Ok(Vec::new()), |name| attacks(&name, scale))?;
    Ok(first.into_iter().chain(attack.into_iter().map(|attack| attack.scaled(scale))).collect())
}

fn read(name: &str) -> Result<BuiltIn> {
    let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
        let problem = format!("there is no suite `{name}`");
        return Err(Error::config("suite", problem, suggestion(name, BUILT_IN.iter().map(|(name, _)| *name))));
    };
    let path = Path::new(name);
    typed(&parse(text, path)?, path)
}

/// A product of two decimal numbers as one would write it: 4e-5 · 15 is 6e-4, and not 6.000000000000001e-4.
fn as_written(product: f64) -> f64 {
    format!("{product:.12e}").parse().unwrap_or(product)
}

impl AttackTable {
    /// The same attack with `scale` on its learning rate, its lengths and its batch.
    fn scaled(mut self, scale: ScaleTable) -> Self {
        // Casts of floats to integers saturate.
        let length = |steps: u64| (steps as f64 * scale.steps).round() as u64;
        self.lr = self.lr.map(|lr| as_written(lr * scale.lr));
        self.kick_lr = self.kick_lr.map(|lr| as_written(lr * scale.lr));
        self.kick_steps = self.kick_steps.map(|steps| length(steps).max(1));
        // A kick leaves a step to settle, however short it makes the run.
        let fewest = self.kick_steps.unwrap_or(0) + 1;
        self.steps = self.steps.map(|steps| length(steps).max(fewest));
        self.warmup = self.warmup.map(length);
        self.negated_steps = self.negated_steps.map(|steps| length(steps).max(1));
        self.batch = self.batch.map(|batch| ((batch as f64 * scale.batch).round() as usize).max(1));
        self.schedule = self.schedule.map(|schedule| match schedule {
            Decay::Restarts { period, floor } => Decay::Restarts { period: length(period).max(1), floor },
            other => other,
        });
        self
    }
}
