//! What the tables of a run file describe: optimizers, adapters, the streams in use.

use std::collections::BTreeSet;

use super::attack_table::check_targets;
use super::{
    AdversaryConfig, CompatConfig, DataNames, OuterConfig, ParameterChoice, RunConfig, SafeguardConfig, TarConfig,
};
use crate::error::Result;
use crate::model::{AdapterConfig, Projection};
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
use crate::training::{FineTune, Source};

/// The published switch distribution, for adversaries of two streams that do not say.
const DEFAULT_SWITCH: [f64; 2] = [6.0, 3.0];

impl RunConfig {
    /// The names of the streams that the method uses; `[data]` may hold more.
    pub fn used_streams(&self) -> BTreeSet<&str> {
        let adversaries = self.tar.adversary.iter().flat_map(|adversary| adversary.data.streams()).map(String::as_str);
        let safeguard = self.safeguard.iter().map(|safeguard| safeguard.data.as_str());
        adversaries.chain(safeguard).chain([self.tar.tr_data.as_str(), self.tar.retain_data.as_str()]).collect()
    }
}

impl OuterConfig {
    /// The outer optimizer.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        OptimizerConfig {
            schedule: Schedule { warmup: self.warmup, ..Schedule::constant() },
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

impl AdversaryConfig {
    /// An adversary with the default of every other key.
    pub fn new(name: &str, data: DataNames, lr: &[f64]) -> Self {
        Self {
            name: name.to_string(),
            data,
            weight: 1.0,
            params: ParameterChoice::Full,
            lr: lr.to_vec(),
            optimizer: OptimizerKind::AdamW,
            warmup: 0,
            weight_decay: None,
            betas: [0.9, 0.999],
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Projection::ALL.to_vec(),
            switch: None,
        }
    }

    /// The optimizer of a trajectory that has drawn `lr`.
    pub fn optimizer_config(&self, lr: f64, tar: &TarConfig, compat: &CompatConfig) -> OptimizerConfig {
        let schedule = Schedule {
            warmup: self.warmup,
            decay: Decay::Constant,
            total: tar.inner_steps,
            official_warmup: compat.official_warmup,
        };
        let plain = OptimizerConfig::new(self.optimizer, lr);
        OptimizerConfig { schedule, weight_decay: self.weight_decay, betas: self.betas, ..plain }
    }

    /// The LoRA adapter, where it trains one.
    pub fn adapter_config(&self) -> Option<AdapterConfig> {
        (self.params == ParameterChoice::Lora).then(|| AdapterConfig {
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.iter().copied().collect(),
            ..AdapterConfig::new(self.rank)
        })
    }

    /// What it trains on; a switch has the (a, b) of ⌊K · Beta(a, b)⌋.
    pub fn source(&self) -> Source<String, [f64; 2]> {
        let beta = self.switch.map_or(DEFAULT_SWITCH, |switch| switch.beta);
        match &self.data {
            Source::One(name) => Source::One(name.clone()),
            Source::Switch { streams, at: () } => Source::Switch { streams: streams.clone(), at: beta },
            Source::Mixture(parts) => Source::Mixture(parts.clone()),
        }
    }

    /// Its attack at the learning rate `lr`, with a switch, where it has one, at step 0.
    fn attack(&self, lr: f64, tar: &TarConfig, compat: &CompatConfig) -> Result<FineTune<String>> {
        let source = self.data.try_map(|name| Ok(name.clone()), |()| Ok(0))?;
        let optimizer = self.optimizer_config(lr, tar, compat);
        Ok(FineTune { adapter: self.adapter_config(), ..FineTune::new(source, optimizer, tar.inner_steps) })
    }

    /// Fails where its attack, at any of its learning rates, is out of range; `key` is the place of its table.
    pub(super) fn check_attack(&self, key: &str, tar: &TarConfig, compat: &CompatConfig) -> Result<()> {
        check_targets(&format!("{key}.targets"), &self.targets)?;
        self.lr.iter().try_for_each(|lr| self.attack(*lr, tar, compat)?.check(key))
    }
}
