//! The forward pass.

use std::sync::Arc;

use super::adapter::Site;
use super::{Adapter, Block, DeviceBatch, ModelConfig, ParameterLayout, Parameters, Workspace};
use crate::error::Result;
use crate::ops::{self, Backend, Dropout, Matrix, MatrixMut, RopeTable, Tensor};

/// A transformer's architecture on a device, without weights: the same value computes with attacked, original and
/// reference weights.
pub struct Model<B: Backend> {
    /// The architecture.
    pub config: ModelConfig,
    /// The device.
    pub backend: B,
    pub(super) layout: Arc<ParameterLayout>,
    rope: RopeTable<B>,
    positions: usize,
}

impl<B: Backend> Model<B> {
    /// A model for sequences of up to `positions` tokens.
    pub fn new(backend: B, config: ModelConfig, positions: usize) -> Result<Self> {
        let layout = Arc::new(ParameterLayout::for_model(&config));
        let rope = config.rope_table(&backend, positions)?;
        Ok(Self { config, backend, layout, rope, positions })
    }

    /// Where each weight lies in a flat buffer.
    pub fn layout(&self) -> Arc<ParameterLayout> {
        Arc::clone(&self.layout)
    }

    /// The longest sequence it was made for.
    pub fn positions(&self) -> usize {
        self.positions
    }

    pub(super) fn rope_table(&self) -> &RopeTable<B> {
        &self.rope
    }

    /// Computes all activations of `batch` into `workspace`; the last one is the final norm's output, which the loss
    /// heads of [`crate::objective`] read.
    pub fn forward(
        &self,
        weights: &Parameters<B>,
        adapter: Option<&Adapter<B>>,
        dropout: Option<Dropout>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let (backend, tokens) = (&self.backend, batch.len());
        workspace.check_fits(tokens)?;
        let embedding = weights.matrix(self.layout.embed_tokens());
        ops::embedding_forward(backend, batch.tokens.view(), embedding, workspace.layers[0].input.top_mut(tokens))?;
        for layer in 0..self.config.num_hidden_layers {
            self.forward_attention(weights, adapter, dropout, batch, workspace, layer)?;
            self.forward_mlp(weights, adapter, dropout, workspace, layer, tokens)?;
        }
        let Workspace { layers, last_residual, normed, inverse_rms, delta, .. } = workspace;
        let last = &layers[layers.len() - 1];
        ops::rms_norm_forward(
            backend,
            last.middle.top(tokens),
            Some(delta.top(tokens)),
            weights.matrix(self.layout.final_norm()),
            self.config.rms_norm_eps,
            Some(last_residual.top_mut(tokens)),
            normed.top_mut(tokens),
            inverse_rms.top_mut(tokens),
        )
    }

    /// input = previous middle + delta (layer 0: the embeddings); normed₁ = norm(input); qkv = rope(normed₁ Wᵀ);
    /// attention; delta = attention Wₒᵀ.
    fn forward_attention(
        &self,
        weights: &Parameters<B>,
        adapter: Option<&Adapter<B>>,
        dropout: Option<Dropout>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        layer: usize,
    ) -> Result<()> {
        let (backend, tokens, blocks) = (&self.backend, batch.len(), self.layout.layer(layer));
        let shape = self.config.attention();
        let Workspace { layers, delta, .. } = workspace;
        let (before, rest) = layers.split_at_mut(layer);
        let a = &mut rest[0];
        let (residual, added, sum) = match before.last() {
            None => (a.input.top(tokens), None, None),
            Some(previous) => (previous.middle.top(tokens), Some(delta.top(tokens)), Some(a.input.top_mut(tokens))),
        };
        ops::rms_norm_forward(
            backend,
            residual,
            added,
            weights.matrix(blocks.input_layernorm),
            self.config.rms_norm_eps,
            sum,
            a.attention_input.top_mut(tokens),
            a.attention_inverse_rms.top_mut(tokens),
        )?;
        let linear = Linear { model: self, weights, adapter, dropout, layer };
        let [low_qkv, low_output, ..] = &mut a.low_rank;
        linear.forward(Site::Qkv, blocks.qkv, a.attention_input.top(tokens), low_qkv, a.qkv.top_mut(tokens))?;
        ops::rope(backend, a.qkv.top_mut(tokens), batch.positions.view(), &self.rope, shape, false)?;
        ops::attention_forward(
            backend,
            a.qkv.top(tokens),
            &batch.segments,
            shape,
            a.attention.top_mut(tokens),
            a.log_sum_exp.top_mut(tokens),
        )?;
        linear.forward(Site::Output, blocks.o_proj, a.attention.top(tokens), low_output, delta.top_mut(tokens))
    }

