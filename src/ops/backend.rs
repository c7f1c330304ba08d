//! [`Backend`]: what a device must be able to do. Shapes were checked by the functions of [`crate::ops`] before any of
//! these methods is called.

use super::{
    AttentionShape, CachedSegments, Dropout, HeadGradients, HeadLoss, LoraGradients, LoraSlice, Matrix, MatrixMut,
    RopeTable, Segments, StateRounding, UpdateRule,
};
use crate::error::Result;

/// How a buffer's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit remainder: with the bf16 weight above it, exactly one f32.
    Remainder16,
    /// 32-bit unsigned integer: token ids, positions, targets.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::Remainder16 => 2,
        }
    }
}

/// A device: its memory and the operations of a transformer on it.
///
/// A value is a cheap handle (cloning it does not clone the device). Operations are queued in the order of the calls;
/// only the `download` methods wait for the device.
pub trait Backend: Clone + Send + Sync + Sized + 'static {
    /// Device memory of one dtype. Freed when dropped.
    type Buffer: Send + Sync;
    /// Main memory of one dtype that the device copies to and from: what only the outer step touches waits there. No
    /// operation takes it. Freed when dropped.
    type Parked: Send + Sync;
    /// What [`Backend::record`] keeps of some work.
    type Recording: Default + Send;

    /// What it is, for people: "cpu, 2 threads, f32".
    fn description(&self) -> String;
    /// Bytes of the device's own memory; `None` where it works in main memory.
    fn device_memory(&self) -> Option<u64>;
    /// How weights and activations are stored; losses, gradients and optimizer states are [`DType::F32`].
    fn compute_dtype(&self) -> DType;

    /// Allocates `len` zeros. `name` appears in memory reports.
    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<Self::Buffer>;
    /// Number of elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;
    /// Copies host values to `buffer[offset..]`. A bf16 buffer takes the nearest bf16, ties away from zero (so that the rest
    /// of every f32 fits a remainder buffer), and a remainder buffer what that leaves over.
    fn upload_f32(&self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()>;
    /// Copies host values to `buffer[offset..]`.
    fn upload_u32(&self, buffer: &mut Self::Buffer, offset: usize, values: &[u32]) -> Result<()>;
    /// Copies `buffer[offset..offset + len]` to the host as f32. Waits for the device.
    fn download_f32(&self, buffer: &Self::Buffer, offset: usize, len: usize) -> Result<Vec<f32>>;
    /// `to[to_offset..][..len] = from[from_offset..][..len]`; both of one dtype.
    fn copy(
        &self,
        from: &Self::Buffer,
        from_offset: usize,
        to: &mut Self::Buffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()>;
    /// Allocates `len` zeros in main memory. `name` appears in memory reports.
    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<Self::Parked>;
    /// `to[to_offset..][..len] = from[from_offset..][..len]`; both of one dtype.
    fn park(
        &self,
        from: &Self::Buffer,
        from_offset: usize,
        to: &mut Self::Parked,
        to_offset: usize,
        len: usize,
    ) -> Result<()>;
    /// `to[to_offset..][..len] = from[from_offset..][..len]`; both of one dtype.
    fn fetch(
        &self,
        from: &Self::Parked,
        from_offset: usize,
        to: &mut Self::Buffer,
        to_offset: usize,
        len: usize,
    ) -> Result<()>;
    /// Sets `buffer[offset..offset + len]` to zero.
    fn clear(&self, buffer: &mut Self::Buffer, offset: usize, len: usize) -> Result<()>;

    /// Queues `work`, which must consist of the same operations on the same buffers, with the same numbers by value, each
    /// time that it is called with this `recording`: a device may execute what it recorded before, without calling `work`.
    /// So `work` must neither allocate, copy from or to the host, nor change anything of the caller's that matters. The
    /// buffers must live as long as the recording.
    fn record(&self, recording: &mut Self::Recording, work: impl FnOnce() -> Result<()>) -> Result<()>;
    /// A number that no other buffer has or will have, where recordings depend on which buffers they use; otherwise 0.
    fn identity(&self, buffer: &Self::Buffer) -> u64;

    /// y = x wᵀ. See [`super::linear_forward`].
    fn linear_forward(&self, x: Matrix<Self>, w: Matrix<Self>, y: MatrixMut<Self>) -> Result<()>;
    /// dx = dy w, or dx += dy w. See [`super::linear_backward_input`].
    fn linear_backward_input(
        &self,
        dy: Matrix<Self>,
        w: Matrix<Self>,
        dx: MatrixMut<Self>,
        accumulate: bool,
    ) -> Result<()>;
    /// dw += dyᵀ x. See [`super::linear_backward_weight`].
    fn linear_backward_weight(&self, dy: Matrix<Self>, x: Matrix<Self>, dw: MatrixMut<Self>) -> Result<()>;
    /// Low-rank update of y. See [`super::lora_forward`].
    fn lora_forward(
        &self,
        x: Matrix<Self>,
        slices: &[LoraSlice<Self>],
        dropout: Option<Dropout>,
        s: MatrixMut<Self>,
        y: MatrixMut<Self>,
    ) -> Result<()>;
    /// Gradients of the low-rank factors and of x. See [`super::lora_backward`].
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
    ) -> Result<()>;

    /// Rows of a table. See [`super::embedding_forward`].
    fn embedding_forward(&self, ids: Matrix<Self>, table: Matrix<Self>, out: MatrixMut<Self>) -> Result<()>;
    /// Adds rows into a table, in token order. See [`super::embedding_backward`].
    fn embedding_backward(&self, ids: Matrix<Self>, d_out: Matrix<Self>, d_table: MatrixMut<Self>) -> Result<()>;
    /// `out[i] = from[indices[i]]`. See [`super::gather_rows`].
    fn gather_rows(&self, from: Matrix<Self>, indices: Matrix<Self>, out: MatrixMut<Self>) -> Result<()>;

    /// Residual addition and RMS norm. See [`super::rms_norm_forward`].
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
    ) -> Result<()>;
    /// Gradient of an RMS norm, added to the residual's. See [`super::rms_norm_backward`].
    fn rms_norm_backward(
        &self,
        d_normed: Matrix<Self>,
        x: Matrix<Self>,
        weight: Matrix<Self>,
        inverse_rms: Matrix<Self>,
        d_residual: MatrixMut<Self>,
        d_weight: Option<MatrixMut<Self>>,
    ) -> Result<()>;

    /// Rotates query and key heads in place. See [`super::rope`].
    fn rope(
        &self,
        qkv: MatrixMut<Self>,
        positions: Matrix<Self>,
        table: &RopeTable<Self>,
        shape: AttentionShape,
        inverse: bool,
    ) -> Result<()>;
    /// Causal attention over packed sequences. See [`super::attention_forward`].
    fn attention_forward(
        &self,
        qkv: Matrix<Self>,
        segments: &Segments<Self>,
        shape: AttentionShape,
        out: MatrixMut<Self>,
        log_sum_exp: MatrixMut<Self>,
    ) -> Result<()>;
    /// Gradient of [`Backend::attention_forward`]. See [`super::attention_backward`].
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
    ) -> Result<()>;
    /// Attention of new tokens to a cache, which takes in their keys and values. See [`super::attention_cached`].
    fn attention_cached(
        &self,
        qkv: Matrix<Self>,
        segments: &CachedSegments<Self>,
        cache: MatrixMut<Self>,
        out: MatrixMut<Self>,
    ) -> Result<()>;

    /// h = silu(gate) · up. See [`super::swiglu_forward`].
    fn swiglu_forward(&self, gate_up: Matrix<Self>, h: MatrixMut<Self>) -> Result<()>;
    /// Gradient of [`Backend::swiglu_forward`]. See [`super::swiglu_backward`].
    fn swiglu_backward(&self, d_h: Matrix<Self>, gate_up: Matrix<Self>, d_gate_up: MatrixMut<Self>) -> Result<()>;

    /// Loss of the language-model head and its gradients. See [`super::loss_head`].
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
    ) -> Result<()>;
    /// Per-token L2 distance of hidden states. See [`super::representation_distance`].
    fn representation_distance(
        &self,
        hidden: Matrix<Self>,
        reference: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()>;
    /// 1 − |cos| to a token's random direction. See [`super::random_mapping`].
    #[allow(clippy::too_many_arguments)]
    fn random_mapping(
        &self,
        hidden: Matrix<Self>,
        table: Matrix<Self>,
        ids: Matrix<Self>,
        weights: Matrix<Self>,
        values: MatrixMut<Self>,
        d_hidden: Option<MatrixMut<Self>>,
    ) -> Result<()>;

    /// DPO losses and token weights. See [`super::preference`].
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
    ) -> Result<()>;

    /// y += alpha · x. See [`super::axpy`].
    fn axpy(&self, alpha: f32, x: Matrix<Self>, y: MatrixMut<Self>) -> Result<()>;
    /// out += scale · Σ a · b. See [`super::weighted_sum`].
    fn weighted_sum(&self, a: Matrix<Self>, b: Matrix<Self>, scale: f32, out: MatrixMut<Self>) -> Result<()>;
    /// Σ x², on the host. Waits for the device. See [`super::squared_norm`].
    fn squared_norm(&self, x: Matrix<Self>) -> Result<f64>;

    /// One optimizer update. See [`super::optimizer_update`].
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
    ) -> Result<()>;
}
