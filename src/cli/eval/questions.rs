//! Multiple choice.

use temper::data::Tokenizer;
use temper::eval::{
    ChoiceReport, NUM_SHOTS, PASS_TOKENS, PromptForm, WRITTEN_TOKENS, four_choice, four_choice_written,
};
use temper::ops::Backend;
use temper::run::read_questions;
use temper::{Error, Result};

use super::super::print;
use super::{Arguments, Loaded, generate_options, write_predictions};

/// `--form mmlu`, `lm-eval` and `qi`.
pub fn run<B: Backend>(backend: B, arguments: &Arguments, form: PromptForm) -> anyhow::Result<()> {
    let report = ask(backend, arguments, form)?;
    write_predictions(arguments, &report.predictions)?;
    if arguments.json {
        return print::json(&report);
    }
    let subject = |(name, (accuracy, count)): (&String, &(f64, usize))| {
        let name = if name.is_empty() { "(no subject)" } else { name };
        [name.to_string(), format!("{accuracy:.4}"), count.to_string()]
    };
    let mut rows: Vec<[String; 3]> = report.subjects.iter().map(subject).collect();
    rows.push(["all".into(), format!("{:.4}", report.accuracy), report.questions.to_string()]);
    print::text(&print::table(["subject", "accuracy", "questions"], &rows))?;
    match report.too_long {
        0 => Ok(()),
        count => print::text(&format!("{count} questions are longer than --max-length and were not asked\n")),
    }
}

fn ask<B: Backend>(backend: B, arguments: &Arguments, form: PromptForm) -> Result<ChoiceReport> {
    let questions = read_questions(&arguments.data)?;
    let examples = arguments.shots.as_deref().map(read_questions).transpose()?.unwrap_or_default();
    let most = arguments.num_shots.unwrap_or(NUM_SHOTS);
    let shots = |index: usize| questions[index].examples_among(&examples, most);
    let loaded = Loaded::open_longest(backend, arguments)?;
    let (model, subject) = (&loaded.model.model, loaded.subject());
    let tokenizer = Tokenizer::open(&arguments.model, model.config.vocab_size)?;
    let refuse = |problem: String| Error::input(&arguments.model, problem, "use the model's own tokenizer");
    let encode = |text: &str, start: bool| {
        Ok(tokenizer.encode(text, start).map_err(refuse)?.iter().map(|token| token.id).collect())
    };
    if form.continuations().is_some() {
        return four_choice(model, subject, &questions, &shots, form, PASS_TOKENS, &encode);
    }
    let decode = |tokens: &[u32]| tokenizer.decode(tokens).map_err(refuse);
    let options = generate_options(arguments, &model.config, WRITTEN_TOKENS)?;
    four_choice_written(model, subject, &questions, &options, &encode, &decode)
}
