//! The CUDA backend: hand-written kernels (`kernels/`), launched through a [`Driver`].
//!
//! Two modes: bf16 weights and activations with f32 accumulation, and f32 throughout (for parity). Losses, statistics of
//! norms and softmax, gradients of weights and optimizer states are f32 in both. This file is the handle and the table
//! of operations; each family of kernels has a file of launchers with its name.

mod attention;
mod attention_cached;
mod driver;
mod element;
mod hidden;
mod linear;
mod lora;
mod loss_head;
mod memory;
mod norm;
#[cfg(feature = "cuda")]
pub mod nvidia;
mod optimizer;
mod recording;
mod rope;
#[cfg(feature = "simulator")]
mod sim;

use std::sync::{Arc, Mutex, PoisonError};

pub use driver::{Argument, DeviceInfo, Driver, Event, Gemm, Graph, Launch, Operand, TensorMap, Tiles};
pub(crate) use loss_head::scratch_bytes as loss_head_bytes;
pub use memory::{CudaBuffer, ParkedBuffer};
pub use recording::Recording;

use crate::error::{Error, Result};
use crate::ops::{
    AttentionShape, Backend, CachedSegments, DType, Dropout, HeadGradients, HeadLoss, LoraGradients, LoraSlice, Matrix,
    MatrixMut, RopeTable, Segments, StateRounding, UpdateRule,
};

/// A CUDA device, or its simulation.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    compute_dtype: DType,
    /// Whether matrix products go to the device's library where it has one, or always to our own kernels.
    library_products: bool,
    scratch: Arc<Mutex<memory::Scratch>>,
}

impl Cuda {
    /// The backend on `driver`; `compute_dtype` is how weights and activations are stored.
    ///
    /// # Errors
    /// When `compute_dtype` is neither bf16 nor f32.
    pub fn new(driver: Arc<dyn Driver>, compute_dtype: DType) -> Result<Self> {
        if !matches!(compute_dtype, DType::Bf16 | DType::F32) {
            return Err(Error::Device(format!("weights are stored in bf16 or f32, not {compute_dtype:?}")));
        }
        Ok(Self { driver, compute_dtype, library_products: true, scratch: Arc::default() })
    }

    /// A simulated device of compute capability 8.0.
    #[cfg(feature = "simulator")]
    pub fn simulated(compute_dtype: DType) -> Result<Self> {
        Self::simulated_as(compute_dtype, (8, 0), 0)
    }

    /// A simulated device; a `schedule_seed` that is not 0 runs the threads in an order drawn from it.
    #[cfg(feature = "simulator")]
    pub fn simulated_as(compute_dtype: DType, capability: (u32, u32), schedule_seed: u64) -> Result<Self> {
        Self::new(Arc::new(sim::Simulator::new(capability, schedule_seed)), compute_dtype)
    }

    /// The same device with every matrix product by our own kernels.
    pub fn with_own_products(mut self) -> Self {
        self.library_products = false;
        self
    }

    /// The same device in another mode, with scratch memory of its own.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_compute_dtype(&self, compute_dtype: DType) -> Result<Self> {
        let other = Self::new(Arc::clone(&self.driver), compute_dtype)?;
        Ok(Self { library_products: self.library_products, ..other })
    }

    /// The device's runtime.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The name of a kernel for this mode: with `_bf16` or `_f32` behind it.
    fn kernel(&self, stem: &str) -> String {
        kernel_name(stem, self.compute_dtype)
    }

    /// Launches a kernel. Arguments come from matrices that `ops` has checked.
    fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let launch = Launch { kernel, grid, block, shared_bytes: shared_bytes as u32 };
        // SAFETY: the launchers of this module pass the parameters of the kernel of that name, with addresses from
        // buffers that outlive the queued work, since a buffer is released behind it.
        unsafe { self.driver.launch(&launch, arguments) }
    }

    /// Runs `work` with a buffer of at least `len` elements of undefined content. It is kept for the next call with this
    /// name, so that a step allocates nothing after the first one.
    fn with_scratch<R>(
        &self,
        name: &'static str,
        len: usize,
        dtype: DType,
        work: impl FnOnce(&mut CudaBuffer) -> Result<R>,
    ) -> Result<R> {
        let mut buffer = self.scratch().take(&self.driver, name, len, dtype)?;
        let result = work(&mut buffer);
        self.scratch().put_back(name, buffer);
        result
    }

    fn scratch(&self) -> std::sync::MutexGuard<'_, memory::Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a kernel for operands of `dtype`.
fn kernel_name(stem: &str, dtype: DType) -> String {
    format!("{stem}{}", if dtype == DType::Bf16 { "_bf16" } else { "_f32" })
}

/// The dtype of both operands of a copy or a product.
fn same_dtype(a: DType, b: DType) -> Result<DType> {
    if a == b { Ok(a) } else { Err(Error::Device(format!("one operation on {a:?} and {b:?}"))) }
}

