//! The forward pass.

use super::adapter::Site;
use super::per_layer::PerLayer;
use super::{Activations, Block, DeviceBatch, ModelConfig, ModelLayout, Parameters, Subject, Workspace};
use crate::error::Result;
use crate::ops::{self, Backend, Dropout, Matrix, MatrixMut, RopeTable, Tensor};

/// A transformer's architecture on a device, without weights: the same value computes with attacked, original and
/// reference weights.
pub struct Model<B: Backend> {
    /// The architecture.
    pub config: ModelConfig,
    /// The device.
    pub backend: B,
    pub(super) layout: ModelLayout,
    rope: RopeTable<B>,
    positions: usize,
}

impl<B: Backend> Model<B> {
    /// A model for sequences of up to `positions` tokens.
    pub fn new(backend: B, config: ModelConfig, positions: usize) -> Result<Self> {
        let layout = ModelLayout::new(&config)?;
        let rope = config.rope_table(&backend, positions)?;
        Ok(Self { config, backend, layout, rope, positions })
    }

    /// The places of the weights in a flat buffer.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
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
    pub fn forward(&self, subject: Subject<B>, batch: &DeviceBatch<B>, workspace: &mut Workspace<B>) -> Result<()> {
        self.forward_to(self.config.num_hidden_layers, subject, batch, workspace)
    }

    /// Computes the activations up to the hidden state of depth `depth`, numbered as in [`Workspace::hidden_state`].
    pub(crate) fn forward_to(
        &self,
        depth: usize,
        subject: Subject<B>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let weights = subject.weights;
        let backend = &self.backend;
        let tokens = batch.len();
        workspace.check_fits(tokens)?;
        let embedding = weights.matrix(self.layout.embed_tokens());
        let first = &mut workspace.layers.input[0];
        backend.run(ops::GatherRows { from: embedding, indices: batch.tokens.view(), out: first.top_mut(tokens) })?;
        let layers = self.config.num_hidden_layers;
        for layer in 0..depth.min(layers) {
            let pass = LayerPass { linear: Linear { model: self, subject, layer }, tokens };
            pass.forward(batch, workspace)?;
        }
        if depth < layers {
            let next = LayerPass { linear: Linear { model: self, subject, layer: depth }, tokens };
            // The hidden state is the sum that the next layer's first norm makes.
            return next.attention_norm(workspace, if depth == 0 { Residual::Kept } else { Residual::Summed });
        }
        let Workspace { layers: a, last_residual, normed, inverse_rms, delta, .. } = workspace;
        backend.run(ops::RmsNormForward {
            residual: a.middle.top(layers - 1, tokens),
            delta: Some(delta.top(tokens)),
            weight: weights.matrix(self.layout.final_norm()),
            epsilon: self.config.rms_norm_eps,
            sum: Some(last_residual.top_mut(tokens)),
            normed: normed.top_mut(tokens),
            inverse_rms: inverse_rms.top_mut(tokens),
        })
    }

    /// The logits of chosen rows of the last forward pass, on the host: [rows.len(), V], row by row.
    pub fn logits(&self, weights: &Parameters<B>, workspace: &Workspace<B>, rows: &[u32]) -> Result<Vec<f32>> {
        self.logits_of(weights, workspace.normed.view(), rows)
    }

    /// The logits of chosen rows of a final norm's output, on the host.
    pub(super) fn logits_of(&self, weights: &Parameters<B>, normed: Matrix<B>, rows: &[u32]) -> Result<Vec<f32>> {
        let backend = &self.backend;
        let dtype = self.backend.compute_dtype();
        let indices = Tensor::from_u32(backend, "logit rows", rows)?;
        let mut hidden = Tensor::zeros(backend, "logit inputs", rows.len(), self.config.hidden_size, dtype)?;
        backend.run(ops::GatherRows { from: normed, indices: indices.view(), out: hidden.view_mut() })?;
        let mut logits = Tensor::zeros(backend, "logits", rows.len(), self.config.vocab_size, dtype)?;
        backend.run(ops::LinearForward {
            x: hidden.view(),
            w: weights.matrix(self.layout.lm_head()),
            y: logits.view_mut(),
        })?;
        logits.to_vec(backend)
    }
}

/// One layer of a pass over `tokens` tokens. What it keeps is in the workspace; `delta` carries the output of a branch
/// to the norm that adds it to the residual stream.
pub(super) struct LayerPass<'a, B: Backend> {
    pub linear: Linear<'a, B>,
    pub tokens: usize,
}

/// The source of the residual stream in front of a norm.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Residual {
    /// The norm adds the output of the branch before it to the stream before that branch, and keeps the sum.
    Summed,
    /// An earlier pass kept the sum.
    Kept,
}

