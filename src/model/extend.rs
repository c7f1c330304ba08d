//! The forward pass of new tokens alone, whose predecessors are in a cache: generation, and texts with a common beginning.

use super::adapter::Site;
use super::forward::Linear;
use super::{Adapter, CachedSequence, KeyValueCache, Model, ModelConfig, Parameters, Subject};
use crate::error::{Error, Result};
use crate::ops::{self, Backend, CachedSegments, DType, HeadLoss, Tensor};

/// Tokens to append to a cached sequence.
pub struct Extension<'a> {
    /// The sequence so far.
    pub sequence: &'a mut CachedSequence,
    /// The tokens to append.
    pub tokens: &'a [u32],
}

/// Activations of one layer at a time, for up to a fixed number of new tokens: nothing is kept for a backward pass.
pub struct ExtendWorkspace<B: Backend> {
    capacity: usize,
    /// The residual stream, and what it becomes, [T, d] each.
    residual: Tensor<B>,
    next_residual: Tensor<B>,
    /// Output of o_proj or down_proj before it joins the residual stream, [T, d].
    delta: Tensor<B>,
    /// Output of a norm, [T, d].
    normed: Tensor<B>,
    inverse_rms: Tensor<B>,
    qkv: Tensor<B>,
    /// Heads after norms of their own, in families that have them; without, `qkv` is rotated in place.
    rotated: Option<Tensor<B>>,
    attention: Tensor<B>,
    gate_up: Tensor<B>,
    mlp_hidden: Tensor<B>,
    /// x Aᵀ of each adapted site.
    low_rank: [Option<Tensor<B>>; 4],
}

impl<B: Backend> ExtendWorkspace<B> {
    /// Room for `capacity` new tokens, without an adapter or with `adapter`.
    pub fn new(backend: &B, config: &ModelConfig, capacity: usize, adapter: Option<&Adapter<B>>) -> Result<Self> {
        let compute = backend.compute_dtype();
        let matrix = |name: &str, cols: usize| Tensor::zeros(backend, name, capacity, cols, compute);
        let d = config.hidden_size;
        let f = config.intermediate_size;
        let shape = config.attention();
        let head_norms = config.family.description().head_norms;
        let mut low_rank = [None, None, None, None];
        for site in Site::ALL {
            let rank = adapter.map_or(0, |adapter| adapter.config.site_rank(site));
            if rank > 0 {
                low_rank[site as usize] = Some(matrix("low rank", rank)?);
            }
        }
        Ok(Self {
            capacity,
            residual: matrix("residual", d)?,
            next_residual: matrix("residual", d)?,
            delta: matrix("delta", d)?,
            normed: matrix("normed", d)?,
            inverse_rms: Tensor::zeros(backend, "inverse rms", capacity, 1, DType::F32)?,
            qkv: matrix("qkv", shape.qkv_cols())?,
            rotated: if head_norms { Some(matrix("rotated heads", shape.qkv_cols())?) } else { None },
            attention: matrix("attention", shape.query_cols())?,
            gate_up: matrix("gate and up", 2 * f)?,
            mlp_hidden: matrix("mlp hidden", f)?,
            low_rank,
        })
    }

    /// The most tokens that one call can append.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// The tables of a batch of new tokens that the layers read.
struct NewTokens<B: Backend> {
    tokens: Tensor<B>,
    positions: Tensor<B>,
    segments: CachedSegments<B>,
}

impl<B: Backend> Model<B> {
    /// Appends tokens to sequences: computes them through all layers, with their predecessors' keys and values from `cache`,
    /// which takes in theirs. `workspace` then holds the final norm's output, a row for each token in order of `extensions`;
    /// see [`Model::extended_logits`].
    ///
    /// Fails if a token is outside the vocabulary, if a sequence grows beyond [`Model::positions`], and if workspace or cache
    /// are too small. After an error the sequences may have slots without keys and values: release them.
    pub fn extend(
        &self,
        weights: &Parameters<B>,
        adapter: Option<&Adapter<B>>,
        cache: &mut KeyValueCache<B>,
        extensions: &mut [Extension],
        workspace: &mut ExtendWorkspace<B>,
    ) -> Result<()> {
        self.check_extensions(extensions, workspace.capacity)?;
        for Extension { sequence, tokens } in &mut *extensions {
            cache.grow(sequence, tokens.len())?;
        }
        let new = self.new_tokens(extensions)?;
        let backend = &self.backend;
        let rows = new.segments.tokens();
        if rows == 0 {
            return Ok(());
        }
        let embedding = weights.matrix(self.layout.embed_tokens());
        backend.run(ops::GatherRows {
            from: embedding,
            indices: new.tokens.view(),
            out: workspace.residual.top_mut(rows),
        })?;
        for layer in 0..self.config.num_hidden_layers {
            let linear = Linear { model: self, subject: Subject { weights, adapter, dropout: None }, layer };
            self.extend_attention(&linear, &new, &mut cache.layers[layer], workspace)?;
            self.extend_mlp(&linear, workspace, rows)?;
        }
        self.add_and_norm(weights, self.layout.final_norm(), workspace, rows, true)
    }

