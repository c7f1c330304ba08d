//! Forward, loss, backward: one method for each loss.

use std::sync::Arc;

use super::hidden::{ChosenStates, MeanState, RandomMapping, Recorder, RepresentationDistance, Targets};
use super::hidden_term::{HiddenKind, HiddenTerm, control_vector, stored};
use super::pass::{Directions, LossPass, PreferencePairs, Representations, SteppingPass};
use super::recordings::{Recordable, Recordings};
use super::tape::WeightedLosses;
use super::token_weights::{learned_token_weights, token_weights_over};
use super::tokens::TokenLosses;
use super::{EntropyOver, LossBatch, LossSlot, LossTape};
use crate::error::{Error, Result};
use crate::model::{
    Adapter, GradientDestinations, HiddenGradient, HiddenStates, Model, Parameters, Recompute, Subject, Workspace,
};
use crate::ops::{self, Backend, DType, HeadGradients, HeadLoss, RecordingKey, Tensor};

/// A model with the memory to run it: computes losses and, where asked, their gradients.
pub struct Evaluator<B: Backend> {
    model: Arc<Model<B>>,
    workspace: Workspace<B>,
    token_losses: TokenLosses<B>,
    /// Memory for a reference model's hidden states, while nobody holds any.
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
        let token_losses = TokenLosses::new(&model.backend, capacity)?;
        Ok(Self { model, workspace, token_losses, reference: None, recordings: Recordings::default() })
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
        self.model.forward(subject, &batch.device, &mut self.workspace)
    }

    /// Mean cross-entropy of the learned tokens.
    pub fn cross_entropy(&mut self, pass: LossPass<B>) -> Result<()> {
        let token_weights = learned_token_weights(&pass.batch.targets, pass.scale);
        self.run(pass, HeadLoss::CrossEntropy, &token_weights, None)
    }

    /// Mean cross-entropy of the learned tokens, and a backward pass in which the weights step part by part; see
    /// [`Model::backward_stepping`].
    pub fn cross_entropy_stepping(&mut self, pass: SteppingPass<B>) -> Result<()> {
        const LOSS: HeadLoss = HeadLoss::CrossEntropy;
        let SteppingPass { weights, batch, scale, gradients, stepper, loss } = pass;
        let backend = self.model.backend.clone();
        self.weigh(batch, &learned_token_weights(&batch.targets, scale))?;
        let subject = Subject::plain(weights);
        let mut key = Recordable { loss: LOSS, subject, batch, workspace: &self.workspace }.key();
        if let Some(key) = &mut key {
            gradients.add_to_key(key);
            stepper.add_to_key(key);
        }
        self.recorded(key, |evaluator| {
            let model = Arc::clone(&evaluator.model);
            evaluator.forward(Subject::plain(weights), batch)?;
            let mut head = GradientDestinations::of_part(gradients.head(&backend)?);
            evaluator.head(LOSS, weights, batch, Some(&mut head))?;
            model.backward_stepping(weights, &batch.device, &mut evaluator.workspace, gradients, stepper)
        })?;
        self.note_loss(batch, scale, loss)
    }

    /// Minus the mean entropy of the next-token distribution over the positions that `over` names.
    ///
    /// TAR's tamper-resistance loss for knowledge (arXiv 2408.00761, section 4.2; the authors' `max_entropy_loss`).
    pub fn negative_entropy(&mut self, pass: LossPass<B>, over: EntropyOver) -> Result<()> {
        let token_weights = token_weights_over(&pass.batch.host, over, pass.scale);
        self.run(pass, HeadLoss::NegativeEntropy, &token_weights, None)
    }

    /// The hidden states of a reference model on `batch`, for [`Evaluator::retain`].
    pub fn hidden_states(&mut self, reference: &Parameters<B>, batch: &LossBatch<B>) -> Result<HiddenStates<B>> {
        self.hidden_states_to(self.model.config.num_hidden_layers, reference, batch)
    }

    /// As [`Evaluator::hidden_states`], up to the one of depth `depth`.
    fn hidden_states_to(
        &mut self,
        depth: usize,
        reference: &Parameters<B>,
        batch: &LossBatch<B>,
    ) -> Result<HiddenStates<B>> {
        let model = Arc::clone(&self.model);
        let mut states = match self.reference.take() {
            Some(states) => states,
            None => HiddenStates::new(&model.backend, &model.config, self.capacity())?,
        };
        model.forward_to(depth, Subject::plain(reference), &batch.device, &mut self.workspace)?;
        self.workspace.exchange_hidden_states(&mut states);
        Ok(states)
    }

    /// Takes hidden states back that are not needed any more: the next ones are written to their memory.
    pub fn give_back(&mut self, states: HiddenStates<B>) {
        self.reference = Some(states);
    }

    /// Cross-entropy plus the mean over all L+1 hidden states of the mean L2 distance to a reference model's. Cross-entropy
    /// goes to the pass's slot, the distance to the slot after it, the gradient of their sum to the destinations.
    ///
    /// TAR's retain loss. The gradient of a distance of 0 is 0.
    pub fn retain(&mut self, mut pass: LossPass<B>, representations: Representations<B>) -> Result<()> {
        let Representations { reference, over } = representations;
        let model = Arc::clone(&self.model);
        // The head writes to the pass's tape and the visitor of the backward pass to this one, one after the other.
        let mut distances = LossTape::new(&model.backend, 1)?;
        let depths = model.config.num_hidden_layers + 1;
        let recorder = self.recorder(pass.batch, over, pass.scale, depths, &model.backend, distances.slot(0))?;
        let mut visitor = RepresentationDistance { recorder, reference };
        let token_weights = learned_token_weights(&pass.batch.targets, pass.scale);
        // Distances are measured by the backward pass, whoever wants its gradients.
        let destinations = pass.destinations.take().unwrap_or_else(GradientDestinations::nowhere);
        let cross_entropy = LossPass { destinations: Some(destinations), loss: pass.loss.reborrow(), ..pass };
        self.run(cross_entropy, HeadLoss::CrossEntropy, &token_weights, Some(&mut visitor))?;
        pass.loss.next().take(&model.backend, &distances)
    }

    /// 1 − |cos| of every hidden state to its token's direction, mean over depths and tokens.
    pub fn random_mapping(&mut self, pass: LossPass<B>, directions: Directions<B>) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, loss } = pass;
        let Directions { table, over } = directions;
        let model = Arc::clone(&self.model);
        self.forward(subject, batch)?;
        self.workspace.clear_head_gradient(&model.backend, batch.host.len())?;
        let depths = model.config.num_hidden_layers + 1;
        let recorder = self.recorder(batch, over, scale, depths, &model.backend, loss)?;
        let mut visitor = RandomMapping { recorder, table, ids: &batch.device.tokens };
        // Cosines are measured by the backward pass, whoever wants its gradients.
        let destinations = destinations.unwrap_or_else(GradientDestinations::nowhere);
        self.backward(subject, batch, destinations, Some(&mut visitor))
    }

    /// The hidden states of a reference model that `term` compares with, for [`Evaluator::chosen_states`].
    ///
    /// # Errors
    /// [`crate::Error::Config`] for depths that the model does not have.
    pub fn reference_states(
        &mut self,
        term: &HiddenTerm,
        reference: &Parameters<B>,
        batch: &LossBatch<B>,
    ) -> Result<HiddenStates<B>> {
        let last = term.last_level(&self.model.config)?;
        self.hidden_states_to(last, reference, batch)
    }

    /// The loss of a [`HiddenTerm`]: the mean over its depths and positions. Nothing behind the last of its depths is computed.
    /// `reference`: the states of [`Evaluator::reference_states`], where the term needs them.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for depths that the model does not have, [`crate::Error::Defect`] without states that it needs.
    pub fn chosen_states(
        &mut self,
        pass: LossPass<B>,
        term: &HiddenTerm,
        reference: Option<&HiddenStates<B>>,
    ) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, loss } = pass;
        let last = term.last_level(&self.model.config)?;
        let model = Arc::clone(&self.model);
        let backend = &model.backend;
        let vector = match term.kind {
            HiddenKind::ControlVector { coefficient, seed } => Some(control_vector(&model, coefficient, seed)?),
            _ => None,
        };
        let mean = match term.kind {
            HiddenKind::Triplet { .. } => {
                let positions = stored(backend, "positions", &token_weights_over(&batch.host, term.over, 1.0))?;
                let state = stored(backend, "mean state", &vec![0.0; model.config.hidden_size])?;
                Some(MeanState { positions, state })
            }
            _ => None,
        };
        let targets = match (&vector, reference) {
            (Some(vector), _) => Targets::One(vector),
            (None, Some(states)) => Targets::States(states),
            (None, None) => return Err(Error::Defect("a loss on hidden states without a reference's".into())),
        };
        let levels = term.levels(model.config.num_hidden_layers);
        model.forward_to(last, subject, &batch.device, &mut self.workspace)?;
        let recorder = self.recorder(batch, term.over, scale, levels.len(), backend, loss)?;
        let mut visitor = ChosenStates { recorder, kind: term.kind, levels: &levels, targets, mean };
        // States are compared by the backward pass, whoever wants its gradients.
        let destinations = destinations.unwrap_or_else(GradientDestinations::nowhere);
        model.backward_from(last, subject, &batch.device, &mut self.workspace, destinations, &mut visitor)
    }

    /// Direct preference optimization (arXiv 2305.18290): the mean over pairs of −log σ(β(m − m_ref)), with m the
    /// log-probability of the chosen answer minus the log-probability of the rejected one.
    ///
    /// The segments of the batch are chosen, rejected, chosen, …
    pub fn preference(&mut self, pass: LossPass<B>, pairs: PreferencePairs) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, mut loss } = pass;
        let PreferencePairs { reference_margins, beta } = pairs;
        let tokens = batch.host.len();
        let backend = &self.model.backend.clone();
        self.sequence_values(subject, batch)?;
        let margins = Tensor::from_f32(backend, "reference margins", reference_margins.len(), 1, reference_margins)?;
        let mut losses = Tensor::zeros(backend, "pair losses", reference_margins.len(), 1, DType::F32)?;
        let segments = &batch.device.segments;
        let values = self.token_losses.values.top(tokens);
        let weights = self.token_losses.weights.top_mut(tokens);
        backend.run(ops::Preference {
            values,
            segments,
            reference_margins: margins.view(),
            beta,
            scale,
            weights,
            losses: losses.view_mut(),
        })?;
        let ones = vec![1.0 / reference_margins.len() as f32; reference_margins.len()];
        let mean = Tensor::from_f32(backend, "pair weights", ones.len(), 1, &ones)?;
        loss.add(backend, WeightedLosses { values: losses.view(), weights: mean.view(), scale: 1.0 })?;
        let Some(mut destinations) = destinations else { return Ok(()) };
        self.head(HeadLoss::CrossEntropy, subject.weights, batch, Some(&mut destinations))?;
        self.backward(subject, batch, destinations, None)
    }

    /// log p(chosen) − log p(rejected) of each pair; [`Evaluator::preference`] takes those of a reference model. Waits for
    /// the device.
    pub fn preference_margins(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<Vec<f32>> {
        let log_probabilities = self.sequence_log_probabilities(subject, batch)?;
        Ok(log_probabilities.chunks_exact(2).map(|pair| (pair[0] - pair[1]) as f32).collect())
    }

    /// Log-probability of the learned tokens of each sequence. Waits for the device.
    pub fn sequence_log_probabilities(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<Vec<f64>> {
        self.sequence_values(subject, batch)?;
        let values = self.model.backend.download_f32(self.token_losses.values.buffer(), 0, batch.host.len())?;
        let sum = |rows: &[f32]| -rows.iter().map(|&v| f64::from(v)).sum::<f64>();
        Ok(batch.host.segments.iter().map(|s| sum(&values[s.start..s.start + s.length])).collect())
    }

    /// Forward, and the cross-entropy of each learned token, with weight 1, into the token losses; the others have weight 0.
    fn sequence_values(&mut self, subject: Subject<B>, batch: &LossBatch<B>) -> Result<()> {
        self.forward(subject, batch)?;
        let learned: Vec<f32> = batch.targets.iter().map(|&t| if t == ops::IGNORE_INDEX { 0.0 } else { 1.0 }).collect();
        self.model.backend.upload_f32(self.token_losses.weights.buffer_mut(), 0, &learned)?;
        self.head(HeadLoss::CrossEntropy, subject.weights, batch, None)
    }

    /// The loss head on the last forward pass, with the token weights that are on the device.
    fn head(
        &mut self,
        loss: HeadLoss,
        weights: &Parameters<B>,
        batch: &LossBatch<B>,
        destinations: Option<&mut GradientDestinations<B>>,
    ) -> Result<()> {
        let tokens = batch.host.len();
        let block = self.model.layout().lm_head();
        let head = self.workspace.head_operands(tokens);
        let gradients = destinations
            .map(|destinations| HeadGradients { d_hidden: head.d_normed, d_head: destinations.weight(block) });
        self.model.backend.run(ops::LossHead {
            loss,
            hidden: head.normed,
            head: weights.matrix(block),
            targets: batch.device_targets.view(),
            weights: self.token_losses.weights.top(tokens),
            values: self.token_losses.values.top_mut(tokens),
            gradients,
        })
    }

    /// Forward, the loss head with these token weights, and backward where gradients are wanted or `hidden` is there.
    fn run(
        &mut self,
        pass: LossPass<B>,
        head: HeadLoss,
        token_weights: &[f32],
        hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, loss } = pass;
        self.weigh(batch, token_weights)?;
        let recordable = Recordable { loss: head, subject, batch, workspace: &self.workspace };
        let mut key = if hidden.is_none() { recordable.key() } else { None };
        if let (Some(key), Some(destinations)) = (&mut key, &destinations) {
            destinations.add_to_key(key);
        }
        self.recorded(key, |evaluator| {
            evaluator.forward(subject, batch)?;
            let Some(mut destinations) = destinations else {
                return evaluator.head(head, subject.weights, batch, None);
            };
            evaluator.head(head, subject.weights, batch, Some(&mut destinations))?;
            evaluator.backward(subject, batch, destinations, hidden)
        })?;
        self.note_loss(batch, scale, loss)
    }

    fn backward(
        &mut self,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        destinations: GradientDestinations<B>,
        hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        self.model.backward(subject, &batch.device, &mut self.workspace, destinations, hidden)
    }

    /// Sends the token weights, with the scale in them, to the device. It comes before a recording, which cannot have it in
    /// it: a replay takes other weights.
    fn weigh(&mut self, batch: &LossBatch<B>, token_weights: &[f32]) -> Result<()> {
        self.workspace.check_fits(batch.host.len())?;
        self.model.backend.upload_f32(self.token_losses.weights.buffer_mut(), 0, token_weights)
    }

    /// Queues `work`, or replays its recording under `key`.
    fn recorded(&mut self, key: Option<RecordingKey>, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Some(key) = key else { return work(self) };
        let backend = self.model.backend.clone();
        let mut recording = self.recordings.take(&key);
        let outcome = backend.record(&mut recording, || work(self));
        self.recordings.put_back(key, recording);
        outcome
    }

    /// Adds the weighted sum of the last loss head's values to `loss`.
    fn note_loss(&self, batch: &LossBatch<B>, scale: f32, mut loss: LossSlot<B>) -> Result<()> {
        let tokens = batch.host.len();
        let values = self.token_losses.values.top(tokens);
        let weights = self.token_losses.weights.top(tokens);
        loss.add(&self.model.backend, WeightedLosses { values, weights, scale })
    }

    /// A recorder of per-token losses on so many `depths`.
    fn recorder<'a>(
        &self,
        batch: &LossBatch<B>,
        over: EntropyOver,
        scale: f32,
        depths: usize,
        backend: &'a B,
        loss: LossSlot<'a, B>,
    ) -> Result<Recorder<'a, B>> {
        let tokens = batch.host.len();
        let token_weights = token_weights_over(&batch.host, over, scale / depths as f32);
        Ok(Recorder {
            backend,
            loss,
            scale,
            values: Tensor::zeros(backend, "hidden losses", tokens, 1, DType::F32)?,
            token_weights: Tensor::from_f32(backend, "hidden weights", tokens, 1, &token_weights)?,
        })
    }
}