impl<B: Backend> LayerPass<'_, B> {
    fn forward(&self, batch: &DeviceBatch<B>, workspace: &mut Workspace<B>) -> Result<()> {
        let embedded = self.linear.layer == 0;
        self.attention_norm(workspace, if embedded { Residual::Kept } else { Residual::Summed })?;
        self.attention_branch(batch, workspace)?;
        self.mlp_norm(workspace, Residual::Summed)?;
        self.gate_up(workspace)?;
        self.activate(workspace)?;
        self.down(workspace)
    }

    /// input = the previous layer's middle + delta; attention_input = norm(input).
    pub(super) fn attention_norm(&self, workspace: &mut Workspace<B>, residual: Residual) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Workspace { layers, delta, .. } = workspace;
        let Activations { input, middle, attention_input, attention_inverse_rms, .. } = layers;
        let (residual, added, sum) = match residual {
            Residual::Kept => (input[layer].top(tokens), None, None),
            Residual::Summed => {
                (middle.top(layer - 1, tokens), Some(delta.top(tokens)), Some(input[layer].top_mut(tokens)))
            }
        };
        model.backend.run(ops::RmsNormForward {
            residual,
            delta: added,
            weight: self.linear.subject.weights.matrix(model.layout.layer(layer).input_layernorm),
            epsilon: model.config.rms_norm_eps,
            sum,
            normed: attention_input.top_mut(layer, tokens),
            inverse_rms: attention_inverse_rms.top_mut(layer, tokens),
        })
    }

    /// qkv = attention_input Wᵀ; attention of its rotated heads; delta = attention Wₒᵀ.
    pub(super) fn attention_branch(&self, batch: &DeviceBatch<B>, workspace: &mut Workspace<B>) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let backend = &model.backend;
        let blocks = model.layout.layer(layer);
        let Activations { attention_input, qkv, low_rank, .. } = &mut workspace.layers;
        let low_qkv = self.low_rank(&mut low_rank[Site::Qkv as usize], Site::Qkv);
        let x = attention_input.top(layer, tokens);
        self.linear.forward(Site::Qkv, blocks.qkv, x, low_qkv, qkv.top_mut(layer, tokens))?;
        self.rotate(batch, workspace)?;
        let Workspace { layers, delta, .. } = workspace;
        let Activations { qkv, rotated, attention, log_sum_exp, low_rank, .. } = layers;
        let low_output = self.low_rank(&mut low_rank[Site::Output as usize], Site::Output);
        backend.run(ops::AttentionForward {
            qkv: rotated.as_ref().unwrap_or(qkv).top(layer, tokens),
            segments: &batch.segments,
            shape: model.config.attention(),
            out: attention.top_mut(layer, tokens),
            log_sum_exp: log_sum_exp.top_mut(layer, tokens),
        })?;
        let x = attention.top(layer, tokens);
        self.linear.forward(Site::Output, blocks.o_proj, x, low_output, delta.top_mut(tokens))
    }

    /// Rotates query and key heads: with norms of heads rotated = rope(norm(qkv)), else qkv = rope(qkv) in place.
    pub(super) fn rotate(&self, batch: &DeviceBatch<B>, workspace: &mut Workspace<B>) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Activations { qkv, rotated, .. } = &mut workspace.layers;
        if let Some(rotated) = rotated {
            self.linear.head_norms(qkv.top(layer, tokens), rotated.top_mut(layer, tokens))?;
        }
        model.backend.run(ops::Rope {
            qkv: rotated.as_mut().unwrap_or(qkv).top_mut(layer, tokens),
            positions: batch.positions.view(),
            table: &model.rope,
            shape: model.config.attention(),
            inverse: false,
        })
    }

    /// middle = input + delta; mlp_input = norm(middle).
    pub(super) fn mlp_norm(&self, workspace: &mut Workspace<B>, residual: Residual) -> Result<()> {
        let model = self.linear.model;
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Workspace { layers, delta, .. } = workspace;
        let Activations { input, middle, mlp_input, mlp_inverse_rms, .. } = layers;
        let (residual, added, sum) = match residual {
            Residual::Kept => (middle.top(layer, tokens), None, None),
            Residual::Summed => {
                (input[layer].top(tokens), Some(delta.top(tokens)), Some(middle.top_mut(layer, tokens)))
            }
        };
        model.backend.run(ops::RmsNormForward {
            residual,
            delta: added,
            weight: self.linear.subject.weights.matrix(model.layout.layer(layer).post_attention_layernorm),
            epsilon: model.config.rms_norm_eps,
            sum,
            normed: mlp_input.top_mut(layer, tokens),
            inverse_rms: mlp_inverse_rms.top_mut(layer, tokens),
        })
    }

    /// gate_up = mlp_input Wᵀ.
    pub(super) fn gate_up(&self, workspace: &mut Workspace<B>) -> Result<()> {
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Activations { mlp_input, gate_up, low_rank, .. } = &mut workspace.layers;
        let low_rank = self.low_rank(&mut low_rank[Site::GateUp as usize], Site::GateUp);
        let block = self.linear.model.layout.layer(layer).gate_up;
        let x = mlp_input.top(layer, tokens);
        self.linear.forward(Site::GateUp, block, x, low_rank, gate_up.top_mut(layer, tokens))
    }

    /// mlp_hidden = silu(gate)·up.
    pub(super) fn activate(&self, workspace: &mut Workspace<B>) -> Result<()> {
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Activations { gate_up, mlp_hidden, .. } = &mut workspace.layers;
        let backend = &self.linear.model.backend;
        backend.run(ops::SwigluForward { gate_up: gate_up.top(layer, tokens), h: mlp_hidden.top_mut(layer, tokens) })
    }

    /// This layer's place for x Aᵀ of a site.
    fn low_rank<'s>(&self, all: &'s mut Option<PerLayer<B>>, site: Site) -> Option<MatrixMut<'s, B>> {
        all.as_mut().map(|all| all.shaped_mut(self.linear.layer, self.tokens, self.linear.rank(site)))
    }

    /// delta = mlp_hidden Wᵀ.
    pub(super) fn down(&self, workspace: &mut Workspace<B>) -> Result<()> {
        let layer = self.linear.layer;
        let tokens = self.tokens;
        let Workspace { layers, delta, .. } = workspace;
        let low_rank = self.low_rank(&mut layers.low_rank[Site::Down as usize], Site::Down);
        let block = self.linear.model.layout.layer(layer).down_proj;
        let x = layers.mlp_hidden.top(layer, tokens);
        self.linear.forward(Site::Down, block, x, low_rank, delta.top_mut(tokens))
    }
}

