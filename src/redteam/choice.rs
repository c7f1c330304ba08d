//! Multiple-choice questions as a measurement along an attack.

use super::scorer::{Prefix, joined};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::{GenerateOptions, PASS_TOKENS, PromptForm, Question, multiple_choice, multiple_choice_written};
use crate::fingerprint::Fingerprint;
use crate::model::Model;
use crate::objective::Subject;
use crate::ops::Backend;

/// Questions, and how they are asked.
pub struct Choice {
    /// The questions.
    pub questions: Vec<Question>,
    /// Questions with answers, of which each question is shown the ones of its own subject.
    pub examples: Vec<Question>,
    /// How many of them.
    pub num_shots: usize,
    /// How they are asked.
    pub form: PromptForm,
    /// How answers are written, where the model writes them.
    pub written: GenerateOptions,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// First token of prompts, which stands only once where something is put before them.
    pub bos: Option<u32>,
}

impl Choice {
    /// Tokens of the longest question with its examples and its answer.
    pub(super) fn longest(&self) -> Result<usize> {
        let most = self.questions.iter().map(|question| question.choices.len()).max().unwrap_or(0);
        let continuations = self.form.continuations(most);
        let mut answer = self.written.max_new_tokens;
        for text in continuations.iter().flatten() {
            answer = answer.max(self.encode(text, false)?.len());
        }
        let mut longest = 0;
        for (index, question) in self.questions.iter().enumerate() {
            let shots = self.shots(index);
            let shots: Vec<&Question> = shots.iter().collect();
            let prompt = self.form.prompt(question.subject.as_deref(), &shots, question);
            longest = longest.max(self.encode(&prompt, true)?.len() + answer);
        }
        Ok(longest)
    }

    /// What guessing scores.
    pub(super) fn chance(&self) -> f64 {
        let each = self.questions.iter().map(|question| 1.0 / question.choices.len() as f64);
        each.sum::<f64>() / self.questions.len().max(1) as f64
    }

    pub(super) fn fingerprint(&self) -> Result<Fingerprint> {
        let Self { questions, examples, num_shots, form, written, .. } = self;
        Fingerprint::of(&(form, num_shots, questions, examples, written))
    }

    /// The share of right answers with `prefix` before each question.
    pub(super) fn score<B: Backend>(&self, model: &Model<B>, subject: Subject<B>, prefix: &Prefix) -> Result<f64> {
        let encode = |text: &str, starts: bool| {
            let tokens = self.encode(text, starts)?;
            Ok(if starts { joined(&prefix.tokens, &tokens, self.bos) } else { tokens })
        };
        let questions = &self.questions;
        let report = if self.form.is_written() {
            let decode = |tokens: &[u32]| self.tokenizer.decode(tokens).map_err(refuse);
            multiple_choice_written(model, subject, questions, &self.written, &encode, &decode)?
        } else {
            let shots = |index: usize| self.shots(index);
            multiple_choice(model, subject, questions, &shots, self.form, PASS_TOKENS, &encode)?
        };
        Ok(report.accuracy)
    }

    fn shots(&self, index: usize) -> Vec<Question> {
        self.questions[index].examples_among(&self.examples, self.num_shots)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, special).map_err(refuse)?.iter().map(|token| token.id).collect())
    }
}

fn refuse(problem: String) -> Error {
    Error::config("model", problem, "use the model's own tokenizer")
}
