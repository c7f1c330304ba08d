//! Forward, loss, backward: one method for each loss. Those of whole sequences are in `sequences.rs`.

use std::sync::Arc;

use super::head::{HeadCall, Teacher};
use super::hidden::{ChosenStates, MeanState, RandomMapping, Recorder, RepresentationDistance, Targets};
use super::hidden_term::{HiddenKind, HiddenTerm, control_vector, stored};
use super::pass::{Directions, LossPass, Representations, SteppingPass, Teaching};
use super::recordings::{Recordable, Recordings};
use super::tape::WeightedLosses;
use super::token_weights::{learned_token_weights, token_weights_over};
use super::tokens::{FixedTargets, TokenLosses};
use super::{EntropyOver, LossBatch, LossSlot, LossTape};
use crate::error::{Error, Result};
use crate::model::{
    Adapter, GradientDestinations, HiddenGradient, HiddenStates, Model, Parameters, Recompute, Subject, Workspace,
};
use crate::ops::{self, Backend, DType, HeadGradients, HeadLoss, RecordingKey, Tensor};

/// A model with the memory to run it: computes losses and, where asked, their gradients.
pub struct Evaluator<B: Backend> {
    pub(super) model: Arc<Model<B>>,
    workspace: Workspace<B>,
    pub(super) token_losses: TokenLosses<B>,
    /// Memory for a reference model's hidden states, while nobody holds any.
    reference: Option<HiddenStates<B>>,
    /// Memory for a teacher's hidden states and head, while nobody holds any.
    teacher: Option<Teacher<B>>,
    /// The targets of the last collapse loss.
    fixed_targets: Option<FixedTargets<B>>,
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
        Ok(Self {
            model,
            workspace,
            token_losses,
            reference: None,
            teacher: None,
            fixed_targets: None,
            recordings: Recordings::default(),
        })
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
        self.run(pass, HeadCall::of(HeadLoss::CrossEntropy), &token_weights, None)
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
            evaluator.head(HeadCall::of(LOSS), weights, batch, Some(&mut head))?;
            model.backward_stepping(weights, &batch.device, &mut evaluator.workspace, gradients, stepper)
        })?;
        self.note_loss(batch, scale, loss)
    }

    /// Minus the mean entropy of the next-token distribution over the positions that `over` names.
    ///
    /// TAR's tamper-resistance loss for knowledge (arXiv 2408.00761, section 4.2; the authors' `max_entropy_loss`).
    pub fn negative_entropy(&mut self, pass: LossPass<B>, over: EntropyOver) -> Result<()> {
        let token_weights = token_weights_over(&pass.batch.host, over, pass.scale);
        self.run(pass, HeadCall::of(HeadLoss::NegativeEntropy), &token_weights, None)
    }

    /// Mean cross-entropy to one token, the same at every position that `over` names: a model that predicts nothing else has
    /// collapsed. CTRAP (arXiv 2505.16559, equation 4) averages over the positions of answers.
    ///
    /// # Errors
    /// [`Error::Config`] for a token that is not in the vocabulary.
    pub fn collapse(&mut self, pass: LossPass<B>, token: u32, over: EntropyOver) -> Result<()> {
        let vocabulary = self.model.config.vocab_size;
        if token as usize >= vocabulary {
            let problem = format!("{token} is no token of a vocabulary of {vocabulary}");
            return Err(Error::config("collapse.token", problem, "name a token of the model"));
        }
        let fixed = match self.fixed_targets.take() {
            Some(fixed) if fixed.token == token => fixed,
            _ => FixedTargets::new(&self.model.backend, token, self.capacity())?,
        };
        let token_weights = token_weights_over(&pass.batch.host, over, pass.scale);
        let call = HeadCall { fixed: Some(&fixed), ..HeadCall::of(HeadLoss::CrossEntropy) };
        let outcome = self.run(pass, call, &token_weights, None);
        self.fixed_targets = Some(fixed);
        outcome
    }

    /// What a teacher predicts on `batch`, for [`Evaluator::teacher_divergence`].
    pub fn teacher(&mut self, weights: &Parameters<B>, batch: &LossBatch<B>) -> Result<Teacher<B>> {
        let mut teacher = match self.teacher.take() {
            Some(teacher) => teacher,
            None => Teacher::with_room(&self.model, self.capacity())?,
        };
        self.forward(Subject::plain(weights), batch)?;
        teacher.keep(&self.model, &self.workspace, weights, batch.host.len())?;
        Ok(teacher)
    }

    /// Takes a teacher back that is not needed any more: the next one is written to its memory.
    pub fn give_back_teacher(&mut self, teacher: Teacher<B>) {
        self.teacher = Some(teacher);
    }

    /// Mean over positions of KL(q ‖ p), with q the teacher's distribution of the next token and p the model's: distillation
    /// with forward KL (UNDO, arXiv 2506.06278).
    pub fn teacher_divergence(&mut self, pass: LossPass<B>, teaching: Teaching<B>) -> Result<()> {
        let Teaching { teacher, over } = teaching;
        let token_weights = token_weights_over(&pass.batch.host, over, pass.scale);
        let call = HeadCall { teacher: Some(teacher), ..HeadCall::of(HeadLoss::TeacherDivergence) };
        self.run(pass, call, &token_weights, None)
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
        self.run(cross_entropy, HeadCall::of(HeadLoss::CrossEntropy), &token_weights, Some(&mut visitor))?;
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

    /// The loss head on the last forward pass, with the token weights that are on the device.
    pub(super) fn head(
        &mut self,
        call: HeadCall<B>,
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
            loss: call.loss,
            hidden: head.normed,
            head: weights.matrix(block),
            targets: call.fixed.map_or(&batch.device_targets, |fixed| &fixed.values).top(tokens),
            teacher: call.teacher.map(Teacher::operands),
            weights: self.token_losses.weights.top(tokens),
            values: self.token_losses.values.top_mut(tokens),
            gradients,
        })
    }

    /// Forward, the loss head with these token weights, and backward where gradients are wanted or `hidden` is there.
    fn run(
        &mut self,
        pass: LossPass<B>,
        call: HeadCall<B>,
        token_weights: &[f32],
        hidden: Option<&mut dyn HiddenGradient<B>>,
    ) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, loss } = pass;
        self.weigh(batch, token_weights)?;
        let recordable = Recordable { loss: call.loss, subject, batch, workspace: &self.workspace };
        let mut key = if hidden.is_none() { recordable.key() } else { None };
        if let Some(key) = &mut key {
            call.add_to_key(key);
        }
        if let (Some(key), Some(destinations)) = (&mut key, &destinations) {
            destinations.add_to_key(key);
        }
        self.recorded(key, |evaluator| {
            evaluator.forward(subject, batch)?;
            let Some(mut destinations) = destinations else {
                return evaluator.head(call, subject.weights, batch, None);
            };
            evaluator.head(call, subject.weights, batch, Some(&mut destinations))?;
            evaluator.backward(subject, batch, destinations, hidden)
        })?;
        self.note_loss(batch, scale, loss)
    }

    pub(super) fn backward(
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
