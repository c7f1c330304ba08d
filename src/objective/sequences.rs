//! The losses of whole sequences: of pairs of them (DPO), and of single ones (NPO, SimNPO).
//!
//! A sequence's log-probability is minus the sum of its tokens' cross-entropies. So each loss is a pass for the
//! cross-entropies, an operation that turns their sums into losses and into the weight of each token, and the gradient of
//! cross-entropy with these weights.

use super::head::HeadCall;
use super::pass::{LossPass, Margin, NegativePreferences, PreferencePairs};
use super::tape::WeightedLosses;
use super::{Evaluator, LossBatch};
use crate::error::Result;
use crate::model::Subject;
use crate::ops::{self, Backend, DType, HeadLoss, Tensor};

/// A loss whose token weights an operation computes from the cross-entropies.
enum SequenceLoss<'a> {
    Preference(PreferencePairs<'a>),
    Negative {
        /// What each log-probability is divided by.
        lengths: Vec<f32>,
        /// What it is compared with after that.
        references: Vec<f32>,
        beta: f32,
    },
}

impl<B: Backend> Evaluator<B> {
    /// Direct preference optimization (arXiv 2305.18290): the mean over pairs of −log σ(β(m − m_ref)), with m the
    /// log-probability of the chosen answer minus the log-probability of the rejected one.
    ///
    /// The segments of the batch are chosen, rejected, chosen, …
    pub fn preference(&mut self, pass: LossPass<B>, pairs: PreferencePairs) -> Result<()> {
        self.sequence_loss(pass, SequenceLoss::Preference(pairs))
    }

    /// Negative preference optimization (NPO, arXiv 2404.05868, equation 3): the mean over sequences of
    /// −2/β · log σ(−β(ℓ − ℓ_ref)), with ℓ the log-probability of the learned tokens, or their mean log-probability where that
    /// is asked for. It pushes ℓ down, the less the further it is below the reference model's.
    pub fn negative_preference(&mut self, pass: LossPass<B>, preferences: NegativePreferences) -> Result<()> {
        let NegativePreferences { reference_log_probabilities, beta, length_normalised } = preferences;
        let mut lengths = learned_lengths(pass.batch);
        if !length_normalised {
            lengths.fill(1.0);
        }
        let normalised = |(log_probability, length): (&f64, &f32)| (log_probability / f64::from(*length)) as f32;
        let references = reference_log_probabilities.iter().zip(&lengths).map(normalised).collect();
        self.sequence_loss(pass, SequenceLoss::Negative { lengths, references, beta })
    }

    /// Negative preference optimization without a reference model (SimNPO, arXiv 2410.07163, equation 4): the mean over
    /// sequences of −2/β · log σ(−β/n · ℓ − γ), with ℓ the log-probability of the n learned tokens.
    pub fn simple_negative_preference(&mut self, pass: LossPass<B>, margin: Margin) -> Result<()> {
        let Margin { beta, gamma } = margin;
        let lengths = learned_lengths(pass.batch);
        let references = vec![-gamma / beta; lengths.len()];
        self.sequence_loss(pass, SequenceLoss::Negative { lengths, references, beta })
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
        self.head(HeadCall::of(HeadLoss::CrossEntropy), subject.weights, batch, None)
    }

    fn sequence_loss(&mut self, pass: LossPass<B>, sequence_loss: SequenceLoss) -> Result<()> {
        let LossPass { subject, batch, scale, destinations, mut loss } = pass;
        let backend = &self.model.backend.clone();
        self.sequence_values(subject, batch)?;
        let losses = self.weigh_sequences(batch, scale, sequence_loss)?;
        let count = losses.rows();
        let mean = Tensor::from_f32(backend, "sequence weights", count, 1, &vec![1.0 / count as f32; count])?;
        loss.add(backend, WeightedLosses { values: losses.view(), weights: mean.view(), scale: 1.0 })?;
        let Some(mut destinations) = destinations else { return Ok(()) };
        self.head(HeadCall::of(HeadLoss::CrossEntropy), subject.weights, batch, Some(&mut destinations))?;
        self.backward(subject, batch, destinations, None)
    }

    /// The loss of each sequence or pair, [count, 1], from the token losses of [`Evaluator::sequence_values`], whose weights
    /// become those of the gradient.
    fn weigh_sequences(&mut self, batch: &LossBatch<B>, scale: f32, loss: SequenceLoss) -> Result<Tensor<B>> {
        let backend = &self.model.backend.clone();
        let tokens = batch.host.len();
        let values = self.token_losses.values.top(tokens);
        let weights = self.token_losses.weights.top_mut(tokens);
        let segments = &batch.device.segments;
        let column = |name: &str, values: &[f32]| Tensor::from_f32(backend, name, values.len(), 1, values);
        let zeros = |count: usize| Tensor::zeros(backend, "sequence losses", count, 1, DType::F32);
        match loss {
            SequenceLoss::Preference(PreferencePairs { reference_margins, beta }) => {
                let margins = column("reference margins", reference_margins)?;
                let mut losses = zeros(reference_margins.len())?;
                backend.run(ops::Preference {
                    values,
                    segments,
                    reference_margins: margins.view(),
                    beta,
                    scale,
                    weights,
                    losses: losses.view_mut(),
                })?;
                Ok(losses)
            }
            SequenceLoss::Negative { lengths, references, beta } => {
                let mut losses = zeros(lengths.len())?;
                backend.run(ops::NegativePreference {
                    values,
                    segments,
                    lengths: column("sequence lengths", &lengths)?.view(),
                    references: column("reference log-probabilities", &references)?.view(),
                    beta,
                    scale,
                    weights,
                    losses: losses.view_mut(),
                })?;
                Ok(losses)
            }
        }
    }
}

/// The number of learned tokens of each sequence, at least 1.
fn learned_lengths<B: Backend>(batch: &LossBatch<B>) -> Vec<f32> {
    let learned = |&&target: &&u32| target != ops::IGNORE_INDEX;
    let segments = batch.host.segments.iter();
    segments.map(|s| batch.targets[s.start..s.start + s.length].iter().filter(learned).count().max(1) as f32).collect()
}
