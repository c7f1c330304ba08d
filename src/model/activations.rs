//! The named activations that forward keeps for backward, allocated once for the largest batch.

use serde::Serialize;

use super::adapter::Site;
use super::per_layer::{PerLayer, kept_layers};
use super::{Adapter, ModelConfig};
use crate::error::Result;
use crate::ops::{Backend, Clear, DType, Matrix, MatrixMut, Tensor};

/// What the backward pass computes a second time instead of reading what forward kept. Gradients are the same bits in
/// every case: the same operations on the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: every layer keeps all of its activations.
    #[default]
    Nothing,
    /// The outputs of both norms and silu(gate)·up, which cost passes over memory and no matrix product.
    Cheap,
    /// Besides, all but the inputs of layers that there is no room for: they run forward again (without their last product)
    /// before they run backward.
    Layers {
        /// Layers that keep what [`Recompute::Cheap`] keeps on the largest batch, besides one that runs again. On smaller
        /// batches their memory holds more layers.
        kept: usize,
    },
}

impl Recompute {
    /// For how many of `layers` layers there is room on the largest batch: for the outputs of norms and silu(gate)·up, and
    /// for what else is kept.
    pub fn slots(self, layers: usize) -> (usize, usize) {
        match self {
            Self::Nothing => (layers, layers),
            Self::Cheap => (1, layers),
            Self::Layers { kept } => (1, layers.min(kept + 1)),
        }
    }
}

/// What the layers keep, or share where it is computed again. T is the number of tokens.
pub struct Activations<B: Backend> {
    /// Residual stream at the layer's input, [T, d]: the hidden state of this depth. Never shared.
    pub input: Vec<Tensor<B>>,
    /// Output of the input norm, [T, d].
    pub attention_input: PerLayer<B>,
    /// 1/rms of the input norm, [T, 1].
    pub attention_inverse_rms: PerLayer<B>,
    /// Queries, keys and values after rotation, [T, (H+2G)·D].
    pub qkv: PerLayer<B>,
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
    pub(crate) low_rank: [Option<PerLayer<B>>; 4],
}

/// The hidden states of a model, apart from the workspace that computed them.
pub struct HiddenStates<B: Backend> {
    inputs: Vec<Tensor<B>>,
    normed: Tensor<B>,
}

impl<B: Backend> HiddenStates<B> {
    /// Room for batches of up to `capacity` tokens.
    pub fn new(backend: &B, config: &ModelConfig, capacity: usize) -> Result<Self> {
        let (d, dtype) = (config.hidden_size, backend.compute_dtype());
        let matrix = || Tensor::zeros(backend, "hidden state", capacity, d, dtype);
        let inputs = (0..config.num_hidden_layers).map(|_| matrix()).collect::<Result<_>>()?;
        Ok(Self { inputs, normed: matrix()? })
    }

    /// That of depth `level`, numbered as those of [`Workspace::hidden_state`].
    pub fn at(&self, level: usize, tokens: usize) -> Matrix<'_, B> {
        hidden_state(&self.inputs, &self.normed, level, tokens)
    }
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
    pub(crate) layers: Activations<B>,
    /// Residual stream after the last layer, [T, d].
    pub(crate) last_residual: Tensor<B>,
    /// Output of the final norm, [T, d].
    pub(crate) normed: Tensor<B>,
    pub(crate) inverse_rms: Tensor<B>,
    /// Output of o_proj or down_proj before it joins the residual stream, [T, d].
    pub(crate) delta: Tensor<B>,
    /// Gradient of the final norm's output, [T, d]: what a loss head writes and backward starts from.
    pub(crate) d_normed: Tensor<B>,
    /// Gradient of the residual stream, [T, d].
    pub(crate) d_residual: Tensor<B>,
    /// Gradient of a norm's output, [T, d].
    pub(crate) d_input: Tensor<B>,
    pub(crate) d_qkv: Tensor<B>,
    pub(crate) d_attention: Tensor<B>,
    pub(crate) d_gate_up: Tensor<B>,
    pub(crate) d_mlp_hidden: Tensor<B>,
    pub(crate) d_low_rank: [Option<Tensor<B>>; 4],
}

