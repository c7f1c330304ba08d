//! The named activations that forward keeps for backward, allocated once for the largest batch.

use serde::Serialize;

use super::per_layer::{LayerMemory, PerLayer};
use super::shapes::{TensorKind, WorkspaceShapes};
use super::{Adapter, ModelConfig};
use crate::error::Result;
use crate::ops::{Backend, Clear, DType, Matrix, MatrixMut, Tensor};

/// The activations that the backward pass computes a second time instead of keeping them from the forward pass. Gradients
/// are the same bits in every case: the same operations on the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: every layer keeps all of its activations.
    #[default]
    Nothing,
    /// The outputs of both norms and silu(gate)·up, and heads after norms of their own, which cost passes over memory and no
    /// matrix product.
    Cheap,
    /// Besides, everything but their inputs in the layers that there is no room for. Such a layer runs forward again,
    /// without its last product, before it runs backward.
    Layers {
        /// The number of layers that keep what [`Recompute::Cheap`] keeps. It holds for the largest batch: memory for as
        /// many layers and one more, which the others share, has room for more layers of a smaller batch.
        kept: usize,
    },
}

impl Recompute {
    /// The number of slots for the activations of `layers` layers.
    pub fn slots(self, layers: usize) -> LayerSlots {
        match self {
            Self::Nothing => LayerSlots { cheap: layers, rest: layers },
            Self::Cheap => LayerSlots { cheap: 1, rest: layers },
            Self::Layers { kept } => LayerSlots { cheap: 1, rest: layers.min(kept.saturating_add(1)) },
        }
    }
}

/// How many of a model's layers there is room for on the largest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSlots {
    /// Slots for the outputs of norms (heads after norms of their own among them) and silu(gate)·up.
    pub cheap: usize,
    /// Slots for all other activations that a layer keeps, its input apart.
    pub rest: usize,
}

/// The activations of all layers. Layers share those that are computed again. T is the number of tokens.
pub(super) struct Activations<B: Backend> {
    /// Residual stream at the layer's input, [T, d]: the hidden state of this depth. Never shared.
    pub input: Vec<Tensor<B>>,
    /// Output of the input norm, [T, d].
    pub attention_input: PerLayer<B>,
    /// 1/rms of the input norm, [T, 1].
    pub attention_inverse_rms: PerLayer<B>,
    /// Queries, keys and values, [T, (H+2G)·D]: rotated, unless heads have norms.
    pub qkv: PerLayer<B>,
    /// Queries, keys and values after norm and rotation, [T, (H+2G)·D], in families whose heads have norms.
    pub rotated: Option<PerLayer<B>>,
    /// Attention output before o_proj, [T, H·D].
    pub attention: PerLayer<B>,
    /// Logarithm of the softmax denominators, [T, H].
    pub log_sum_exp: PerLayer<B>,
    /// Residual stream between attention and MLP, [T, d].
    pub middle: PerLayer<B>,
    /// Output of the second norm, [T, d].
    pub mlp_input: PerLayer<B>,
    /// 1/rms of the second norm, [T, 1].
    pub mlp_inverse_rms: PerLayer<B>,
    /// Gate and up projections, [T, 2F].
    pub gate_up: PerLayer<B>,
    /// silu(gate)·up, [T, F].
    pub mlp_hidden: PerLayer<B>,
    /// x Aᵀ of each adapted site, [T, Σr]; empty without an adapter.
    pub(super) low_rank: [Option<PerLayer<B>>; 4],
}

/// The hidden states of a model on one batch, taken out of the workspace that computed them.
pub struct HiddenStates<B: Backend> {
    inputs: Vec<Tensor<B>>,
    normed: Tensor<B>,
}

impl<B: Backend> HiddenStates<B> {
    /// Room for batches of up to `capacity` tokens.
    pub fn new(backend: &B, config: &ModelConfig, capacity: usize) -> Result<Self> {
        let dtype = backend.compute_dtype();
        let matrix = || Tensor::zeros(backend, "hidden state", capacity, config.hidden_size, dtype);
        let inputs = (0..config.num_hidden_layers).map(|_| matrix()).collect::<Result<_>>()?;
        Ok(Self { inputs, normed: matrix()? })
    }

