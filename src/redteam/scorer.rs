//! What is measured of a model along an attack. Reads no files.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Choice, Compliance, Scores};
use crate::data::DataStream;
use crate::error::{Error, Result};
use crate::eval::{PASS_TOKENS, exact_match, perplexity};
use crate::model::Batch;
use crate::objective::{Evaluator, Subject};
use crate::ops::{Backend, IGNORE_INDEX};

/// What an attacker puts before each question, or where he begins its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prefix {
    /// Tokens before each question.
    pub tokens: Vec<u32>,
    /// The beginning of each answer, for scorers that generate.
    pub answer: Option<String>,
}

/// One measurement.
pub enum Scorer {
    /// Share of rows whose every learned token is the most probable one after the tokens before it.
    Exact {
        /// The rows, in batches.
        batches: Vec<Batch>,
        /// First token of rows, which stands only once where something is put before them.
        bos: Option<u32>,
    },
    /// Accuracy on four-choice questions.
    Choice {
        /// The questions, and how they are asked.
        questions: Box<Choice>,
        /// Tokens of the longest question with its answer.
        longest: usize,
    },
    /// Whether prompts are answered.
    Compliance(Box<Compliance>),
}

impl Scorer {
    /// Rows of a stream, in file order and batches of the stream's size.
    pub fn exact(stream: &DataStream, bos: Option<u32>) -> Result<Self> {
        if stream.is_preference() {
            let remedy = "give it rows of prompt and answer";
            return Err(Error::config("metric", "preference pairs have no one right answer", remedy));
        }
        Ok(Self::Exact { batches: stream.all_batches()?, bos })
    }

    /// Four-choice questions.
    pub fn choice(questions: Choice) -> Result<Self> {
        Ok(Self::Choice { longest: questions.longest()?, questions: Box::new(questions) })
    }

    /// Tokens of the longest sequence, without a prefix.
    pub fn longest(&self) -> usize {
        match self {
            Self::Exact { batches, .. } => {
                batches.iter().flat_map(|batch| &batch.segments).map(|s| s.length).max().unwrap_or(0)
            }
            Self::Choice { longest, .. } => *longest,
            Self::Compliance(compliance) => compliance.longest(),
        }
    }

    /// Tokens of the largest batch with `prefix` tokens before each question.
    pub fn capacity(&self, prefix: usize) -> usize {
        match self {
            Self::Exact { batches, .. } => {
                batches.iter().map(|batch| batch.len() + prefix * batch.segments.len()).max().unwrap_or(0)
            }
            // What goes through a cache has memory of its own.
            Self::Choice { .. } | Self::Compliance(_) => 0,
        }
    }

    /// Tokens whose keys and values are kept at once.
    pub fn cached_tokens(&self, prefix: usize) -> usize {
        match self {
            Self::Exact { .. } => 0,
            Self::Choice { longest, .. } => PASS_TOKENS.max(longest.saturating_add(prefix)).saturating_mul(2),
            Self::Compliance(compliance) => compliance.cached_tokens(prefix),
        }
    }

    /// A number that differs, all but certainly, where the questions do.
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Exact { batches, .. } => crate::checkpoint::hash_config(&format!("{batches:?}")),
            Self::Choice { questions, .. } => questions.fingerprint(),
            Self::Compliance(compliance) => compliance.fingerprint(),
        }
    }

    /// The score of `subject`, 0 to 1, with `prefix` before each question; what else shows goes to `others`.
    pub fn score<B: Backend>(
        &self,
        evaluator: &mut Evaluator<B>,
        subject: Subject<B>,
        prefix: &Prefix,
        others: &mut BTreeMap<String, f64>,
    ) -> Result<f64> {
        match self {
            Self::Exact { batches, bos } => {
                self.check_room(evaluator, prefix)?;
                let batches = batches.iter().map(|batch| with_prefix(batch, &prefix.tokens, *bos));
                Ok(exact_match(evaluator, subject, batches)?.accuracy)
            }
            Self::Choice { questions, .. } => {
                self.check_room(evaluator, prefix)?;
                questions.score(&Arc::clone(evaluator.model()), subject, prefix)
            }
            Self::Compliance(compliance) => {
                let model = Arc::clone(evaluator.model());
                compliance.score(&model, subject, prefix, others)
            }
        }
    }

    fn check_room<B: Backend>(&self, evaluator: &Evaluator<B>, prefix: &Prefix) -> Result<()> {
        let (room, longest) = (evaluator.model().positions(), self.longest());
        if longest + prefix.tokens.len() <= room {
            return Ok(());
        }
        let problem = format!(
            "{} tokens before questions of up to {longest} are more than the model's {room} positions",
            prefix.tokens.len()
        );
        Err(Error::config("attack.demonstrations", problem, "show fewer"))
    }
}

/// `prefix` and then `tokens`, whose start token is not repeated in the middle.
pub(super) fn joined(prefix: &[u32], tokens: &[u32], bos: Option<u32>) -> Vec<u32> {
    let repeated = !prefix.is_empty() && bos.is_some() && tokens.first().copied() == bos;
    [prefix, &tokens[usize::from(repeated)..]].concat()
}

fn with_prefix(batch: &Batch, prefix: &[u32], bos: Option<u32>) -> Batch {
    if prefix.is_empty() {
        return batch.clone();
    }
    let mut longer = Batch::default();
    for s in &batch.segments {
        let row = s.start..s.start + s.valid;
        let tokens = joined(prefix, &batch.tokens[row.clone()], bos);
        let kept = &batch.labels[row];
        let kept = &kept[kept.len() - (tokens.len() - prefix.len())..];
        let labels = [&vec![IGNORE_INDEX; prefix.len()], kept].concat();
        longer.push(&tokens, &labels, tokens.len());
    }
    longer
}

/// Everything that is measured along an attack.
pub struct Measures {
    /// The restricted capability.
    pub restricted: Scorer,
    /// The capability to keep.
    pub utility: Scorer,
    /// Text whose perplexity is reported.
    pub perplexity: Option<Vec<Batch>>,
}

impl Measures {
    /// Tokens of the largest batch, with `prefix` tokens before restricted questions.
    pub fn capacity(&self, prefix: usize) -> usize {
        let text = self.perplexity.iter().flatten().map(Batch::len).max().unwrap_or(0);
        self.restricted.capacity(prefix).max(self.utility.capacity(0)).max(text)
    }

    /// Tokens of the longest sequence, without a prefix.
    pub fn longest(&self) -> usize {
        let text = self.perplexity.iter().flatten().flat_map(|batch| &batch.segments);
        let text = text.map(|s| s.length).max().unwrap_or(0);
        self.restricted.longest().max(self.utility.longest()).max(text)
    }

    /// All scores of a model. A prefix stands before restricted questions only: it does not change the model.
    pub fn scores<B: Backend>(
        &self,
        evaluator: &mut Evaluator<B>,
        subject: Subject<B>,
        prefix: &Prefix,
    ) -> Result<Scores> {
        let mut scores = Scores::default();
        let others = &mut scores.others;
        scores.restricted = self.restricted.score(evaluator, subject, prefix, others)?;
        scores.utility = self.utility.score(evaluator, subject, &Prefix::default(), others)?;
        if let Some(batches) = &self.perplexity {
            let measured = perplexity(evaluator, subject, batches.iter().cloned())?;
            // JSON has no infinity.
            scores.others.insert("perplexity".into(), measured.perplexity.min(f64::MAX));
        }
        Ok(scores)
    }
}
