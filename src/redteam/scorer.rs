//! What is measured of a model along an attack. Reads no files.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Choice, Compliance, Scores};
use crate::data::DataStream;
use crate::error::{Error, Result};
use crate::eval::{PASS_TOKENS, exact_match, perplexity};
use crate::fingerprint::Fingerprint;
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
    /// Accuracy on multiple-choice questions.
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

    /// Multiple-choice questions.
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

    /// Rows that are measured.
    pub fn rows(&self) -> usize {
        match self {
            Self::Exact { batches, .. } => batches.iter().map(|batch| batch.segments.len()).sum(),
            Self::Choice { questions, .. } => questions.questions.len(),
            Self::Compliance(compliance) => compliance.rows(),
        }
    }

    /// What guessing scores.
    pub fn chance(&self) -> f64 {
        match self {
            Self::Choice { questions, .. } => questions.chance(),
            Self::Exact { .. } | Self::Compliance(_) => 0.0,
        }
    }

    /// Tells the questions, and how they are asked, from others.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        match self {
            Self::Exact { batches, .. } => Fingerprint::of(batches),
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

    /// The same measurement on some of its `of` rows, which are numbered in file order from 0; `rows` are ascending.
    ///
    /// # Errors
    /// [`Error::Defect`] for a measurement that has no rows of its own, or another number of them.
    pub fn on_rows(&self, rows: &[usize], of: usize) -> Result<Self> {
        let Self::Exact { batches, bos } = self else {
            return Err(Error::Defect("the rows of a measurement that has none".into()));
        };
        let count = self.rows();
        if count != of {
            return Err(Error::Defect(format!("{count} rows are measured where {of} are read")));
        }
        let mut number = 0;
        let mut kept = Vec::new();
        for batch in batches {
            let mut part = Batch::default();
            for s in &batch.segments {
                if rows.binary_search(&number).is_ok() {
                    let place = s.start..s.start + s.length;
                    part.push(&batch.tokens[place.clone()], &batch.labels[place], s.valid);
                }
                number += 1;
            }
            if !part.segments.is_empty() {
                kept.push(part);
            }
        }
        Ok(Self::Exact { batches: kept, bos: *bos })
    }

    fn check_room<B: Backend>(&self, evaluator: &Evaluator<B>, prefix: &Prefix) -> Result<()> {
        let room = evaluator.model().positions();
        let longest = self.longest();
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
        self.scores_on(&self.restricted, evaluator, subject, prefix)
    }

    /// As [`Measures::scores`], with `restricted` in place of the restricted measurement.
    pub fn scores_on<B: Backend>(
        &self,
        restricted: &Scorer,
        evaluator: &mut Evaluator<B>,
        subject: Subject<B>,
        prefix: &Prefix,
    ) -> Result<Scores> {
        let mut scores = Scores::default();
        let others = &mut scores.others;
        scores.restricted = restricted.score(evaluator, subject, prefix, others)?;
        scores.utility = self.utility.score(evaluator, subject, &Prefix::default(), others)?;
        if let Some(batches) = &self.perplexity {
            let measured = perplexity(evaluator, subject, batches.iter().cloned())?;
            // JSON has no infinity.
            scores.others.insert("perplexity".into(), measured.perplexity.min(f64::MAX));
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::data::StreamOptions;
    use crate::demo::Experiment;
    use crate::model::{Model, Parameters};
    use crate::objective::LossBatch;
    use crate::random::{Random, Stream};

    fn evaluator() -> (Evaluator<Cpu>, Parameters<Cpu>) {
        let model = Arc::new(Model::new(Cpu, Experiment::<Cpu>::model_config(), 32).unwrap());
        let mut random = Random::new(3, Stream::Weights, 0, 0);
        let values: Vec<f32> = (0..model.layout().len()).map(|_| 0.1 * random.normal() as f32).collect();
        let weights = Parameters::from_host(&Cpu, "weights", model.layout(), &values).unwrap();
        (Evaluator::new(model, 256, &[]).unwrap(), weights)
    }

    /// The most probable token after each token of a sequence that is alone in its batch.
    fn greedy(evaluator: &mut Evaluator<Cpu>, weights: &Parameters<Cpu>, tokens: &[u32]) -> Vec<u32> {
        let mut batch = Batch::default();
        batch.push(tokens, tokens, tokens.len());
        let batch = LossBatch::new(evaluator.model(), batch).unwrap();
        evaluator.forward(Subject::plain(weights), &batch).unwrap();
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let logits = evaluator.model().logits(weights, evaluator.workspace(), &rows).unwrap();
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        logits.chunks_exact(256).map(best).collect()
    }

    fn score(scorer: &Scorer, prefix: &[u32], evaluator: &mut Evaluator<Cpu>, weights: &Parameters<Cpu>) -> f64 {
        let prefix = Prefix { tokens: prefix.to_vec(), answer: None };
        scorer.score(evaluator, Subject::plain(weights), &prefix, &mut BTreeMap::new()).unwrap()
    }

    fn stream(rows: Vec<(Vec<u32>, Vec<u32>)>) -> DataStream {
        let options = StreamOptions {
            batch: 3,
            max_length: 32,
            shuffle: false,
            pack: true,
            pad_token_id: 0,
            vocab_size: 256,
            seed: 0,
        };
        DataStream::from_samples("rows", rows, options).unwrap()
    }

    fn row(random: &mut Random, length: usize) -> Vec<u32> {
        std::iter::once(1).chain((1..length).map(|_| random.below(256) as u32)).collect()
    }

    /// Labels are what the model would say, with one of them spoilt in every other row: half of the rows are right.
    #[test]
    fn a_row_is_right_when_each_of_its_learned_tokens_is_the_most_probable_one() {
        let (mut evaluator, weights) = evaluator();
        let mut random = Random::new(4, Stream::Data, 0, 0);
        let rows: Vec<(Vec<u32>, Vec<u32>)> = (0..10)
            .map(|index| {
                let tokens = row(&mut random, 6 + index % 4);
                let said = greedy(&mut evaluator, &weights, &tokens);
                let mut labels = vec![IGNORE_INDEX; tokens.len()];
                labels[3] = said[2];
                labels[5] = said[4];
                if index % 2 == 1 {
                    labels[if index % 4 == 1 { 3 } else { 5 }] ^= 1;
                }
                (tokens, labels)
            })
            .collect();
        let scorer = Scorer::exact(&stream(rows), Some(1)).unwrap();
        assert_eq!(score(&scorer, &[], &mut evaluator, &weights), 0.5);
    }

    /// A prefix moves the question back; the start token stands only once.
    #[test]
    fn a_prefix_stands_before_each_question_as_if_it_were_part_of_it() {
        let (mut evaluator, weights) = evaluator();
        let mut random = Random::new(5, Stream::Data, 0, 0);
        let prefix = row(&mut random, 7);
        let mut longer = Vec::new();
        let mut plain = Vec::new();
        for index in 0..7 {
            let tokens = row(&mut random, 5);
            let joined = [&prefix[..], &tokens[1..]].concat();
            let said = greedy(&mut evaluator, &weights, &joined);
            let label = if index < 3 { said[joined.len() - 2] } else { said[joined.len() - 2] ^ 1 };
            let labels = |length: usize| [vec![IGNORE_INDEX; length - 1], vec![label]].concat();
            plain.push((tokens, labels(5)));
            longer.push((joined.clone(), labels(joined.len())));
        }
        let score = |rows, prefix: &[u32], evaluator: &mut Evaluator<Cpu>| {
            let scorer = Scorer::exact(&stream(rows), Some(1)).unwrap();
            self::score(&scorer, prefix, evaluator, &weights)
        };
        assert_eq!(score(plain, &prefix, &mut evaluator), 3.0 / 7.0);
        assert_eq!(score(longer, &[], &mut evaluator), 3.0 / 7.0);
        assert_eq!(joined(&[1, 9], &[1, 5], Some(1)), [1, 9, 5]);
        assert_eq!(joined(&[1, 9], &[1, 5], None), [1, 9, 1, 5]);
        assert_eq!(joined(&[], &[1, 5], Some(1)), [1, 5]);
    }

    #[test]
    fn a_batch_with_a_prefix_fits_the_capacity_that_was_asked_for() {
        let rows = (0..5).map(|_| (vec![1, 2, 3, 4], vec![1, 2, 3, 4])).collect();
        let scorer = Scorer::exact(&stream(rows), None).unwrap();
        assert_eq!((scorer.longest(), scorer.capacity(0), scorer.capacity(10)), (4, 12, 42));
        let other = (0..5).map(|_| (vec![1, 2, 3, 4], vec![1, 2, 3, 5])).collect();
        let other = Scorer::exact(&stream(other), None).unwrap();
        assert_ne!(scorer.fingerprint().unwrap(), other.fingerprint().unwrap());
    }
}