    /// The logits of chosen rows of the last [`Model::extend`], on the host: [rows.len(), V], row by row.
    pub fn extended_logits(
        &self,
        weights: &Parameters<B>,
        workspace: &ExtendWorkspace<B>,
        rows: &[u32],
    ) -> Result<Vec<f32>> {
        self.logits_of(weights, workspace.normed.view(), rows)
    }

    /// The log-probability of `targets[i]` after row `rows[i]` of the last [`Model::extend`], on the host. Other than
    /// [`Model::extended_logits`] it never rounds a logit to the compute dtype.
    pub fn extended_log_probabilities(
        &self,
        weights: &Parameters<B>,
        workspace: &ExtendWorkspace<B>,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Vec<f64>> {
        let backend = &self.backend;
        let count = rows.len();
        let indices = Tensor::from_u32(backend, "scored rows", rows)?;
        let targets = Tensor::from_u32(backend, "targets", targets)?;
        let ones = Tensor::from_f32(backend, "weights", count, 1, &vec![1.0; count])?;
        let mut hidden =
            Tensor::zeros(backend, "scored inputs", count, self.config.hidden_size, backend.compute_dtype())?;
        let mut values = Tensor::zeros(backend, "cross-entropies", count, 1, DType::F32)?;
        backend.run(ops::GatherRows {
            from: workspace.normed.view(),
            indices: indices.view(),
            out: hidden.view_mut(),
        })?;
        backend.run(ops::LossHead {
            loss: HeadLoss::CrossEntropy,
            hidden: hidden.view(),
            head: weights.matrix(self.layout.lm_head()),
            targets: targets.view(),
            teacher: None,
            weights: ones.view(),
            values: values.view_mut(),
            gradients: None,
        })?;
        Ok(values.to_vec(backend)?.iter().map(|&loss| -f64::from(loss)).collect())
    }

    fn check_extensions(&self, extensions: &[Extension], capacity: usize) -> Result<()> {
        let rows: usize = extensions.iter().map(|extension| extension.tokens.len()).sum();
        if rows > capacity {
            return Err(ops::shape_error("Model::extend", format!("{rows} new tokens are more than {capacity}")));
        }
        for Extension { sequence, tokens } in extensions {
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                let problem = format!("token id {id} is outside the model's vocabulary of {}", self.config.vocab_size);
                return Err(Error::config("data", problem, "use the tokenizer that belongs to the model"));
            }
            let length = sequence.len() + tokens.len();
            let most = self.positions();
            if length > most {
                let problem = format!("a text of {length} tokens is longer than the {most} positions of the model");
                return Err(Error::config("data", problem, "give shorter texts or raise max_length"));
            }
        }
        Ok(())
    }

    /// The tables of a batch whose sequences have their new slots already.
    fn new_tokens(&self, extensions: &[Extension]) -> Result<NewTokens<B>> {
        let tokens: Vec<u32> = extensions.iter().flat_map(|e| e.tokens).copied().collect();
        let positions = |e: &Extension| (e.sequence.len() - e.tokens.len()) as u32..e.sequence.len() as u32;
        let positions: Vec<u32> = extensions.iter().flat_map(positions).collect();
        let table: Vec<(usize, &[u32])> = extensions.iter().map(|e| (e.tokens.len(), e.sequence.slots())).collect();
        Ok(NewTokens {
            tokens: Tensor::from_u32(&self.backend, "new tokens", &tokens)?,
            positions: Tensor::from_u32(&self.backend, "positions", &positions)?,
            segments: CachedSegments::new(&self.backend, self.config.attention(), &table)?,
        })
    }

