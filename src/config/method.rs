//! What the tables of a run file describe: the streams in use, the outer optimizer and the safeguard's.

use std::collections::BTreeSet;

use super::{OuterConfig, RunConfig, SafeguardConfig};
use crate::optimizer::{OptimizerConfig, Schedule};

impl RunConfig {
    /// The names of the streams that the method uses; `[data]` may hold more.
    pub fn used_streams(&self) -> BTreeSet<&str> {
        let adversaries = &self.tar.adversary;
        let trained_on = adversaries.iter().flat_map(|adversary| adversary.data.streams()).map(String::as_str);
        let held_out = adversaries.iter().filter_map(|adversary| adversary.tr_data.as_deref());
        let safeguard = self.safeguard.iter().map(|safeguard| safeguard.data.as_str());
        trained_on
            .chain(held_out)
            .chain(safeguard)
            .chain([self.tar.tr_data.as_str(), self.tar.retain_data.as_str()])
            .collect()
    }
}

impl OuterConfig {
    /// The outer optimizer of a run of `outer_steps` steps.
    pub fn optimizer_config(&self, outer_steps: u64) -> OptimizerConfig {
        let schedule =
            Schedule { warmup: self.warmup, decay: self.schedule, total: outer_steps, official_warmup: false };
        OptimizerConfig {
            schedule,
            weight_decay: self.weight_decay,
            betas: self.betas,
            ..OptimizerConfig::new(self.optimizer, self.lr)
        }
    }
}

impl SafeguardConfig {
    /// The optimizer of the plain safeguard.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        let schedule = Schedule { warmup: self.warmup, ..Schedule::constant() };
        OptimizerConfig { schedule, ..OptimizerConfig::new(self.optimizer, self.lr) }
    }
}