    /// The hidden state of depth `level`, numbered as in [`Workspace::hidden_state`].
    pub fn at(&self, level: usize, tokens: usize) -> Matrix<'_, B> {
        hidden_state(&self.inputs, &self.normed, level, tokens)
    }
}

/// Bytes of [`HiddenStates`] for batches of up to `capacity` tokens.
pub fn hidden_states_bytes(config: &ModelConfig, capacity: u64, compute: DType) -> u64 {
    let states = config.num_hidden_layers as u64 + 1;
    capacity.saturating_mul(states * config.hidden_size as u64 * compute.bytes() as u64)
}

fn hidden_state<'a, B: Backend>(
    inputs: &'a [Tensor<B>],
    normed: &'a Tensor<B>,
    level: usize,
    tokens: usize,
) -> Matrix<'a, B> {
    inputs.get(level).unwrap_or(normed).top(tokens)
}

/// Activations and gradient scratch for batches of up to a fixed number of tokens.
pub struct Workspace<B: Backend> {
    capacity: usize,
    recompute: Recompute,
    pub(super) layers: Activations<B>,
    /// Residual stream after the last layer, [T, d].
    pub(super) last_residual: Tensor<B>,
    /// Output of the final norm, [T, d].
    pub(super) normed: Tensor<B>,
    pub(super) inverse_rms: Tensor<B>,
    /// Output of o_proj or down_proj before it joins the residual stream, [T, d].
    pub(super) delta: Tensor<B>,
    /// Gradient of the final norm's output, [T, d]. A loss head writes it, and backward starts from it.
    pub(super) d_normed: Tensor<B>,
    /// Gradient of the residual stream, [T, d].
    pub(super) d_residual: Tensor<B>,
    /// Gradient of a norm's output, [T, d].
    pub(super) d_input: Tensor<B>,
    pub(super) d_qkv: Tensor<B>,
    pub(super) d_attention: Tensor<B>,
    pub(super) d_gate_up: Tensor<B>,
    pub(super) d_mlp_hidden: Tensor<B>,
    pub(super) d_low_rank: [Option<Tensor<B>>; 4],
}

/// The part of a [`Workspace`] that a loss head reads and writes.
pub struct HeadOperands<'a, B: Backend> {
    /// Output of the final norm, [T, d].
    pub normed: Matrix<'a, B>,
    /// The gradient of that output, [T, d]: [`Model::backward`](super::Model::backward) starts from it.
    pub d_normed: MatrixMut<'a, B>,
}

