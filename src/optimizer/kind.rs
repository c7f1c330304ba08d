//! Which optimizer, with which hyperparameters.

use super::Schedule;
use crate::ops::UpdateRule;

/// The optimizers, under the names that run files and the command line use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW,
    /// Adam.
    Adam,
    /// SGD with momentum 0.9.
    SgdMomentum,
    /// SGD with Nesterov momentum 0.9.
    SgdNesterov,
    /// Adagrad.
    Adagrad,
    /// Adadelta.
    Adadelta,
    /// NAdam.
    #[serde(rename = "nadam")]
    NAdam,
    /// RAdam.
    #[serde(rename = "radam")]
    RAdam,
    /// Schedule-free AdamW (Defazio et al., arXiv 2405.15682).
    #[serde(rename = "schedulefree_adamw")]
    ScheduleFreeAdamW,
}

impl OptimizerKind {
    /// The element-wise rule that it applies.
    pub const fn rule(self) -> UpdateRule {
        match self {
            Self::AdamW | Self::Adam => UpdateRule::Adam,
            Self::SgdMomentum | Self::SgdNesterov => UpdateRule::Sgd,
            Self::Adagrad => UpdateRule::Adagrad,
            Self::Adadelta => UpdateRule::Adadelta,
            Self::NAdam => UpdateRule::NAdam,
            Self::RAdam => UpdateRule::RAdam,
            Self::ScheduleFreeAdamW => UpdateRule::ScheduleFreeAdamW,
        }
    }
}

/// An optimizer's hyperparameters. Defaults are PyTorch's (and schedulefree's) for each kind.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Which.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate changes over the steps.
    pub schedule: Schedule,
    /// Weight decay; `None` is the kind's default (0.01 for AdamW, 0 for the others).
    pub weight_decay: Option<f64>,
    /// β1 and β2 of the Adam family.
    pub betas: [f64; 2],
    /// ε; `None` is the kind's default.
    pub epsilon: Option<f64>,
}

impl OptimizerConfig {
    /// `kind` at a constant learning rate with the defaults.
    pub fn new(kind: OptimizerKind, lr: f64) -> Self {
        Self { kind, lr, schedule: Schedule::constant(), weight_decay: None, betas: [0.9, 0.999], epsilon: None }
    }
}
