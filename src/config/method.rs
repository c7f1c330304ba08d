//! What the tables of a run file describe: optimizers, adapters, the streams in use.

use std::collections::BTreeSet;

use super::{AdversaryConfig, AdversaryData, CompatConfig, OuterConfig, ParameterChoice, RunConfig, TarConfig};
use crate::model::{AdapterConfig, Projection};
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};

impl RunConfig {
    /// The names of the streams that the method uses; `[data]` may hold more.
    pub fn used_streams(&self) -> BTreeSet<&str> {
        let adversaries = self.tar.adversary.iter().flat_map(|adversary| adversary.data.streams());
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

impl AdversaryConfig {
    /// An adversary with the default of every other key.
    pub fn new(name: &str, data: AdversaryData, lr: &[f64]) -> Self {
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
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rank_stabilised: false,
            targets: self.targets.iter().copied().collect(),
        })
    }
}

impl AdversaryData {
    /// The names of the streams, in the order of their use.
    pub fn streams(&self) -> Vec<&str> {
        match self {
            Self::One(name) => vec![name],
            Self::Switch(pair) => pair.iter().map(String::as_str).collect(),
            Self::Mixture(weights) => weights.keys().map(String::as_str).collect(),
        }
    }
}