/// What a loss head reads and writes of a [`Workspace`].
pub struct HeadOperands<'a, B: Backend> {
    /// Output of the final norm, [T, d].
    pub normed: Matrix<'a, B>,
    /// Where its gradient goes, [T, d]: [`Model::backward`](super::Model::backward) starts from it.
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
        let compute = backend.compute_dtype();
        let matrix = |name: &str, cols: usize| Tensor::zeros(backend, name, capacity, cols, compute);
        let column = |name: &str| Tensor::zeros(backend, name, capacity, 1, DType::F32);
        let (d, f, shape) = (config.hidden_size, config.intermediate_size, config.attention());
        let rank = |site| adapters.iter().map(|a| a.config.site_rank(site)).max().filter(|rank| *rank > 0);
        let layers = config.num_hidden_layers;
        let (cheap, rest) = recompute.slots(layers);
        let matrices = |slots, name: &str, cols| PerLayer::new(layers, slots, || matrix(name, cols));
        let columns =
            |name: &str, cols| PerLayer::new(layers, rest, || Tensor::zeros(backend, name, capacity, cols, DType::F32));
        let mut low_rank = [None, None, None, None];
        let mut d_low_rank = [None, None, None, None];
        for site in Site::ALL {
            let Some(rank) = rank(site) else { continue };
            low_rank[site as usize] = Some(matrices(rest, "low rank", rank)?);
            d_low_rank[site as usize] = Some(matrix("gradient of low rank", rank)?);
        }
        let activations = Activations {
            input: (0..layers).map(|_| matrix("layer input", d)).collect::<Result<_>>()?,
            attention_input: matrices(cheap, "attention input", d)?,
            attention_inverse_rms: columns("attention inverse rms", 1)?,
            qkv: matrices(rest, "qkv", shape.qkv_cols())?,
            attention: matrices(rest, "attention", shape.query_cols())?,
            log_sum_exp: columns("log sum exp", shape.num_attention_heads)?,
            middle: matrices(rest, "layer middle", d)?,
            mlp_input: matrices(cheap, "mlp input", d)?,
            mlp_inverse_rms: columns("mlp inverse rms", 1)?,
            gate_up: matrices(rest, "gate and up", 2 * f)?,
            mlp_hidden: matrices(cheap, "mlp hidden", f)?,
            low_rank,
        };
        Ok(Self {
            capacity,
            recompute,
            layers: activations,
            last_residual: matrix("last residual", d)?,
            normed: matrix("normed", d)?,
            inverse_rms: column("inverse rms")?,
            delta: matrix("delta", d)?,
            d_normed: matrix("gradient of normed", d)?,
            d_residual: matrix("gradient of residual", d)?,
            d_input: matrix("gradient of norm output", d)?,
            d_qkv: matrix("gradient of qkv", shape.qkv_cols())?,
            d_attention: matrix("gradient of attention", shape.query_cols())?,
            d_gate_up: matrix("gradient of gate and up", 2 * f)?,
            d_mlp_hidden: matrix("gradient of mlp hidden", f)?,
            d_low_rank,
        })
    }

    /// The largest batch in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the backward pass computes a second time.
    pub fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// Whether `layer` keeps nothing but its input on a batch of `tokens` tokens.
    pub(super) fn runs_again(&self, layer: usize, tokens: usize) -> bool {
        let layers = self.layers.input.len();
        let (_, slots) = self.recompute.slots(layers);
        layer < layers - kept_layers(layers, slots, self.capacity, tokens)
    }

    /// The hidden state of depth `level` (0: embeddings, L: output of the final norm), as Transformers numbers them.
    pub fn hidden_state(&self, level: usize, tokens: usize) -> Matrix<'_, B> {
        hidden_state(&self.layers.input, &self.normed, level, tokens)
    }

    /// Gives the hidden states of the last forward pass away and takes those of `other` (of the same capacity), which the
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
}
