//! The optimizers' element-wise updates. `crate::optimizer` computes the coefficients of a step on the host, in f64; the
//! backend applies one rule to all parameters in one launch and reads the coefficients from device memory, so that a
//! recorded step can be replayed with another learning rate.

use super::{Backend, DType, Matrix, MatrixMut, expect, shape_error};
use crate::error::Result;

/// Number of coefficients that every rule reads (unused ones are 0).
pub const COEFFICIENTS: usize = 9;

/// An element-wise update of weight w with gradient g, states s0, s1 and coefficients c.
///
/// Formulas are those of PyTorch 2.8's single-tensor implementations and of schedulefree 1.4. 1−β comes as a coefficient
/// of its own: computed from a β in f32, 1−0.999 would be wrong in the fifth digit. Bias corrections come inverted: a
/// division is what these loops wait for. States start at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateRule {
    /// c = [1−β1, β2, 1−β2, ε, lr·wd (decoupled), wd (coupled), lr/(1−β1ᵗ), 1/√(1−β2ᵗ), 0].
    /// w −= c4·w; g += c5·w; s0 += c0·(g − s0); s1 = c1·s1 + c2·g²; w −= c6·s0 / (√s1·c7 + c3).
    /// Adam and AdamW.
    Adam,
    /// c = [lr, momentum, wd (coupled), nesterov (0 or 1), first (1 on the first step), 0…].
    /// g += c2·w; s0 = first ? g : c1·s0 + g; w −= c0·(nesterov ? g + c1·s0 : s0).
    Sgd,
    /// c = [lr, ε, wd (coupled), 0…]. g += c2·w; s0 += g²; w −= c0·g/(√s0 + c1).
    Adagrad,
    /// c = [lr, ρ, 1−ρ, ε, wd (coupled), 0…]. g += c4·w; s0 = c1·s0 + c2·g²; u = √(s1 + c3)/√(s0 + c3)·g;
    /// s1 = c1·s1 + c2·u²; w −= c0·u.
    Adadelta,
    /// c = [1−β1, β2, 1−β2, ε, wd (coupled), 1/(1−β2ᵗ), lr·(1−μₜ)/(1−Πμ), lr·μₜ₊₁/(1−Πμ·μₜ₊₁), 0].
    /// g += c4·w; s0, s1 as in Adam; w −= (c6·g + c7·s0) / (√(s1·c5) + c3).
    NAdam,
    /// c = [1−β1, β2, 1−β2, ε, wd (coupled), lr·rₜ·√(1−β2ᵗ)/(1−β1ᵗ) or 0, lr/(1−β1ᵗ) or 0, 0, 0].
    /// g += c4·w; s0, s1 as in Adam; w −= c6 = 0 ? c5·s0/(√s1 + c3) : c6·s0: the rectified step, or the plain one while
    /// the variance of the adaptive rate cannot be known.
    RAdam,
    /// c = [β2, 1−β2, ε, wd, ckp1, lr, lr·(β1·(1−ckp1)−1), 1/(1−β2ᵗ), first (1 on the first step)]. s0 = z, s1 = v.
    /// z = first ? w : z; s1 = c0·s1 + c1·g²; n = g/(√(s1·c7) + c2) + c3·w; w += c4·(z − w), or z − (1−c4)·(z − w) where
    /// c4 ≥ ½; w += c6·n; z −= c5·n. w is the training point y.
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

    /// How state number `index` is stored where moments are stored as `moments`. Schedule-free's z is a point among the
    /// weights, which the spacing of bf16 is too coarse for: it is always f32.
    pub const fn state_dtype(self, index: usize, moments: DType) -> DType {
        match (self, index) {
            (Self::ScheduleFreeAdamW, 0) => DType::F32,
            _ => moments,
        }
    }
}

/// How moments stored in bf16 are rounded: to one of the two neighbours of the f32 result, each as likely as the other
/// one is far. Their mean is exact, so that the many small changes of a second moment add up, where rounding to the
/// nearest would lose every one of them.
///
/// The bits of element i of the flat buffer are word i mod 4 of the Philox block [i/4, step, draw,
/// [`Stream::StateRounding`](crate::random::Stream::StateRounding) · 2²⁴ + (i/4 >> 32)] with the seed as its key: the low
/// 16 for state 0, the high 16 for state 1. The f32's bits plus these, without their last 16, are the rounded number.
pub struct StateRounding<'a, B: Backend> {
    /// Seed (low word, high word), step, draw: [4, 1] u32.
    pub key: Matrix<'a, B>,
    /// Place of the call's first element in the flat buffer.
    pub first: usize,
}

/// Applies `rule` to every element: weights [1, n]; remainder [1, n] with bf16 weights (together one f32) and absent with
/// f32 weights; gradients [1, n] f32; `states` as many as [`UpdateRule::states`], [1, n] each: in f32, or with `rounding`
/// as [`UpdateRule::state_dtype`] says for bf16 moments, which go with bf16 weights alone.
#[allow(clippy::too_many_arguments)]
pub fn optimizer_update<B: Backend>(
    backend: &B,
    rule: UpdateRule,
    coefficients: Matrix<B>,
    weights: MatrixMut<B>,
    remainder: Option<MatrixMut<B>>,
    gradients: Matrix<B>,
    states: &mut [MatrixMut<B>],
    rounding: Option<StateRounding<B>>,
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
    if let Some(rounding) = &rounding {
        expect(NAME, "words of the rounding's key", rounding.key.len(), 4)?;
    }
    backend.optimizer_update(rule, coefficients, weights, remainder, gradients, states, rounding)
}
