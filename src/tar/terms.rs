//! The terms of one place at work: their batches, what the reference model contributes, their gradients and their losses.

use std::collections::BTreeMap;

use super::composition::Share;
use super::streams::unknown_stream;
use super::{Streams, Term};
use crate::error::Result;
use crate::model::{Adapter, GradientDestinations, Gradients, Model, Parameters, ParkedParameters, Subject};
use crate::objective::{Evaluator, LossBatch, LossPass, LossTape, Prepared};
use crate::ops::Backend;

/// The models of an outer step: one at work, and two sets of weights that wait in main memory.
pub(super) struct Models<'a, B: Backend> {
    /// The memory to run a model.
    pub evaluator: &'a mut Evaluator<B>,
    /// The weights at work.
    pub weights: &'a mut Parameters<B>,
    /// The frozen model that losses compare with.
    pub reference: &'a ParkedParameters<B>,
    /// The weights θ that the step started from.
    pub unattacked: &'a ParkedParameters<B>,
}

impl<B: Backend> Models<'_, B> {
    /// Runs `work` with the reference model in the place of the weights, which are then θ, bit for bit.
    pub fn with_reference<R>(
        &mut self,
        work: impl FnOnce(&mut Evaluator<B>, &Parameters<B>) -> Result<R>,
    ) -> Result<R> {
        let backend = self.evaluator.model().backend.clone();
        self.reference.fetch(&backend, self.weights)?;
        let outcome = work(self.evaluator, self.weights);
        self.unattacked.fetch(&backend, self.weights)?;
        outcome
    }
}

/// One batch of each stream that is asked for, until all are forgotten.
pub(super) struct Batches<B: Backend>(BTreeMap<String, Drawn<B>>);

struct Drawn<B: Backend> {
    batch: LossBatch<B>,
    /// Whether the next asker takes it as it is.
    fresh: bool,
}

impl<B: Backend> Batches<B> {
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// From now on each stream gives its next batch.
    pub fn forget(&mut self) {
        self.0.values_mut().for_each(|drawn| drawn.fresh = false);
    }

