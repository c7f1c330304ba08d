//! The kinds of optimizers and their hyperparameters.

use std::fmt;
use std::str::FromStr;

use super::Schedule;
use crate::error::{Error, Result};
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
    /// SGD without momentum.
    Sgd,
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
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::AdamW,
        Self::Adam,
        Self::Sgd,
        Self::SgdMomentum,
        Self::SgdNesterov,
        Self::Adagrad,
        Self::Adadelta,
        Self::NAdam,
        Self::RAdam,
        Self::ScheduleFreeAdamW,
    ];

    /// The name in run files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Adam => "adam",
            Self::Sgd => "sgd",
            Self::SgdMomentum => "sgd_momentum",
            Self::SgdNesterov => "sgd_nesterov",
            Self::Adagrad => "adagrad",
            Self::Adadelta => "adadelta",
            Self::NAdam => "nadam",
            Self::RAdam => "radam",
            Self::ScheduleFreeAdamW => "schedulefree_adamw",
        }
    }

    /// The element-wise rule that it applies.
    pub const fn rule(self) -> UpdateRule {
        match self {
            Self::AdamW | Self::Adam => UpdateRule::Adam,
            Self::Sgd | Self::SgdMomentum | Self::SgdNesterov => UpdateRule::Sgd,
            Self::Adagrad => UpdateRule::Adagrad,
            Self::Adadelta => UpdateRule::Adadelta,
            Self::NAdam => UpdateRule::NAdam,
            Self::RAdam => UpdateRule::RAdam,
            Self::ScheduleFreeAdamW => UpdateRule::ScheduleFreeAdamW,
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OptimizerKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let remedy = format!("use one of {}", Self::ALL.map(Self::name).join(", "));
            Error::config("optimizer", format!("`{text}` is not an optimizer"), remedy)
        })
    }
}

/// An optimizer's hyperparameters. Defaults are PyTorch's (and schedulefree's) for each kind.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// The kind of optimizer.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// The course of the learning rate over the steps.
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

    /// The weight decay that applies.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(match self.kind {
            OptimizerKind::AdamW => 0.01,
            _ => 0.0,
        })
    }

    /// The ε that applies. SGD has none.
    pub fn epsilon(&self) -> f64 {
        self.epsilon.unwrap_or(match self.kind {
            OptimizerKind::Adagrad => 1e-10,
            OptimizerKind::Adadelta => 1e-6,
            _ => 1e-8,
        })
    }

    /// The learning rate of `step`, counted from 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        self.lr * self.schedule.factor(self.lr, step)
    }

    /// Fails where a number lies outside of what its formula allows.
    pub fn validate(&self) -> Result<()> {
        let lr = self.lr;
        let decay = self.weight_decay();
        let epsilon = self.epsilon();
        let [beta1, beta2] = self.betas;
        // 1 − 1/β1 leads to the averaged point.
        let beta1_may_be_0 = self.kind != OptimizerKind::ScheduleFreeAdamW;
        let checks = [
            ("lr", lr, lr.is_finite() && lr >= 0.0, "use a number from 0 up"),
            ("weight_decay", decay, decay.is_finite() && decay >= 0.0, "use a number from 0 up"),
            ("epsilon", epsilon, epsilon.is_finite() && epsilon >= 0.0, "use a number from 0 up"),
            ("betas", beta1, (0.0..1.0).contains(&beta1), "use a number from 0 to below 1"),
            ("betas", beta1, beta1 > 0.0 || beta1_may_be_0, "schedule-free averaging needs one above 0"),
            ("betas", beta2, (0.0..1.0).contains(&beta2), "use a number from 0 to below 1"),
        ];
        for (key, value, valid, remedy) in checks {
            if !valid {
                return Err(Error::config(format!("optimizer.{key}"), format!("{value} is not possible"), remedy));
            }
        }
        self.schedule.validate("optimizer.schedule")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names are the ones that serde reads and writes, and parse back.
    #[test]
    fn names_are_serdes_names() {
        for kind in OptimizerKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(kind.name().parse::<OptimizerKind>().unwrap(), kind);
        }
        let error = "adamw2".parse::<OptimizerKind>().unwrap_err().to_string();
        assert!(error.contains("adamw2") && error.contains("schedulefree_adamw"), "{error}");
    }

    #[test]
    fn impossible_hyperparameters_are_refused() {
        let adamw = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
        assert!(adamw.validate().is_ok());
        let wrong = [
            OptimizerConfig { lr: f64::NAN, ..adamw.clone() },
            OptimizerConfig { lr: -1.0, ..adamw.clone() },
            OptimizerConfig { weight_decay: Some(f64::INFINITY), ..adamw.clone() },
            OptimizerConfig { epsilon: Some(-1e-8), ..adamw.clone() },
            OptimizerConfig { betas: [1.0, 0.999], ..adamw.clone() },
            OptimizerConfig { betas: [0.9, f64::NAN], ..adamw.clone() },
            OptimizerConfig { kind: OptimizerKind::ScheduleFreeAdamW, betas: [0.0, 0.999], ..adamw.clone() },
        ];
        for config in wrong {
            assert!(config.validate().is_err(), "{config:?}");
        }
        assert!(OptimizerConfig { betas: [0.0, 0.0], ..adamw }.validate().is_ok());
    }
}
