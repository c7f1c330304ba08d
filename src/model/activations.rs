//! The named activations that forward keeps for backward, allocated once for the largest batch.

use serde::{Deserialize, Serialize};

use super::adapter::Site;
use super::{Adapter, ModelConfig};
use crate::error::{Error, Result};
use crate::ops::{Backend, DType, Matrix, Tensor};

/// What the backward pass computes a second time instead of reading what forward kept. Gradients are the same bits in
/// every case: the same operations on the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: every layer keeps all of its activations.
    #[default]
    Nothing,
    /// The outputs of both norms and silu(gate)·up, which cost passes over memory and no matrix product.
    Cheap,
    /// All but the layers' inputs: each layer runs forward again (without its last product) before it runs backward.
    Layers,
}

/// A value for each layer, or one that all layers share, one after the other.
pub struct PerLayer<T>(Vec<T>);

impl<T> PerLayer<T> {
    fn new(layers: usize, shared: bool, make: impl FnMut(usize) -> Result<T>) -> Result<Self> {
        (0..if shared { 1 } else { layers }).map(make).collect::<Result<_>>().map(Self)
    }

    fn place(&self, layer: usize) -> usize {
        if self.0.len() == 1 { 0 } else { layer }
    }

    /// That of `layer`.
    pub fn at(&self, layer: usize) -> &T {
        &self.0[self.place(layer)]
    }

    /// That of `layer`, to write.
    pub fn at_mut(&mut self, layer: usize) -> &mut T {
        let place = self.place(layer);
        &mut self.0[place]
    }

    /// All that there are.
    #[cfg(test)]
    pub fn all(&self) -> &[T] {
        &self.0
    }
}

/// What the layers keep, or share where it is computed again. T is the capacity in tokens.
pub struct Activations<B: Backend> {
    /// Residual stream at the layer's input, [T, d]: the hidden state of this depth. Never shared.
    pub input: PerLayer<Tensor<B>>,
    /// Output of the input norm, [T, d].
    pub attention_input: PerLayer<Tensor<B>>,
    /// 1/rms of the input norm, [T, 1].
    pub attention_inverse_rms: PerLayer<Tensor<B>>,
    /// Queries, keys and values after rotation, [T, (H+2G)·D].
    pub qkv: PerLayer<Tensor<B>>,
    /// Attention output before o_proj, [T, H·D].
    pub attention: PerLayer<Tensor<B>>,
    /// Logarithm of the softmax denominators, [T, H].
    pub log_sum_exp: PerLayer<Tensor<B>>,
    /// Residual stream between attention and MLP, [T, d].
    pub middle: PerLayer<Tensor<B>>,
    /// Output of the second norm, [T, d].
    pub mlp_input: PerLayer<Tensor<B>>,
    /// 1/rms of the second norm, [T, 1].
    pub mlp_inverse_rms: PerLayer<Tensor<B>>,
    /// Gate and up projections, [T, 2F].
    pub gate_up: PerLayer<Tensor<B>>,
    /// silu(gate)·up, [T, F].
    pub mlp_hidden: PerLayer<Tensor<B>>,
    /// x Aᵀ of each adapted site, [T, Σr]; empty without an adapter.
    pub(crate) low_rank: PerLayer<[Option<Tensor<B>>; 4]>,
}

/// The hidden states of a model, apart from the workspace that computed them.
pub struct HiddenStates<B: Backend> {
    inputs: PerLayer<Tensor<B>>,
    normed: Tensor<B>,
}

impl<B: Backend> HiddenStates<B> {
    /// Room for batches of up to `capacity` tokens.
    pub fn new(backend: &B, config: &ModelConfig, capacity: usize) -> Result<Self> {
        let matrix = |_| Tensor::zeros(backend, "hidden state", capacity, config.hidden_size, backend.compute_dtype());
        Ok(Self { inputs: PerLayer::new(config.num_hidden_layers, false, matrix)?, normed: matrix(0)? })
    }

    /// That of depth `level`, numbered as those of [`Workspace::hidden_state`].
    pub fn at(&self, level: usize, tokens: usize) -> Matrix<'_, B> {
        hidden_state(&self.inputs, &self.normed, level, tokens)
    }
}

fn hidden_state<'a, B: Backend>(
    inputs: &'a PerLayer<Tensor<B>>,
    normed: &'a Tensor<B>,
    level: usize,
    tokens: usize,
) -> Matrix<'a, B> {
    inputs.0.get(level).unwrap_or(normed).top(tokens)
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
    /// Per-token values of a loss, [T, 1] f32.
    pub(crate) values: Tensor<B>,
    /// Per-token weights of a loss, [T, 1] f32.
    pub(crate) weights: Tensor<B>,
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
        let low_rank = |layer: usize| {
            let mut all = [None, None, None, None];
            for site in Site::ALL {
                let rank = adapters.iter().map(|a| a.site_rank(layer, site)).max().unwrap_or(0);
                if rank > 0 {
                    all[site as usize] = Some(matrix("low rank", rank)?);
                }
            }
            Ok::<_, Error>(all)
        };
        let (cheap, whole) = (recompute != Recompute::Nothing, recompute == Recompute::Layers);
        let layers = config.num_hidden_layers;
        let matrices = |shared, name: &str, cols| PerLayer::new(layers, shared, |_| matrix(name, cols));
        let columns = |name: &str| PerLayer::new(layers, whole, |_| column(name));
        let heads = shape.num_attention_heads;
        let layers = Activations {
            input: matrices(false, "layer input", d)?,
            attention_input: matrices(cheap, "attention input", d)?,
            attention_inverse_rms: columns("attention inverse rms")?,
            qkv: matrices(whole, "qkv", shape.qkv_cols())?,
            attention: matrices(whole, "attention", shape.query_cols())?,
            log_sum_exp: PerLayer::new(layers, whole, |_| {
                Tensor::zeros(backend, "log sum exp", capacity, heads, DType::F32)
            })?,
            middle: matrices(whole, "layer middle", d)?,
            mlp_input: matrices(cheap, "mlp input", d)?,
            mlp_inverse_rms: columns("mlp inverse rms")?,
            gate_up: matrices(whole, "gate and up", 2 * f)?,
            mlp_hidden: matrices(cheap, "mlp hidden", f)?,
            low_rank: PerLayer::new(layers, whole, low_rank)?,
        };
        Ok(Self {
            capacity,
            recompute,
            layers,
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
            d_low_rank: low_rank(0)?,
            values: column("loss values")?,
            weights: column("loss weights")?,
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
        self.layers.input.0.get(level).unwrap_or(&self.last_residual).top(tokens)
    }

    pub(crate) fn check_fits(&self, tokens: usize) -> Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        Err(crate::ops::shape_error(
            "Workspace",
            format!("a batch of {tokens} tokens needs more than {}", self.capacity),
        ))
    }
}
