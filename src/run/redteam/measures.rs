//! Opens what is measured along attacks: data, tokenizer, prompts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::data::{DataStream, PromptEncoder, RawRow, Tokenizer, read_prompts, rows};
use crate::error::{Error, Result};
use crate::eval::{GenerateOptions, Question};
use crate::model::ModelDirectory;
use crate::redteam::suite::{Attack, ChoiceForm, Method, MetricKind, Prefill, RestrictedTable, Suite, UtilityTable};
use crate::redteam::{Compliance, Judge, Measures, Scorer};
use crate::run::open_stream;

/// What says how to open the measurements.
pub(super) struct Opener<'a> {
    pub suite: &'a Suite,
    pub attacks: &'a [Attack],
    pub model: &'a ModelDirectory,
}

impl Opener<'_> {
    pub(super) fn measures(&self, restricted: &RestrictedTable, utility: &UtilityTable) -> Result<Measures> {
        let text = |path: &Path| self.stream("perplexity", path)?.all_batches();
        Ok(Measures {
            restricted: self.scorer("restricted", restricted.metric, restricted.form, &restricted.data)?,
            utility: self.scorer("utility", utility.metric, utility.form, &utility.data)?,
            perplexity: self.suite.perplexity.as_ref().map(|table| text(&table.data)).transpose()?,
        })
    }

    fn stream(&self, name: &str, path: &Path) -> Result<DataStream> {
        let (batch, longest) = (self.suite.evaluate.batch, self.suite.data.max_length);
        open_stream(name, path, self.model, batch, longest, (false, true), 0)
    }

    fn scorer(&self, name: &str, metric: MetricKind, form: Option<ChoiceForm>, path: &Path) -> Result<Scorer> {
        let config = &self.model.config;
        match metric {
            MetricKind::Exact => Scorer::exact(&self.stream(name, path)?, config.bos_token_id),
            MetricKind::Choice => {
                let tokenizer = Tokenizer::open(&self.model.path, config.vocab_size)?;
                Scorer::choice(questions(path)?, form.unwrap_or_default().into(), tokenizer, config.bos_token_id)
            }
            MetricKind::Compliance => Ok(Scorer::Compliance(Box::new(self.compliance(path)?))),
        }
    }

    /// The prompts of a file, also with each beginning of the answer that an attack gives.
    fn compliance(&self, path: &Path) -> Result<Compliance> {
        let (config, table) = (&self.model.config, &self.suite.compliance);
        let encoder = PromptEncoder::open(&self.model.path, config.vocab_size)?;
        let beginnings = self.attacks.iter().filter_map(|attack| match &attack.method {
            Method::Prefill(Prefill::Answer(text)) => Some(text.as_str()),
            _ => None,
        });
        let mut prompts = BTreeMap::new();
        for beginning in std::iter::once("").chain(beginnings) {
            let read = read_prompts(path, Some(&encoder), beginning)?;
            if read.is_empty() {
                return Err(Error::input(path, "there is no prompt", "give rows with a prompt"));
            }
            prompts.insert(beginning.to_string(), read);
        }
        let options = GenerateOptions {
            max_new_tokens: table.max_new_tokens,
            stop: config.stop_tokens(&self.model.path)?,
            batch: self.suite.evaluate.batch,
            ..GenerateOptions::default()
        };
        let limit = Duration::from_secs_f64(table.judge_seconds);
        let judge = table.judge.clone().map_or(Judge::Keywords, |command| Judge::Command { command, limit });
        Ok(Compliance::new(prompts, encoder, options, judge, config.bos_token_id))
    }
}

fn questions(path: &Path) -> Result<Vec<Question>> {
    let read = |row: Result<RawRow>| {
        let (place, value) = row?.value()?;
        Question::from_json(&value).map_err(|problem| place.error(problem, "mend the row or remove it"))
    };
    let questions: Vec<Question> = rows(path)?.map(read).collect::<Result<_>>()?;
    if questions.is_empty() {
        return Err(Error::input(path, "there is no question", "give rows of question, choices and answer"));
    }
    Ok(questions)
}
