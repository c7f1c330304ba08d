//! The backward pass, in the reverse order of `forward.rs`.

use super::adapter::Site;
use super::forward::{LayerPass, Linear, Residual};
use super::per_layer::PerLayer;
use super::{
    Block, DeviceBatch, GradientViewMut, Gradients, Model, Parameters, PartGradient, Recompute, Subject, Workspace,
};
use crate::error::Result;
use crate::ops::{self, Backend, Matrix, MatrixMut, RecordingKey, Tensor};

/// The buffers that a backward pass adds its gradients to. A gradient without a destination is not computed.
pub struct GradientDestinations<'a, B: Backend> {
    /// The gradient of the model's weights. With an adapter in the forward pass it is the gradient at the merged weights
    /// W + s·BA.
    pub weights: Option<GradientViewMut<'a, B>>,
    /// The gradient of the adapter's factors.
    pub adapter: Option<&'a mut Gradients<B>>,
}

impl<'a, B: Backend> GradientDestinations<'a, B> {
    /// The gradient of the model's weights alone.
    pub fn of_weights(gradients: &'a mut Gradients<B>) -> Self {
        Self { weights: Some(gradients.view_mut()), adapter: None }
    }

    /// The gradient of one part of the model's weights.
    pub fn of_part(gradients: &'a mut PartGradient<B>) -> Self {
        Self { weights: Some(gradients.view_mut()), adapter: None }
    }

    /// The gradient of the adapter's factors alone.
    pub fn of_adapter(gradients: &'a mut Gradients<B>) -> Self {
        Self { weights: None, adapter: Some(gradients) }
    }

    /// No gradient: the backward pass reaches every hidden state and keeps nothing.
    pub fn nowhere() -> Self {
        Self { weights: None, adapter: None }
    }

    /// Adds their memory to a recording's key.
    pub(crate) fn add_to_key(&self, key: &mut RecordingKey) {
        key.optional_buffer(self.weights.as_ref().map(GradientViewMut::buffer));
        key.optional_buffer(self.adapter.as_ref().map(|gradients| gradients.flat().buffer));
    }

    /// The gradient of one matrix of the weights, where it is wanted.
    pub fn weight(&mut self, block: Block) -> Option<MatrixMut<'_, B>> {
        self.weights.as_mut().map(|gradients| gradients.matrix_mut(block))
    }
}

/// A loss on hidden states. The backward pass calls it at every depth from L down to 0.
pub trait HiddenGradient<B: Backend> {
    /// Adds to `gradient` [T, d] the gradient with respect to `hidden` [T, d], the hidden state of depth `level`.
    fn add(&mut self, level: usize, hidden: Matrix<B>, gradient: MatrixMut<B>) -> Result<()>;
}

impl<B: Backend> Model<B> {
    /// Gradients of the loss whose gradient with respect to the final norm's output is in the workspace (a loss head put
    /// it there). `subject` and `batch` are the forward pass's.
    pub fn backward(
        &self,
        subject: Subject<B>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        mut destinations: GradientDestinations<B>,
        mut hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        let tokens = batch.len();
        let layers = self.config.num_hidden_layers;
        workspace.check_fits(tokens)?;
        if let Some(hidden) = hidden.as_deref_mut() {
            hidden.add(layers, workspace.normed.top(tokens), workspace.d_normed.top_mut(tokens))?;
        }
        self.backward_final_norm(subject.weights, tokens, workspace, &mut destinations)?;
        self.backward_layers(layers, subject, batch, workspace, destinations, hidden)
    }

    /// Gradients of a loss on hidden states of depth `depth` and before alone, after [`Model::forward_to`].
    pub(crate) fn backward_from(
        &self,
        depth: usize,
        subject: Subject<B>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        destinations: GradientDestinations<B>,
        hidden: &mut dyn HiddenGradient<B>,
    ) -> Result<()> {
        let tokens = batch.len();
        if depth == self.config.num_hidden_layers {
            workspace.clear_head_gradient(&self.backend, tokens)?;
            return self.backward(subject, batch, workspace, destinations, Some(hidden));
        }
        workspace.check_fits(tokens)?;
        self.backend.run(ops::Clear { to: workspace.d_residual.top_mut(tokens) })?;
        let Workspace { layers, d_residual, .. } = workspace;
        hidden.add(depth, layers.input[depth].top(tokens), d_residual.top_mut(tokens))?;
        self.backward_layers(depth, subject, batch, workspace, destinations, Some(hidden))
    }

