//! The named activations that forward keeps for backward, allocated once for the largest batch.

use super::adapter::Site;
use super::{Adapter, ModelConfig};
use crate::error::{Error, Result};
use crate::ops::{Backend, DType, Tensor};

/// What one layer keeps. T is the capacity in tokens.
pub struct LayerActivations<B: Backend> {
    /// Residual stream at the layer's input, [T, d]: the hidden state of this depth.
    pub input: Tensor<B>,
    /// Output of the input norm, [T, d].
    pub attention_input: Tensor<B>,
    /// 1/rms of the input norm, [T, 1].
    pub attention_inverse_rms: Tensor<B>,
    /// Queries, keys and values after rotation, [T, (H+2G)·D].
    pub qkv: Tensor<B>,
    /// Attention output before o_proj, [T, H·D].
    pub attention: Tensor<B>,
    /// Logarithm of the softmax denominators, [T, H].
    pub log_sum_exp: Tensor<B>,
    /// Residual stream between attention and MLP, [T, d].
    pub middle: Tensor<B>,
    /// Output of the second norm, [T, d].
    pub mlp_input: Tensor<B>,
    /// 1/rms of the second norm, [T, 1].
    pub mlp_inverse_rms: Tensor<B>,
    /// Gate and up projections, [T, 2F].
    pub gate_up: Tensor<B>,
    /// silu(gate)·up, [T, F].
    pub mlp_hidden: Tensor<B>,
    /// x Aᵀ of each adapted site, [T, Σr]; empty without an adapter.
    pub(crate) low_rank: [Option<Tensor<B>>; 4],
}

/// Activations and gradient scratch for batches of up to a fixed number of tokens.
pub struct Workspace<B: Backend> {
    capacity: usize,
    pub(crate) layers: Vec<LayerActivations<B>>,
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
    pub fn new(backend: &B, config: &ModelConfig, capacity: usize, adapters: &[&Adapter<B>]) -> Result<Self> {
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
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            layers.push(LayerActivations {
                input: matrix("layer input", d)?,
                attention_input: matrix("attention input", d)?,
                attention_inverse_rms: column("attention inverse rms")?,
                qkv: matrix("qkv", shape.qkv_cols())?,
                attention: matrix("attention", shape.query_cols())?,
                log_sum_exp: Tensor::zeros(backend, "log sum exp", capacity, shape.num_attention_heads, DType::F32)?,
                middle: matrix("layer middle", d)?,
                mlp_input: matrix("mlp input", d)?,
                mlp_inverse_rms: column("mlp inverse rms")?,
                gate_up: matrix("gate and up", 2 * f)?,
                mlp_hidden: matrix("mlp hidden", f)?,
                low_rank: low_rank(layer)?,
            });
        }
        Ok(Self {
            capacity,
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

    /// The hidden state of depth `level` (0: embeddings, L: output of the final norm), as Transformers numbers them.
    pub fn hidden_state(&self, level: usize, tokens: usize) -> crate::ops::Matrix<'_, B> {
        match self.layers.get(level) {
            Some(layer) => layer.input.top(tokens),
            None => self.normed.top(tokens),
        }
    }

    /// The residual stream after `level` layers (0: the embeddings), without the final norm, after a forward pass.
    pub fn residual(&self, level: usize, tokens: usize) -> crate::ops::Matrix<'_, B> {
        self.layers.get(level).map_or(&self.last_residual, |layer| &layer.input).top(tokens)
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