    /// Draws the next batch of stream `name`, unless one has been drawn since the last [`Batches::forget`].
    pub fn draw(&mut self, model: &Model<B>, streams: &mut Streams, name: &str) -> Result<()> {
        if !self.0.contains_key(name) {
            let batch = LossBatch::with_room(model, streams.max_batch_tokens())?;
            self.0.insert(name.to_string(), Drawn { batch, fresh: false });
        }
        match self.0.get_mut(name) {
            Some(drawn) if !drawn.fresh => {
                streams.refill(model, name, &mut drawn.batch)?;
                drawn.fresh = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The batch of stream `name` that was drawn last.
    pub fn get(&self, name: &str) -> Result<&LossBatch<B>> {
        self.0.get(name).map(|drawn| &drawn.batch).ok_or_else(|| unknown_stream(name))
    }
}

/// What the terms of a place work on.
pub(super) struct Ground<'a, B: Backend> {
    pub models: Models<'a, B>,
    pub streams: &'a mut Streams,
    /// The batches of the place.
    pub batches: &'a mut Batches<B>,
    /// Where gradients are added.
    pub gradient: &'a mut Gradients<B>,
}

/// The terms of one place, and what has been taken of them in the present visit.
pub(super) struct PlacedTerms<B: Backend> {
    terms: Vec<Term>,
    /// The stream of each term in the present visit.
    data: Vec<String>,
    prepared: Vec<Prepared<B>>,
    tape: Option<LossTape<B>>,
    shares: Vec<Share>,
}

/// What a term has lost in one visit of its place.
pub(super) struct TermLosses {
    pub name: String,
    /// The loss at each gradient that was taken. A retain loss is its cross-entropy here.
    pub losses: Vec<f64>,
    /// The distance to the reference model's hidden states at each gradient, where the loss has one.
    pub distances: Option<Vec<f64>>,
    /// Σ weight · loss.
    pub weighted: f64,
}

impl<B: Backend> PlacedTerms<B> {
    pub fn new(terms: Vec<Term>) -> Self {
        Self { terms, data: Vec::new(), prepared: Vec::new(), tape: None, shares: Vec::new() }
    }

    /// Gives each term the weight that `weight` says.
    pub fn weigh(&mut self, weight: impl Fn(&Term) -> f64) {
        self.terms.iter_mut().for_each(|term| term.weight = weight(term));
    }

    /// Draws the batches of a visit in which up to `takes` gradients are taken, and has the reference model contribute to
    /// them. `data` is the stream of all of them, where it is not each term's own. The weights are θ.
    pub fn begin(&mut self, ground: &mut Ground<B>, takes: usize, data: Option<&str>) -> Result<()> {
        let backend = ground.models.evaluator.model().backend.clone();
        let model = ground.models.evaluator.model().clone();
        self.data = self.terms.iter().map(|term| data.unwrap_or(&term.data).to_string()).collect();
        for name in &self.data {
            ground.batches.draw(&model, ground.streams, name)?;
        }
        self.shares.clear();
        self.prepared = self.terms.iter().map(|_| Prepared::default()).collect();
        self.tape = Some(LossTape::new(&backend, (takes * self.slots()).max(1))?);
        let compares = |term: &Term| term.weight != 0.0 && term.loss.needs_reference();
        if !self.terms.iter().any(compares) {
            return Ok(());
        }
        let Self { terms, data, prepared, .. } = self;
        let batches = &*ground.batches;
        ground.models.with_reference(|evaluator, reference| {
            for ((term, prepared), name) in terms.iter().zip(prepared).zip(data) {
                if compares(term) {
                    *prepared = term.loss.prepare(evaluator, reference, batches.get(name)?)?;
                }
            }
            Ok(())
        })
    }

    /// Adds each term's gradient, at the weights at work with `adapter` on top of them, times the share of its weight. A
    /// term of weight 0 costs nothing.
    pub fn take(&mut self, ground: &mut Ground<B>, adapter: Option<&Adapter<B>>, share: Share) -> Result<()> {
        let mut slot = self.shares.len() * self.slots();
        let Some(tape) = &mut self.tape else { return Ok(()) };
        let Models { evaluator, weights, .. } = &mut ground.models;
        for ((term, prepared), name) in self.terms.iter().zip(&self.prepared).zip(&self.data) {
            let scale = share.of(term.weight) as f32;
            if scale != 0.0 {
                let pass = LossPass {
                    subject: Subject { weights, adapter, dropout: None },
                    batch: ground.batches.get(name)?,
                    scale,
                    destinations: Some(GradientDestinations::of_weights(ground.gradient)),
                    loss: tape.slot(slot),
                };
                term.loss.evaluate(evaluator, pass, prepared)?;
            }
            slot += term.loss.slots();
        }
        self.shares.push(share);
        Ok(())
    }

    /// Ends a visit: what each term has lost. Waits for the device.
    pub fn end(&mut self, evaluator: &mut Evaluator<B>) -> Result<Vec<TermLosses>> {
        self.prepared.drain(..).for_each(|prepared| prepared.give_back(evaluator));
        let Some(tape) = self.tape.take() else { return Ok(Vec::new()) };
        let values = tape.read(&evaluator.model().backend)?;
        let mut first = 0;
        let mut found = Vec::new();
        for term in &self.terms {
            let slots = term.loss.slots();
            let column = |slot: usize| values.iter().skip(slot).step_by(self.slots()).take(self.shares.len()).copied();
            let losses: Vec<f64> = column(first).collect();
            let distances: Option<Vec<f64>> = (slots > 1).then(|| column(first + 1).collect());
            let whole = |take: usize| losses[take] + distances.as_ref().map_or(0.0, |distances| distances[take]);
            let weighted =
                self.shares.iter().enumerate().map(|(take, share)| share.of(term.weight) * whole(take)).sum();
            found.push(TermLosses { name: term.name.clone(), losses, distances, weighted });
            first += slots;
        }
        Ok(found)
    }

    /// Slots of one gradient of every term.
    fn slots(&self) -> usize {
        self.terms.iter().map(|term| term.loss.slots()).sum()
    }
}
