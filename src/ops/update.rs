//! The optimizers' element-wise updates. `crate::optimizer` computes the coefficients of a step on the host, in f64; the
//! backend applies one rule to all parameters in one launch and reads the coefficients from device memory, so that a
//! recorded step can be replayed with another learning rate.

use super::{Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// Number of coefficients that every rule reads (unused ones are 0).
pub const COEFFICIENTS: usize = 9;

/// An element-wise update of weight w with gradient g, states s0, s1 and coefficients c.
///
/// Formulas follow PyTorch 2.8's single-tensor implementations and schedulefree 1.4. 1−β comes as a coefficient
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
pub struct StateRounding<'a, B: Memory> {
    /// Seed (low word, high word), step, draw: [4, 1] u32.
    pub key: Matrix<'a, B>,
    /// Place of the call's first element in the flat buffer.
    pub first: usize,
}

/// Applies `rule` to every element.
pub struct OptimizerUpdate<'a, B: Memory> {
    /// The rule.
    pub rule: UpdateRule,
    /// [1, [`COEFFICIENTS`]] f32.
    pub coefficients: Matrix<'a, B>,
    /// [1, n], in bf16 or f32.
    pub weights: MatrixMut<'a, B>,
    /// [1, n], what bf16 weights lack of f32; absent with f32 weights.
    pub remainder: Option<MatrixMut<'a, B>>,
    /// [1, n] f32.
    pub gradients: Matrix<'a, B>,
    /// As many as [`UpdateRule::states`], [1, n] each, stored as [`UpdateRule::state_dtype`] says: with `rounding` for
    /// moments in bf16, else in f32.
    pub states: Vec<MatrixMut<'a, B>>,
    /// How bf16 moments are rounded, which go with bf16 weights alone.
    pub rounding: Option<StateRounding<'a, B>>,
}

impl<B: Memory> Operation for OptimizerUpdate<'_, B> {
    const NAME: &'static str = "optimizer_update";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { rule, coefficients, weights, remainder, gradients, states, rounding } = self;
        check.elements(COEFFICIENTS, &[("coefficients", coefficients)])?;
        check.elements(weights.len(), &[("gradients", gradients), ("the remainder", remainder)])?;
        check.equal("number of states", states.len(), rule.states())?;
        let moments = if rounding.is_some() { DType::Bf16 } else { DType::F32 };
        let with_remainder = remainder.as_ref().map(|remainder| remainder.as_matrix().dtype());
        if !matches!(
            (weights.dtype(), with_remainder, moments),
            (DType::F32, None, DType::F32) | (DType::Bf16, Some(DType::Remainder16), _)
        ) {
            let weights = weights.dtype();
            let problem =
                format!("weights of {weights:?} with a remainder of {with_remainder:?} and {moments:?} moments");
            return Err(check.error(problem));
        }
        check.stored(weights.dtype(), &[("weights", weights)])?;
        check.stored(DType::Remainder16, &[("the remainder", remainder)])?;
        check.stored(DType::F32, &[("coefficients", coefficients), ("gradients", gradients)])?;
        for (index, state) in states.iter().enumerate() {
            check.elements(weights.len(), &[("a state", state)])?;
            check.stored(rule.state_dtype(index, moments), &[("a state", state)])?;
        }
        let key = rounding.as_ref().map(|rounding| rounding.key);
        check.elements(4, &[("the rounding's key", &key)])?;
        check.stored(DType::U32, &[("the rounding's key", &key)])
    }
}
