//! The CPU backend: f32 throughout, rayon and the `gemm` crate. The oracle for every other backend.

mod attention;
mod attention_cached;
mod buffer;
mod element;
mod linear;
mod loss;
mod norm;
mod optimizer;
mod preference;
mod vector;
mod view;

pub use buffer::CpuBuffer;
pub(crate) use loss::CHUNK as LOSS_HEAD_CHUNK;

use crate::error::{Error, Result};
use crate::ops::{
    AttentionShape, Backend, CachedSegments, DType, Dropout, HeadGradients, HeadLoss, LoraGradients, LoraSlice, Matrix,
    MatrixMut, RopeTable, Segments, StateRounding, UpdateRule,
};

/// The CPU. Work is spread over rayon's current thread pool; results do not depend on the number of threads.
#[derive(Clone, Debug, Default)]
pub struct Cpu;

impl Backend for Cpu {
    type Buffer = CpuBuffer;
    /// The CPU's memory is main memory.
    type Parked = CpuBuffer;
    /// Calls cost nothing here.
    type Recording = ();

    fn description(&self) -> String {
        format!("cpu, {} threads, f32", rayon::current_num_threads())
    }

    fn device_memory(&self) -> Option<u64> {
        None
    }
    fn compute_dtype(&self) -> DType {
        DType::F32
    }

    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<CpuBuffer> {
        if matches!(dtype, DType::F32 | DType::U32) {
            return Ok(CpuBuffer::zeros(len, dtype));
        }
        Err(Error::Device(format!("{name}: the CPU backend stores f32 and u32, not {dtype:?}")))
    }

    fn len(&self, buffer: &CpuBuffer) -> usize {
        buffer.len()
    }