/// Where a matrix starts on the device, and how it is stored.
trait Place {
    fn pointer(&self) -> Argument;
    fn address(&self) -> u64;
    fn dtype(&self) -> DType;
}

impl Place for Matrix<'_, Cuda> {
    fn pointer(&self) -> Argument {
        Argument::Pointer(self.address())
    }
    fn address(&self) -> u64 {
        self.buffer.address(self.offset)
    }
    fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
}

impl Place for MatrixMut<'_, Cuda> {
    fn pointer(&self) -> Argument {
        Argument::Pointer(self.address())
    }
    fn address(&self) -> u64 {
        self.buffer.address(self.offset)
    }
    fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
}

/// The address of a matrix that may be absent: null where it is.
fn optional<M: Place>(matrix: Option<&M>) -> Argument {
    matrix.map_or(Argument::Pointer(0), Place::pointer)
}

impl Backend for Cuda {
    type Buffer = CudaBuffer;
    type Parked = ParkedBuffer;
    type Recording = Recording;

    fn description(&self) -> String {
        let mode = if self.compute_dtype == DType::Bf16 { "bf16 with f32 accumulation" } else { "f32" };
        let products = match self.driver.gemm_library() {
            Some(library) if self.library_products => library,
            _ => "temper's own".into(),
        };
        let steps = if self.driver.can_record() { "" } else { ", no graphs in a default stream" };
        format!("cuda, {}, {mode}, matrix products: {products}{steps}", self.driver.device().name)
    }

    fn device_memory(&self) -> Option<u64> {
        Some(self.driver.device().memory)
    }

    fn compute_dtype(&self) -> DType {
        self.compute_dtype
    }

    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<CudaBuffer> {
        let mut buffer = CudaBuffer::uninitialized(&self.driver, name, len, dtype)?;
        self.clear(&mut buffer, 0, len)?;
        Ok(buffer)
    }

    fn len(&self, buffer: &CudaBuffer) -> usize {
        buffer.len()
    }

    fn upload_f32(&self, buffer: &mut CudaBuffer, offset: usize, values: &[f32]) -> Result<()> {
        let to = buffer.range(offset, values.len())?;
        // SAFETY: the range is inside the buffer.
        unsafe { self.driver.upload(to, &memory::encode(values, buffer.dtype())) }
    }

    fn upload_u32(&self, buffer: &mut CudaBuffer, offset: usize, values: &[u32]) -> Result<()> {
        let to = buffer.range(offset, values.len())?;
        if buffer.dtype() != DType::U32 {
            return Err(Error::Device(format!("integers were sent to a buffer of {:?}", buffer.dtype())));
        }
        // SAFETY: the range is inside the buffer.
        unsafe { self.driver.upload(to, bytemuck::cast_slice(values)) }
    }

