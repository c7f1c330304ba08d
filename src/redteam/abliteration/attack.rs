//! Abliteration as attacks of a suite: with one direction, and searched.

use std::sync::Arc;
use std::time::Instant;

use super::probe::{Answering, Divergence, Probe, Resistance, Spent};
use super::search::{AbliterationRun, preference};
use super::{AbliterationData, Judged, abliterate, one_direction};
use crate::config::AbliterationSearch;
use crate::error::Result;
use crate::model::Batch;
use crate::objective::{Evaluator, Subject};
use crate::ops::Backend;
use crate::plan::{Backward, Costs};
use crate::redteam::attacker::{Attacked, Attacker, STREAM, Tick, is_measured};
use crate::redteam::scorer::{Prefix, Scorer};
use crate::redteam::suite::Role;
use crate::redteam::{Cost, Point, Scores, Target};

/// Rows of each side that one direction is found with, as Arditi et al. do.
const ROWS: usize = 128;
/// Rows of each side that a search finds its directions with, at most.
const SEARCH_ROWS: usize = 400;
/// Rows of each side that edits are measured on: a fifth of all, at most this many.
const MEASURED_ROWS: usize = 100;
/// Rows that go through a model at once.
const ABLITERATION_BATCH: usize = 32;
/// The measurement that both attacks report beside the scores.
const FIRST_TOKEN_KL: &str = "first_token_kl";

/// The rows of one role.
struct Rows {
    /// Those that directions are found with.
    found_with: Vec<Batch>,
    /// Those that edits are measured on.
    measured: Vec<Batch>,
}

impl Rows {
    /// Takes rows in the order of the seed. The two parts have no row in common unless there is only one.
    fn draw<B: Backend>(target: &Target<B>, role: Role, seed: u64) -> Result<Self> {
        let mut stream = target.data.stream(role)?.reopened(STREAM, 1, seed)?;
        let total = stream.len();
        let measured = total.div_ceil(5).min(MEASURED_ROWS);
        let count = (total - measured).min(SEARCH_ROWS);
        let mut take = |count: usize| (0..count).map(|_| stream.next_batch()).collect::<Result<Vec<_>>>();
        let measured = together(&take(measured)?);
        let found_with = if count > 0 { together(&take(count)?) } else { measured.clone() };
        Ok(Self { found_with, measured })
    }
}

/// The rows in batches of [`ABLITERATION_BATCH`].
fn together(rows: &[Batch]) -> Vec<Batch> {
    let batch = |rows: &[Batch]| {
        let mut batch = Batch::default();
        for row in rows {
            for s in &row.segments {
                let range = s.start..s.start + s.valid;
                batch.push(&row.tokens[range.clone()], &row.labels[range], s.valid);
            }
        }
        batch
    };
    rows.chunks(ABLITERATION_BATCH).map(batch).collect()
}

impl<B: Backend> Target<B> {
    /// Tokens of the largest batch of an abliteration.
    pub(in crate::redteam) fn abliteration_capacity(&self, seed: u64) -> Result<usize> {
        let most = |role: Role| {
            let stream = self.data.stream(role)?.reopened(STREAM, ABLITERATION_BATCH, seed)?;
            Ok::<_, crate::error::Error>(stream.max_batch_tokens())
        };
        let prompts = most(Role::RestrictedPrompts)?.max(most(Role::HarmlessPrompts)?);
        Ok(prompts.max(self.measures.capacity(0)))
    }

    /// Tokens whose keys and values are kept at once where answers of up to `max_new_tokens` are generated.
    pub(in crate::redteam) fn answers_cached(&self, max_new_tokens: usize) -> usize {
        let longest = self.data.stream(Role::RestrictedPrompts).map_or(0, |stream| stream.longest());
        let batch = self.data.answer_reader().map_or(0, |reader| reader.options.batch);
        longest.saturating_add(max_new_tokens).saturating_mul(batch)
    }

