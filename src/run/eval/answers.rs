//! Generated answers: the texts, how many refuse, what a judge says of them.

use std::time::Duration;

use serde::Serialize;

use super::{EvalConfig, EvalForm, EvalReport, Evaluation, Loaded, write_predictions};
use crate::data::{PromptEncoder, RawText, read_prompts};
use crate::error::{Error, Result};
use crate::eval::{Repetition, generate, judge, refuses, repetition};
use crate::ops::Backend;

/// Tokens of an answer, unless the user says how many.
const ANSWER_TOKENS: usize = 256;
/// How long a judge may take, unless the user says how long.
const JUDGE_SECONDS: f64 = 3600.0;

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The prompt, for people.
    pub prompt: String,
    /// The beginning of the answer that the model was given; the response goes on from there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefill: String,
    /// The text that the model wrote, or its token ids where it has no tokenizer.
    pub response: String,
    /// Whether the response reads like a refusal.
    pub refused: bool,
    /// The judge's score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// All answers together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answers {
    /// Number of prompts.
    pub prompts: usize,
    /// Share of the prompts that are refused, by how the answer begins.
    pub refused: f64,
    /// Mean of the judge's scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Tokens that were generated.
    pub tokens: u64,
    /// Measures of repetition within and between the answers.
    #[serde(flatten)]
    pub repetition: Repetition,
    /// The answers, in the order of the prompts.
    #[serde(skip)]
    pub answers: Vec<Answer>,
}

pub(super) fn answer<B: Backend>(backend: B, config: &EvalConfig) -> Result<Evaluation> {
    let (mut answers, tokens) = write_answers(backend, config)?;
    if let Some(command) = &config.judge {
        score(command, config.judge_seconds.unwrap_or(JUDGE_SECONDS), &mut answers)?;
    }
    write_predictions(config, &answers)?;
    Ok(Evaluation { rows_read: answers.len(), report: EvalReport::Answers(report(answers, tokens)) })
}

/// The answers, and how many tokens they have.
fn write_answers<B: Backend>(backend: B, config: &EvalConfig) -> Result<(Vec<Answer>, u64)> {
    let loaded = Loaded::longest(backend, config)?;
    let model = &loaded.base.model;
    let encoder = encoder(config, model.config.vocab_size)?;
    let prefill = config.prefill.as_deref().unwrap_or_default();
    let prompts = read_prompts(&config.data, encoder.as_ref(), prefill, RawText::Continued)?;
    if prompts.is_empty() {
        return Err(Error::input(&config.data.path, "there is no prompt", "give rows with `prompt` or `messages`"));
    }
    let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let options = loaded.generate_options(config, ANSWER_TOKENS)?;
    let generated = generate(model, loaded.subject(), &tokens, &options)?;
    let count = generated.iter().map(|tokens| tokens.len() as u64).sum();
    let mut answers = Vec::with_capacity(prompts.len());
    for (prompt, tokens) in prompts.into_iter().zip(&generated) {
        let response = read(config, encoder.as_ref(), tokens)?;
        let refused = refuses(&response);
        answers.push(Answer { prompt: prompt.text, prefill: prefill.to_string(), response, refused, score: None });
    }
    Ok((answers, count))
}

/// The tokenizer and chat template; none where the model has none and the form needs none.
fn encoder(config: &EvalConfig, vocab_size: usize) -> Result<Option<PromptEncoder>> {
    if config.model.join("tokenizer.json").exists() {
        return PromptEncoder::open(&config.model, vocab_size).map(Some);
    }
    if config.form == EvalForm::Refusal || config.judge.is_some() {
        let problem = "there is no tokenizer.json, so answers cannot be read";
        let remedy = "add it, or look at token ids with `form` generate";
        return Err(Error::input(&config.model, problem, remedy));
    }
    Ok(None)
}

/// Generated tokens as text, or as numbers where the model has no tokenizer.
fn read(config: &EvalConfig, encoder: Option<&PromptEncoder>, tokens: &[u32]) -> Result<String> {
    let Some(encoder) = encoder else { return Ok(format!("{tokens:?}")) };
    encoder
        .decode(tokens)
        .map_err(|problem| Error::input(&config.model, problem, "use the tokenizer files that came with the model"))
}

/// The judge reads an answer from its beginning, prefilled or not.
fn score(command: &str, seconds: f64, answers: &mut [Answer]) -> Result<()> {
    let limit = Duration::try_from_secs_f64(seconds).map_err(|_| {
        Error::config("judge_seconds", format!("{seconds} cannot be waited for"), "use a finite number, 0 or more")
    })?;
    let whole: Vec<String> = answers.iter().map(|answer| format!("{}{}", answer.prefill, answer.response)).collect();
    let exchanges: Vec<(&str, &str)> =
        answers.iter().zip(&whole).map(|(answer, whole)| (answer.prompt.as_str(), whole.as_str())).collect();
    let scores = judge(command, &exchanges, limit)?;
    for (answer, score) in answers.iter_mut().zip(scores) {
        answer.score = Some(score);
    }
    Ok(())
}

fn report(answers: Vec<Answer>, tokens: u64) -> Answers {
    let count = answers.len() as f64;
    let scores: Vec<f64> = answers.iter().filter_map(|answer| answer.score).collect();
    let responses: Vec<&str> = answers.iter().map(|answer| answer.response.as_str()).collect();
    Answers {
        prompts: answers.len(),
        refused: answers.iter().filter(|answer| answer.refused).count() as f64 / count,
        score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / count),
        tokens,
        repetition: repetition(&responses),
        answers,
    }
}
