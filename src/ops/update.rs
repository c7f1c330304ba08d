//! The optimizers' element-wise updates. `crate::optimizer` computes the coefficients of a step on the host, in f64; the
//! backend applies one rule to all parameters in one launch and reads the coefficients from device memory, so that a
//! recorded step can be replayed with another learning rate.

use super::{Backend, Matrix, MatrixMut, expect, shape_error};
use crate::error::Result;

/// Number of coefficients that every rule reads (unused ones are 0).
pub const COEFFICIENTS: usize = 8;

/// An element-wise update of weight w with gradient g, states s0, s1 and coefficients c.
///
/// Formulas are those of PyTorch 2.8's single-tensor implementations and of schedulefree 1.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateRule {
    /// c = [β1, β2, ε, lr·wd (decoupled), wd (coupled: g += wd·w), lr/(1−β1ᵗ), √(1−β2ᵗ), 0].
    /// w −= c3·w; g += c4·w; s0 = β1·s0 + (1−β1)·g; s1 = β2·s1 + (1−β2)·g²; w −= c5·s0 / (√s1/c6 + ε).
    /// Adam and AdamW.
    Adam,
    /// c = [lr, momentum, wd (coupled), nesterov (0 or 1), first (1 on the first step), 0, 0, 0].
    /// g += wd·w; s0 = first ? g : momentum·s0 + g; w −= lr·(nesterov ? g + momentum·s0 : s0).
    Sgd,
    /// c = [lr, ε, wd (coupled), 0…]. g += wd·w; s0 += g²; w −= lr·g/(√s0 + ε).
    Adagrad,
    /// c = [lr, ρ, ε, wd (coupled), 0…]. g += wd·w; s0 = ρ·s0 + (1−ρ)·g²; u = √(s1+ε)/√(s0+ε)·g;
    /// s1 = ρ·s1 + (1−ρ)·u²; w −= lr·u.
    Adadelta,
    /// c = [β1, β2, ε, wd (coupled), 1−β2ᵗ, lr·(1−μₜ)/(1−Πμ), lr·μₜ₊₁/(1−Πμ·μₜ₊₁), 0].
    /// g += wd·w; s0, s1 as in Adam; v = √(s1/c4) + ε; w −= c5·g/v + c6·s0/v.
    NAdam,
    /// c = [β1, β2, ε, wd (coupled), lr·rₜ·√(1−β2ᵗ)/(1−β1ᵗ) or 0, lr/(1−β1ᵗ) or 0, 0, 0].
    /// g += wd·w; s0, s1 as in Adam; w −= c4·s0/(√s1 + ε) + c5·s0: the rectified step while c5 is 0, else the plain one.
    RAdam,
    /// c = [β2, ε, wd, ckp1, lr, lr·(β1·(1−ckp1)−1), 1−β2ᵗ, 0]. s0 = z, s1 = v.
    /// s1 = β2·s1 + (1−β2)·g²; n = g/(√(s1/c6) + ε) + wd·w; w = lerp(w, z, ckp1) + c5·n; z −= lr·n.
    /// w is the training point y.
    ScheduleFreeAdamW,
}

impl UpdateRule {
    /// How many states of the parameters' size it keeps.
    pub const fn states(self) -> usize {
        match self {
            Self::Sgd | Self::Adagrad => 1,
            Self::Adam | Self::Adadelta | Self::NAdam | Self::RAdam | Self::ScheduleFreeAdamW => 2,
        }
    }
}

/// Applies `rule` to every element: weights [1, n]; remainder [1, n] with bf16 weights (together one f32) and absent with
/// f32 weights; gradients [1, n] f32; `states` as many as [`UpdateRule::states`], [1, n] each.
#[allow(clippy::too_many_arguments)]
pub fn optimizer_update<B: Backend>(
    backend: &B,
    rule: UpdateRule,
    coefficients: Matrix<B>,
    weights: MatrixMut<B>,
    remainder: Option<MatrixMut<B>>,
    gradients: Matrix<B>,
    states: &mut [MatrixMut<B>],
) -> Result<()> {
    const NAME: &str = "optimizer_update";
    expect(NAME, "number of coefficients", coefficients.len(), COEFFICIENTS)?;
    expect(NAME, "number of gradients", gradients.len(), weights.len())?;
    expect(NAME, "number of states", states.len(), rule.states())?;
    for state in states.iter() {
        expect(NAME, "elements of a state", state.len(), weights.len())?;
    }
    if remainder.as_ref().is_some_and(|r| r.len() != weights.len()) {
        return Err(shape_error(NAME, "the remainder has another length than the weights".into()));
    }
    backend.optimizer_update(rule, coefficients, weights, remainder, gradients, states)
}