    /// The backward pass of the first `count` layers and of the embedding.
    fn backward_layers(
        &self,
        count: usize,
        subject: Subject<B>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        mut destinations: GradientDestinations<B>,
        mut hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        let tokens = batch.len();
        for layer in (0..count).rev() {
            let pass = LayerPass { linear: Linear { model: self, subject, layer }, tokens };
            pass.backward(batch, workspace, &mut destinations)?;
            if let Some(hidden) = hidden.as_deref_mut() {
                let Workspace { layers, d_residual, .. } = workspace;
                hidden.add(layer, layers.input[layer].top(tokens), d_residual.top_mut(tokens))?;
            }
        }
        self.backward_embedding(batch, workspace, &mut destinations)
    }

    /// Turns the gradient of the final norm's output into the gradient of the residual stream in front of it.
    pub(super) fn backward_final_norm(
        &self,
        weights: &Parameters<B>,
        tokens: usize,
        workspace: &mut Workspace<B>,
        destinations: &mut GradientDestinations<B>,
    ) -> Result<()> {
        let block = self.layout().final_norm();
        self.backend.run(ops::Clear { to: workspace.d_residual.top_mut(tokens) })?;
        self.backend.run(ops::RmsNormBackward {
            d_normed: workspace.d_normed.top(tokens),
            x: workspace.last_residual.top(tokens),
            weight: weights.matrix(block),
            inverse_rms: workspace.inverse_rms.top(tokens),
            d_residual: workspace.d_residual.top_mut(tokens),
            d_weight: destinations.weight(block),
        })
    }

    /// Turns the gradient of the embeddings into the gradient of their table.
    pub(super) fn backward_embedding(
        &self,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        destinations: &mut GradientDestinations<B>,
    ) -> Result<()> {
        let Some(d_table) = destinations.weight(self.layout().embed_tokens()) else { return Ok(()) };
        let d_residual = workspace.d_residual.top(batch.len());
        self.backend.run(ops::EmbeddingBackward { ids: batch.tokens.view(), d_out: d_residual, d_table })
    }
}

