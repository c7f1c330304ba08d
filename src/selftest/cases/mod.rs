//! What is tested: one list of cases for each family of kernels, at the top of its file. A case is a name, a shape and a
//! function that makes operands, launches, and checks outputs.

mod attention;
mod attention_cached;
mod element;
mod heads;
mod linear;
mod lora;
mod loss;
mod norm;
mod update;

use super::trial::Trial;
use crate::error::Result;

/// One operation at one shape.
pub(super) struct Case {
    pub operation: &'static str,
    pub shape: String,
    /// Whether it goes through matrix products, so that it is run by the device's library and by our own kernels.
    pub products: bool,
    pub run: Run,
}

type Run = Box<dyn Fn(&mut Trial) -> Result<()>>;

impl Case {
    fn new(operation: &'static str, shape: String, run: impl Fn(&mut Trial) -> Result<()> + 'static) -> Self {
        Self { operation, shape, products: false, run: Box::new(run) }
    }

    fn of_products(self) -> Self {
        Self { products: true, ..self }
    }
}

/// Every case: small and odd shapes, and with `full` also the shapes of Llama-3-8B.
pub(super) fn all(full: bool) -> Vec<Case> {
    let families = [
        linear::cases,
        lora::cases,
        element::cases,
        norm::cases,
        heads::cases,
        attention::cases,
        attention_cached::cases,
        loss::cases,
        update::cases,
    ];
    families.into_iter().flat_map(|cases| cases(full)).collect()
}

/// The small shapes, and with `full` the real ones behind them.
fn shapes<S: Clone>(full: bool, small: &[S], real: &[S]) -> Vec<S> {
    small.iter().chain(if full { real } else { &[] }).cloned().collect()
}