    fn upload_f32(&self, buffer: &mut CpuBuffer, offset: usize, values: &[f32]) -> Result<()> {
        buffer.floats_mut()[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn upload_u32(&self, buffer: &mut CpuBuffer, offset: usize, values: &[u32]) -> Result<()> {
        buffer.integers_mut()[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn download_f32(&self, buffer: &CpuBuffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        Ok(buffer.floats()[offset..offset + len].to_vec())
    }

    fn copy(
        &self,
        from: &CpuBuffer,
        from_offset: usize,
        to: &mut CpuBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        to.floats_mut()[to_offset..to_offset + len].copy_from_slice(&from.floats()[from_offset..from_offset + len]);
        Ok(())
    }

    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<CpuBuffer> {
        self.zeros(name, len, dtype)
    }

    fn park(
        &self,
        from: &CpuBuffer,
        from_offset: usize,
        to: &mut CpuBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        self.copy(from, from_offset, to, to_offset, len)
    }

    fn fetch(
        &self,
        from: &CpuBuffer,
        from_offset: usize,
        to: &mut CpuBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        self.copy(from, from_offset, to, to_offset, len)
    }

    fn clear(&self, buffer: &mut CpuBuffer, offset: usize, len: usize) -> Result<()> {
        buffer.floats_mut()[offset..offset + len].fill(0.0);
        Ok(())
    }

    fn record(&self, _: &mut (), work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    fn identity(&self, _: &CpuBuffer) -> u64 {
        0
    }

    fn linear_forward(&self, x: Matrix<Self>, w: Matrix<Self>, y: MatrixMut<Self>) -> Result<()> {
        linear::forward(x, w, y);
        Ok(())
    }
    fn linear_backward_input(
        &self,
        dy: Matrix<Self>,
        w: Matrix<Self>,
        dx: MatrixMut<Self>,
        accumulate: bool,
    ) -> Result<()> {
        linear::backward_input(dy, w, dx, accumulate);
        Ok(())
    }
    fn linear_backward_weight(&self, dy: Matrix<Self>, x: Matrix<Self>, dw: MatrixMut<Self>) -> Result<()> {
        linear::backward_weight(dy, x, dw);
        Ok(())
    }
    fn lora_forward(
        &self,
        x: Matrix<Self>,
        slices: &[LoraSlice<Self>],
        dropout: Option<Dropout>,
        s: MatrixMut<Self>,
        y: MatrixMut<Self>,
    ) -> Result<()> {
        linear::lora_forward(x, slices, dropout, s, y);
        Ok(())
    }
    #[allow(clippy::too_many_arguments)]
    fn lora_backward(
        &self,
        dy: Matrix<Self>,
        x: Matrix<Self>,
        s: Matrix<Self>,
        slices: &[LoraSlice<Self>],
        dropout: Option<Dropout>,
        gradients: Option<LoraGradients<Self>>,
        ds: MatrixMut<Self>,
        dx: MatrixMut<Self>,
    ) -> Result<()> {
        linear::lora_backward(dy, x, s, slices, dropout, gradients, ds, dx);
        Ok(())
    }
    fn embedding_forward(&self, ids: Matrix<Self>, table: Matrix<Self>, out: MatrixMut<Self>) -> Result<()> {
        element::gather_rows(table, ids, out);
        Ok(())
    }
    fn embedding_backward(&self, ids: Matrix<Self>, d_out: Matrix<Self>, d_table: MatrixMut<Self>) -> Result<()> {
        element::embedding_backward(ids, d_out, d_table);
        Ok(())
    }
    fn gather_rows(&self, from: Matrix<Self>, indices: Matrix<Self>, out: MatrixMut<Self>) -> Result<()> {
        element::gather_rows(from, indices, out);
        Ok(())
    }
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_forward(
        &self,
        residual: Matrix<Self>,
        delta: Option<Matrix<Self>>,
        weight: Matrix<Self>,
        epsilon: f32,
        sum: Option<MatrixMut<Self>>,
        normed: MatrixMut<Self>,
        inverse_rms: MatrixMut<Self>,
    ) -> Result<()> {
        norm::forward(residual, delta, weight, epsilon, sum, normed, inverse_rms);
        Ok(())
    }
    fn rms_norm_backward(
        &self,
        d_normed: Matrix<Self>,
        x: Matrix<Self>,
        weight: Matrix<Self>,
        inverse_rms: Matrix<Self>,
        d_residual: MatrixMut<Self>,
        d_weight: Option<MatrixMut<Self>>,
    ) -> Result<()> {
        norm::backward(d_normed, x, weight, inverse_rms, d_residual, d_weight);
        Ok(())
    }
    fn rope(
        &self,
        qkv: MatrixMut<Self>,
        positions: Matrix<Self>,
        table: &RopeTable<Self>,
        shape: AttentionShape,
        inverse: bool,
    ) -> Result<()> {
        attention::rope(qkv, positions, table, shape, inverse);
        Ok(())
    }
    fn attention_forward(
        &self,
        qkv: Matrix<Self>,
        segments: &Segments<Self>,
        shape: AttentionShape,
        out: MatrixMut<Self>,
        log_sum_exp: MatrixMut<Self>,
    ) -> Result<()> {
        attention::forward(qkv, segments, shape, out, log_sum_exp);
        Ok(())
    }
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        d_out: Matrix<Self>,
        qkv: Matrix<Self>,
        out: Matrix<Self>,
        log_sum_exp: Matrix<Self>,
        segments: &Segments<Self>,
        shape: AttentionShape,
        d_qkv: MatrixMut<Self>,
    ) -> Result<()> {
        attention::backward(d_out, qkv, out, log_sum_exp, segments, shape, d_qkv);
        Ok(())
    }
    fn attention_cached(
        &self,
        qkv: Matrix<Self>,
        segments: &CachedSegments<Self>,
        cache: MatrixMut<Self>,
        out: MatrixMut<Self>,
    ) -> Result<()> {
        attention_cached::forward(qkv, segments, cache, out);
        Ok(())
    }
    fn swiglu_forward(&self, gate_up: Matrix<Self>, h: MatrixMut<Self>) -> Result<()> {
        element::swiglu_forward(gate_up, h);
        Ok(())
    }
    fn swiglu_backward(&self, d_h: Matrix<Self>, gate_up: Matrix<Self>, d_gate_up: MatrixMut<Self>) -> Result<()> {
        element::swiglu_backward(d_h, gate_up, d_gate_up);
        Ok(())
    }
    #[allow(clippy::too_many_arguments)]
    fn loss_head(
        &self,
        loss: HeadLoss,
        hidden: Matrix<Self>,
        head: Matrix<Self>,
        targets: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        gradients: Option<HeadGradients<Self>>,
    ) -> Result<()> {
        loss::head(loss, hidden, head, targets, weights, values, gradients);
        Ok(())
    }
    fn representation_distance(
        &self,
        hidden: Matrix<Self>,
        reference: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()> {
        loss::representation_distance(hidden, reference, weights, values, d_hidden);
        Ok(())
    }
    #[allow(clippy::too_many_arguments)]
    fn random_mapping(
        &self,
        hidden: Matrix<Self>,
        table: Matrix<Self>,
        ids: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()> {
        loss::random_mapping(hidden, table, ids, weights, values, d_hidden);
        Ok(())
    }
    fn preference(
        &self,
        values: Matrix<Self>,
        segments: &Segments<Self>,
        reference_margins: Matrix<Self>,
        beta: f32,
        scale: f32,
        weights: MatrixMut<Self>,
        losses: MatrixMut<Self>,
    ) -> Result<()> {
        preference::preference(values, segments, reference_margins, beta, scale, weights, losses);
        Ok(())
    }

    fn axpy(&self, alpha: f32, x: Matrix<Self>, y: MatrixMut<Self>) -> Result<()> {
        element::axpy(alpha, x, y);
        Ok(())
    }
    fn weighted_sum(&self, a: Matrix<Self>, b: Matrix<Self>, scale: f32, out: MatrixMut<Self>) -> Result<()> {
        element::weighted_sum(a, b, scale, out);
        Ok(())
    }
    fn squared_norm(&self, x: Matrix<Self>) -> Result<f64> {
        Ok(element::squared_norm(x))
    }
    #[allow(clippy::too_many_arguments)]
    fn optimizer_update(
        &self,
        rule: UpdateRule,
        coefficients: Matrix<Self>,
        weights: MatrixMut<Self>,
        remainder: Option<MatrixMut<Self>>,
        gradients: Matrix<Self>,
        states: &mut [MatrixMut<Self>],
        rounding: Option<StateRounding<Self>>,
    ) -> Result<()> {
        optimizer::update(rule, coefficients, weights, remainder, gradients, states, rounding)
    }
}
