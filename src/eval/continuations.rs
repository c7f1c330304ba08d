//! Log-probabilities of the same continuations after many prompts. What prompts have in common, the examples before all
//! questions of a subject above all, is computed once and read from the cache.

use crate::error::Result;
use crate::model::{CachedSequence, ExtendWorkspace, Extension, KeyValueCache, Model};
use crate::objective::Subject;
use crate::ops::Backend;

/// The most prompts of a batch.
const MOST_PROMPTS: usize = 64;
/// How many tokens may be computed twice to save a forward pass: one of fewer tokens takes a GPU about as long, since it
/// reads all weights.
const PASS_COST: usize = 128;

/// Scores, and what they took.
pub(super) struct Scores {
    /// For each prompt the log-probability of each continuation.
    pub scores: Vec<Vec<f64>>,
    /// Tokens that went through the model.
    pub computed: u64,
}

/// Scores every continuation after every prompt; none of either is empty, and no pair is longer than the model's positions.
/// A forward pass takes up to `pass_tokens` tokens, or a whole continuation where that has more.
pub(super) fn score<B: Backend>(
    model: &Model<B>,
    subject: Subject<B>,
    prompts: &[Vec<u32>],
    continuations: &[Vec<u32>],
    pass_tokens: usize,
) -> Result<Scores> {
    let longest = |texts: &[Vec<u32>]| texts.iter().map(Vec::len).max().unwrap_or(0);
    let capacity = pass_tokens.max(longest(continuations)).max(1);
    let slots = longest(prompts) + capacity + MOST_PROMPTS * longest(continuations);
    let mut scorer = Scorer {
        cache: KeyValueCache::new(model, slots)?,
        workspace: ExtendWorkspace::new(&model.backend, &model.config, capacity, subject.adapter)?,
        model,
        subject,
        prompts,
        continuations,
        held: CachedSequence::default(),
        held_tokens: Vec::new(),
        scores: vec![Vec::new(); prompts.len()],
        computed: 0,
    };
    // In this order every prompt has most in common with its neighbours.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by(|&a, &b| prompts[a].cmp(&prompts[b]));
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (count, shared) = scorer.plan(rest);
        let (batch, others) = rest.split_at(count);
        scorer.score_batch(batch, shared)?;
        rest = others;
    }
    Ok(Scores { scores: scorer.scores, computed: scorer.computed })
}

struct Scorer<'a, B: Backend> {
    model: &'a Model<B>,
    subject: Subject<'a, B>,
    prompts: &'a [Vec<u32>],
    continuations: &'a [Vec<u32>],
    cache: KeyValueCache<B>,
    workspace: ExtendWorkspace<B>,
    /// The beginning that the last batch had in common, and its tokens.
    held: CachedSequence,
    held_tokens: Vec<u32>,
    scores: Vec<Vec<f64>>,
    computed: u64,
}

