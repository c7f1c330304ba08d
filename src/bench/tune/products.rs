//! Algorithms of the library for one product.

use super::{Comparison, Tuned, Tuner, Ways};
use crate::backend::cuda::{Algorithm, Cuda, ProductShape};
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

/// A product's memory, and the algorithms for it.
struct ProductWays {
    cuda: Cuda,
    shape: ProductShape,
    candidates: Vec<Algorithm>,
    /// A, B and C, as many times as no cache holds.
    sets: Vec<[Tensor<Cuda>; 3]>,
}

impl ProductWays {
    fn new(tuner: &Tuner, shape: ProductShape, candidates: Vec<Algorithm>) -> Result<Self> {
        let [a, b, c] = shape.extents();
        let normal = |name, elements| tuner.data.normal(name, 1, elements, shape.input, 1.0);
        let set = |_| {
            let product = Tensor::zeros(&tuner.cuda, "tuned product: C", 1, c, shape.output)?;
            Ok([normal("tuned product: A", a)?, normal("tuned product: B", b)?, product])
        };
        let bytes = shape.input.bytes() * (a + b) + shape.output.bytes() * c;
        let sets = (0..tuner.cold.sets(bytes as f64)).map(set).collect::<Result<_>>()?;
        Ok(Self { cuda: tuner.cuda.clone(), shape, candidates, sets })
    }
}

impl Ways for ProductWays {
    /// Places among the library's proposals.
    fn names(&self) -> Vec<String> {
        (0..self.candidates.len()).map(|place| place.to_string()).collect()
    }

    fn take(&mut self, way: usize) -> Result<()> {
        self.cuda.driver().choose_product(&self.shape, Some(self.candidates[way]))
    }

    fn run(&mut self, repetition: usize) -> Result<()> {
        let count = self.sets.len();
        let [a, b, c] = &mut self.sets[repetition % count];
        self.cuda.product(&self.shape, a.view(), b.view(), c.view_mut())
    }

    /// Some rows of C after one product onto zeros.
    fn results(&mut self) -> Result<Vec<f32>> {
        self.cuda.run(ops::Clear { to: self.sets[0][2].view_mut() })?;
        self.run(0)?;
        let ProductShape { m, n, leading, .. } = self.shape;
        let compared = COMPARED_ROWS.min(m);
        let mut values = Vec::with_capacity(compared * n);
        for index in 0..compared {
            let row = index * (m - 1) / (compared - 1).max(1);
            values.extend(self.cuda.download_f32(self.sets[0][2].buffer(), row * leading[2], n)?);
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
        let mut ways = ProductWays::new(self, *shape, candidates)?;
        let compared = self.compare(&mut ways, bound(shape))?;
        self.cuda.driver().choose_product(shape, None)?;
        let Some((candidate, tuned)) = compared.best(shape) else { return Ok(None) };
        let algorithm = ways.candidates[candidate].to_text();
        let costs = compared.costs();
        let Comparison { refused, .. } = compared;
        Ok(Some((ProductEntry { algorithm, candidate, costs, refused }, tuned)))
    }
}
