//! Opens what is measured along attacks: data, tokenizer, prompts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::setup::GoalTables;
use crate::config::Texts;
use crate::data::{DataFile, DataStream, PromptEncoder, RawText, Tokenizer, read_prompts_with, read_questions};
use crate::error::{Error, Result};
use crate::eval::{GenerateOptions, NUM_SHOTS, PromptForm, WRITTEN_TOKENS};
use crate::huggingface::ModelDirectory;
use crate::redteam::suite::{Attack, AttackMethod, MetricKind, Prefill, RestrictedTable, Suite, UtilityTable};
use crate::redteam::{AnswerReader, Choice, Compliance, Judge, KEYWORDS, Measures, Scorer};
use crate::run::StreamFile;

/// What says how to open the measurements.
pub(super) struct Opener<'a> {
    pub suite: &'a Suite,
    pub attacks: &'a [Attack],
    pub model: &'a ModelDirectory,
}

impl Opener<'_> {
    pub(super) fn measures(&self, tables: GoalTables) -> Result<Measures> {
        let GoalTables { restricted, utility } = tables;
        let text = |data: &DataFile| self.stream("perplexity", data)?.all_batches();
        Ok(Measures {
            restricted: self.scorer("restricted", restricted.into())?,
            utility: self.scorer("utility", utility.into())?,
            perplexity: self.suite.perplexity.as_ref().map(|table| text(&table.data)).transpose()?,
        })
    }

    fn stream(&self, name: &str, data: &DataFile) -> Result<DataStream> {
        let file = StreamFile {
            name,
            data,
            batch: self.suite.evaluate.batch,
            max_length: self.suite.data.max_length,
            shuffle: false,
            pack: true,
            seed: 0,
        };
        file.open(self.model)
    }

    fn scorer(&self, name: &str, asked: Asked) -> Result<Scorer> {
        let config = &self.model.config;
        match asked.metric {
            MetricKind::Exact => Scorer::exact(&self.stream(name, asked.data)?, config.bos_token_id),
            MetricKind::Choice => Scorer::choice(Choice {
                questions: read_questions(asked.data)?,
                examples: asked.shots.map(read_questions).transpose()?.unwrap_or_default(),
                num_shots: asked.num_shots.unwrap_or(NUM_SHOTS),
                form: asked.form.unwrap_or_default(),
                written: self.greedy(WRITTEN_TOKENS)?,
                tokenizer: Tokenizer::open(&self.model.path, config.vocab_size)?,
                bos: config.bos_token_id,
            }),
            MetricKind::Compliance => Ok(Scorer::Compliance(Box::new(self.compliance(asked.data)?))),
        }
    }

    /// What reads the answers that attackers generate for themselves.
    pub(super) fn answer_reader(&self) -> Result<AnswerReader> {
        let encoder = PromptEncoder::open(&self.model.path, self.model.config.vocab_size)?;
        Ok(AnswerReader { encoder, options: self.greedy(self.suite.compliance.max_new_tokens)? })
    }

    fn greedy(&self, max_new_tokens: usize) -> Result<GenerateOptions> {
        let stop = self.model.config.stop_tokens(&self.model.path)?;
        Ok(GenerateOptions { max_new_tokens, stop, batch: self.suite.evaluate.batch, ..GenerateOptions::default() })
    }

    /// The prompts of a file, also with each beginning of the answer that an attack gives.
    fn compliance(&self, data: &DataFile) -> Result<Compliance> {
        let config = &self.model.config;
        let table = &self.suite.compliance;
        let encoder = PromptEncoder::open(&self.model.path, config.vocab_size)?;
        let beginnings = self.attacks.iter().flat_map(|attack| match &attack.method {
            AttackMethod::Prefill(Prefill::Answers(texts)) => texts.as_slice(),
            _ => &[],
        });
        let beginnings: Vec<&str> = std::iter::once("").chain(beginnings.map(String::as_str)).collect();
        let lists = read_prompts_with(data, Some(&encoder), &beginnings, RawText::Continued)?;
        if lists.iter().any(Vec::is_empty) {
            return Err(Error::input(&data.path, "there is no prompt", "give rows with a prompt"));
        }
        let prompts: BTreeMap<String, _> = beginnings.into_iter().map(str::to_string).zip(lists).collect();
        let options = self.greedy(table.max_new_tokens)?;
        let limit = Duration::from_secs_f64(table.judge_seconds);
        let judge = |name: &String| match name.as_str() {
            KEYWORDS => Judge::Keywords,
            _ => Judge::Command { command: name.clone(), limit },
        };
        let judges =
            table.judge.as_ref().map_or(vec![Judge::Keywords], |Texts(names)| names.iter().map(judge).collect());
        Ok(Compliance::new(prompts, encoder, options, judges, config.bos_token_id))
    }
}

/// What both tables say of their measurement.
struct Asked<'a> {
    metric: MetricKind,
    data: &'a DataFile,
    form: Option<PromptForm>,
    shots: Option<&'a DataFile>,
    num_shots: Option<usize>,
}

impl<'a> From<&'a RestrictedTable> for Asked<'a> {
    fn from(table: &'a RestrictedTable) -> Self {
        let RestrictedTable { metric, data, form, shots, num_shots, .. } = table;
        Self { metric: *metric, data, form: *form, shots: shots.as_ref(), num_shots: *num_shots }
    }
}

impl<'a> From<&'a UtilityTable> for Asked<'a> {
    fn from(table: &'a UtilityTable) -> Self {
        let UtilityTable { metric, data, form, shots, num_shots, .. } = table;
        Self { metric: *metric, data, form: *form, shots: shots.as_ref(), num_shots: *num_shots }
    }
}