    /// residual = residual + delta where something was `added`; normed = norm(residual).
    fn add_and_norm(
        &self,
        weights: &Parameters<B>,
        norm: super::Block,
        workspace: &mut ExtendWorkspace<B>,
        rows: usize,
        added: bool,
    ) -> Result<()> {
        let w = workspace;
        let sum = added.then(|| w.next_residual.top_mut(rows));
        self.backend.run(ops::RmsNormForward {
            residual: w.residual.top(rows),
            delta: added.then(|| w.delta.top(rows)),
            weight: weights.matrix(norm),
            epsilon: self.config.rms_norm_eps,
            sum,
            normed: w.normed.top_mut(rows),
            inverse_rms: w.inverse_rms.top_mut(rows),
        })?;
        if added {
            std::mem::swap(&mut w.residual, &mut w.next_residual);
        }
        Ok(())
    }

    /// delta = attention(rope(norm(residual) Wᵀ)) Wₒᵀ; heads with norms have them before the rotation.
    fn extend_attention(
        &self,
        linear: &Linear<B>,
        new: &NewTokens<B>,
        cache: &mut Tensor<B>,
        workspace: &mut ExtendWorkspace<B>,
    ) -> Result<()> {
        let backend = &self.backend;
        let rows = new.segments.tokens();
        let blocks = self.layout.layer(linear.layer);
        self.add_and_norm(linear.subject.weights, blocks.input_layernorm, workspace, rows, linear.layer > 0)?;
        let w = workspace;
        let [low_qkv, low_output, ..] = &mut w.low_rank;
        let low_qkv = low_qkv.as_mut().map(|s| s.shaped_mut(rows, linear.rank(Site::Qkv)));
        let low_output = low_output.as_mut().map(|s| s.shaped_mut(rows, linear.rank(Site::Output)));
        linear.forward(Site::Qkv, blocks.qkv, w.normed.top(rows), low_qkv, w.qkv.top_mut(rows))?;
        if let Some(rotated) = &mut w.rotated {
            linear.head_norms(w.qkv.top(rows), rotated.top_mut(rows))?;
        }
        let heads = w.rotated.as_mut().unwrap_or(&mut w.qkv);
        backend.run(ops::Rope {
            qkv: heads.top_mut(rows),
            positions: new.positions.view(),
            table: self.rope_table(),
            shape: self.config.attention(),
            inverse: false,
        })?;
        let out = w.attention.top_mut(rows);
        backend.run(ops::AttentionCached {
            qkv: heads.top(rows),
            segments: &new.segments,
            cache: cache.view_mut(),
            out,
        })?;
        linear.forward(Site::Output, blocks.o_proj, w.attention.top(rows), low_output, w.delta.top_mut(rows))
    }

    /// residual = residual + delta; h = silu(gate)·up of norm(residual); delta = h Wᵀ.
    fn extend_mlp(&self, linear: &Linear<B>, workspace: &mut ExtendWorkspace<B>, rows: usize) -> Result<()> {
        let blocks = self.layout.layer(linear.layer);
        self.add_and_norm(linear.subject.weights, blocks.post_attention_layernorm, workspace, rows, true)?;
        let w = workspace;
        let [.., low_gate_up, low_down] = &mut w.low_rank;
        let low_gate_up = low_gate_up.as_mut().map(|s| s.shaped_mut(rows, linear.rank(Site::GateUp)));
        let low_down = low_down.as_mut().map(|s| s.shaped_mut(rows, linear.rank(Site::Down)));
        linear.forward(Site::GateUp, blocks.gate_up, w.normed.top(rows), low_gate_up, w.gate_up.top_mut(rows))?;
        self.backend.run(ops::SwigluForward { gate_up: w.gate_up.top(rows), h: w.mlp_hidden.top_mut(rows) })?;
        linear.forward(Site::Down, blocks.down_proj, w.mlp_hidden.top(rows), low_down, w.delta.top_mut(rows))
    }
}
