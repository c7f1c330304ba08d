//! Accuracy on four-choice questions: the choice whose text is the most probable after the prompt.

use std::collections::BTreeMap;

use super::perplexity::not_finite;
use super::{LETTERS, PromptForm, Question};
use crate::error::{Error, Result};
use crate::model::Batch;
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{Backend, IGNORE_INDEX};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// Index of the question, from 0.
    pub question: usize,
    /// The letter of the most probable choice.
    pub predicted: &'static str,
    /// The letter of the right one.
    pub answer: &'static str,
    /// Log-probabilities of the four continuations.
    pub scores: [f64; 4],
}

/// Accuracy on a set of questions.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ChoiceReport {
    /// How they were asked.
    pub form: PromptForm,
    /// Examples before each question.
    pub shots: usize,
    /// Share of right answers.
    pub accuracy: f64,
    /// Number of questions that were asked.
    pub questions: usize,
    /// Questions that are longer than the model's context, and were not asked.
    pub too_long: usize,
    /// (share of right answers, number of questions) of each subject.
    pub subjects: BTreeMap<String, (f64, usize)>,
    /// Every answer.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// Asks all `questions`. `shots` gives the examples to put before a question; `encode` turns text into tokens, with the
/// tokenizer's own start token where the flag says so.
///
/// The four continuations of a question are four sequences of one packed batch; their prompts are not padded. Positions
/// beyond the evaluator's are not asked for: such questions are counted in `too_long`.
pub fn four_choice<B: Backend>(
    evaluator: &mut Evaluator<B>,
    subject: Subject<B>,
    questions: &[Question],
    shots: &dyn Fn(usize) -> Vec<Question>,
    form: PromptForm,
    encode: &dyn Fn(&str, bool) -> Result<Vec<u32>>,
) -> Result<ChoiceReport> {
    let continuations = form.continuations().iter().map(|text| encode(text, false)).collect::<Result<Vec<_>>>()?;
    if continuations.iter().any(Vec::is_empty) {
        let remedy = "use the tokenizer that belongs to the model";
        return Err(Error::config("--model", "its tokenizer writes a letter with no token", remedy));
    }
    let (mut predictions, mut too_long, mut examples) = (Vec::new(), 0, 0);
    for (index, question) in questions.iter().enumerate() {
        let chosen = shots(index);
        examples = examples.max(chosen.len());
        let prompt = form.prompt(question.subject.as_deref(), &chosen.iter().collect::<Vec<_>>(), question);
        let batch = batch(&encode(&prompt, true)?, &continuations);
        let longest = batch.segments.iter().map(|s| s.length).max().unwrap_or(0);
        if longest > evaluator.model().positions() || batch.len() > evaluator.capacity() {
            too_long += 1;
            continue;
        }
        let batch = LossBatch::new(evaluator.model(), batch)?;
        let scores = evaluator.sequence_log_probabilities(subject, &batch)?;
        predictions.push(prediction(index, question, &scores)?);
    }
    Ok(report(form, examples, questions, predictions, too_long))
}

/// The prompt followed by each continuation; only the continuations are to be learned, which is to say scored.
fn batch(prompt: &[u32], continuations: &[Vec<u32>]) -> Batch {
    let mut batch = Batch::default();
    for continuation in continuations {
        let tokens = [prompt, continuation].concat();
        let mut labels = vec![IGNORE_INDEX; prompt.len()];
        labels.extend(continuation);
        batch.push(&tokens, &labels, tokens.len());
    }
    batch
}

fn prediction(index: usize, question: &Question, scores: &[f64]) -> Result<Prediction> {
    let scores: [f64; 4] = std::array::from_fn(|i| scores.get(i).copied().unwrap_or(f64::NAN));
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(not_finite(format!("the score of question {index}")));
    }
    // The first of equal scores, as argmax does.
    let best = (1..4).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
    Ok(Prediction { question: index, predicted: LETTERS[best], answer: question.letter(), scores })
}

fn report(
    form: PromptForm,
    shots: usize,
    questions: &[Question],
    predictions: Vec<Prediction>,
    too_long: usize,
) -> ChoiceReport {
    let mut subjects: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for prediction in &predictions {
        let subject = questions[prediction.question].subject.clone().unwrap_or_default();
        let entry = subjects.entry(subject).or_default();
        entry.0 += f64::from(u8::from(prediction.predicted == prediction.answer));
        entry.1 += 1;
    }
    let right: f64 = subjects.values().map(|(right, _)| right).sum();
    subjects.values_mut().for_each(|(right, count)| *right /= *count as f64);
    let asked = predictions.len();
    let accuracy = right / asked.max(1) as f64;
    ChoiceReport { form, shots, accuracy, questions: asked, too_long, subjects, predictions }
}
