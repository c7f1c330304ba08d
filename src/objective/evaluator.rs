//! Forward, loss, backward: one method for each loss.

use std::sync::Arc;

use super::hidden::{RandomMapping, Recorder, RepresentationDistance};
use super::recordings::{Key, Recordings};
use super::{EntropyOver, LossBatch, LossTape, learned_weights, position_weights};
use crate::error::Result;
use crate::model::{
    Adapter, GradientTargets, HiddenGradient, HiddenStates, Model, Parameters, PartGradients, PartStep, Recompute,
    Workspace,
};
use crate::ops::{self, Backend, DType, Dropout, HeadGradients, HeadLoss, Tensor};

/// The weights that a loss is taken at.
pub struct Subject<'a, B: Backend> {
    /// The model's weights.
    pub weights: &'a Parameters<B>,
    /// Low-rank factors on top of them.
    pub adapter: Option<&'a Adapter<B>>,
    /// Dropout of the adapter's input.
    pub dropout: Option<Dropout>,
}

impl<B: Backend> Clone for Subject<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Subject<'_, B> {}

impl<'a, B: Backend> Subject<'a, B> {
    /// Weights without an adapter.
    pub fn plain(weights: &'a Parameters<B>) -> Self {
        Self { weights, adapter: None, dropout: None }
    }
}

/// A model with the memory to run it: computes losses and, where asked, their gradients.
pub struct Evaluator<B: Backend> {
    model: Arc<Model<B>>,
    workspace: Workspace<B>,
    /// Memory for a reference model's hidden states, from the first retain loss on.
    reference: Option<HiddenStates<B>>,
    recordings: Recordings<B>,
}

impl<B: Backend> Evaluator<B> {
    /// Memory for batches of up to `capacity` tokens, without an adapter or with any of `adapters`.
    pub fn new(model: Arc<Model<B>>, capacity: usize, adapters: &[&Adapter<B>]) -> Result<Self> {
        Self::recomputing(model, capacity, adapters, Recompute::Nothing)
    }

