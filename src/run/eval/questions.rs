//! Multiple choice.

use super::{EvalConfig, EvalReport, Evaluation, Loaded, write_predictions};
use crate::data::{Tokenizer, read_questions};
use crate::error::{Error, Result};
use crate::eval::{
    ChoiceReport, NUM_SHOTS, PASS_TOKENS, PromptForm, Question, WRITTEN_TOKENS, multiple_choice,
    multiple_choice_written,
};
use crate::ops::Backend;

pub(super) fn ask<B: Backend>(backend: B, config: &EvalConfig, form: PromptForm) -> Result<Evaluation> {
    let questions = read_questions(&config.data)?;
    let examples = match &config.shots {
        Some(path) => read_questions(path)?,
        None => Vec::new(),
    };
    let loaded = Loaded::longest(backend, config)?;
    let report = ask_all(&loaded, config, form, &questions, &examples)?;
    write_predictions(config, &report.predictions)?;
    Ok(Evaluation { rows_read: questions.len(), report: EvalReport::Choice(report) })
}

fn ask_all<B: Backend>(
    loaded: &Loaded<B>,
    config: &EvalConfig,
    form: PromptForm,
    questions: &[Question],
    examples: &[Question],
) -> Result<ChoiceReport> {
    let model = &loaded.base.model;
    let tokenizer = Tokenizer::open(&config.model, model.config.vocab_size)?;
    let refuse = |problem: String| Error::input(&config.model, problem, "use the model's own tokenizer");
    let encode = |text: &str, start: bool| {
        Ok(tokenizer.encode(text, start).map_err(refuse)?.iter().map(|token| token.id).collect())
    };
    if !form.is_written() {
        let most = config.num_shots.unwrap_or(NUM_SHOTS);
        let shots = |index: usize| questions[index].examples_among(examples, most);
        return multiple_choice(model, loaded.subject(), questions, &shots, form, PASS_TOKENS, &encode);
    }
    let decode = |tokens: &[u32]| tokenizer.decode(tokens).map_err(refuse);
    let options = loaded.generate_options(config, WRITTEN_TOKENS)?;
    multiple_choice_written(model, loaded.subject(), questions, &options, &encode, &decode)
}
