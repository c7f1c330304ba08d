//! What is measured of a model along an attack. Reads no files.

use super::Scores;
use super::suite::ChoiceForm;
use crate::data::{DataStream, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::{PromptForm, Question, four_choice, perplexity};
use crate::model::Batch;
use crate::objective::{Evaluator, LossBatch, Subject};
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
        /// The questions.
        questions: Vec<Question>,
        /// How they are asked.
        form: PromptForm,
        /// The model's tokenizer.
        tokenizer: Box<Tokenizer>,
        /// Tokens of the longest question with its answer.
        longest: usize,
        /// See [`Scorer::Exact`].
        bos: Option<u32>,
    },
}

impl From<ChoiceForm> for PromptForm {
    fn from(form: ChoiceForm) -> Self {
        match form {
            ChoiceForm::Mmlu => Self::Mmlu,
            ChoiceForm::LmEval => Self::LmEval,
        }
    }
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
    pub fn choice(questions: Vec<Question>, form: PromptForm, tokenizer: Tokenizer, bos: Option<u32>) -> Result<Self> {
        let mut longest = 0;
        for question in &questions {
            let prompt = form.prompt(question.subject.as_deref(), &[], question);
            for continuation in form.continuations() {
                let tokens = encode(&tokenizer, &prompt, true)?.len() + encode(&tokenizer, &continuation, false)?.len();
                longest = longest.max(tokens);
            }
        }
        Ok(Self::Choice { questions, form, tokenizer: Box::new(tokenizer), longest, bos })
    }

    /// Tokens of the longest sequence, without a prefix.
    pub fn longest(&self) -> usize {
        match self {
            Self::Exact { batches, .. } => {
                batches.iter().flat_map(|batch| &batch.segments).map(|s| s.length).max().unwrap_or(0)
            }
            Self::Choice { longest, .. } => *longest,
        }
    }

    /// Tokens of the largest batch with `prefix` tokens before each question.
    pub fn capacity(&self, prefix: usize) -> usize {
        match self {
            Self::Exact { batches, .. } => {
                batches.iter().map(|batch| batch.len() + prefix * batch.segments.len()).max().unwrap_or(0)
            }
            Self::Choice { longest, .. } => 4 * (longest + prefix),
        }
    }

    /// A number that differs, all but certainly, where the questions do.
    pub fn fingerprint(&self) -> u64 {
        let text = match self {
            Self::Exact { batches, .. } => format!("{batches:?}"),
            Self::Choice { questions, form, .. } => format!("{form:?} {questions:?}"),
        };
        crate::checkpoint::hash_config(&text)
    }

    /// The score of `subject`, 0 to 1, with `prefix` before each question.
    pub fn score<B: Backend>(&self, evaluator: &mut Evaluator<B>, subject: Subject<B>, prefix: &[u32]) -> Result<f64> {
        let room = evaluator.model().positions();
        if self.longest() + prefix.len() > room {
            let problem = format!(
                "{} tokens before questions of up to {} are more than the model's {room} positions",
                prefix.len(),
                self.longest()
            );
            return Err(Error::config("attack.demonstrations", problem, "show fewer"));
        }
        match self {
            Self::Exact { batches, bos } => {
                let (mut right, mut rows) = (0, 0);
                for batch in batches {
                    let batch = LossBatch::new(evaluator.model(), with_prefix(batch, prefix, *bos))?;
                    let (hits, count) = exact_rows(evaluator, subject, &batch)?;
                    (right, rows) = (right + hits, rows + count);
                }
                Ok(right as f64 / rows.max(1) as f64)
            }
            Self::Choice { questions, form, tokenizer, bos, .. } => {
                let encode = |text: &str, starts: bool| {
                    let tokens = encode(tokenizer, text, starts)?;
                    Ok(if starts { joined(prefix, &tokens, *bos) } else { tokens })
                };
                Ok(four_choice(evaluator, subject, questions, &|_| Vec::new(), *form, &encode)?.accuracy)
            }
        }
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    let refuse = |problem| Error::config("--model", problem, "use the model's own tokenizer");
    Ok(tokenizer.encode(text, special).map_err(refuse)?.iter().map(|token| token.id).collect())
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

/// Rows of a batch whose every learned token has the highest logit, and rows that learn a token.
fn exact_rows<B: Backend>(
    evaluator: &mut Evaluator<B>,
    subject: Subject<B>,
    batch: &LossBatch<B>,
) -> Result<(usize, usize)> {
    /// Rows of logits on the host at once.
    const AT_ONCE: usize = 128;
    let model = evaluator.model().clone();
    let targets = batch.host().next_token_targets();
    let asked: Vec<u32> =
        (0u32..).zip(&targets).filter(|(_, target)| **target != IGNORE_INDEX).map(|(row, _)| row).collect();
    evaluator.forward(subject, batch)?;
    let mut wrong = vec![false; targets.len()];
    for rows in asked.chunks(AT_ONCE) {
        let logits = model.logits(subject.weights, evaluator.workspace(), rows)?;
        for (row, logits) in rows.iter().zip(logits.chunks_exact(model.config.vocab_size)) {
            let best =
                logits.iter().enumerate().fold(0, |best, (i, value)| if *value > logits[best] { i } else { best });
            wrong[*row as usize] = best != targets[*row as usize] as usize;
        }
    }
    let (mut right, mut rows) = (0, 0);
    for s in &batch.host().segments {
        let row = s.start..s.start + s.valid;
        if targets[row.clone()].iter().any(|&target| target != IGNORE_INDEX) {
            rows += 1;
            right += usize::from(!wrong[row].contains(&true));
        }
    }
    Ok((right, rows))
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
        let mut scores = Scores {
            restricted: self.restricted.score(evaluator, subject, &prefix.tokens)?,
            utility: self.utility.score(evaluator, subject, &[])?,
            ..Scores::default()
        };
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
        assert_eq!(scorer.score(&mut evaluator, Subject::plain(&weights), &[]).unwrap(), 0.5);
    }

    /// A prefix moves the question back; the start token stands only once.
    #[test]
    fn a_prefix_stands_before_each_question_as_if_it_were_part_of_it() {
        let (mut evaluator, weights) = evaluator();
        let mut random = Random::new(5, Stream::Data, 0, 0);
        let prefix = row(&mut random, 7);
        let (mut longer, mut plain) = (Vec::new(), Vec::new());
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
            scorer.score(evaluator, Subject::plain(&weights), prefix).unwrap()
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
        assert_ne!(scorer.fingerprint(), Scorer::exact(&stream(other), None).unwrap().fingerprint());
    }
}