    fn download_f32(&self, buffer: &CudaBuffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; len * buffer.dtype().bytes()];
        let from = buffer.range(offset, len)?;
        // SAFETY: the range is inside the buffer.
        unsafe { self.driver.download(from, &mut bytes)? };
        Ok(memory::decode(&bytes, buffer.dtype()))
    }

    fn copy(
        &self,
        from: &CudaBuffer,
        from_offset: usize,
        to: &mut CudaBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        let dtype = same_dtype(from.dtype(), to.dtype())?;
        let (source, target) = (from.range(from_offset, len)?, to.range(to_offset, len)?);
        // SAFETY: both ranges are inside their buffers, which are two, since one of them is borrowed mutably.
        unsafe { self.driver.copy(source, target, len * dtype.bytes()) }
    }

    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<ParkedBuffer> {
        ParkedBuffer::zeros(&self.driver, name, len, dtype)
    }

    fn park(
        &self,
        from: &CudaBuffer,
        from_offset: usize,
        to: &mut ParkedBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        let dtype = same_dtype(from.dtype(), to.dtype())?;
        let (source, target) = (from.range(from_offset, len)?, to.range(to_offset, len)?);
        // SAFETY: both ranges are inside their buffers.
        unsafe { self.driver.park(source, target, len * dtype.bytes()) }
    }

    fn fetch(
        &self,
        from: &ParkedBuffer,
        from_offset: usize,
        to: &mut CudaBuffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()> {
        let dtype = same_dtype(from.dtype(), to.dtype())?;
        let (source, target) = (from.range(from_offset, len)?, to.range(to_offset, len)?);
        // SAFETY: both ranges are inside their buffers.
        unsafe { self.driver.fetch(source, target, len * dtype.bytes()) }
    }

    fn clear(&self, buffer: &mut CudaBuffer, offset: usize, len: usize) -> Result<()> {
        let to = buffer.range(offset, len)?;
        // SAFETY: the range is inside the buffer.
        unsafe { self.driver.clear(to, len * buffer.dtype().bytes()) }
    }

    fn record(&self, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
        recording::run(self, recording, work)
    }

    fn identity(&self, buffer: &CudaBuffer) -> u64 {
        buffer.number()
    }

    fn linear_forward(&self, x: Matrix<Self>, w: Matrix<Self>, y: MatrixMut<Self>) -> Result<()> {
        linear::forward(self, x, w, y)
    }
    fn linear_backward_input(
        &self,
        dy: Matrix<Self>,
        w: Matrix<Self>,
        dx: MatrixMut<Self>,
        accumulate: bool,
    ) -> Result<()> {
        linear::backward_input(self, dy, w, dx, accumulate)
    }
    fn linear_backward_weight(&self, dy: Matrix<Self>, x: Matrix<Self>, dw: MatrixMut<Self>) -> Result<()> {
        linear::backward_weight(self, dy, x, dw)
    }
    fn lora_forward(
        &self,
        x: Matrix<Self>,
        slices: &[LoraSlice<Self>],
        dropout: Option<Dropout>,
        s: MatrixMut<Self>,
        y: MatrixMut<Self>,
    ) -> Result<()> {
        lora::forward(self, x, slices, dropout, s, y)
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
        lora::backward(self, dy, x, s, slices, dropout, gradients, ds, dx)
    }
    fn embedding_forward(&self, ids: Matrix<Self>, table: Matrix<Self>, out: MatrixMut<Self>) -> Result<()> {
        element::gather_rows(self, table, ids, out)
    }
    fn embedding_backward(&self, ids: Matrix<Self>, d_out: Matrix<Self>, d_table: MatrixMut<Self>) -> Result<()> {
        element::embedding_backward(self, ids, d_out, d_table)
    }
    fn gather_rows(&self, from: Matrix<Self>, indices: Matrix<Self>, out: MatrixMut<Self>) -> Result<()> {
        element::gather_rows(self, from, indices, out)
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
        norm::forward(self, residual, delta, weight, epsilon, sum, normed, inverse_rms)
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
        norm::backward(self, d_normed, x, weight, inverse_rms, d_residual, d_weight)
    }
    fn rope(
        &self,
        qkv: MatrixMut<Self>,
        positions: Matrix<Self>,
        table: &RopeTable<Self>,
        shape: AttentionShape,
        inverse: bool,
    ) -> Result<()> {
        rope::rope(self, qkv, positions, table, shape, inverse)
    }
    fn attention_forward(
        &self,
        qkv: Matrix<Self>,
        segments: &Segments<Self>,
        shape: AttentionShape,
        out: MatrixMut<Self>,
        log_sum_exp: MatrixMut<Self>,
    ) -> Result<()> {
        attention::forward(self, qkv, segments, shape, out, log_sum_exp)
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
        attention::backward(self, d_out, qkv, out, log_sum_exp, segments, shape, d_qkv)
    }
    fn attention_cached(
        &self,
        qkv: Matrix<Self>,
        segments: &CachedSegments<Self>,
        cache: MatrixMut<Self>,
        out: MatrixMut<Self>,
    ) -> Result<()> {
        attention_cached::forward(self, qkv, segments, cache, out)
    }
    fn swiglu_forward(&self, gate_up: Matrix<Self>, h: MatrixMut<Self>) -> Result<()> {
        element::swiglu_forward(self, gate_up, h)
    }
    fn swiglu_backward(&self, d_h: Matrix<Self>, gate_up: Matrix<Self>, d_gate_up: MatrixMut<Self>) -> Result<()> {
        element::swiglu_backward(self, d_h, gate_up, d_gate_up)
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
        loss_head::loss_head(self, loss, hidden, head, targets, weights, values, gradients)
    }
    fn representation_distance(
        &self,
        hidden: Matrix<Self>,
        reference: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()> {
        hidden::representation_distance(self, hidden, reference, weights, values, d_hidden)
    }
    fn random_mapping(
        &self,
        hidden: Matrix<Self>,
        table: Matrix<Self>,
        ids: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()> {
        hidden::random_mapping(self, hidden, table, ids, weights, values, d_hidden)
    }
    #[allow(clippy::too_many_arguments)]
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
        hidden::preference(self, values, segments, reference_margins, beta, scale, weights, losses)
    }
    fn axpy(&self, alpha: f32, x: Matrix<Self>, y: MatrixMut<Self>) -> Result<()> {
        element::axpy(self, alpha, x, y)
    }
    fn weighted_sum(&self, a: Matrix<Self>, b: Matrix<Self>, scale: f32, out: MatrixMut<Self>) -> Result<()> {
        element::weighted_sum(self, a, b, scale, out)
    }
    fn squared_norm(&self, x: Matrix<Self>) -> Result<f64> {
        element::squared_norm(self, x)
    }
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
        optimizer::update(self, rule, coefficients, weights, remainder, gradients, states, rounding)
    }
}