    /// As [`Evaluator::new`], with less memory for more arithmetic.
    pub fn recomputing(
        model: Arc<Model<B>>,
        capacity: usize,
        adapters: &[&Adapter<B>],
        recompute: Recompute,
    ) -> Result<Self> {
        let workspace = Workspace::new(&model.backend, &model.config, capacity, adapters, recompute)?;
        Ok(Self { model, workspace, reference: None, recordings: Recordings::default() })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    /// The largest batch in tokens.
    pub fn capacity(&self) -> usize {
        self.workspace.capacity()
    }

    /// The activations of the last forward pass.
    pub fn workspace(&self) -> &Workspace<B> {
        &self.workspace
    }

    /// Runs the forward pass alone.
    pub fn forward(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<()> {
        self.model.forward(subject.weights, subject.adapter, subject.dropout, &batch.device, &mut self.workspace)
    }

    /// Mean cross-entropy of the learned tokens into `tape[slot]`, and scale · gradient into `targets`.
    pub fn cross_entropy(
        &mut self,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        scale: f32,
        targets: Option<GradientTargets<B>>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let weights = learned_weights(&batch.targets, scale);
        self.pass(HeadLoss::CrossEntropy, subject, batch, &weights, scale, targets, None, tape, slot)
    }

    /// Mean cross-entropy of the learned tokens into `tape[slot]`, and a backward pass in which `step` takes each part of
    /// the weights as soon as its gradient is complete; see [`Model::backward_stepping`]. `identity` tells the memory and the
    /// rule of `step` from all others.
    #[allow(clippy::too_many_arguments)]
    pub fn cross_entropy_stepping(
        &mut self,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        gradients: &mut PartGradients<B>,
        (step, identity): (&mut PartStep<B>, u64),
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let backend = &self.model.backend.clone();
        self.weigh(batch, &learned_weights(&batch.targets, 1.0))?;
        let (loss, subject) = (HeadLoss::CrossEntropy, Subject::plain(weights));
        let targets = [gradients.identity(backend), identity];
        let key = Key::of(backend, loss, subject, batch, &self.workspace, targets);
        self.recorded(key, |evaluator| {
            let model = Arc::clone(&evaluator.model);
            evaluator.forward(Subject::plain(weights), batch)?;
            let mut head = GradientTargets { weights: Some(gradients.head(backend)?), adapter: None };
            evaluator.head(loss, Subject::plain(weights), batch, Some(&mut head))?;
            model.backward_stepping(weights, &batch.device, &mut evaluator.workspace, gradients, step)
        })?;
        self.note_loss(batch, 1.0, tape, slot)
    }

    /// Minus the mean entropy of the next-token distribution into `tape[slot]`, and scale · gradient into `targets`.
    ///
    /// TAR's tamper-resistance loss for knowledge (arXiv 2408.00761, section 4.2; the authors' `max_entropy_loss`).
    #[allow(clippy::too_many_arguments)]
    pub fn negative_entropy(
        &mut self,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        over: EntropyOver,
        scale: f32,
        targets: Option<GradientTargets<B>>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let weights = position_weights(&batch.host, over, scale);
        self.pass(HeadLoss::NegativeEntropy, subject, batch, &weights, scale, targets, None, tape, slot)
    }

    /// The hidden states of a reference model on `batch`, for [`Evaluator::retain`].
    pub fn hidden_states(&mut self, reference: &Parameters<B>, batch: &LossBatch<B>) -> Result<HiddenStates<B>> {
        let model = Arc::clone(&self.model);
        let mut states = match self.reference.take() {
            Some(states) => states,
            None => HiddenStates::new(&model.backend, &model.config, self.capacity())?,
        };
        model.forward(reference, None, None, &batch.device, &mut self.workspace)?;
        self.workspace.exchange_hidden_states(&mut states);
        Ok(states)
    }

    /// Cross-entropy into `tape[slot]`, the mean over all L+1 hidden states of the mean L2 distance to `reference` (of the
    /// same batch) into `tape[slot + 1]`, and scale · the gradient of their sum into `targets`.
    ///
    /// TAR's retain loss. The gradient of a distance of 0 is 0.
    #[allow(clippy::too_many_arguments)]
    pub fn retain(
        &mut self,
        subject: Subject<B>,
        reference: HiddenStates<B>,
        batch: &LossBatch<B>,
        over: EntropyOver,
        scale: f32,
        targets: GradientTargets<B>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let model = Arc::clone(&self.model);
        // The tape is written by the head and by the visitor of the backward pass, one after the other.
        let mut distances = LossTape::new(&model.backend, 1)?;
        let recorder = self.recorder(batch, over, scale, &model.backend, &mut distances, 0)?;
        let mut visitor = RepresentationDistance { recorder, reference: &reference };
        let weights = learned_weights(&batch.targets, scale);
        let loss = HeadLoss::CrossEntropy;
        let hidden: Option<&mut dyn HiddenGradient<B>> = Some(&mut visitor);
        self.pass(loss, subject, batch, &weights, scale, Some(targets), hidden, tape, slot)?;
        tape.take(&model.backend, slot + 1, &distances)?;
        self.reference = Some(reference);
        Ok(())
    }

    /// 1 − |cos| of every hidden state to its token's row of `table`, mean over depths and tokens, into `tape[slot]`, and
    /// scale · gradient into `targets`.
    #[allow(clippy::too_many_arguments)]
    pub fn random_mapping(
        &mut self,
        subject: Subject<B>,
        table: &Tensor<B>,
        batch: &LossBatch<B>,
        over: EntropyOver,
        scale: f32,
        targets: GradientTargets<B>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let model = Arc::clone(&self.model);
        self.forward(subject, batch)?;
        let len = batch.host.len() * model.config.hidden_size;
        model.backend.clear(self.workspace.d_normed.buffer_mut(), 0, len)?;
        let recorder = self.recorder(batch, over, scale, &model.backend, tape, slot)?;
        let mut visitor = RandomMapping { recorder, table, ids: &batch.device.tokens };
        let Subject { weights, adapter, dropout } = subject;
        let workspace = &mut self.workspace;
        model.backward(weights, adapter, dropout, &batch.device, workspace, targets, Some(&mut visitor))
    }

    /// Direct preference optimization (arXiv 2305.18290): the mean over pairs of −log σ(β(m − m_ref)) into `tape[slot]`,
    /// with m the log-probability of the chosen answer minus that of the rejected one, and scale · gradient.
    ///
    /// The segments of `batch` are chosen, rejected, chosen, …; `reference_margins` has m_ref of each pair.
    #[allow(clippy::too_many_arguments)]
    pub fn preference(
        &mut self,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        reference_margins: &[f32],
        beta: f32,
        scale: f32,
        targets: Option<GradientTargets<B>>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        let (model, tokens) = (Arc::clone(&self.model), batch.host.len());
        let backend = &model.backend;
        self.sequence_values(subject, batch)?;
        let margins = Tensor::from_f32(backend, "reference margins", reference_margins.len(), 1, reference_margins)?;
        let mut losses = Tensor::zeros(backend, "pair losses", reference_margins.len(), 1, DType::F32)?;
        let segments = &batch.device.segments;
        let Workspace { values, weights, .. } = &mut self.workspace;
        let (values, weights) = (values.top(tokens), weights.top_mut(tokens));
        ops::preference(backend, values, segments, margins.view(), beta, scale, weights, losses.view_mut())?;
        let ones = vec![1.0 / reference_margins.len() as f32; reference_margins.len()];
        let mean = Tensor::from_f32(backend, "pair weights", ones.len(), 1, &ones)?;
        tape.add(backend, slot, losses.view(), mean.view(), 1.0)?;
        let Some(mut targets) = targets else { return Ok(()) };
        self.head(HeadLoss::CrossEntropy, subject, batch, Some(&mut targets))?;
        let Subject { weights, adapter, dropout } = subject;
        model.backward(weights, adapter, dropout, &batch.device, &mut self.workspace, targets, None)
    }

    /// log p(chosen) − log p(rejected) of each pair: what [`Evaluator::preference`] wants of a reference model. Waits for
    /// the device.
    pub fn preference_margins(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<Vec<f32>> {
        let log_probabilities = self.sequence_log_probabilities(subject, batch)?;
        Ok(log_probabilities.chunks_exact(2).map(|pair| (pair[0] - pair[1]) as f32).collect())
    }

    /// Log-probability of the learned tokens of each sequence. Waits for the device.
    pub fn sequence_log_probabilities(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<Vec<f64>> {
        self.sequence_values(subject, batch)?;
        let values = self.model.backend.download_f32(self.workspace.values.buffer(), 0, batch.host.len())?;
        let sum = |rows: &[f32]| -rows.iter().map(|&v| f64::from(v)).sum::<f64>();
        Ok(batch.host.segments.iter().map(|s| sum(&values[s.start..s.start + s.length])).collect())
    }

    /// Forward, and each learned token's cross-entropy into the workspace's values; its weights are 1 there, else 0.
    fn sequence_values(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<()> {
        self.forward(subject, batch)?;
        let learned: Vec<f32> = batch.targets.iter().map(|&t| if t == ops::IGNORE_INDEX { 0.0 } else { 1.0 }).collect();
        self.model.backend.upload_f32(self.workspace.weights.buffer_mut(), 0, &learned)?;
        self.head(HeadLoss::CrossEntropy, subject, batch, None)
    }

    /// The loss head on the last forward pass, with the token weights that are in the workspace.
    fn head(
        &mut self,
        loss: HeadLoss,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        targets: Option<&mut GradientTargets<B>>,
    ) -> Result<()> {
        let (tokens, block) = (batch.host.len(), self.model.layout().lm_head());
        let Workspace { normed, d_normed, values, weights, .. } = &mut self.workspace;
        let gradients = targets.map(|targets| HeadGradients {
            d_hidden: d_normed.top_mut(tokens),
            d_head: targets.weights.as_mut().map(|gradients| gradients.matrix_mut(block)),
        });
        ops::loss_head(
            &self.model.backend,
            loss,
            normed.top(tokens),
            subject.weights.matrix(block),
            batch.device_targets.view(),
            weights.top(tokens),
            values.top_mut(tokens),
            gradients,
        )
    }

    /// Forward, the loss head, and backward where gradients are wanted; the loss goes to `tape[slot]`.
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &mut self,
        loss: HeadLoss,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        token_weights: &[f32],
        scale: f32,
        targets: Option<GradientTargets<B>>,
        hidden: Option<&mut dyn HiddenGradient<B>>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        self.weigh(batch, token_weights)?;
        let key = match hidden {
            None => {
                let buffers = targets.as_ref().map_or([0; 2], |targets| targets.identities(&self.model.backend));
                Key::of(&self.model.backend, loss, subject, batch, &self.workspace, buffers)
            }
            Some(_) => None,
        };
        self.recorded(key, |evaluator| evaluator.forward_and_backward(loss, subject, batch, targets, hidden))?;
        self.note_loss(batch, scale, tape, slot)
    }

    fn forward_and_backward(
        &mut self,
        loss: HeadLoss,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        mut targets: Option<GradientTargets<B>>,
        hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        self.forward(subject, batch)?;
        self.head(loss, subject, batch, targets.as_mut())?;
        let Some(targets) = targets else { return Ok(()) };
        let (model, Subject { weights, adapter, dropout }) = (Arc::clone(&self.model), subject);
        model.backward(weights, adapter, dropout, &batch.device, &mut self.workspace, targets, hidden)
    }

    /// Sends the weights of the tokens, with the scale in them, to the device: before what may be a recording.
    fn weigh(&mut self, batch: &LossBatch<B>, token_weights: &[f32]) -> Result<()> {
        self.workspace.check_fits(batch.host.len())?;
        self.model.backend.upload_f32(self.workspace.weights.buffer_mut(), 0, token_weights)
    }

    /// Queues `work`, or what was recorded of it under `key`.
    fn recorded(&mut self, key: Option<Key>, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Some(key) = key else { return work(self) };
        let backend = self.model.backend.clone();
        let mut recording = self.recordings.take(&key);
        let outcome = backend.record(&mut recording, || work(self));
        self.recordings.put_back(key, recording);
        outcome
    }

    /// Σ weight · value of the last loss head into `tape[slot]`.
    fn note_loss(&self, batch: &LossBatch<B>, scale: f32, tape: &mut LossTape<B>, slot: usize) -> Result<()> {
        let (tokens, Workspace { values, weights, .. }) = (batch.host.len(), &self.workspace);
        tape.add(&self.model.backend, slot, values.top(tokens), weights.top(tokens), scale)
    }

    /// A recorder of per-token losses on all L+1 hidden states.
    fn recorder<'a>(
        &self,
        batch: &LossBatch<B>,
        over: EntropyOver,
        scale: f32,
        backend: &'a B,
        tape: &'a mut LossTape<B>,
        slot: usize,
    ) -> Result<Recorder<'a, B>> {
        let (tokens, depths) = (batch.host.len(), self.model.config.num_hidden_layers + 1);
        let weights = position_weights(&batch.host, over, scale / depths as f32);
        Ok(Recorder {
            backend,
            tape,
            slot,
            scale,
            values: Tensor::zeros(backend, "hidden losses", tokens, 1, DType::F32)?,
            weights: Tensor::from_f32(backend, "hidden weights", tokens, 1, &weights)?,
        })
    }
}
