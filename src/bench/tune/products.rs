//! Algorithms of the library for one product: which give the same bits twice, which agree with the first, which is fastest.

use super::{Tuned, Tuner, best, distance};
use crate::backend::cuda::{Cuda, ProductShape};
use crate::error::Result;
use crate::ops::{self, Backend, DType, Tensor};
use crate::tuning::ProductEntry;

/// Rows of C that are compared, spread over it.
const COMPARED_ROWS: usize = 64;

/// Two ways to add up the same products may differ by so much: rounding of stored bf16, of sums in f32 on tensor cores, and of
/// sums in f32.
fn bound(shape: &ProductShape) -> f64 {
    match (shape.input, shape.output) {
        (_, DType::Bf16) => 1e-2,
        (DType::Bf16, _) => 1e-3,
        _ => 1e-5,
    }
}

/// Memory for a product.
struct Operands {
    shape: ProductShape,
    a: Tensor<Cuda>,
    b: Tensor<Cuda>,
    c: Tensor<Cuda>,
}

impl Operands {
    fn new(tuner: &Tuner, shape: ProductShape) -> Result<Self> {
        let [a, b, c] = shape.extents();
        let normal = |name, elements| tuner.data.normal(name, 1, elements, shape.input, 1.0);
        Ok(Self {
            shape,
            a: normal("tuned product: A", a)?,
            b: normal("tuned product: B", b)?,
            c: Tensor::zeros(&tuner.cuda, "tuned product: C", 1, c, shape.output)?,
        })
    }

    /// Queues the product once.
    fn run(&mut self, cuda: &Cuda) -> Result<()> {
        cuda.product(&self.shape, self.a.view(), self.b.view(), self.c.view_mut())
    }

    /// Some rows of C after one product onto zeros.
    fn rows(&mut self, cuda: &Cuda) -> Result<Vec<f32>> {
        cuda.run(ops::Clear { to: self.c.view_mut() })?;
        self.run(cuda)?;
        let ProductShape { m, n, leading, .. } = self.shape;
        let compared = COMPARED_ROWS.min(m);
        let mut values = Vec::with_capacity(compared * n);
        for index in 0..compared {
            let row = index * (m - 1) / (compared - 1).max(1);
            values.extend(cuda.download_f32(self.c.buffer(), row * leading[2], n)?);
        }
        Ok(values)
    }
}

impl Tuner<'_> {
    /// Measures one product. None where the library has no algorithm to choose, or no good one.
    pub(super) fn product(&self, shape: &ProductShape) -> Result<Option<(ProductEntry, Tuned)>> {
        let candidates = self.cuda.driver().product_candidates(shape)?;
        if candidates.is_empty() {
            return Ok(None);
        }
        let mut operands = Operands::new(self, *shape)?;
        let mut expected: Option<Vec<f32>> = None;
        let mut costs = Vec::with_capacity(candidates.len());
        let mut refused = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            self.cuda.driver().choose_product(shape, Some(*candidate))?;
            let found = operands.rows(&self.cuda)?;
            let again = operands.rows(&self.cuda)?;
            let reference = expected.get_or_insert_with(|| found.clone());
            let apart = distance(&found, reference);
            let same_bits = found.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
            let problem = if !same_bits {
                Some("other bits in a second run".to_string())
            } else if apart > bound(shape) {
                Some(format!("{apart:.1e} from the first"))
            } else {
                None
            };
            costs.push(match problem {
                None => Some(self.cost(&mut || operands.run(&self.cuda))?),
                Some(problem) => {
                    refused.push(format!("{place}: {problem}"));
                    None
                }
            });
        }
        self.cuda.driver().choose_product(shape, None)?;
        let Some(candidate) = best(&costs) else { return Ok(None) };
        let tuned = Tuned {
            shape: shape.to_string(),
            candidates: candidates.len(),
            chosen: candidate,
            first: costs[0],
            best: costs[candidate].unwrap_or_default(),
            refused: refused.clone(),
        };
        Ok(Some((ProductEntry { algorithm: candidates[candidate].to_text(), candidate, costs, refused }, tuned)))
    }
}