impl<B: Backend> Workspace<B> {
    /// Room for batches of up to `capacity` tokens, without an adapter or with any of `adapters`.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        capacity: usize,
        adapters: &[&Adapter<B>],
        recompute: Recompute,
    ) -> Result<Self> {
        let configs = adapters.iter().map(|adapter| &adapter.config);
        let shapes = WorkspaceShapes::new(config, configs, backend.compute_dtype(), recompute);
        let layers = config.num_hidden_layers;
        let slots = |kind: &TensorKind| kind.slots(backend, capacity, layers);
        let one = |kind: &TensorKind| kind.tensor(backend, capacity);
        let mut low_rank = [None, None, None, None];
        let mut d_low_rank = [None, None, None, None];
        for site in (0..4).filter(|&site| !shapes.low_rank[site].is_empty()) {
            low_rank[site] = Some(slots(&shapes.low_rank[site])?);
            d_low_rank[site] = Some(one(&shapes.d_low_rank[site])?);
        }
        let activations = Activations {
            input: shapes.input.tensors(backend, capacity)?,
            attention_input: slots(&shapes.attention_input)?,
            attention_inverse_rms: slots(&shapes.attention_inverse_rms)?,
            qkv: slots(&shapes.qkv)?,
            rotated: if shapes.rotated.is_empty() { None } else { Some(slots(&shapes.rotated)?) },
            attention: slots(&shapes.attention)?,
            log_sum_exp: slots(&shapes.log_sum_exp)?,
            middle: slots(&shapes.middle)?,
            mlp_input: slots(&shapes.mlp_input)?,
            mlp_inverse_rms: slots(&shapes.mlp_inverse_rms)?,
            gate_up: slots(&shapes.gate_up)?,
            mlp_hidden: slots(&shapes.mlp_hidden)?,
            low_rank,
        };
        Ok(Self {
            capacity,
            recompute,
            layers: activations,
            last_residual: one(&shapes.last_residual)?,
            normed: one(&shapes.normed)?,
            inverse_rms: one(&shapes.inverse_rms)?,
            delta: one(&shapes.delta)?,
            d_normed: one(&shapes.d_normed)?,
            d_residual: one(&shapes.d_residual)?,
            d_input: one(&shapes.d_input)?,
            d_qkv: one(&shapes.d_qkv)?,
            d_attention: one(&shapes.d_attention)?,
            d_gate_up: one(&shapes.d_gate_up)?,
            d_mlp_hidden: one(&shapes.d_mlp_hidden)?,
            d_low_rank,
        })
    }

    /// The largest batch in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The activations that the backward pass computes a second time.
    pub fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// Whether `layer` keeps only its input on a batch of `tokens` tokens.
    pub(super) fn runs_again(&self, layer: usize, tokens: usize) -> bool {
        let layers = self.layers.input.len();
        let memory = LayerMemory { layers, slots: self.recompute.slots(layers).rest, capacity: self.capacity };
        layer < layers - memory.kept_layers(tokens)
    }

    /// The hidden state of depth `level` (0: embeddings, L: output of the final norm), as Transformers numbers them.
    pub fn hidden_state(&self, level: usize, tokens: usize) -> Matrix<'_, B> {
        hidden_state(&self.layers.input, &self.normed, level, tokens)
    }

    /// Gives the hidden states of the last forward pass away and takes `other`'s (of the same capacity), which the
    /// next forward pass overwrites.
    pub fn exchange_hidden_states(&mut self, other: &mut HiddenStates<B>) {
        std::mem::swap(&mut self.layers.input, &mut other.inputs);
        std::mem::swap(&mut self.normed, &mut other.normed);
    }

    /// The residual stream after `level` layers (0: the embeddings), without the final norm, after a forward pass.
    pub fn residual(&self, level: usize, tokens: usize) -> crate::ops::Matrix<'_, B> {
        self.layers.input.get(level).unwrap_or(&self.last_residual).top(tokens)
    }

    /// The operands of a loss head after a forward pass of `tokens` tokens.
    pub fn head_operands(&mut self, tokens: usize) -> HeadOperands<'_, B> {
        HeadOperands { normed: self.normed.top(tokens), d_normed: self.d_normed.top_mut(tokens) }
    }

    /// Sets the gradient of the final norm's output to zero, for a loss without a head.
    pub fn clear_head_gradient(&mut self, backend: &B, tokens: usize) -> Result<()> {
        backend.run(Clear { to: self.d_normed.top_mut(tokens) })
    }

    /// Fails for a batch of more tokens than the workspace was made for.
    pub fn check_fits(&self, tokens: usize) -> Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        Err(crate::ops::shape_error(
            "Workspace",
            format!("a batch of {tokens} tokens needs more than {}", self.capacity),
        ))
    }

    /// Bytes of all buffers as they are.
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        use crate::ops::Buffer;

        // Without `..`, so that no tensor can be forgotten.
        let Self {
            capacity: _,
            recompute: _,
            layers,
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
        let Activations {
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
        } = layers;
        let per_layer = [
            attention_input,
            attention_inverse_rms,
            qkv,
            attention,
            log_sum_exp,
            middle,
            mlp_input,
            mlp_inverse_rms,
            gate_up,
            mlp_hidden,
        ];
        let outside = [
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
        ];
        let in_layers = per_layer.into_iter().chain(rotated).chain(low_rank.iter().flatten()).flat_map(PerLayer::slots);
        let all = in_layers.chain(outside).chain(input).chain(d_low_rank.iter().flatten());
        all.map(|tensor| (tensor.buffer().len() * tensor.buffer().dtype().bytes()) as u64).sum()
    }
}
