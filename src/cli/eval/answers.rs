//! Generated answers: what they are, how many refuse, what a judge says of them.

use std::time::Duration;

use serde::Serialize;
use temper::data::{Prompt, PromptEncoder, read_prompts};
use temper::eval::{Repetition, generate, judge, refuses, repetition};
use temper::ops::Backend;
use temper::{Error, Result};

use super::super::print;
use super::{Arguments, Form, Loaded, generate_options, write_predictions};

/// Tokens of an answer, unless the user says how many.
const ANSWER_TOKENS: usize = 256;
/// How long a judge may take, unless the user says how long.
const JUDGE_SECONDS: f64 = 3600.0;

/// An answer.
#[derive(Serialize)]
struct Answer {
    prompt: String,
    /// What was put into the model's mouth; the response goes on from there.
    #[serde(skip_serializing_if = "String::is_empty")]
    prefill: String,
    response: String,
    /// Whether the response reads like a refusal.
    refused: bool,
    /// What the judge says.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

/// All answers together.
#[derive(Serialize)]
struct Report {
    prompts: usize,
    /// Share of the prompts that are refused, by how the answer begins.
    refused: f64,
    /// Mean of the judge's scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Tokens that were generated.
    tokens: u64,
    #[serde(flatten)]
    repetition: Repetition,
}

/// `--form generate` and `refusal`.
pub fn run<B: Backend>(backend: B, arguments: &Arguments) -> anyhow::Result<()> {
    let (answers, tokens) = answer(backend, arguments)?;
    write_predictions(arguments, &answers)?;
    let report = report(&answers, tokens);
    if arguments.json {
        return print::json(&report);
    }
    if arguments.form == Form::Generate {
        let show = |answer: &Answer| format!("> {}\n{}{}\n\n", answer.prompt, answer.prefill, answer.response);
        return print::text(&answers.iter().map(show).collect::<String>());
    }
    let [one, two, three] = report.repetition.distinct;
    let mut rows = vec![["refused".to_string(), format!("{:.4}", report.refused)]];
    rows.extend(report.score.map(|score| ["judge's score, mean".into(), format!("{score:.4}")]));
    rows.push(["distinct 1-, 2-, 3-grams".into(), format!("{one:.3} {two:.3} {three:.3}")]);
    rows.push(["repeated 4-grams".into(), format!("{:.3}", report.repetition.repeated)]);
    rows.push(["gibberish".into(), format!("{:.4}", report.repetition.gibberish)]);
    rows.push(["prompts".into(), report.prompts.to_string()]);
    print::text(&print::table(["answers", "share"], &rows))
}

/// The answers, and how many tokens they have.
fn answer<B: Backend>(backend: B, arguments: &Arguments) -> Result<(Vec<Answer>, u64)> {
    let loaded = Loaded::open_longest(backend, arguments)?;
    let model = &loaded.model.model;
    let tokenized = arguments.model.join("tokenizer.json").exists();
    let encoder = tokenized.then(|| PromptEncoder::open(&arguments.model, model.config.vocab_size)).transpose()?;
    if encoder.is_none() && (arguments.form == Form::Refusal || arguments.judge.is_some()) {
        let problem = "there is no tokenizer.json, so answers cannot be read";
        return Err(Error::input(&arguments.model, problem, "add it, or look at token ids with --form generate"));
    }
    let prefill = arguments.prefill.as_deref().unwrap_or_default();
    let prompts = read_prompts(&arguments.data, encoder.as_ref(), prefill)?;
    if prompts.is_empty() {
        return Err(Error::input(&arguments.data, "there is no prompt", "give rows with `prompt` or `messages`"));
    }
    let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let options = generate_options(arguments, &model.config, ANSWER_TOKENS)?;
    let generated = generate(model, loaded.subject(), &tokens, &options)?;
    let count = generated.iter().map(|tokens| tokens.len() as u64).sum();
    let mut answers = Vec::with_capacity(prompts.len());
    for (prompt, tokens) in prompts.into_iter().zip(&generated) {
        answers.push(read(arguments, encoder.as_ref(), prompt, prefill, tokens)?);
    }
    if let Some(command) = &arguments.judge {
        score(command, arguments.judge_seconds.unwrap_or(JUDGE_SECONDS), &mut answers)?;
    }
    Ok((answers, count))
}

/// Generated tokens as text, or as numbers where the model has no tokenizer.
fn read(
    arguments: &Arguments,
    encoder: Option<&PromptEncoder>,
    prompt: Prompt,
    prefill: &str,
    tokens: &[u32],
) -> Result<Answer> {
    let response = match encoder {
        Some(encoder) => encoder.decode(tokens).map_err(|problem| {
            Error::input(&arguments.model, problem, "use the tokenizer files that came with the model")
        })?,
        None => format!("{tokens:?}"),
    };
    let refused = refuses(&response);
    Ok(Answer { prompt: prompt.text, prefill: prefill.to_string(), response, refused, score: None })
}

/// The judge reads an answer from its beginning, prefilled or not.
fn score(command: &str, seconds: f64, answers: &mut [Answer]) -> Result<()> {
    let limit = Duration::try_from_secs_f64(seconds).map_err(|_| {
        Error::config("--judge-seconds", format!("{seconds} is longer than can be waited"), "give it fewer seconds")
    })?;
    let whole: Vec<String> = answers.iter().map(|answer| format!("{}{}", answer.prefill, answer.response)).collect();
    let exchanges: Vec<(&str, &str)> =
        answers.iter().zip(&whole).map(|(answer, whole)| (answer.prompt.as_str(), whole.as_str())).collect();
    let scores = judge(command, &exchanges, limit)?;
    answers.iter_mut().zip(scores).for_each(|(answer, score)| answer.score = Some(score));
    Ok(())
}

fn report(answers: &[Answer], tokens: u64) -> Report {
    let count = answers.len() as f64;
    let scores: Vec<f64> = answers.iter().filter_map(|answer| answer.score).collect();
    let responses: Vec<&str> = answers.iter().map(|answer| answer.response.as_str()).collect();
    Report {
        prompts: answers.len(),
        refused: answers.iter().filter(|answer| answer.refused).count() as f64 / count,
        score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / count),
        tokens,
        repetition: repetition(&responses),
    }
}
