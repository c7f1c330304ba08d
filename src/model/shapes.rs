//! The tensors of a workspace, in one table: a plan adds it up, and a workspace is allocated from it.

use super::adapter::Site;
use super::per_layer::PerLayer;
use super::{AdapterConfig, LayerSlots, ModelConfig, Recompute};
use crate::error::Result;
use crate::ops::{Backend, DType, Tensor};

/// One row of the table: tensors of one kind, each with room for the largest batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorKind {
    name: &'static str,
    /// The number of tensors.
    count: usize,
    /// Columns; the rows are the tokens of the largest batch.
    cols: usize,
    dtype: DType,
}

impl TensorKind {
    /// Whether there is no tensor of this kind.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn bytes_per_token(&self) -> u64 {
        (self.count as u64).saturating_mul(self.cols as u64).saturating_mul(self.dtype.bytes() as u64)
    }

    /// One tensor of this kind for batches of up to `capacity` tokens.
    pub(super) fn tensor<B: Backend>(&self, backend: &B, capacity: usize) -> Result<Tensor<B>> {
        Tensor::zeros(backend, self.name, capacity, self.cols, self.dtype)
    }

    /// All tensors of this kind.
    pub(super) fn tensors<B: Backend>(&self, backend: &B, capacity: usize) -> Result<Vec<Tensor<B>>> {
        (0..self.count).map(|_| self.tensor(backend, capacity)).collect()
    }

    /// All tensors of this kind, as slots that `layers` layers share.
    pub(super) fn slots<B: Backend>(&self, backend: &B, capacity: usize, layers: usize) -> Result<PerLayer<B>> {
        Ok(PerLayer::new(layers, self.tensors(backend, capacity)?))
    }
}

/// The tensors of a [`Workspace`](super::Workspace), under its names. Their number and columns follow from the model, the
/// adapters, and what is computed again.
#[derive(Clone, Debug)]
pub struct WorkspaceShapes {
    pub(super) input: TensorKind,
    pub(super) attention_input: TensorKind,
    pub(super) attention_inverse_rms: TensorKind,
    pub(super) qkv: TensorKind,
    pub(super) rotated: TensorKind,
    pub(super) attention: TensorKind,
    pub(super) log_sum_exp: TensorKind,
    pub(super) middle: TensorKind,
    pub(super) mlp_input: TensorKind,
    pub(super) mlp_inverse_rms: TensorKind,
    pub(super) gate_up: TensorKind,
    pub(super) mlp_hidden: TensorKind,
    pub(super) low_rank: [TensorKind; 4],
    pub(super) last_residual: TensorKind,
    pub(super) normed: TensorKind,
    pub(super) inverse_rms: TensorKind,
    pub(super) delta: TensorKind,
    pub(super) d_normed: TensorKind,
    pub(super) d_residual: TensorKind,
    pub(super) d_input: TensorKind,
    pub(super) d_qkv: TensorKind,
    pub(super) d_attention: TensorKind,
    pub(super) d_gate_up: TensorKind,
    pub(super) d_mlp_hidden: TensorKind,
    pub(super) d_low_rank: [TensorKind; 4],
}

impl WorkspaceShapes {
    /// The tensors of a workspace for a model with any of `adapters`, or none.
    pub fn new<'a>(
        config: &ModelConfig,
        adapters: impl IntoIterator<Item = &'a AdapterConfig>,
        compute: DType,
        recompute: Recompute,
    ) -> Self {
        let d = config.hidden_size;
        let f = config.intermediate_size;
        let attention = config.attention();
        let qkv = attention.qkv_cols();
        let query = attention.query_cols();
        let heads = attention.num_attention_heads;
        let layers = config.num_hidden_layers;
        let LayerSlots { cheap, rest } = recompute.slots(layers);
        // The workspace has room for any of the adapters: at each site for the widest.
        let mut ranks = [0; 4];
        for adapter in adapters {
            for site in Site::ALL {
                ranks[site as usize] = adapter.site_rank(site).max(ranks[site as usize]);
            }
        }
        let matrix = |name, count, cols| TensorKind { name, count, cols, dtype: compute };
        let statistic = |name, count, cols| TensorKind { name, count, cols, dtype: DType::F32 };
        let low_rank = |name, count, rank| matrix(name, if rank > 0 { count } else { 0 }, rank);
        Self {
            input: matrix("layer input", layers, d),
            attention_input: matrix("attention input", cheap, d),
            attention_inverse_rms: statistic("attention inverse rms", rest, 1),
            qkv: matrix("qkv", rest, qkv),
            rotated: matrix("rotated heads", if config.family.description().head_norms { cheap } else { 0 }, qkv),
            attention: matrix("attention", rest, query),
            log_sum_exp: statistic("log sum exp", rest, heads),
            middle: matrix("layer middle", rest, d),
            mlp_input: matrix("mlp input", cheap, d),
            mlp_inverse_rms: statistic("mlp inverse rms", rest, 1),
            gate_up: matrix("gate and up", rest, 2 * f),
            mlp_hidden: matrix("mlp hidden", cheap, f),
            low_rank: ranks.map(|rank| low_rank("low rank", rest, rank)),
            last_residual: matrix("last residual", 1, d),
            normed: matrix("normed", 1, d),
            inverse_rms: statistic("inverse rms", 1, 1),
            delta: matrix("delta", 1, d),
            d_normed: matrix("gradient of normed", 1, d),
            d_residual: matrix("gradient of residual", 1, d),
            d_input: matrix("gradient of norm output", 1, d),
            d_qkv: matrix("gradient of qkv", 1, qkv),
            d_attention: matrix("gradient of attention", 1, query),
            d_gate_up: matrix("gradient of gate and up", 1, 2 * f),
            d_mlp_hidden: matrix("gradient of mlp hidden", 1, f),
            d_low_rank: ranks.map(|rank| low_rank("gradient of low rank", 1, rank)),
        }
    }

    /// Bytes of all tensors for batches of up to `capacity` tokens.
    pub fn bytes(&self, capacity: u64) -> u64 {
        // Without `..`, so that no tensor can be forgotten.
        let Self {
            input,
            attention_input,
            attention_inverse_rms,
            qkv,
            rotated,
            attention,
            log_sum_exp,
            middle,
            mlp_input,
            mlp_inverse_rms,
            gate_up,
            mlp_hidden,
            low_rank,
            last_residual,
            normed,
            inverse_rms,
            delta,
            d_normed,
            d_residual,
            d_input,
            d_qkv,
            d_attention,
            d_gate_up,
            d_mlp_hidden,
            d_low_rank,
        } = self;
        let layers = [
            input,
            attention_input,
            attention_inverse_rms,
            qkv,
            rotated,
            attention,
            log_sum_exp,
            middle,
            mlp_input,
            mlp_inverse_rms,
            gate_up,
            mlp_hidden,
        ];
        let ends = [last_residual, normed, inverse_rms, delta];
        let gradients = [d_normed, d_residual, d_input, d_qkv, d_attention, d_gate_up, d_mlp_hidden];
        let all = layers.into_iter().chain(ends).chain(gradients).chain(low_rank).chain(d_low_rank);
        capacity.saturating_mul(all.map(TensorKind::bytes_per_token).fold(0, u64::saturating_add))
    }
}
