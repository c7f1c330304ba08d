//! The coefficients of an optimizer's element-wise rule at a step, computed on the host in f64.

use super::{OptimizerConfig, OptimizerKind, OptimizerProgress};
use crate::error::{Error, Result};
use crate::ops::COEFFICIENTS;

/// Momentum of both SGD kinds.
const MOMENTUM: f64 = 0.9;
/// ρ of Adadelta, PyTorch's default.
const ADADELTA_RHO: f64 = 0.9;
/// `momentum_decay` of NAdam, PyTorch's default.
const NADAM_MOMENTUM_DECAY: f64 = 4e-3;

/// One step's coefficients in the order that [`crate::ops::UpdateRule`] documents, and the progress after that step.
pub(super) struct Coefficients {
    pub values: [f32; COEFFICIENTS],
    pub progress: OptimizerProgress,
}

/// The coefficients of the step that follows `before`.
pub(super) fn coefficients(config: &OptimizerConfig, before: OptimizerProgress) -> Result<Coefficients> {
    let mut progress = OptimizerProgress { step: before.step.saturating_add(1), ..before };
    let values = match config.kind {
        OptimizerKind::AdamW | OptimizerKind::Adam => adam(config, progress.step),
        OptimizerKind::Sgd => sgd(config, progress.step, 0.0, false),
        OptimizerKind::SgdMomentum => sgd(config, progress.step, MOMENTUM, false),
        OptimizerKind::SgdNesterov => sgd(config, progress.step, MOMENTUM, true),
        OptimizerKind::Adagrad => {
            [config.lr_at(before.step), config.epsilon(), config.weight_decay(), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        }
        OptimizerKind::Adadelta => {
            let lr = config.lr_at(before.step);
            let decay = config.weight_decay();
            [lr, ADADELTA_RHO, 1.0 - ADADELTA_RHO, config.epsilon(), decay, 0.0, 0.0, 0.0, 0.0]
        }
        OptimizerKind::NAdam => nadam(config, &mut progress),
        OptimizerKind::RAdam => radam(config, progress.step),
        OptimizerKind::ScheduleFreeAdamW => schedule_free(config, &mut progress),
    };
    let values = values.map(|value| value as f32);
    if values.iter().all(|value| value.is_finite()) {
        return Ok(Coefficients { values, progress });
    }
    let problem =
        format!("{} with learning rate {:?} does not fit f32 at step {}", config.kind, config.lr, before.step);
    Err(Error::config("optimizer", problem, "lower the learning rate or weight decay"))
}

/// `x` to the power of a step number.
fn power(x: f64, step: u64) -> f64 {
    x.powf(step as f64)
}

/// Adam and AdamW: `torch/optim/adam.py`. `t` counts steps from 1.
fn adam(config: &OptimizerConfig, t: u64) -> [f64; COEFFICIENTS] {
    let [beta1, beta2] = config.betas;
    let lr = config.lr_at(t - 1);
    let decay = config.weight_decay();
    let (decoupled, coupled) = match config.kind {
        OptimizerKind::AdamW => (lr * decay, 0.0),
        _ => (0.0, decay),
    };
    let step_size = lr / (1.0 - power(beta1, t));
    let correction = 1.0 / (1.0 - power(beta2, t)).sqrt();
    [1.0 - beta1, beta2, 1.0 - beta2, config.epsilon(), decoupled, coupled, step_size, correction, 0.0]
}

/// SGD with momentum or without, and without dampening: `torch/optim/sgd.py`.
fn sgd(config: &OptimizerConfig, t: u64, momentum: f64, nesterov: bool) -> [f64; COEFFICIENTS] {
    let flag = |condition| if condition { 1.0 } else { 0.0 };
    [config.lr_at(t - 1), momentum, config.weight_decay(), flag(nesterov), flag(t == 1), 0.0, 0.0, 0.0, 0.0]
}

/// NAdam (Dozat 2016): `torch/optim/nadam.py`.
fn nadam(config: &OptimizerConfig, progress: &mut OptimizerProgress) -> [f64; COEFFICIENTS] {
    let [beta1, beta2] = config.betas;
    let t = progress.step;
    let lr = config.lr_at(t - 1);
    let mu = |t: f64| beta1 * (1.0 - 0.5 * 0.96f64.powf(t * NADAM_MOMENTUM_DECAY));
    let now = mu(t as f64);
    let next = mu(t as f64 + 1.0);
    progress.accumulated = now * if t == 1 { 1.0 } else { progress.accumulated };
    let product = progress.accumulated;
    let gradient = lr * (1.0 - now) / (1.0 - product);
    let moment = lr * next / (1.0 - product * next);
    let correction = 1.0 / (1.0 - power(beta2, t));
    [1.0 - beta1, beta2, 1.0 - beta2, config.epsilon(), config.weight_decay(), correction, gradient, moment, 0.0]
}

/// RAdam (Liu et al., arXiv 1908.03265): `torch/optim/radam.py`.
fn radam(config: &OptimizerConfig, t: u64) -> [f64; COEFFICIENTS] {
    let [beta1, beta2] = config.betas;
    let correction1 = 1.0 - power(beta1, t);
    let correction2 = 1.0 - power(beta2, t);
    let step_size = config.lr_at(t - 1) / correction1;
    // The length of the simple moving average that has the exponential one's centre of mass.
    let longest = 2.0 / (1.0 - beta2) - 1.0;
    let length = longest - 2.0 * t as f64 * power(beta2, t) / correction2;
    let (rectified, plain) = if length > 5.0 {
        let variance = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
        (step_size * (variance * correction2).sqrt(), 0.0)
    } else {
        (0.0, step_size)
    };
    [1.0 - beta1, beta2, 1.0 - beta2, config.epsilon(), config.weight_decay(), rectified, plain, 0.0, 0.0]
}

/// Schedule-free AdamW (arXiv 2405.15682): schedulefree 1.4's `AdamWScheduleFree` with r = 0 and weight_lr_power = 2.
fn schedule_free(config: &OptimizerConfig, progress: &mut OptimizerProgress) -> [f64; COEFFICIENTS] {
    let [beta1, beta2] = config.betas;
    let t = progress.step;
    let lr = config.lr_at(t - 1);
    progress.lr_max = progress.lr_max.max(lr);
    let weight = progress.lr_max * progress.lr_max;
    progress.accumulated += weight;
    // No weight at all while the learning rate has been 0: the average stays where it is.
    let average = if progress.accumulated > 0.0 { weight / progress.accumulated } else { 0.0 };
    let point = lr * (beta1 * (1.0 - average) - 1.0);
    let correction = 1.0 / (1.0 - power(beta2, t));
    let first = if t == 1 { 1.0 } else { 0.0 };
    [beta2, 1.0 - beta2, config.epsilon(), config.weight_decay(), average, lr, point, correction, first]
}