/// A fused linear layer with its adapters; one value per pass and layer.
pub(super) struct Linear<'a, B: Backend> {
    pub model: &'a Model<B>,
    pub subject: Subject<'a, B>,
    pub layer: usize,
}

impl<B: Backend> Linear<'_, B> {
    /// The dropout of a site. Its key has the number of layer and site.
    pub(super) fn dropout_at(&self, site: Site) -> Option<Dropout> {
        self.subject.dropout.map(|dropout| Dropout { site: (self.layer * 4 + site as usize) as u32, ..dropout })
    }

    /// Rows of all adapters' A at a site.
    pub(super) fn rank(&self, site: Site) -> usize {
        self.subject.adapter.map_or(0, |adapter| adapter.config.site_rank(site))
    }

    /// The norms of query and key heads, in families that have them.
    pub(super) fn head_norms(&self, qkv: Matrix<B>, out: MatrixMut<B>) -> Result<()> {
        let Some(block) = self.model.layout.layer(self.layer).head_norms else { return Ok(()) };
        self.model.backend.run(ops::HeadNormForward {
            qkv,
            weight: self.subject.weights.matrix(block),
            epsilon: self.model.config.rms_norm_eps,
            shape: self.model.config.attention(),
            out,
        })
    }

    /// y = x wᵀ + bias + Σ scale · (x aᵀ) bᵀ; x aᵀ goes to `low_rank` [T, rank of the site].
    pub(super) fn forward(
        &self,
        site: Site,
        block: Block,
        x: Matrix<B>,
        low_rank: Option<MatrixMut<B>>,
        mut y: MatrixMut<B>,
    ) -> Result<()> {
        let backend = &self.model.backend;
        backend.run(ops::LinearForward { x, w: self.subject.weights.matrix(block), y: y.reborrow() })?;
        if let Some(bias) = self.model.layout.layer(self.layer).bias(site) {
            backend.run(ops::AddBias { bias: self.subject.weights.matrix(bias), y: y.reborrow() })?;
        }
        let Some(adapter) = self.subject.adapter else { return Ok(()) };
        let rank = self.rank(site);
        if rank == 0 {
            return Ok(());
        }
        let Some(s) = low_rank else {
            return Err(ops::shape_error("Model::forward", "the workspace was made without this adapter".into()));
        };
        let slices = adapter.slices(self.layer, site);
        let dropout = self.dropout_at(site);
        backend.run(ops::LoraForward { x, slices: &slices, dropout, s, y })
    }
}
