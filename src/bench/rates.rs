//! What the device does at best, measured: the rate of a large matrix product and the bandwidth of a large copy.

use super::data::Data;
use super::report::Rates;
use super::shapes::Shapes;
use super::timer::{Effort, time};
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, Backend, DType, Tensor};

/// The operands of both measurements.
pub(super) struct RateMeter {
    size: usize,
    /// x and w; two sets, together more than the caches hold.
    products: Vec<[Tensor<Cuda>; 2]>,
    bytes: usize,
    source: Tensor<Cuda>,
}

impl RateMeter {
    pub fn new(cuda: &Cuda, data: &Data, shapes: &Shapes) -> Result<Self> {
        let size = shapes.matmul_size;
        let set = |_| {
            let matrix = |name: &str| data.matrix(name, size, size);
            Ok([matrix("rate: x")?, matrix("rate: w")?])
        };
        let mut source = Tensor::zeros(cuda, "rate: copied from", 1, shapes.copy_bytes / 4, DType::F32)?;
        data.fill(source.buffer_mut(), 0, shapes.copy_bytes / 4, 1.0)?;
        let products = (0..2).map(set).collect::<Result<_>>()?;
        Ok(Self { size, products, bytes: shapes.copy_bytes, source })
    }

    pub fn measure(&self, cuda: &Cuda, effort: Effort) -> Result<Rates> {
        let own = cuda.clone().with_own_products();
        let matmul = self.matmul_rate(cuda, effort)?;
        Ok(Rates {
            matmul_size: self.size,
            matmul_teraflops_per_second: matmul,
            matmul_teraflops_per_second_at_end: matmul,
            own_matmul_teraflops_per_second: self.matmul_rate(&own, effort)?,
            copy_bytes: self.bytes,
            copy_gigabytes_per_second: self.copy_rate(cuda, effort)?,
        })
    }

    /// Operations per second, in units of 10¹², of the product as `cuda` multiplies.
    pub fn matmul_rate(&self, cuda: &Cuda, effort: Effort) -> Result<f64> {
        let mut outputs = Vec::new();
        for _ in &self.products {
            outputs.push(Tensor::zeros(cuda, "rate: y", self.size, self.size, cuda.compute_dtype())?);
        }
        let timing = time(cuda, effort, &mut |i| {
            let set = i % self.products.len();
            let [x, w] = &self.products[set];
            cuda.run(ops::LinearForward { x: x.view(), w: w.view(), y: outputs[set].view_mut() })
        })?;
        Ok(2.0 * (self.size as f64).powi(3) / (timing.median * 1e9))
    }

    /// Bytes read and bytes written.
    fn copy_rate(&self, cuda: &Cuda, effort: Effort) -> Result<f64> {
        let mut target = Tensor::zeros(cuda, "rate: copied to", 1, self.bytes / 4, DType::F32)?;
        let timing =
            time(cuda, effort, &mut |_| cuda.run(ops::CopyValues { from: self.source.view(), to: target.view_mut() }))?;
        Ok(2.0 * self.bytes as f64 / (timing.median * 1e6))
    }
}
