//! Accuracy on multiple-choice questions: the choice whose letter is the most probable after the prompt, or that the model
//! writes.

use std::collections::BTreeMap;

use super::continuations::score;
use super::generate::{GenerateOptions, generate};
use super::perplexity::not_finite;
use super::{LETTERS, PromptForm, Question};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::objective::Subject;
use crate::ops::Backend;

/// Examples before a question, where nobody says how many.
pub const NUM_SHOTS: usize = 5;
/// Tokens of a written answer, where nobody says how many: a letter, and what may surround it.
pub const WRITTEN_TOKENS: usize = 4;

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// Index of the question, from 0.
    pub question: usize,
    /// The letter of the most probable choice, or the one that was written; `None` where something else was.
    pub predicted: Option<&'static str>,
    /// The letter of the right one.
    pub answer: &'static str,
    /// Log-probabilities of the continuations, one for each choice, where they are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f64>>,
    /// The text that the model wrote; none where continuations are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
}

/// Accuracy on a set of questions.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ChoiceReport {
    /// The form of the questions.
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
    /// Tokens of all prompts together.
    pub prompt_tokens: u64,
    /// Tokens that went through the model, where continuations are compared: what prompts have in common is computed once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computed_tokens: Option<u64>,
    /// Every answer.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// Turns text into tokens, with the tokenizer's own start token where the flag says so.
pub type Encode<'a> = &'a dyn Fn(&str, bool) -> Result<Vec<u32>>;

/// Asks all `questions` and compares the continuations of `form`, one for each choice. `shots` gives the examples to put
/// before a question. A forward pass takes up to `pass_tokens` tokens.
///
/// A question that is longer than the model's positions is not asked, but counted in `too_long`.
///
/// Fails if the model is to write its answers in this `form`, and if a score is not finite.
pub fn multiple_choice<B: Backend>(
    model: &Model<B>,
    subject: Subject<B>,
    questions: &[Question],
    shots: &dyn Fn(usize) -> Vec<Question>,
    form: PromptForm,
    pass_tokens: usize,
    encode: Encode,
) -> Result<ChoiceReport> {
    let most = questions.iter().map(|question| question.choices.len()).max().unwrap_or(0);
    let Some(continuations) = form.continuations(most) else {
        return Err(Error::config("form", "in this form answers are written", "use multiple_choice_written"));
    };
    let continuations = continuations.iter().map(|text| encode(text, false)).collect::<Result<Vec<_>>>()?;
    if continuations.iter().any(Vec::is_empty) {
        let remedy = "use the tokenizer that belongs to the model";
        return Err(Error::config("model", "its tokenizer writes a letter with no token", remedy));
    }
    let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
    let asked = Asked::new(questions, shots, form, encode, model.positions().saturating_sub(longest))?;
    let found = score(model, subject, &asked.prompts, &continuations, pass_tokens)?;
    let predict = |(&index, scores): (&usize, &Vec<f64>)| prediction(index, &questions[index], scores);
    let predictions = asked.indices.iter().zip(&found.scores).map(predict).collect::<Result<_>>()?;
    Ok(asked.report(form, questions, predictions, Some(found.computed)))
}

/// Asks all `questions` without examples and has the model write its answers, as `options` say. An answer is right if its
/// first word is the right letter, and nothing but it. `decode` turns tokens into text.
pub fn multiple_choice_written<B: Backend>(
    model: &Model<B>,
    subject: Subject<B>,
    questions: &[Question],
    options: &GenerateOptions,
    encode: Encode,
    decode: &dyn Fn(&[u32]) -> Result<String>,
) -> Result<ChoiceReport> {
    let form = PromptForm::Qi;
    let asked = Asked::new(questions, &|_| Vec::new(), form, encode, model.positions().saturating_sub(1))?;
    let written = generate(model, subject, &asked.prompts, options)?;
    let mut predictions = Vec::with_capacity(written.len());
    for (&index, tokens) in asked.indices.iter().zip(&written) {
        let response = decode(tokens)?;
        let word = response.split_whitespace().next();
        let question = &questions[index];
        let letters = &LETTERS[..question.choices.len().min(LETTERS.len())];
        let predicted = letters.iter().copied().find(|letter| word == Some(letter));
        let answer = question.letter();
        predictions.push(Prediction { question: index, predicted, answer, scores: None, response: Some(response) });
    }
    Ok(asked.report(form, questions, predictions, None))
}

/// The prompts of the questions that fit.
struct Asked {
    prompts: Vec<Vec<u32>>,
    /// The question of each prompt.
    indices: Vec<usize>,
    too_long: usize,
    /// The most examples before a question.
    shots: usize,
}

impl Asked {
    fn new(
        questions: &[Question],
        shots: &dyn Fn(usize) -> Vec<Question>,
        form: PromptForm,
        encode: Encode,
        longest: usize,
    ) -> Result<Self> {
        let mut asked = Self { prompts: Vec::new(), indices: Vec::new(), too_long: 0, shots: 0 };
        for (index, question) in questions.iter().enumerate() {
            let chosen = shots(index);
            asked.shots = asked.shots.max(chosen.len());
            let prompt = form.prompt(question.subject.as_deref(), &chosen.iter().collect::<Vec<_>>(), question);
            let prompt = encode(&prompt, true)?;
            if prompt.is_empty() {
                let remedy = "use the tokenizer that belongs to the model";
                return Err(Error::config("model", "its tokenizer writes a question with no token", remedy));
            }
            if prompt.len() > longest {
                asked.too_long += 1;
                continue;
            }
            asked.prompts.push(prompt);
            asked.indices.push(index);
        }
        Ok(asked)
    }

    fn report(
        self,
        form: PromptForm,
        questions: &[Question],
        predictions: Vec<Prediction>,
        computed_tokens: Option<u64>,
    ) -> ChoiceReport {
        let mut subjects: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for prediction in &predictions {
            let subject = questions[prediction.question].subject.clone().unwrap_or_default();
            let entry = subjects.entry(subject).or_default();
            entry.0 += f64::from(u8::from(prediction.predicted == Some(prediction.answer)));
            entry.1 += 1;
        }
        let right: f64 = subjects.values().map(|(right, _)| right).sum();
        subjects.values_mut().for_each(|(right, count)| *right /= *count as f64);
        ChoiceReport {
            form,
            shots: self.shots,
            accuracy: right / predictions.len().max(1) as f64,
            questions: predictions.len(),
            too_long: self.too_long,
            subjects,
            prompt_tokens: self.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
            computed_tokens,
            predictions,
        }
    }
}

fn prediction(index: usize, question: &Question, scores: &[f64]) -> Result<Prediction> {
    // Other questions may have more choices.
    let scores: Vec<f64> = scores.iter().take(question.choices.len()).copied().collect();
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(not_finite(format!("the score of question {index}")));
    }
    // The first of equal scores, as argmax does.
    let best = (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
    let predicted = Some(LETTERS[best]);
    Ok(Prediction { question: index, predicted, answer: question.letter(), scores: Some(scores), response: None })
}