/// How many tokens two texts begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<B: Backend> Scorer<'_, B> {
    /// How many of the next prompts make a batch, and how many tokens all of them begin with. Each keeps a token of its own,
    /// after which the continuations stand.
    fn plan(&self, order: &[usize]) -> (usize, usize) {
        let prompt = |index: usize| self.prompts[order[index]].as_slice();
        let mut shared = prompt(0).len() - 1;
        let mut total = prompt(0).len();
        // Tokens that neighbours share, summed over all pairs of them: a batch for each would not compute these again.
        let mut saved_alone = 0;
        for count in 1..order.len().min(MOST_PROMPTS) {
            let with_last = common(prompt(count - 1), prompt(count)).min(prompt(count).len() - 1);
            let less = shared.min(with_last);
            let own = prompt(count).len();
            saved_alone += with_last;
            let twice = saved_alone - count * less;
            if total + own - (count + 1) * less > self.workspace.capacity() || twice > PASS_COST {
                return (count, shared);
            }
            (shared, total) = (less, total + own);
        }
        (order.len().min(MOST_PROMPTS), shared)
    }

    fn score_batch(&mut self, batch: &[usize], shared: usize) -> Result<()> {
        self.hold(batch[0], shared)?;
        let prompts = self.prompts;
        let mut forks: Vec<CachedSequence> = batch.iter().map(|_| self.cache.fork(&self.held, shared)).collect();
        let ends: Vec<&[u32]> = batch.iter().map(|&index| &prompts[index][shared..]).collect();
        self.extend(forks.iter_mut().zip(ends.iter().copied()))?;
        let mut row = 0;
        let last_rows: Vec<u32> = ends
            .iter()
            .map(|end| {
                row += end.len() as u32;
                row - 1
            })
            .collect();
        self.score_first_tokens(batch, &last_rows)?;
        for (index, continuation) in self.continuations.iter().enumerate().filter(|(_, tokens)| tokens.len() > 1) {
            let together = (self.workspace.capacity() / continuation.len()).max(1);
            for (forks, batch) in forks.chunks_mut(together).zip(batch.chunks(together)) {
                self.score_rest(forks, batch, index)?;
            }
        }
        forks.into_iter().for_each(|fork| self.cache.release(fork));
        Ok(())
    }

    /// Makes `held` the first `shared` tokens of a prompt, from what it has of them already.
    fn hold(&mut self, prompt: usize, shared: usize) -> Result<()> {
        let wanted = &self.prompts[prompt][..shared];
        let kept = common(&self.held_tokens, wanted);
        let mut held = std::mem::take(&mut self.held);
        self.cache.truncate(&mut held, kept);
        for piece in wanted[kept..].chunks(self.workspace.capacity()) {
            self.extend([(&mut held, piece)])?;
        }
        (self.held, self.held_tokens) = (held, wanted.to_vec());
        Ok(())
    }

    fn extend<'s>(&mut self, pieces: impl IntoIterator<Item = (&'s mut CachedSequence, &'s [u32])>) -> Result<()> {
        let mut extensions: Vec<Extension> =
            pieces.into_iter().map(|(sequence, tokens)| Extension { sequence, tokens }).collect();
        self.computed += extensions.iter().map(|extension| extension.tokens.len() as u64).sum::<u64>();
        let Subject { weights, adapter, .. } = self.subject;
        self.model.extend(weights, adapter, &mut self.cache, &mut extensions, &mut self.workspace)
    }

    /// The first token of each continuation stands after the last row of its prompt.
    fn score_first_tokens(&mut self, batch: &[usize], last_rows: &[u32]) -> Result<()> {
        let firsts: Vec<u32> = self.continuations.iter().map(|tokens| tokens[0]).collect();
        let rows: Vec<u32> = last_rows.iter().flat_map(|&row| vec![row; firsts.len()]).collect();
        let found = self.log_probabilities(&rows, &firsts.repeat(batch.len()))?;
        for (&index, scores) in batch.iter().zip(found.chunks(firsts.len())) {
            self.scores[index] = scores.to_vec();
        }
        Ok(())
    }

    /// The further tokens of one continuation, after each of some prompts. The prompts are then as before.
    fn score_rest(&mut self, forks: &mut [CachedSequence], batch: &[usize], index: usize) -> Result<()> {
        let rest = &self.continuations[index][1..];
        let read = &self.continuations[index][..self.continuations[index].len() - 1];
        let lengths: Vec<usize> = forks.iter().map(CachedSequence::len).collect();
        self.extend(forks.iter_mut().map(|fork| (fork, read)))?;
        let rows: Vec<u32> = (0..(forks.len() * read.len()) as u32).collect();
        let found = self.log_probabilities(&rows, &rest.repeat(forks.len()))?;
        for (&prompt, scores) in batch.iter().zip(found.chunks(rest.len())) {
            self.scores[prompt][index] += scores.iter().sum::<f64>();
        }
        for (fork, length) in forks.iter_mut().zip(lengths) {
            self.cache.truncate(fork, length);
        }
        Ok(())
    }

    fn log_probabilities(&self, rows: &[u32], targets: &[u32]) -> Result<Vec<f64>> {
        self.model.extended_log_probabilities(self.subject.weights, &self.workspace, rows, targets)
    }
}