    /// middle = input + delta; normed₂ = norm(middle); h = silu(gate)·up; delta = h Wᵀ.
    fn forward_mlp(
        &self,
        weights: &Parameters<B>,
        adapter: Option<&Adapter<B>>,
        dropout: Option<Dropout>,
        workspace: &mut Workspace<B>,
        layer: usize,
        tokens: usize,
    ) -> Result<()> {
        let (backend, blocks) = (&self.backend, self.layout.layer(layer));
        let Workspace { layers, delta, .. } = workspace;
        let a = &mut layers[layer];
        ops::rms_norm_forward(
            backend,
            a.input.top(tokens),
            Some(delta.top(tokens)),
            weights.matrix(blocks.post_attention_layernorm),
            self.config.rms_norm_eps,
            Some(a.middle.top_mut(tokens)),
            a.mlp_input.top_mut(tokens),
            a.mlp_inverse_rms.top_mut(tokens),
        )?;
        let linear = Linear { model: self, weights, adapter, dropout, layer };
        let [.., low_gate_up, low_down] = &mut a.low_rank;
        linear.forward(
            Site::GateUp,
            blocks.gate_up,
            a.mlp_input.top(tokens),
            low_gate_up,
            a.gate_up.top_mut(tokens),
        )?;
        ops::swiglu_forward(backend, a.gate_up.top(tokens), a.mlp_hidden.top_mut(tokens))?;
        linear.forward(Site::Down, blocks.down_proj, a.mlp_hidden.top(tokens), low_down, delta.top_mut(tokens))
    }

    /// The logits of chosen rows of the last forward pass, on the host: [rows.len(), V], row by row.
    pub fn logits(&self, weights: &Parameters<B>, workspace: &Workspace<B>, rows: &[u32]) -> Result<Vec<f32>> {
        self.logits_of(weights, workspace.normed.view(), rows)
    }

    /// The logits of chosen rows of a final norm's output, on the host.
    pub(super) fn logits_of(&self, weights: &Parameters<B>, normed: Matrix<B>, rows: &[u32]) -> Result<Vec<f32>> {
        let (backend, dtype) = (&self.backend, self.backend.compute_dtype());
        let indices = Tensor::from_u32(backend, "logit rows", rows)?;
        let mut hidden = Tensor::zeros(backend, "logit inputs", rows.len(), self.config.hidden_size, dtype)?;
        ops::gather_rows(backend, normed, indices.view(), hidden.view_mut())?;
        let mut logits = Tensor::zeros(backend, "logits", rows.len(), self.config.vocab_size, dtype)?;
        ops::linear_forward(backend, hidden.view(), weights.matrix(self.layout.lm_head()), logits.view_mut())?;
        logits.to_vec(backend)
    }
}

/// A fused linear layer with its adapters; one value per pass and layer.
pub(super) struct Linear<'a, B: Backend> {
    pub model: &'a Model<B>,
    pub weights: &'a Parameters<B>,
    pub adapter: Option<&'a Adapter<B>>,
    pub dropout: Option<Dropout>,
    pub layer: usize,
}

impl<B: Backend> Linear<'_, B> {
    /// The dropout of a site: the same key with the site's number.
    pub(super) fn dropout_at(&self, site: Site) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout { site: (self.layer * 4 + site as usize) as u32, ..dropout })
    }

    /// y = x wᵀ + Σ scale · (x aᵀ) bᵀ.
    pub(super) fn forward(
        &self,
        site: Site,
        block: Block,
        x: Matrix<B>,
        low_rank: &mut Option<Tensor<B>>,
        mut y: MatrixMut<B>,
    ) -> Result<()> {
        let backend = &self.model.backend;
        ops::linear_forward(backend, x, self.weights.matrix(block), y.reborrow())?;
        let Some(adapter) = self.adapter else { return Ok(()) };
        let rank = adapter.site_rank(self.layer, site);
        if rank == 0 {
            return Ok(());
        }
        let Some(s) = low_rank else {
            return Err(ops::shape_error("Model::forward", "the workspace was made without this adapter".into()));
        };
        let (slices, dropout) = (adapter.slices(self.layer, site), self.dropout_at(site));
        ops::lora_forward(backend, x, &slices, dropout, s.shaped_mut(x.rows, rank), y)
    }
}