    /// How an attacker with the restricted prompts tells whether the model resists. Answers are generated where compliance
    /// is measured, and where he has prompts without answers.
    ///
    /// # Errors
    /// Where answers are to be read and there is no tokenizer to read them with.
    fn resistance(&self, max_new_tokens: usize) -> Result<Resistance<'_>> {
        if self.data.is_unanswered(Role::RestrictedPrompts) {
            return Ok(Resistance::Unanswered(Answering { reader: self.data.answer_reader()?, max_new_tokens }));
        }
        Ok(match self.measures.restricted {
            Scorer::Compliance(_) => {
                Resistance::Unanswered(Answering { reader: self.data.answer_reader()?, max_new_tokens })
            }
            Scorer::Exact { .. } => Resistance::Wrong,
            Scorer::Choice { .. } => Resistance::Loss,
        })
    }
}

impl<B: Backend> Attacker<'_, B> {
    /// Removes one direction, found at `depth` or at the best of all depths.
    pub(in crate::redteam) fn abliterate(
        &mut self,
        depth: Option<f64>,
        seed: u64,
        tick: &mut Tick,
    ) -> Result<Vec<Point>> {
        let target = self.target;
        let model = Arc::clone(&target.model);
        let rows = |role: Role| {
            let mut stream = target.data.stream(role)?.reopened(STREAM, ABLITERATION_BATCH, seed)?;
            let batches = ROWS.min(stream.len()).div_ceil(ABLITERATION_BATCH);
            (0..batches).map(|_| stream.next_batch()).collect::<Result<Vec<_>>>()
        };
        let data =
            AbliterationData { restricted: rows(Role::RestrictedPrompts)?, harmless: rows(Role::HarmlessPrompts)? };
        let mut evaluator = Evaluator::new(Arc::clone(&model), target.abliteration_capacity(seed)?, &[])?;
        let harmless = Rows::draw(target, Role::HarmlessPrompts, seed)?.measured;
        let divergence = Divergence::new(&mut evaluator, &self.weights, &harmless)?;
        tick(None)?;
        let start = Instant::now();
        self.changed = true;
        let by_answers = target.data.is_unanswered(Role::RestrictedPrompts);
        let (loss, tokens) = if by_answers {
            (None, self.abliterate_by_answers(&mut evaluator, &data, depth)?)
        } else {
            let found = abliterate(&mut evaluator, &mut self.weights, &data, depth)?;
            (Some(found.loss), found.tokens)
        };
        let seconds = start.elapsed().as_secs_f64();
        let segments = || data.restricted.iter().chain(&data.harmless).flat_map(|batch| &batch.segments);
        let longest = segments().map(|s| s.length).max().unwrap_or(0);
        // Counted at the longest row: the search goes over the same rows once for each depth.
        let per_token = Costs::new(&model.config).sequence(longest, Backward::None) / longest.max(1) as f64;
        let flop = per_token * tokens as f64;
        let cost = Cost { steps: 0, examples: segments().count() as u64, tokens, flop, seconds };
        let mut scores = target.measures.scores(&mut evaluator, Subject::plain(&self.weights), &Prefix::default())?;
        scores.others.insert(FIRST_TOKEN_KL.into(), divergence.read(&mut evaluator, &self.weights)?);
        Ok(vec![self.unattacked(), Point { cost, loss, scores, ..self.unattacked() }])
    }

    /// Removes the direction at `depth`, or at the depth after which the fewest prompts are refused, as a search would keep
    /// it. Returns the tokens that went forward.
    fn abliterate_by_answers(
        &mut self,
        evaluator: &mut Evaluator<B>,
        data: &AbliterationData,
        depth: Option<f64>,
    ) -> Result<u64> {
        if depth.is_some() {
            // There is nothing to choose between.
            let mut judge = |_: &mut Evaluator<B>, _: &_| Ok(Judged { key: [0.0; 3], tokens: 0 });
            return Ok(one_direction(evaluator, &mut self.weights, data, depth, &mut judge)?.judged.tokens);
        }
        let settings = AbliterationSearch::default();
        let resistance = self.target.resistance(settings.max_new_tokens)?;
        // One batch of each side tells depths apart.
        let restricted = &data.restricted[..1.min(data.restricted.len())];
        let harmless = &data.harmless[..1.min(data.harmless.len())];
        let probe = Probe::new(evaluator, &self.weights, resistance, restricted, harmless)?;
        let mut judge = |evaluator: &mut Evaluator<B>, weights: &_| {
            let mut spent = Spent::default();
            let reading = probe.read(evaluator, weights, &mut spent)?;
            let key = preference([reading.resistance, reading.kl], settings.most_kl);
            Ok(Judged { key, tokens: spent.tokens })
        };
        Ok(one_direction(evaluator, &mut self.weights, data, depth, &mut judge)?.judged.tokens)
    }

    /// Searches for an edit. Along the way the model is measured as the attacker would keep it then.
    pub(in crate::redteam) fn search_abliteration(
        &mut self,
        table: &AbliterationSearch,
        seed: u64,
        tick: &mut Tick,
    ) -> Result<Attacked> {
        let target = self.target;
        let model = Arc::clone(&target.model);
        let restricted = Rows::draw(target, Role::RestrictedPrompts, seed)?;
        let harmless = Rows::draw(target, Role::HarmlessPrompts, seed)?;
        let mut evaluator = Evaluator::new(model, target.abliteration_capacity(seed)?, &[])?;
        tick(None)?;
        let start = Instant::now();
        let resistance = target.resistance(table.max_new_tokens)?;
        let probe = Probe::new(&mut evaluator, &self.weights, resistance, &restricted.measured, &harmless.measured)?;
        let rows = AbliterationData { restricted: restricted.found_with, harmless: harmless.found_with };
        let run = AbliterationRun::new(&mut evaluator, &self.weights, &target.weights, &rows, table, probe, seed);
        let mut run = run?;
        let all = [&rows.restricted, &rows.harmless, &restricted.measured, &harmless.measured];
        let examples = all.into_iter().flatten().map(|batch| batch.segments.len() as u64).sum();
        // Whoever knows the edit already needs the directions alone.
        let finding = [&rows.restricted, &rows.harmless].into_iter().flatten();
        let alone = Cost {
            steps: 0,
            examples: finding.map(|batch| batch.segments.len() as u64).sum(),
            tokens: run.finding.tokens,
            flop: run.finding.flop,
            seconds: run.finding_seconds,
        };
        let mut seconds = start.elapsed().as_secs_f64();
        let mut curve = vec![self.unattacked()];
        let mut measured: Option<(usize, Scores)> = None;
        self.changed = true;
        for done in 1..=table.trials {
            let start = Instant::now();
            let resistance = run.step(&mut evaluator, &mut self.weights)?.resistance;
            seconds += start.elapsed().as_secs_f64();
            let cost = Cost { steps: 0, examples, tokens: run.spent.tokens, flop: run.spent.flop, seconds };
            self.spent = cost;
            tick(Some(resistance.unwrap_or(f64::NAN)))?;
            let Some(kept) = run.kept().filter(|_| is_measured(done, table.trials, target.points)) else { continue };
            let scores = match measured.take() {
                Some((index, scores)) if index == kept => scores,
                _ => self.measure_kept(&mut evaluator, &run, kept)?,
            };
            curve.push(Point { cost, alone: Some(alone), scores: scores.clone(), ..self.unattacked() });
            measured = Some((kept, scores));
        }
        if let Some(trial) = run.kept().and_then(|kept| run.trial(kept)) {
            run.apply(&target.model, &mut self.weights, &trial.edit)?;
        }
        Ok(Attacked { curve, searched: Some(run.finish()) })
    }

    /// The scores of the model with the edit of trial `kept`.
    fn measure_kept(&mut self, evaluator: &mut Evaluator<B>, run: &AbliterationRun, kept: usize) -> Result<Scores> {
        let target = self.target;
        let Some(trial) = run.trial(kept) else { return Ok(self.before.clone()) };
        run.apply(&target.model, &mut self.weights, &trial.edit)?;
        let mut scores = target.measures.scores(evaluator, Subject::plain(&self.weights), &Prefix::default())?;
        scores.others.extend(trial.kl.map(|kl| (FIRST_TOKEN_KL.to_string(), kl)));
        Ok(scores)
    }
}