/// The backward pass of one layer. It turns `d_residual` from the gradient of the layer's output into the gradient of its
/// input: the residual connections pass it on, and each norm adds the gradient of its branch.
impl<B: Backend> LayerPass<'_, B> {
    pub(super) fn backward(
        &self,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        destinations: &mut GradientDestinations<B>,
    ) -> Result<()> {
        self.restore(batch, workspace)?;
        self.mlp_backward(workspace, destinations)?;
        self.attention_backward(batch, workspace, destinations)
    }

    /// Computes again what this layer had to share with those after it.
    fn restore(&self, batch: &DeviceBatch<B>, workspace: &mut Workspace<B>) -> Result<()> {
        if workspace.recompute() == Recompute::Nothing {
            return Ok(());
        }
        self.attention_norm(workspace, Residual::Kept)?;
        if workspace.runs_again(self.linear.layer, self.tokens) {
            self.attention_branch(batch, workspace)?;
            self.mlp_norm(workspace, Residual::Summed)?;
            self.gate_up(workspace)?;
            self.activate(workspace)?;
            // Backward needs no output of the layer, but it needs the low-rank product that the last projection keeps.
            return if self.linear.rank(Site::Down) > 0 { self.down(workspace) } else { Ok(()) };
        }
        if workspace.layers.rotated.is_some() {
            self.rotate(batch, workspace)?;
        }
        self.mlp_norm(workspace, Residual::Kept)?;
        self.activate(workspace)
    }

    fn mlp_backward(&self, workspace: &mut Workspace<B>, destinations: &mut GradientDestinations<B>) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let backend = &model.backend;
        let blocks = model.layout().layer(layer);
        let Workspace { layers: a, d_residual, d_input, d_gate_up, d_mlp_hidden, d_low_rank, .. } = workspace;
        let operands = |site, block, x, s| Operands { site, block, x, s };
        self.linear_backward(
            operands(Site::Down, blocks.down_proj, a.mlp_hidden.top(layer, tokens), &a.low_rank[Site::Down as usize]),
            d_residual.top(tokens),
            d_low_rank,
            d_mlp_hidden.top_mut(tokens),
            destinations,
        )?;
        backend.run(ops::SwigluBackward {
            d_h: d_mlp_hidden.top(tokens),
            gate_up: a.gate_up.top(layer, tokens),
            d_gate_up: d_gate_up.top_mut(tokens),
        })?;
        self.linear_backward(
            operands(Site::GateUp, blocks.gate_up, a.mlp_input.top(layer, tokens), &a.low_rank[Site::GateUp as usize]),
            d_gate_up.top(tokens),
            d_low_rank,
            d_input.top_mut(tokens),
            destinations,
        )?;
        let norm = blocks.post_attention_layernorm;
        backend.run(ops::RmsNormBackward {
            d_normed: d_input.top(tokens),
            x: a.middle.top(layer, tokens),
            weight: self.linear.subject.weights.matrix(norm),
            inverse_rms: a.mlp_inverse_rms.top(layer, tokens),
            d_residual: d_residual.top_mut(tokens),
            d_weight: destinations.weight(norm),
        })
    }

    fn attention_backward(
        &self,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        destinations: &mut GradientDestinations<B>,
    ) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let backend = &model.backend;
        let blocks = model.layout().layer(layer);
        let shape = model.config.attention();
        let Workspace { layers: a, d_residual, d_input, d_qkv, d_attention, d_low_rank, .. } = workspace;
        let operands = |site, block, x, s| Operands { site, block, x, s };
        self.linear_backward(
            operands(Site::Output, blocks.o_proj, a.attention.top(layer, tokens), &a.low_rank[Site::Output as usize]),
            d_residual.top(tokens),
            d_low_rank,
            d_attention.top_mut(tokens),
            destinations,
        )?;
        backend.run(ops::AttentionBackward {
            d_out: d_attention.top(tokens),
            qkv: a.rotated.as_ref().unwrap_or(&a.qkv).top(layer, tokens),
            out: a.attention.top(layer, tokens),
            log_sum_exp: a.log_sum_exp.top(layer, tokens),
            segments: &batch.segments,
            shape,
            d_qkv: d_qkv.top_mut(tokens),
        })?;
        backend.run(ops::Rope {
            qkv: d_qkv.top_mut(tokens),
            positions: batch.positions.view(),
            table: model.rope_table(),
            shape,
            inverse: true,
        })?;
        if let Some(norms) = blocks.head_norms {
            backend.run(ops::HeadNormBackward {
                qkv: a.qkv.top(layer, tokens),
                weight: self.linear.subject.weights.matrix(norms),
                epsilon: model.config.rms_norm_eps,
                shape,
                d_qkv: d_qkv.top_mut(tokens),
                d_weight: destinations.weight(norms),
            })?;
        }
        self.linear_backward(
            operands(Site::Qkv, blocks.qkv, a.attention_input.top(layer, tokens), &a.low_rank[Site::Qkv as usize]),
            d_qkv.top(tokens),
            d_low_rank,
            d_input.top_mut(tokens),
            destinations,
        )?;
        let norm = blocks.input_layernorm;
        backend.run(ops::RmsNormBackward {
            d_normed: d_input.top(tokens),
            x: a.input[layer].top(tokens),
            weight: self.linear.subject.weights.matrix(norm),
            inverse_rms: a.attention_inverse_rms.top(layer, tokens),
            d_residual: d_residual.top_mut(tokens),
            d_weight: destinations.weight(norm),
        })
    }

    /// dx = dy w, dw += dyᵀ x, d_bias += Σ dy, and the adapters' share of dx and their own gradients.
    fn linear_backward(
        &self,
        operands: Operands<B>,
        dy: Matrix<B>,
        d_low_rank: &mut [Option<Tensor<B>>; 4],
        mut dx: MatrixMut<B>,
        destinations: &mut GradientDestinations<B>,
    ) -> Result<()> {
        let Operands { site, block, x, s } = operands;
        let backend = &self.linear.model.backend;
        backend.run(ops::LinearBackwardInput {
            dy,
            w: self.linear.subject.weights.matrix(block),
            dx: dx.reborrow(),
            accumulate: false,
        })?;
        if let Some(dw) = destinations.weight(block) {
            backend.run(ops::LinearBackwardWeight { dy, x, dw })?;
        }
        let bias = self.linear.model.layout().layer(self.linear.layer).bias(site);
        if let Some(d_bias) = bias.and_then(|bias| destinations.weight(bias)) {
            backend.run(ops::BiasBackward { dy, d_bias })?;
        }
        let (Some(adapter), Some(s), Some(ds)) = (self.linear.subject.adapter, s, &mut d_low_rank[site as usize])
        else {
            return Ok(());
        };
        let rank = self.linear.rank(site);
        if rank == 0 {
            return Ok(());
        }
        let gradients = destinations.adapter.as_mut().map(|g| g.buffer_mut());
        backend.run(ops::LoraBackward {
            dy,
            x,
            s: s.shaped(self.linear.layer, dy.rows, rank),
            slices: &adapter.slices(self.linear.layer, site),
            dropout: self.linear.dropout_at(site),
            gradients,
            ds: ds.shaped_mut(dy.rows, rank),
            dx,
        })
    }
}

/// The operands of a fused linear layer in the forward pass.
struct Operands<'a, B: Backend> {
    site: Site,
    block: Block,
    x: Matrix<'a, B>,
    s: &'a Option<PerLayer<B>>,
}
